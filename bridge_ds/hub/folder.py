"""The folder (or hub repository) in which a bridge is shared: written, uploaded, and read with every hash checked.

config.json               :class:`bridge_ds.hub.config.BridgeConfig`, with the hashes of the other files and its own
generation_config.json    options of generate that belong to the bridge
bridge.safetensors        and encoder, llm or lora.safetensors, as in a checkpoint
README.md                 the model card
choice.json               where the LLM alone is better, if the run has such a table
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import GenerationConfig

from bridge_ds.bridge import BridgeModel
from bridge_ds.checkpoint import layout
from bridge_ds.checkpoint.finite import fault_in, fault_in_files
from bridge_ds.checkpoint.load import trained_tensors
from bridge_ds.disk import real
from bridge_ds.errors import BridgeError, CheckpointError, ConfigError, brief
from bridge_ds.frozen.verify import model_file, why_no_hub
from bridge_ds.hub.card import HERE
from bridge_ds.hub.config import CONFIG, MODEL_TYPE, BridgeConfig, save_config, settings_sha256
from bridge_ds.inference.choice import CHOICE, ChoiceTable, write_choice
from bridge_ds.typed import typed_object

__all__ = [
    "CARD", "CONFIG", "GENERATION", "SharedBridge", "find_file", "read_config", "tensor_files", "upload",
    "valid_choice", "write_folder",
]  # fmt: skip

_log = logging.getLogger(__name__)
GENERATION, CARD = "generation_config.json", "README.md"


@dataclass(frozen=True)
class SharedBridge:
    """What is written."""

    config: BridgeConfig
    bridge: BridgeModel
    """Holds the trained tensors."""
    generation: GenerationConfig
    card: str
    """Model card, Markdown."""
    choice: ChoiceTable | None = None
    """By which `generate` and `serve` may choose between the bridge and the LLM alone."""


def write_folder(folder: Path, shared: SharedBridge) -> None:
    """Write the folder, which is created if absent.

    Raises:
        CheckpointError: a trained tensor holds NaN or infinities.
        ConfigError: a file of that name, or the folder cannot be written.
    """
    trained = trained_tensors(shared.bridge)
    fault = fault_in(trained.items())
    if fault:
        raise CheckpointError(f"{fault}; expected finite numbers; nothing was written: export another checkpoint.")
    files: dict[str, dict[str, torch.Tensor]] = {}
    file_of = layout.files_of(trained)
    for name, tensor in trained.items():
        assert tensor.dtype == torch.float32, name
        files.setdefault(file_of[name], {})[name] = tensor.detach().cpu().contiguous()
    try:
        real(folder).mkdir(parents=True, exist_ok=True)
        for name, tensors in files.items():
            save_file(tensors, folder / name, metadata={"format": "pt"})
        save_config(shared.config, folder, {name: layout.entry_of(folder / name) for name in sorted(files)})
        shared.generation.save_pretrained(folder)
        (folder / CARD).write_text(shared.card, encoding="utf-8")
        if shared.choice is not None:
            write_choice(folder, shared.choice.moved([folder / name for name in files], shared.config.base))
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror or error}); expected a writable folder; choose another."
        ) from None


def valid_choice(read: Callable[[], ChoiceTable | None]) -> ChoiceTable | None:
    """The table that `read` gives; none, with a warning, where it is not valid for the bridge that is shared."""
    try:
        return read()
    except BridgeError as error:
        _log.warning("%s is left out: %s", CHOICE, error)
        return None


def upload(
    repo_id: str,
    shared: SharedBridge,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    commit_message: str = "Upload bridge",
    **commit: Any,
) -> str:
    """Create the repository if needed, and commit the folder of :func:`write_folder` to it.

    Args:
        repo_id: `name` or `organisation/name`.
        shared: what is uploaded.
        private: whether a new repository is.
        token: with write access (default: that of `hf auth login`).
        commit_message: of the commit.
        commit: commit_description, revision, create_pr.

    Returns:
        the commit's URL.

    Raises:
        ConfigError: a base model is named by a local folder, which nobody else could load.
    """
    for part in ("encoder", "llm"):
        name = getattr(shared.config, part)
        if Path(name).is_dir():
            raise ConfigError(
                f"the {part} is named by a folder of this machine ({name}); expected a hub id, for others to load it; "
                f"load the bridge again with {part}=HUB_ID, which is verified by its hash."
            )
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), replace(shared, card=shared.card.replace(f'"{HERE}"', f'"{repo_id}"')))
        done = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message, **commit)
    return str(done.commit_url)


def read_config(name: str, revision: str | None, hub: Mapping[str, Any]) -> BridgeConfig:
    """config.json of a folder or hub repository.

    Args:
        name: folder or hub id.
        revision: of the hub repository.
        hub: HUB_OPTIONS of :mod:`bridge_ds.hub.source`.

    Raises:
        ConfigError: there is none, or it is of another kind of model.
        CheckpointError: somebody changed its settings.
    """
    path = find_file(name, CONFIG, revision, hub)
    if path is None:
        why = "" if Path(name).is_dir() or not why_no_hub() else f" ({why_no_hub()})"
        raise ConfigError(
            f"{name!r} is no folder, and no {CONFIG} of a hub repository of that name can be had{why}; expected a run "
            "folder, a folder written by save_pretrained, or the hub id of one."
        )
    try:
        values = typed_object(path, dict)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error}); expected JSON; get it again.") from None
    except ValueError as error:
        raise ConfigError(f"{path} {error}; expected what save_pretrained writes; get the file again.") from None
    if values.get("model_type") != MODEL_TYPE:
        raise ConfigError(
            f"{path} is of type {values.get('model_type')!r}; expected a bridge (type {MODEL_TYPE!r}): give a run "
            "folder, a folder written by save_pretrained, or the hub id of one."
        )
    if values.get("settings_sha256") not in (None, settings_sha256(values)):
        raise CheckpointError(
            f"the settings in {path} are not those that were exported (another sha256); with others the same weights "
            "compute something else; export the bridge again or, if you changed them on purpose, take "
            f"`settings_sha256` out of {CONFIG}."
        )
    return BridgeConfig.from_dict(values, name_or_path=name)


def tensor_files(name: str, config: BridgeConfig, revision: str | None, hub: Mapping[str, Any]) -> list[Path]:
    """The files of trained tensors, `bridge.safetensors` first, each compared with its hash; arguments as above.

    Raises:
        CheckpointError: a file is missing, was changed, is not listed, or holds NaN or infinities.
    """
    optional = {layout.ENCODER: config.encoder_training, layout.LLM: config.llm_training, layout.LORA: config.lora}
    paths = []
    for file in (layout.BRIDGE, *(file for file, trained in optional.items() if trained)):
        path = find_file(name, file, revision, hub)
        if path is None:
            raise CheckpointError(f"{name} has no {file}; expected it beside {CONFIG}; export the bridge again.")
        paths.append(path)
    _check(name, paths, config)
    return paths


def _check(name: str, paths: Sequence[Path], config: BridgeConfig) -> None:
    edited = f"export the bridge again or, if you changed it on purpose, take `files` out of {CONFIG}"
    if config.files is not None and set(config.files) != {path.name for path in paths}:
        raise CheckpointError(
            f"{CONFIG} of {name} lists the files {', '.join(sorted(config.files)) or 'none'}; expected "
            f"{', '.join(path.name for path in paths)}; {edited}."
        )
    for path in paths:
        try:
            if config.files is not None and config.files[path.name] != layout.entry_of(path):
                raise CheckpointError(
                    f"{path} is not what was exported (another size or sha256 than in {CONFIG}); expected safetensors "
                    f"that nobody changed; {edited}."
                )
            fault = fault_in_files([path])
        except (OSError, SafetensorError) as error:
            reason = brief(error)
            raise CheckpointError(f"{path} cannot be read ({reason}); expected safetensors; get it again.") from None
        if fault:
            raise CheckpointError(f"{name}: {fault}; expected finite numbers; export another checkpoint of the run.")


def find_file(name: str, filename: str, revision: str | None, hub: Mapping[str, Any]) -> Path | None:
    """A file of a folder or a hub repository (fetched); None if there is no such file.

    Raises:
        ConfigError: there is no such repository, or the hub cannot be reached.
    """
    try:
        return model_file(name, filename, revision, hub)
    except ConfigError:
        raise ConfigError(
            f"there is no folder {name!r} (looked for in {Path.cwd()}), and it is no hub id either; give a run folder, "
            "a folder written by save_pretrained, or a hub id."
        ) from None
    except (OSError, ValueError) as error:
        reason = brief(error, 300)
        raise ConfigError(
            f"{name!r} cannot be found ({reason}); give a run folder, a folder written by save_pretrained, or a hub id."
        ) from None
