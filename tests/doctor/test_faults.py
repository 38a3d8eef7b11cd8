"""The doctor on a really trained run, whole and broken in many ways; what it measures, against plain computations."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bridge_ds.data.loading.collate import collate
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.doctor.diagnose import diagnose
from bridge_ds.doctor.example import look
from bridge_ds.doctor.load import LoadedRun, load_run, recorded_loss
from bridge_ds.doctor.measure import examine, lookalikes, losses, others
from bridge_ds.doctor.measurements import Measurements
from bridge_ds.doctor.text import page
from bridge_ds.entry import exit_status
from bridge_ds.errors import CheckpointError, ConfigError
from tests.doctor.faults import FAULTS, configure, copied, not_a_number, scaled_mapping
from tests.launch import ROOT
from tests.made import make_run
from tools.doctor import main as command

SAMPLES = 48


def examined(run: Path) -> tuple[LoadedRun, Measurements, list[TokenizedSample]]:
    loaded = load_run(run, torch.device("cpu"))
    return loaded, *examine(loaded, SAMPLES)


@pytest.mark.slow
def test_a_trained_run_is_healthy(trained_run: Path) -> None:
    loaded, m, rows = examined(trained_run)
    assert not any(finding.wrong for finding in diagnose(m)) and m.samples == SAMPLES
    assert m.loss_right and m.loss_shuffled and m.loss_none and m.loss_recorded
    assert m.loss_right < m.loss_shuffled < m.loss_none and m.near_gap
    assert m.loss_right == pytest.approx(m.loss_recorded, abs=0.4)
    assert sum(m.layer_weights) == pytest.approx(1, abs=1e-3) and len(m.layer_rms) == len(m.layer_weights)
    # The losses are those that training adds up.
    model, of = loaded.model, loaded.tokenizers
    batch = collate(rows, of.encoder_pad_id, of.pad_id)
    with torch.no_grad():
        found = losses(model, model.spliced(batch))
        assert float(found.nll_B.sum()) == pytest.approx(float(model(batch)), rel=1e-5)
        assert m.loss_right == pytest.approx(float(model(batch)) / batch.target_tokens, rel=1e-4)
        soft = model.soft(batch)
    vectors = [soft.embeds_BKH[row, : len(rows[row].source)].double() for row in range(len(rows))]
    pooled = torch.cat(vectors)
    assert m.soft_norm == pytest.approx(float(pooled.norm(dim=-1).median()), rel=1e-4)
    spread = (pooled - pooled.mean(0)).pow(2).sum() / pooled.pow(2).sum()
    assert m.variation == pytest.approx(float(spread), rel=1e-3)
    first = torch.stack([vector[0] for vector in vectors])
    spread = (first - first.mean(0)).pow(2).sum() / first.pow(2).sum()
    assert m.variation_by_position[0] == pytest.approx(float(spread), rel=1e-3, abs=1e-9)
    example = look(loaded, rows[0])
    assert len(example.soft) == len(rows[0].source) + 1 and example.soft[-1].encoder == "(end)"
    assert example.target == of.llm.decode(rows[0].target)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_told_apart(trained_run: Path, name: str, tmp_path: Path) -> None:
    make, expected = FAULTS[name]
    run = copied(trained_run, tmp_path / "run")
    make(run)
    _, measured, _ = examined(run)
    findings = diagnose(measured)
    assert findings and findings[0].wrong and findings[0].code in expected.split(" | "), (findings, measured)


@pytest.mark.slow
def test_the_command(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def doctor(*arguments: object) -> tuple[int, str, str]:
        status = command([*map(str, arguments), "--samples", "16", "--device", "cpu"])
        return status, *capsys.readouterr()

    before = {path: path.stat().st_mtime_ns for path in trained_run.rglob("*")}
    line = [sys.executable, "tools/doctor.py", str(trained_run), "--samples", "16", "--device", "cpu"]
    healthy = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert healthy.returncode == 0, healthy.stderr[-3000:]
    assert "healthy" in healthy.stdout.splitlines()[0] and "one sample as the LLM sees it" in healthy.stdout
    assert {path: path.stat().st_mtime_ns for path in trained_run.rglob("*")} == before, "nothing is written"
    broken = copied(trained_run, tmp_path / "run")
    not_a_number(broken)
    status, said, _ = doctor(broken, "--json")
    found = json.loads(said)
    assert status == 1 and not found["healthy"] and found["findings"][0]["code"] == "not_finite"
    assert found["measurements"]["loss_right"] is None, "NaN is no JSON"
    assert exit_status(lambda: doctor(tmp_path)) == 2
    assert "holds no config.yaml" in capsys.readouterr().err


def test_a_run_of_other_models_is_examined_too(
    models: dict[str, Path], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shards of one's own, no BOS, the prompt beside the soft prompt, a broken checkpoint skipped; untrained."""
    from tests import tiny

    settings = [
        f"model.encoder={models['encoder']}", f"model.llm={tiny.make_llm('qwen2', tmp_path / 'llm')}",
        f"data.shards={shards}", "data.augment_prompt=true", "data.max_source_tokens=40", "data.max_target_tokens=6",
    ]  # fmt: skip
    run = make_run(tmp_path / "run", settings)
    torn = run / "checkpoints" / "step-00000002"
    shutil.copytree(run / "checkpoints" / "step-00000001", torn)
    (torn / "bridge.safetensors").write_bytes(b"")
    loaded, m, rows = examined(run)
    codes = [finding.code for finding in diagnose(m)]
    assert {"mapping_untrained", "targets_cut", "note"} <= set(codes) and "source_unused" in codes
    assert m.mapping_moved == 0 and m.loss_recorded is None and m.sources_cut > 0 and 0 < m.targets_lost < 1
    example = look(loaded, rows[0])
    assert example.opening == "" and example.prompt == loaded.tokenizers.llm.decode(rows[0].prompt)
    shutil.rmtree(torn)
    scaled_mapping(run)
    assert examined(run)[1].size == pytest.approx(100 * (m.size or 0), rel=1e-3)


