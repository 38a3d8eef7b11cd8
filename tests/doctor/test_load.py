"""What doctor reads of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bridge_ds.config.load import load_config
from bridge_ds.doctor.load import load_run, training_samples
from tests.made import make_run, on_bases


@pytest.mark.parametrize(("asked", "there"), [(3, 3), (64, 5)])
def test_a_corpus_without_its_shards_and_shorter_than_asked_for(asked: int, there: int, tmp_path: Path) -> None:
    """A run that was copied without RUN/shards: each sample has its number, and there are no more."""
    for split in ("train", "test"):
        rows = [f"text {number},{number % 2}" for number in range(5)]
        (tmp_path / split).mkdir()
        (tmp_path / split / "en.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    task = {"source": tmp_path, "kind": "labels", "prompt": "News: {text} Topic:", "labels": "{0: Sports, 1: Business}",
            "fields": "{label: label}", "languages": "[en]"}  # fmt: skip
    config = load_config("testbed", ["data.shards=task:mine", *(f"tasks.mine.{key}={task[key]}" for key in task)])
    samples, numbers = training_samples(tmp_path / "run", config, asked)
    assert [sample["source"] for sample in samples] == [f"News: text {number} Topic:" for number in range(there)]
    assert numbers == list(range(there))


@pytest.mark.parametrize("setting", ["mapping.init=embeddings", "run.start_from=runs/before", ""])
def test_a_mapping_that_did_not_begin_as_the_seed_makes_it_is_not_compared_with_that(
    setting: str, models: dict[str, Path], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", on_bases(models, *filter(None, [setting])))
    assert load_run(run, torch.device("cpu")).facts["mapping_moved"] == (None if setting else 0)
