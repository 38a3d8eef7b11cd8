"""Where a bridge is loaded from: a run folder, one of its checkpoints, an exported folder, or a hub repository."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_ds.checkpoint import layout
from bridge_ds.checkpoint.best import find_folder
from bridge_ds.checkpoint.finite import fault_in_files
from bridge_ds.checkpoint.load import Checkpoint
from bridge_ds.checkpoint.origin import config_in
from bridge_ds.config.schema import Config
from bridge_ds.errors import CheckpointError, ConfigError
from bridge_ds.hub.config import MODEL_TYPE, BridgeConfig, from_run
from bridge_ds.inference.load import open_run
from bridge_ds.reading import decoded, json_value

__all__ = ["CARD", "CONFIG", "GENERATION", "HUB_OPTIONS", "BridgeSource", "hub_options", "open_source", "renamed"]

CONFIG, GENERATION, CARD = "config.json", "generation_config.json", "README.md"
"""Files of an exported folder beside those of a checkpoint that hold what was trained."""
HUB_OPTIONS = ("cache_dir", "token", "local_files_only", "force_download", "proxies")
"""Arguments of from_pretrained that say how to reach the hub; they hold for the bridge and for both base models."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BridgeSource:
    """All files of one bridge; nothing large has been read."""

    name: str
    """As it was asked for."""
    config: BridgeConfig
    """What the bridge is."""
    tensors: Callable[[], list[Path]]
    """Gives bridge.safetensors and those of a trained encoder, LLM or LoRA, fetched where they lie on the hub."""
    generation: dict[str, Any]
    """Options of transformers' GenerationConfig that belong to the bridge."""
    card: Callable[[BridgeConfig], str]
    """Makes the model card for a config (its base models may be named otherwise than in training), or reads it."""


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take those of HUB_OPTIONS that are set out of `options`."""
    taken = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
    return {name: value for name, value in taken.items() if value is not None}


def open_source(
    name: str, revision: str | None = None, hub: Mapping[str, Any] | None = None, config: BridgeConfig | None = None
) -> BridgeSource:
    """Find a bridge.

    Args:
        name: run folder, checkpoint folder (`step-...`, or `RUN/checkpoints/best`), exported folder, or hub id.
        revision: of the hub repository.
        hub: HUB_OPTIONS.
        config: what the bridge is, where that is known already (AutoModelForCausalLM hands it over).

    Raises:
        ConfigError: nothing of that kind is there.
        CheckpointError: a run without a valid checkpoint.
    """
    folder = find_folder(Path(name))
    if (folder / "config.yaml").is_file():
        run_config, checkpoint = open_run(folder, lambda line: _log.warning("%s", line))
        return _of_checkpoint(name, folder, checkpoint, run_config, config)
    if (folder / layout.MANIFEST).is_file():
        checkpoint = Checkpoint.read(folder)
        run_config = config_in(checkpoint)
        return _of_checkpoint(name, folder.absolute().parents[1], checkpoint, run_config, config)
    _refuse_misspelt(folder)
    if folder.is_dir() and not (folder / CONFIG).is_file():
        raise ConfigError(
            f"{name} holds no config.yaml, no {layout.MANIFEST} and no {CONFIG}; expected a run folder, a checkpoint "
            "or a folder written by save_pretrained."
        )
    return _of_export(name, revision, hub or {}, config)


def _refuse_misspelt(folder: Path) -> None:
    """Of a name beside other runs the hub is not asked: without a network that takes half a minute."""
    beside = folder.parent
    if folder.exists() or not beside.is_dir() or beside == Path("."):
        return
    runs = sorted(path.name for path in beside.iterdir() if (path / "config.yaml").is_file())
    if runs:
        near = difflib.get_close_matches(folder.name, runs, 1, 0)
        raise ConfigError(
            f"{folder} is not there; expected one of the {len(runs)} runs in {beside}; did you mean {near[0]!r}?"
        )


def renamed(source: BridgeSource, names: Mapping[str, str | None]) -> BridgeSource:
    """The same bridge with other places of its base models (`encoder`, `llm`, `encoder_revision`, `llm_revision`)."""
    config = copy.deepcopy(source.config)
    for name, value in names.items():
        if value is not None:
            setattr(config, name, value)
            if name in ("encoder", "llm") and names.get(f"{name}_revision") is None:
                setattr(config, f"{name}_revision", None)  # a revision of another repository means nothing here
    return dataclasses.replace(source, config=config)


def _of_checkpoint(
    name: str, run: Path, checkpoint: Checkpoint, run_config: Config, config: BridgeConfig | None
) -> BridgeSource:
    def card(shared: BridgeConfig) -> str:
        from bridge_ds.hub.card import card_of_run

        return card_of_run(run, run_config, checkpoint, shared)

    config = config or from_run(run_config, checkpoint.manifest["base"])
    # As long as what was trained on: an answer that runs on is cut there.
    generation = {"max_new_tokens": run_config.data.max_target_tokens}
    return BridgeSource(name, config, lambda: layout.trained_files(checkpoint.folder), generation, card)


def _of_export(name: str, revision: str | None, hub: Mapping[str, Any], config: BridgeConfig | None) -> BridgeSource:
    def tensors() -> list[Path]:
        parts = (layout.ENCODER, shared.encoder_training), (layout.LLM, shared.llm_training), (layout.LORA, shared.lora)
        files = [layout.BRIDGE, *(file for file, there in parts if there)]
        found = []
        for file in files:
            path = _file(name, file, revision, hub)
            if path is None:
                raise CheckpointError(f"{name} has no {file}; expected it beside {CONFIG}; export the bridge again.")
            found.append(path)
        _prove(name, found, shared)
        return found

    path = _file(name, CONFIG, revision, hub)
    if path is None:
        raise ConfigError(
            f"{name!r} is no folder, and no {CONFIG} of a hub repository of that name can be had; expected a run "
            "folder, a folder written by save_pretrained, or the hub id of one."
        )
    values = _json(path)
    if values.get("model_type") != MODEL_TYPE:
        raise ConfigError(
            f"{path} is of type {values.get('model_type')!r}; expected a bridge (type {MODEL_TYPE!r}): give a run "
            "folder, a folder written by save_pretrained, or the hub id of one."
        )
    shared = _inside(Path(name), config or BridgeConfig.from_dict(values))
    generation, card = _file(name, GENERATION, revision, hub), _file(name, CARD, revision, hub)
    text = card.read_text(encoding="utf-8") if card else ""
    return BridgeSource(
        name,
        shared,
        tensors,
        _json(generation) if generation else {},
        lambda _: text,
    )


def _prove(name: str, paths: Sequence[Path], config: BridgeConfig) -> None:
    """Every file is the one that was exported, and holds numbers.

    Raises:
        CheckpointError: a file was changed, is not listed, or holds NaN or infinities.
    """
    from safetensors import SafetensorError

    edited = f"export the bridge again or, if you changed it on purpose, take `files` out of {CONFIG}"
    if config.files is not None and set(config.files) != {path.name for path in paths}:
        raise CheckpointError(
            f"{CONFIG} of {name} lists the files {', '.join(sorted(config.files)) or 'none'}; expected "
            f"{', '.join(path.name for path in paths)}; {edited}."
        )
    for path in paths:
        told = None if config.files is None else config.files[path.name]
        try:
            if told is not None and told != layout.entry_of(path):
                raise CheckpointError(
                    f"{path} is not what was exported (another size or sha256 than {CONFIG} says); expected "
                    f"safetensors that nobody changed; {edited}."
                )
            fault = fault_in_files([path])
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path} cannot be read ({reason}); expected safetensors; get it again.") from None
        if fault:
            raise CheckpointError(f"{name}: {fault}; expected finite numbers; export another checkpoint of the run.")


def _inside(folder: Path, config: BridgeConfig) -> BridgeConfig:
    """The config with the places of base models that lie in the folder itself (tools/export.py)."""
    found = copy.deepcopy(config)
    for part in ("encoder", "llm"):
        name = Path(getattr(config, part))
        # Never out of the folder: a config from elsewhere must not choose among this machine's files.
        if not name.is_absolute() and ".." not in name.parts and (folder / name / CONFIG).is_file():
            setattr(found, part, str((folder / name).absolute()))
    return found


def _file(name: str, filename: str, revision: str | None, hub: Mapping[str, Any]) -> Path | None:
    """A file of a folder or a hub repository; none where the repository has no such file."""
    from bridge_ds.frozen.verify import model_file

    try:
        return model_file(name, filename, revision, hub)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{name!r} cannot be found ({reason}); give a run folder, a folder written by save_pretrained, or a hub id."
        ) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json_value(decoded(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({error}); expected what save_pretrained writes.") from None
    return values if isinstance(values, dict) else {}
