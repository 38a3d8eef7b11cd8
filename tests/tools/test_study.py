"""The testbed study: what it runs, what it does not repeat, and that its report comes out; training is stood in for."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from bridge_ds.entry import exit_status
from bridge_ds.evaluation.predictions import read_predictions
from tests.report.studies import write_run
from tools.bench import study_testbed


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str, list[str]]]:
    """Calls of `train`, which writes predictions as the main job does."""
    calls: list[tuple[str, str, str, list[str]]] = []

    def train(folder: Path, fusion: str, seed: str, overrides: list[str], *_: object) -> None:
        calls.append((folder.name, fusion, seed, overrides))
        write_run(folder, fusion, int(seed), 10, {"testbed_news": ("en", "qaa")})
        counted = {
            system: {"testbed_news": {code: shares(folder / "evaluation" / system, code) for code in ("en", "qaa")}}
            for system in ("bridge", "llm")
        }
        (folder / "evaluation.json").write_text(json.dumps(counted | {"chance": {"testbed_news": 0.2}}))

    def shares(folder: Path, code: str) -> dict[str, float]:
        right = [p.correct() for p in read_predictions(folder, "testbed_news", code)]
        return {"acc": sum(right) / len(right), "n": len(right)}

    monkeypatch.setattr(study_testbed, "train", train)
    return calls


def test_it_trains_every_arm_and_reports(trained: list, tmp_path: Path) -> None:
    assert study_testbed.main(["--quick", "--output", str(tmp_path), "--jobs", "2", "--set", "train.lr=1e-3"]) == 0
    assert {name for name, *_ in trained} == {f"{arm.folder}-{seed}" for arm in study_testbed.ARMS for seed in range(2)}
    by_name = {name: (fusion, seed, overrides) for name, fusion, seed, overrides in trained}
    fusion, seed, overrides = by_name["transformer_softmax-rms-1"]
    assert (fusion, seed) == ("transformer_softmax", "1")
    shards = f"data.shards={tmp_path / 'shards'}"
    assert overrides[:-1] == ["fusion.state_norm=rms", shards, *study_testbed.QUICK, "train.lr=1e-3"]
    # The LLM alone has answered in one of the runs before.
    assert overrides[-1] == f"evaluation.llm_from={tmp_path / 'last_layer-0'}"
    results = json.loads((tmp_path / "report" / "report.json").read_text())
    assert results["systems"] == ["LLM alone", *(arm.name for arm in study_testbed.ARMS)]
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(row["system"], row["seed"]) for row in rows] == [
        (a.name, f"{n}") for a in study_testbed.ARMS for n in (0, 1)
    ]
    for row in rows:
        found = results["tasks"]["testbed_news"]["accuracy"][row["system"]]
        assert float(row["news English"]) == pytest.approx(100 * found["en"]["seeds"][int(row["seed"])], abs=0.051)
        assert float(row["news unseen"]) == pytest.approx(100 * found["qaa"]["seeds"][int(row["seed"])], abs=0.051)
    assert results["seeds"] == [0, 1] and (tmp_path / "report" / "report.html").is_file()

    del trained[:]
    assert study_testbed.main(["--seeds", "3", "--output", str(tmp_path)]) == 0
    assert {seed for _, _, seed, _ in trained} == {"2"}  # the others are not repeated


def test_it_reports_whole_seeds_only(trained: list, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "last_layer-0", "last_layer", 0, 10, {"testbed_news": ("en",)})
    assert exit_status(lambda: study_testbed.main(["--report-only", "--output", str(tmp_path)])) == 2
    assert "holds no seed that all of 5 arms were scored with" in capfd.readouterr().err
    assert trained == []


def test_a_run_without_predictions_is_scored(trained: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "last_layer-0"
    folder.mkdir()
    (folder / "evaluation.json").write_text("{}")
    commands: list[list[str]] = []
    monkeypatch.setattr(study_testbed, "run_logged", lambda command, *_: commands.append(command))
    study_testbed.prepare(tmp_path, study_testbed.ARMS[0], 0, "zero2.json", [], 1)
    assert trained == [] and commands == [["-m", "bridge_ds.evaluation", "--run", str(folder)]]


def test_a_run_that_fails_is_named_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "run.log"
    program = "import os, sys; print('no luck'); sys.exit(3 if os.environ['OMP_NUM_THREADS'] == '2' else 0)"
    with pytest.raises(SystemExit, match=r"-c ended with status 3 \(no luck; all it said is in .*\); expected 0"):
        study_testbed.run_logged(["-c", program], 2, log)
    study_testbed.run_logged(["-c", "print('fine')"], 1, log)
    assert log.read_text().splitlines()[-1] == "fine"
