"""Where a bridge is loaded from: a run folder, one of its checkpoints, an exported folder, or a hub repository."""

from __future__ import annotations

import copy
import difflib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bridge_ds.checkpoint import layout
from bridge_ds.checkpoint.bases import other_bases
from bridge_ds.checkpoint.best import find_folder
from bridge_ds.checkpoint.load import Checkpoint
from bridge_ds.checkpoint.origin import config_in
from bridge_ds.config.names import found_beside
from bridge_ds.config.schema import Config, DataConfig, ModelConfig
from bridge_ds.errors import CheckpointError, ConfigError
from bridge_ds.hub.card import CardFacts, model_card
from bridge_ds.hub.config import CONFIG, BridgeConfig, from_run
from bridge_ds.hub.folder import CARD, GENERATION, find_file, read_config, tensor_files
from bridge_ds.hub.generation import read_generation
from bridge_ds.inference.choice import CHOICE, ChoiceTable, Measured, read_choice, refuse_stale
from bridge_ds.inference.load import open_run, refuse_llm_alone
from bridge_ds.metrics import read_results
from bridge_ds.reading import NotText, decoded
from bridge_ds.track.metrics_file import iter_metrics

__all__ = ["HUB_OPTIONS", "BridgeSource", "check_bases", "hub_options", "open_source"]

HUB_OPTIONS = ("cache_dir", "token", "local_files_only", "force_download", "proxies")
"""Arguments of from_pretrained on how to reach the hub, for the bridge and for both base models."""

_IGNORED = ("_from_auto", "_from_pipeline", "_commit_hash", "adapter_kwargs", "low_cpu_mem_usage", "use_safetensors")
"""What the Auto classes pass to every model; without a meaning here."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BridgeSource:
    """All files of one bridge; nothing large has been read."""

    name: str
    """As the user gave it."""
    config: BridgeConfig
    """Of the bridge."""
    trained: Mapping[str, Any]
    """`encoder` and `llm` as the training named them."""
    tensors: Callable[[], list[Path]]
    """Gives bridge.safetensors and those of a trained encoder, LLM or LoRA, downloaded if on the hub."""
    generation: dict[str, Any]
    """Options of transformers' GenerationConfig that belong to the bridge."""
    choice: Callable[[], Path | None]
    """Gives choice.json, downloaded if on the hub; None = there is none."""
    checkpoint: str
    """Name of the checkpoint's folder; empty where that is not recorded."""
    card: Callable[[BridgeConfig], str]
    """The model card: read, or made for a config (which may name the base models otherwise than the training)."""

    def read_choice(self, tensors: Sequence[Path], base: Mapping[str, str], data: DataConfig) -> ChoiceTable | None:
        """The table in choice.json; None = there is none.

        Args:
            tensors: files of what was trained.
            base: hashes of the base models that are loaded.
            data: settings that are used.

        Raises:
            CheckpointError: it was measured with others.
            DataError: it cannot be read.
        """
        path = self.choice()
        if path is None:
            return None
        table = read_choice(path)
        refuse_stale(path, table.measured, Measured.of(self.checkpoint, tensors, base, data))
        return table


def hub_options(of: Callable[..., Any], options: Mapping[str, Any], args: Sequence[Any] = ()) -> dict[str, Any]:
    """Those of HUB_OPTIONS that are set.

    Args:
        of: a from_pretrained.
        options: what it was given beside its own parameters.
        args: positional ones that it has no use for.

    Raises:
        ConfigError: an option that it does not know.
    """
    unknown = [repr(name) for name in options if name not in (*HUB_OPTIONS, *_IGNORED)]
    if unknown or args:
        known = [name for name in inspect.signature(of).parameters if name not in ("args", "options")]
        raise ConfigError(
            f"from_pretrained does not know {unknown[0] if unknown else 'a second positional argument'}; expected some "
            f"of {', '.join([*known, *HUB_OPTIONS])}."
        )
    return {name: options[name] for name in HUB_OPTIONS if options.get(name) is not None}


def open_source(
    name: str,
    revision: str | None = None,
    hub: Mapping[str, Any] | None = None,
    config: BridgeConfig | None = None,
    bases: Mapping[str, str | None] | None = None,
) -> BridgeSource:
    """Find a bridge.

    Args:
        name: run folder, checkpoint folder (`step-...`, or `RUN/checkpoints/best`), exported folder, or hub id.
        revision: of the hub repository.
        hub: HUB_OPTIONS.
        config: used instead of the source's (AutoModelForCausalLM hands over the one it has read).
        bases: where the base models are now (`encoder`, `llm`, `encoder_revision`, `llm_revision`; None = as recorded).

    Raises:
        ConfigError: nothing of that kind is there.
        CheckpointError: a run without a valid checkpoint, or an export whose settings were changed.
    """
    source = _found(name, revision, hub or {}, config)
    for key, value in (bases or {}).items():
        if value is not None:
            setattr(source.config, key, value)
            if key in ("encoder", "llm") and (bases or {}).get(f"{key}_revision") is None:
                setattr(source.config, f"{key}_revision", None)  # a revision of another repository means nothing here
    return source


