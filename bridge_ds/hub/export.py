"""A bridge and both its base models in one folder, for machines without a hub."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

from bridge_ds.config.names import resolve
from bridge_ds.disk import atomic_folder, missing_or_empty
from bridge_ds.errors import BridgeError, CheckpointError, ConfigError
from bridge_ds.frozen.digest import KEPT
from bridge_ds.frozen.identity import model_identity, published_config
from bridge_ds.frozen.verify import loaded_files, weight_files
from bridge_ds.hub.card import exported
from bridge_ds.hub.config import to_run
from bridge_ds.hub.folder import SharedBridge, valid_choice, write_folder
from bridge_ds.hub.llm import LICENCES, copy_beside
from bridge_ds.hub.model import BridgeForCausalLM
from bridge_ds.hub.processor import BridgeProcessor
from bridge_ds.llm.frozen import load_llm
from bridge_ds.llm.lora import merge_lora

__all__ = ["PARTS", "export"]

PARTS = ("encoder", "llm")
"""Folders of the base models in an exported folder; its config.json names them so."""
_DOCUMENTS = ("README.md", *LICENCES)
_CONFIGS = ("config.json", "generation_config.json", "model.safetensors.index.json")


def export(run: str, folder: Path, merge: bool = False, **loading: Any) -> list[str]:
    """Write the folder; after an error it is not there.

    Base models published as safetensors are copied byte for byte; others (mT5's `pytorch_model.bin`) are loaded and
    saved as safetensors, and config.json gets the new hash.

    Args:
        run: as for BridgeForCausalLM.from_pretrained.
        folder: to create.
        merge: write the LLM with LoRA's updates and trained biases merged into it, and no `lora.safetensors`.
        loading: more options of from_pretrained.

    Returns:
        lines that say what was written.

    Raises:
        ConfigError: the folder exists, or cannot be written; there is nothing to merge; or a base model has an adapter.
        CheckpointError: what was written does not load as what it was made from.
    """
    if not missing_or_empty(folder) or (folder.exists() and not folder.is_symlink()):
        raise ConfigError(f"{folder} is there already; expected a new folder; choose another --output.")
    model = BridgeForCausalLM.from_pretrained(run, **loading)
    if merge and not getattr(model.bridge.llm, "updated", None):
        raise ConfigError(f"{run} has no updates of the LLM to merge (lora.rank); leave --merge-lora out.")
    _refuse_adapters(model)
    try:
        with atomic_folder(folder, "part") as part:
            lines = _write(model, part, merge)
            _check(model, part)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror or error}); expected room for both models; choose another "
            "--output."
        ) from None
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return [*lines, f"{size / 1e9:.2f} GB in all"]


def _refuse_adapters(model: BridgeForCausalLM) -> None:
    for part in PARTS:
        name = getattr(model.config, part)
        files = loaded_files(resolve(name), getattr(model.config, f"{part}_revision"))
        if any(path.name.startswith("adapter_") for path in files):
            raise ConfigError(
                f"the {part} {name} has an adapter of PEFT, which would be left out of the copy of its weights; "
                "expected a model without one; copy that folder beside what save_pretrained writes of the bridge, or "
                "merge the adapter into the model before a bridge is trained to it."
            )


def _write(model: BridgeForCausalLM, folder: Path, merge: bool) -> list[str]:
    card = exported(model.card, merge)  # made while the base models still have their own names
    config = copy.deepcopy(model.config)
    if merge:
        config.lora = {}
        merge_lora(model.bridge.llm)
    lines = []
    for part in PARTS:
        how = _write_base(model, part, folder / part, merged=merge and part == "llm")
        lines.append(f"{part}: {getattr(config, part)}, {how}")
        identity = model_identity(published_config(str(folder / part)), str(folder / part))
        (folder / part / KEPT).unlink(missing_ok=True)  # a cache of hashes, of no use elsewhere
        config.base = {**config.base, part: identity}
        setattr(config, part, part)
        setattr(config, f"{part}_revision", None)
    # Where the updates are merged into it, the LLM alone is another.
    choice = None if merge else valid_choice(lambda: model.choice)
    write_folder(folder, SharedBridge(config, model.bridge, model.generation_config, card, choice))
    return lines


def _write_base(model: BridgeForCausalLM, part: str, folder: Path, merged: bool) -> str:
    """Write a base model, its tokenizer and its licence; returns how."""
    published, revision = getattr(model.config, part), getattr(model.config, f"{part}_revision")
    name = resolve(published)
    folder.mkdir()
    weights = [] if merged else weight_files(name, revision)
    for path in weights:
        shutil.copyfile(path, folder / path.name)
    if not weights:
        loaded = getattr(model.bridge, part).model
        if part == "llm" and model.bridge.llm.trained:
            loaded = load_llm(to_run(model.config).model).model  # without peft's modules
        loaded.save_pretrained(folder)
    files = (*_CONFIGS, *_DOCUMENTS) if weights else _DOCUMENTS
    copy_beside(getattr(model.tokenizers, part), published, revision, folder, files)
    if merged:
        return "saved with the updates merged into it"
    return "copied byte for byte" if weights else "saved as safetensors, since it is published in another format"


def _check(model: BridgeForCausalLM, folder: Path) -> None:
    """Load the tokenizers as another machine would, without a hub; weights are verified whenever they are loaded."""
    remedy = "name folders that hold all their files with --encoder and --llm"
    try:
        loaded = BridgeProcessor.from_pretrained(folder, local_files_only=True).tokenizers
    except BridgeError as error:
        raise CheckpointError(
            f"the tokenizers do not load from the written folder ({error}); expected those of the run; {remedy}."
        ) from None
    probe = ["a b c", "one, two; 3?"]
    ours, theirs = (
        (of.sources(probe), of.prompts(probe), of.labels(probe), of.bos_id, of.pad_id)
        for of in (model.tokenizers, loaded)
    )
    if ours != theirs:
        raise CheckpointError(
            f"the tokenizers give other ids when loaded from the written folder; expected the same; {remedy}."
        )
