"""A bridge and both its base models in one folder, for machines without a hub."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

from bridge_ds.config.names import resolve
from bridge_ds.data.text.spiece import find_spiece
from bridge_ds.disk import atomic_folder, missing_or_empty
from bridge_ds.errors import CheckpointError, ConfigError
from bridge_ds.frozen.digest import KEPT
from bridge_ds.frozen.identity import model_identity, published_config, tokenizer_files
from bridge_ds.frozen.verify import model_file, weight_files
from bridge_ds.hub.card import ELSEWHERE, MERGED, UPDATES
from bridge_ds.hub.config import to_run
from bridge_ds.hub.model import BridgeForCausalLM
from bridge_ds.hub.processor import BridgeProcessor
from bridge_ds.hub.share import write_folder
from bridge_ds.llm.frozen import load_llm
from bridge_ds.llm.lora import merge_lora

__all__ = ["INSIDE", "PARTS", "export"]

PARTS = ("encoder", "llm")
"""Folders of the base models in an exported folder; its config.json names them so."""
INSIDE = "The base models lie beside it, in `encoder/` and `llm/`, proven by hash when they are loaded."
"""Stands in the model card in place of :data:`bridge_ds.hub.card.ELSEWHERE`."""
_BESIDE = (
    "config.json", "generation_config.json", "model.safetensors.index.json", "README.md", "LICENSE", "LICENSE.txt",
    "LICENSE.md", "NOTICE", "USE_POLICY.md",
)  # fmt: skip
"""Files of a model beside its weights and its tokenizer; licences go where the weights go."""


def export(run: str, folder: Path, merge: bool = False, **loading: Any) -> list[str]:
    """Write the folder; it is there whole or not at all.

    Base models that are published as safetensors are copied byte for byte; one that is published otherwise (mT5's
    `pytorch_model.bin`) is loaded and saved as safetensors, and its new hash takes the old one's place.

    Args:
        run: what BridgeForCausalLM.from_pretrained takes.
        folder: to make.
        merge: write an LLM with LoRA's updates and biases merged into it; the folder then holds none beside it.
        loading: more of its options.

    Returns:
        lines that say what was written.

    Raises:
        ConfigError: the folder is there already, or cannot be written; or there is nothing to merge.
        CheckpointError: what was written does not load as what it was made from.
    """
    if not missing_or_empty(folder) or (folder.exists() and not folder.is_symlink()):
        raise ConfigError(f"{folder} is there already; expected a new folder; choose another --output.")
    model = BridgeForCausalLM.from_pretrained(run, **loading)
    if merge and not getattr(model.bridge.llm, "updated", None):
        raise ConfigError(f"{run} has no updates of the LLM to merge (lora.rank); leave --merge-lora out.")
    try:
        with atomic_folder(folder, "part") as part:
            lines = _write(model, part, merge)
            _prove(model, part)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror or error}); expected room for both models; choose another "
            "--output."
        ) from None
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return [*lines, f"{size / 1e9:.2f} GB in all"]


def _write(model: BridgeForCausalLM, folder: Path, merge: bool) -> list[str]:
    card = model.card.replace(ELSEWHERE, INSIDE)  # made while the base models still have their own names
    config = copy.deepcopy(model.config)
    if merge:
        card, config.lora = card.replace(UPDATES, MERGED), {}
        merge_lora(model.bridge.llm)
    lines = []
    for part, loaded in zip(PARTS, (model.bridge.encoder.model, model.bridge.llm.model), strict=True):
        name, revision = getattr(config, part), getattr(config, f"{part}_revision")
        place = folder / part
        place.mkdir()
        merged = merge and part == "llm"
        weights = [] if merged else weight_files(resolve(name), revision)
        if weights:
            _copy(name, revision, place, _BESIDE)
            for path in weights:
                shutil.copyfile(path, place / path.name)
        else:
            if part == "llm" and model.bridge.llm.trained:
                loaded = load_llm(to_run(model.config).model).model  # without what peft has put into this one
            loaded.save_pretrained(place)
            _copy(name, revision, place, _BESIDE[3:])
        for each, path in tokenizer_files(getattr(model.tokenizers, part), resolve(name), revision).items():
            (place / each).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, place / each)
        spiece = find_spiece(name, revision)
        if spiece and not (place / spiece.name).exists():
            shutil.copyfile(spiece, place / spiece.name)
        same = model_identity(published_config(str(place)), str(place))
        (place / KEPT).unlink(missing_ok=True)  # of no use elsewhere
        config.base = {**config.base, part: same}
        setattr(config, part, part)
        setattr(config, f"{part}_revision", None)
        how = "copied byte for byte" if weights else "saved as safetensors, for it is published otherwise"
        how = "saved with the updates merged into it" if merged else how
        lines.append(f"{part}: {name}, {how}")
    whole, model.config = model.config, config
    try:
        write_folder(model, folder, card)
    finally:
        model.config = whole
    return lines


def _copy(name: str, revision: str | None, place: Path, files: tuple[str, ...]) -> None:
    for file in files:
        found = model_file(resolve(name), file, revision)
        if found is not None:
            shutil.copyfile(found, place / file)


def _prove(model: BridgeForCausalLM, folder: Path) -> None:
    """Read the folder as another machine would, with no hub; weights are proven by their hashes when loaded."""
    try:
        processor = BridgeProcessor.from_pretrained(folder, local_files_only=True)
    except ConfigError as error:
        raise CheckpointError(
            f"the tokenizers do not load from the folder that was written ({error}); expected those of the run; name "
            "folders that hold all their files with --encoder and --llm."
        ) from None
    ours, theirs = model.tokenizers, processor.tokenizers
    probe = ["a b c", "one, two; 3?"]
    same = (ours.sources(probe), ours.prompts(probe), ours.labels(probe), ours.bos_id, ours.pad_id) == (
        theirs.sources(probe), theirs.prompts(probe), theirs.labels(probe), theirs.bos_id, theirs.pad_id,
    )  # fmt: skip
    if not same:
        raise CheckpointError(
            "the tokenizers give other ids when loaded from the folder that was written; expected the same; name "
            "folders that hold all their files with --encoder and --llm."
        )