def _found(name: str, revision: str | None, hub: Mapping[str, Any], config: BridgeConfig | None) -> BridgeSource:
    folder = find_folder(Path(name))
    if (folder / "config.yaml").is_file():
        run_config, checkpoint = open_run(folder, note=_log.warning)
        return _of_checkpoint(name, folder, checkpoint, run_config, config)
    if (folder / layout.MANIFEST).is_file():
        checkpoint, run = Checkpoint.read(folder), folder.absolute().parents[1]
        trained = config_in(checkpoint)
        refuse_llm_alone(trained, run)
        trained = replace(trained, model=found_beside(trained.model, run))
        return _of_checkpoint(name, run, checkpoint, trained, config)
    _refuse_misspelt(folder)
    if folder.is_dir() and not (folder / CONFIG).is_file():
        raise ConfigError(
            f"{name} holds no config.yaml, no {layout.MANIFEST} and no {CONFIG}; expected a run folder, a checkpoint "
            "or a folder written by save_pretrained."
        )
    return _of_export(name, revision, hub, config)


def _refuse_misspelt(folder: Path) -> None:
    """The hub is not asked for a name beside other runs: without a network that takes half a minute."""
    beside = folder.parent
    if folder.exists() or not beside.is_dir() or beside == Path("."):
        return
    runs = sorted(path.name for path in beside.iterdir() if (path / "config.yaml").is_file())
    if runs:
        near = difflib.get_close_matches(folder.name, runs, 1, 0)
        raise ConfigError(
            f"{folder} is not there; expected one of the {len(runs)} runs in {beside}; did you mean {near[0]!r}?"
        )


def _of_checkpoint(
    name: str, run: Path, checkpoint: Checkpoint, run_config: Config, config: BridgeConfig | None
) -> BridgeSource:
    return BridgeSource(
        name,
        copy.deepcopy(config) if config else from_run(run_config, checkpoint.manifest["base"]),
        checkpoint.manifest.get("config", {}).get("model", {}),
        lambda: layout.trained_files(checkpoint.folder),
        # As long as the longest target of the training: an answer that does not end is truncated there.
        {"max_new_tokens": run_config.data.max_target_tokens},
        lambda: find_file(str(run), CHOICE, None, {}),
        checkpoint.folder.name,
        lambda shared: model_card(shared, _facts(run, run_config, checkpoint)),
    )


def _of_export(name: str, revision: str | None, hub: Mapping[str, Any], config: BridgeConfig | None) -> BridgeSource:
    there = _inside(Path(name), read_config(name, revision, hub))
    shared = _inside(Path(name), config) if config else there
    generation, card = find_file(name, GENERATION, revision, hub), find_file(name, CARD, revision, hub)
    return BridgeSource(
        name,
        shared,
        {"encoder": there.encoder, "llm": there.llm},
        lambda: tensor_files(name, shared, revision, hub),
        read_generation(generation) if generation else {},
        lambda: find_file(name, CHOICE, revision, hub),
        "",
        lambda _: _text(card) if card else "",
    )


def _text(card: Path) -> str:
    try:
        return decoded(card.read_bytes())
    except (OSError, NotText) as error:
        raise ConfigError(f"{card} {error}; it is the model card, which is written again with the bridge.") from None


def _inside(folder: Path, config: BridgeConfig) -> BridgeConfig:
    """The config with the paths of base models that are in the folder itself (:mod:`bridge_ds.hub.export`)."""
    found = copy.deepcopy(config)
    for part in ("encoder", "llm"):
        name = Path(getattr(config, part))
        # Never outside of the folder: a config from elsewhere must not choose among this machine's files.
        if not name.is_absolute() and ".." not in name.parts and (folder / name / CONFIG).is_file():
            setattr(found, part, str((folder / name).absolute()))
    return found


def _facts(run: Path, config: Config, checkpoint: Checkpoint) -> CardFacts:
    """What the model card says of a run; evaluation.json and metrics.jsonl are read if there.

    Raises:
        DataError: one of them is damaged.
    """
    results, scored = read_results(run)
    return CardFacts(
        name=run.resolve().name,
        config=config,
        step=checkpoint.step,
        state=checkpoint.state,
        versions=checkpoint.manifest.get("versions") or {},
        checkpoint=checkpoint.folder.name,
        layer_weights=_layer_weights(run / "metrics.jsonl", checkpoint.step),
        results=results,
        scored=scored,
    )


def _layer_weights(metrics: Path, step: int) -> list[float | None]:
    """Mean layer weights of the last training step up to `step`; empty if none were logged."""
    found: list[float | None] = []
    for record in iter_metrics(metrics) if metrics.is_file() else ():
        if record["step"] <= step:
            found = record.get("layer_weights") or found
    return found


def check_bases(source: BridgeSource, found: Mapping[str, str], allowed: bool = False) -> None:
    """Compare base models with those of the training.

    Args:
        source: the bridge; its config names them.
        found: identities of what is loaded, see :func:`bridge_ds.checkpoint.bases.other_bases`.
        allowed: others are loaded anyway, with a warning.

    Raises:
        CheckpointError: one of them is another.
    """
    now = ModelConfig(encoder=source.config.encoder, llm=source.config.llm)
    other = other_bases(source.config.base, found, now, source.name, source.trained)
    if other and not allowed:
        raise CheckpointError(
            f"{other}; expected the same; name it with encoder=, llm=, encoder_revision= or llm_revision= (commands: "
            "--encoder, --llm), or load it anyway with allow_base_mismatch=True (--allow-base-mismatch)."
        )
    if other:
        _log.warning("%s; loaded anyway, because allow_base_mismatch is true.", other)
