"""A trained run, copied and broken in one way each."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from bridge_ds import testbed
from bridge_ds.checkpoint import layout
from bridge_ds.config.load import load_run_config
from bridge_ds.data.loading.tokenize import load_tokenizers
from bridge_ds.engine.setup import build_model


def copied(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("plots", "heartbeat"))
    return folder


def configure(run: Path, part: str, **values: Any) -> None:
    """Change the run's config.yaml, as a user's mistake would, and what its newest checkpoint says of it."""
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config[part] |= values
    path.write_text(yaml.safe_dump(config))
    retensor(run, lambda tensors: None, {part: values})


def retensor(
    run: Path, change: Callable[[dict[str, torch.Tensor]], None], settings: dict[str, dict[str, Any]] | None = None
) -> None:
    """Change the bridge (and settings) in the newest checkpoint and seal it again, so that it is whole."""
    _, folder = layout.folders(run / "checkpoints")[0]
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    tensors = load_file(folder / layout.BRIDGE)
    change(tensors)
    for part, values in (settings or {}).items():
        manifest["config"][part] |= values
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / layout.BRIDGE)
    layout.seal(folder, {key: value for key, value in manifest.items() if key not in ("files", "format")})


def initial_mapping(run: Path) -> None:
    config = load_run_config(run)
    model = build_model(config, load_tokenizers(config.model).bos_id)
    start = {f"mapping.{name}": value for name, value in model.mapping.state_dict().items() if name != "scale"}
    retensor(run, lambda tensors: tensors.update(start))


def redrawn_mapping(run: Path) -> None:
    """Untrained too, but not as this run's seed makes it."""

    def redraw(tensors: dict[str, torch.Tensor]) -> None:
        torch.manual_seed(77)
        weight = tensors["mapping.project.weight"]
        tensors["mapping.project.weight"] = torch.randn_like(weight) * weight.std()

    retensor(run, redraw)


def scaled_mapping(run: Path) -> None:
    retensor(run, lambda tensors: tensors["mapping.scale"].mul_(100))


def not_a_number(run: Path) -> None:
    retensor(run, lambda tensors: tensors["mapping.end"].fill_(torch.nan))


def _model_copy(run: Path, which: str) -> Path:
    source = {"encoder": testbed.ENCODER_PATH, "llm": testbed.LLM_PATH}[which]
    folder = run / f"other-{which}"
    shutil.copytree(source, folder)
    configure(run, "model", **{which: str(folder)})
    return folder


def swapped_tokenizer(which: str) -> Callable[[Path], None]:
    """Another tokenizer of the same size: the pieces' ids are dealt anew."""

    def swap(run: Path) -> None:
        folder = _model_copy(run, which)
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        vocabulary = content["model"]["vocab"]
        special = {token["id"] for token in content["added_tokens"]}
        free = [place for place in range(len(vocabulary)) if place not in special]
        dealt = random.Random(0).sample(free, len(free))
        if isinstance(vocabulary, list):
            pieces = list(vocabulary)
            for old, new in zip(free, dealt, strict=True):
                vocabulary[new] = pieces[old]
        else:
            moved = dict(zip(free, dealt, strict=True))
            content["model"]["vocab"] = {piece: moved.get(place, place) for piece, place in vocabulary.items()}
        path.write_text(json.dumps(content))
        for other in ("spiece.model", "tokenizer.model"):
            (folder / other).unlink(missing_ok=True)

    return swap


def cut_targets(run: Path) -> None:
    configure(run, "data", max_target_tokens=2)


def random_weights(which: str) -> Callable[[Path], None]:
    def randomise(run: Path) -> None:
        path = _model_copy(run, which) / "model.safetensors"
        torch.manual_seed(5)
        tensors = {name: torch.randn_like(value) * value.float().std() for name, value in load_file(path).items()}
        save_file({name: value.to(torch.bfloat16) for name, value in tensors.items()}, path, metadata={"format": "pt"})

    return randomise


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "mapping as at the start": (initial_mapping, "mapping_untrained"),
    "mapping drawn anew": (redrawn_mapping, "source_unused | worse_than_none | above_recorded"),
    "mapping scaled by 100": (scaled_mapping, "soft_too_large"),
    "NaN in the bridge": (not_a_number, "not_finite"),
    "encoder's tokenizer swapped": (swapped_tokenizer("encoder"), "encoder_tokenizer_changed"),
    "LLM's tokenizer swapped": (swapped_tokenizer("llm"), "llm_tokenizer_changed"),
    "targets truncated away": (cut_targets, "targets_cut"),
    "encoder's weights random": (random_weights("encoder"), "encoder_changed"),
    "LLM's weights random": (random_weights("llm"), "llm_changed"),
}
"""Name -> how to make it, and the finding that must come first (one of these)."""
