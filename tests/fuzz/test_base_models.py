"""Tampered base models: loading and preflight both say one sentence, or both take the model and it runs.

BRIDGE_DS_FUZZ multiplies the number of cases.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bridge_ds import checks
from bridge_ds.config.schema import Config, ModelConfig
from bridge_ds.data.loading.tokenize import check_vocabulary, load_tokenizers
from bridge_ds.engine.setup import base_identities, quiet_transformers
from bridge_ds.errors import BridgeError
from bridge_ds.inference.bases import Placing, load_bases
from tests import tiny

SEED = 17
CASES = int(40 * float(os.environ.get("BRIDGE_DS_FUZZ", "1")))
ENCODERS, LLMS = ("mt5", "xlm-roberta", "m2m_100"), ("llama", "qwen2", "gpt2")
VALUES: list[Any] = [
    None, -1, 0, 1, 3, 10**12, 1e30, "x", "", [], {}, [1], {"a": 1}, True, False, 3.5, "gelu", "\ud83d", 2**63,
    float("nan"), float("inf"), -(2**70),
]  # fmt: skip
WHOLE = {
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n",
    "page": b"<!DOCTYPE html><html></html>",
    "empty": b"",
    "list": b"[1, 2]",
    "deep": b'{"a":' * 20_000,
    "bytes": bytes(range(256)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    made = {kind: tiny.make_encoder(kind, root / kind) for kind in ENCODERS}
    return made | {kind: tiny.make_llm(kind, root / kind) for kind in LLMS}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of an object are, the first few of each list."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:9]) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def tamper(draw: random.Random, folder: Path) -> str:
    """Change one file of a model; says what was done."""
    if draw.random() < 0.25:
        name = "model-00001-of-00001.safetensors"
        header = (folder / "model.safetensors").read_bytes()
        size = int.from_bytes(header[:8], "little")
        (folder / "model.safetensors").rename(folder / name)
        where = {key: name for key in json.loads(header[8 : 8 + size]) if key != "__metadata__"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    file = folder / "config.json" if draw.random() < 0.35 else draw.choice(files)
    how = draw.choice(["value"] * 4 + ["cut", "flip", "gone", *WHOLE])
    data = bytearray(file.read_bytes())
    if how == "value" and file.suffix == ".json":
        values = json.loads(data)
        shallow = draw.random() < 0.5
        *path, last = draw.choice([place for place in places(values) if len(place) <= 2 or not shallow])
        inner, new = values, draw.choice([*VALUES, "delete"])
        for key in path:
            inner = inner[key]
        inner[last] = new
        if new == "delete":
            del inner[last]
        file.write_text(json.dumps(values))
        return f"{file.name}: {(*path, last)} is {new!r}"
    if how == "cut":
        file.write_bytes(data[: draw.randrange(len(data))])
    elif how == "gone":
        file.unlink()
    elif how in WHOLE:
        file.write_bytes(WHOLE[how])
    else:
        how = "flip"
        data[draw.randrange(min(len(data), 2000))] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
    return f"{file.name}: {how}"


def loaded(model: ModelConfig) -> None:
    """What every command does with base models."""
    config = Config(model=model)
    tokenizers = load_tokenizers(model)
    bridge = load_bases(config, tokenizers.bos_id, Placing())
    check_vocabulary(tokenizers.encoder, bridge.encoder.vocab_size, "encoder")
    check_vocabulary(tokenizers.llm, bridge.llm.vocab_size, "llm")
    base_identities(config, bridge, tokenizers)
    ids = torch.tensor([tokenizers.source_ids("the cat sat")])
    bridge.encoder(ids, torch.ones_like(ids))
    bridge.llm.logits_at(bridge.llm.embed(torch.tensor([tokenizers.prompt_ids("the cat")])), torch.tensor([0]))


def said(call: Any, *given: Any) -> str:
    """The sentence of a user error, empty where there was none; anything else is raised."""
    try:
        call(*given)
    except BridgeError as error:
        return str(error)
    return ""


def test_loaded_or_one_sentence(folders: dict[str, Path], tmp_path: Path) -> None:
    quiet_transformers()
    right = ModelConfig(encoder=str(folders["mt5"]), llm=str(folders["llama"]), dtype="float32")
    taken = 0
    for case in range(CASES):
        draw = random.Random(f"{SEED}-{case}")
        part = draw.choice(["encoder", "llm"])
        kind = draw.choice(ENCODERS if part == "encoder" else LLMS)
        folder = shutil.copytree(folders[kind], tmp_path / f"case-{case}")
        what = f"seed {SEED}, case {case}, {kind}, {tamper(draw, folder)}"
        model = dataclasses.replace(right, **{part: str(folder)})
        subject = checks.Subject(argparse.Namespace(ranks=1, nodes=1), Config(model=model))
        of_part = checks.encoder_loads if part == "encoder" else checks.llm_loads
        asked = (of_part, checks.tokenizers_match, checks.memory_fits)
        subject.options.gpu_gib = 80.0
        try:
            before = [text for check in asked if (text := said(check, subject))]
            refused = said(loaded, model)
        except BaseException as error:
            raise AssertionError(f"{what}: {error!r}") from error
        assert bool(before) == bool(refused), f"{what}: preflight {before}, loading {refused!r}"
        assert "\n" not in refused and len(refused) < 900, f"{what}: {refused}"
        taken += not refused
        shutil.rmtree(folder)
    assert 0 < taken < 0.7 * CASES, "some changes mean nothing, most do"
