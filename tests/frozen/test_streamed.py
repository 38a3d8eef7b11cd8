"""Models come from their files a part at a time: every weight right, and no rank ever holds them whole."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridge_ds.compat.streamed import StoredTensor, parts
from tests import launch, tiny

PROGRAM = str(Path(__file__).parents[1] / "programs" / "load_sharded.py")


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 100))
def test_parts_hold_everything_once_in_order_and_no_more_than_they_may(sizes: list[int], limit: int) -> None:
    places = {f"w{n}": StoredTensor(Path("f"), f"w{n}", (size,), torch.float32) for n, size in enumerate(sizes)}
    found = list(parts(places, limit))
    assert [name for part in found for name in part] == list(places)
    for part in found:
        assert len(part) == 1 or sum(place.bytes for place in part.values()) <= limit
    for one, after in itertools.pairwise(found):  # none could have taken the next one's first
        assert sum(place.bytes for place in one.values()) + next(iter(after.values())).bytes > limit


def load(part_bytes: int, models: list[str], ranks: int, folder: Path) -> list[dict[str, float]]:
    job = launch.Job([sys.executable, PROGRAM, str(part_bytes), *models], ranks, folder)
    outcome = job.wait(300)
    assert outcome.codes == [0] * ranks, outcome.text
    return [json.loads(text.strip().splitlines()[-1]) for text in outcome.outputs]


@pytest.mark.slow
def test_families_arrive_complete(tmp_path: Path) -> None:
    """Many parts, two ranks, every tensor compared with its file."""
    models = [f"encoder={tiny.make_encoder(kind, tmp_path / kind)}" for kind in ("mt5", "xlm-roberta", "m2m_100")]
    models += [f"llm={tiny.make_llm(kind, tmp_path / kind)}" for kind in ("llama", "gpt2")]
    for rank in load(10_000, models, 2, tmp_path / "logs"):
        assert len(rank["compared"]) == len(models)  # type: ignore[arg-type]


@pytest.mark.slow
def test_no_rank_ever_holds_a_whole_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    more = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6, "vocab_size": 8192}
    more |= {"num_attention_heads": 16, "num_key_value_heads": 8}  # with two heads no copy of it would be tiny
    folder = tiny.make_llm("llama", tmp_path / "llm", **more)
    file = folder / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    whole = file.stat().st_size / 2**20
    models = [f"llm={tiny.make_llm('llama', tmp_path / 'first')}", f"llm={folder}"]  # the first one does the imports
    grown = [rank["grown"] for rank in load(16 << 20, models, 2, tmp_path / "streamed")]
    # Its half, a part, the layer at work and what the process itself takes while loading.
    assert max(grown) < 0.9 * whole, (grown, whole)
    at_once = [rank["grown"] for rank in load(0, models, 2, tmp_path / "at_once")]
    assert at_once[0] > 1.3 * whole, "the measurement would not see it"