def test_ids_without_an_embedding_are_a_finding_and_no_crash(
    models: dict[str, Path], shards: Path, tmp_path: Path
) -> None:
    from tests import tiny

    small = tiny.make_llm("llama", tmp_path / "llm", vocab_size=300)
    settings = [f"model.encoder={models['encoder']}", f"model.llm={small}", f"data.shards={shards}"]
    _, m, _ = examined(make_run(tmp_path / "run", settings))
    assert m.outside_vocabulary == ("llm",) and m.loss_right is None
    findings = diagnose(m)
    assert findings[0].code == "llm_vocabulary" and "nothing was run" in page("run", m, findings, None)


def test_what_cannot_be_examined_is_one_sentence(models: dict[str, Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [f"model.encoder={models['encoder']}", f"model.llm={models['llm']}"])
    configure(run, "injection", form="every_layer", soft_prompt=False)
    with pytest.raises(ConfigError, match=r"has no soft prompt .* expected a run that makes one"):
        load_run(run, torch.device("cpu"))
    configure(run, "injection", form="none", soft_prompt=True)
    configure(run, "fusion", name="last_layer")
    with pytest.raises(CheckpointError, match="set fusion and mapping as in its config"):
        load_run(run, torch.device("cpu"))
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        load_run(run, torch.device("cpu"))
    with pytest.raises(ConfigError, match="holds no config"):
        load_run(tmp_path, torch.device("cpu"))


def test_sources_are_exchanged_between_different_targets() -> None:
    rows = [TokenizedSample([k], [], [target], ()) for k, target in enumerate([1, 1, 2, 1, 2])]
    assert [rows[k].target != rows[other].target for k, other in enumerate(others(rows))] == [True] * 5
    same = [replace(row, target=[1]) for row in rows]
    assert others(same) == lookalikes(same) == [1, 2, 3, 4, 0]
    sources = [[1, 2, 3], [1, 2, 9], [7, 8, 9], [1, 2, 3]]
    rows = [TokenizedSample(source, [], [k // 3], ()) for k, source in enumerate(sources)]
    assert lookalikes(rows) == [3, 3, 3, 0]


def test_the_recorded_loss_is_that_before_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert recorded_loss(path, 5) is None
    path.write_text("".join(json.dumps({"step": k, "loss": float(k)}) + "\n" for k in range(1, 41)))
    assert recorded_loss(path, 30) == pytest.approx(20.5)
