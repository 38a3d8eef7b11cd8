"""New rows alone are trained: everything else stays bit for bit, under both stages, killed or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bridge_ds.adapt.align import apart
from bridge_ds.adapt.extension import Extension, read_extension
from bridge_ds.adapt.model import EncoderAlone
from bridge_ds.adapt.rows import NewRowsEncoder
from bridge_ds.commands import adapt
from bridge_ds.config.effect import idle
from bridge_ds.config.load import load_config
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.engine.setup import build_model, make_optimizer
from bridge_ds.engine.trainable import trainable_table
from bridge_ds.entry import exit_status
from bridge_ds.errors import ConfigError
from bridge_ds.training_options import parse_train
from tests.adapt.made import PAIRS, config, encoder
from tests.adapt.test_model import made
from tests.adapt.test_run import LAST, twice

FIRST = 300
ROWS = ("lora.rank=0", "encoder.trainable=false", "adapt.new_rows_only=true", "data.objective=align")
SAMPLES = [{"source": one, "target": two} for one, two in PAIRS]


def extended(kind: str, folder: Path) -> Path:
    encoder(kind, folder)
    Extension("somewhere/else", None, 52, FIRST).write(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "mt5"])
def test_nothing_but_new_rows_is_trained(kind: str, tmp_path: Path) -> None:
    folder = extended(kind, tmp_path / kind)
    model, batch = made(folder, *ROWS, "adapt.token_weight=10", "adapt.english_share=0", samples=SAMPLES)
    assert isinstance(model.encoder, NewRowsEncoder) and model.teacher is None
    original = load_encoder(config(folder).model)
    plain = original(batch.source_ids, batch.source_mask)
    for one, two in zip(model.encoder(batch.source_ids, batch.source_mask), plain, strict=True):
        assert torch.equal(one, two)
    batch.source_ids[:, 1] = FIRST + 7
    table = trainable_table(model)
    assert "new rows of the encoder, float32" in table
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["encoder.rows.weight"]
    assert model.is_trained("encoder.rows.weight") and not model.is_trained("encoder.model.shared.weight")
    ours = config(folder, *ROWS, "train.lr=1e-2")
    optimizer = make_optimizer(model, ours)
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1.0]
    before, first = model(batch).item(), model.encoder.rows.weight.detach().clone()
    taught = model.taught(batch)
    for _ in range(20):
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()
    assert model(batch).item() < before
    changed = (model.encoder.rows.weight != first).any(1)
    assert changed[7] and not changed[:7].any()
    assert all(torch.equal(one, two) for one, two in zip(taught, model.taught(batch), strict=True))
    states = model.encoder(batch.source_ids, batch.source_mask)
    merged = model.encoder.merged()
    output = merged(input_ids=batch.source_ids, attention_mask=batch.source_mask, output_hidden_states=True)
    for one, two in zip(states, output.hidden_states[1:], strict=True):
        assert torch.allclose(one, two, atol=1e-6)
    rows = merged.get_input_embeddings().weight
    assert torch.equal(rows[:FIRST], original.model.get_input_embeddings().weight[:FIRST])


def test_tokens_are_as_far_apart_as_their_nearest() -> None:
    torch.manual_seed(0)
    state = torch.nn.functional.normalize(torch.randn(2, 4, 64), dim=-1)
    mask, english_mask = torch.ones(2, 4), torch.ones(2, 4)
    turned = state.flip(1)
    yes = torch.tensor([True, True])
    assert apart((turned,), mask, (state,), english_mask, yes, [0]).item() == pytest.approx(0, abs=1e-3)
    mask[1, 3] = 0
    poisoned = turned.clone()
    poisoned[1, 3] = float("nan")
    one = apart((turned,), mask, (state,), english_mask, yes, [0])
    assert torch.equal(one, apart((poisoned,), mask, (state,), english_mask, yes, [0])) and 0.05 < one < 0.5
    assert apart((turned,), mask, (state,), english_mask, ~yes, [0]) == 0
    moved = state.mean(1, keepdim=True).expand_as(state)  # the mean is right, and no word is
    assert apart((moved,), mask, (state,), english_mask, yes, [0]) > 0.5


def test_one_pair_has_a_gradient_with_tokens(tmp_path: Path) -> None:
    folder = extended("bert", tmp_path / "bert")
    model, batch = made(folder, *ROWS, "adapt.token_weight=10", "adapt.english_share=0", samples=SAMPLES[:1])
    batch.source_ids[:, 1] = FIRST
    model(batch).backward()
    assert model.encoder.rows.weight.grad.abs().sum() > 0


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = encoder("bert", tmp_path / "bert")
    with pytest.raises(ConfigError, match=r"adapt.new_rows_only is true and model.encoder .* has no added pieces"):
        build_model(config(folder, *ROWS), None)
    for setting in ("lora.rank=4", "encoder.trainable=true", "data.objective=denoise"):
        with pytest.raises(ConfigError, match=r"adapt.new_rows_only is true, lora.rank is"):
            load_config("adapt", [*ROWS, setting])
    (tmp_path / "a.txt").write_text("eins zwei\n", encoding="utf-8")
    words = ["--text", str(tmp_path / "a.txt"), "--extend-vocabulary", "20", "--new-rows-only"]
    assert exit_status(lambda: adapt.main(words)) == 2
    assert "--new-rows-only trains the pieces that are added, on pairs" in capsys.readouterr().err
    assert idle(load_config("testbed", ["adapt.new_rows_only=true"])) == [
        "adapt.new_rows_only has no effect, as model.llm is not none."
    ]


def test_pieces_are_of_the_files_that_they_were_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.execv", lambda *_: None)
    text, pairs = tmp_path / "a.txt", tmp_path / "b.tsv"
    text.write_text("ߒߞߏ ߞߊ߲ ߒߞߏ\n" * 3, encoding="utf-8")
    pairs.write_text("source\ttarget\nߒߞߏ ߞߊ߲\tone two\n", encoding="utf-8")
    words = ["--text", str(text), "--parallel", str(pairs), "--extend-vocabulary", "20", "--new-rows-only"]
    words += ["--set", "model.encoder=testbed/encoder", "--set", f"run.output={tmp_path / 'run'}"]
    assert exit_status(lambda: adapt.main(words)) in (0, None), capsys.readouterr().err
    found = read_extension(tmp_path / "run" / "extended")
    assert found and found.learned_from.startswith("a.txt ")
    older = replace(found, learned_from="")
    assert found.is_of(older) and older.is_of(found) and not found.is_of(replace(found, learned_from="a.txt 0"))
    text.write_text("ⵜⵉⴼⵉⵏⴰⵖ ⵜⴰⵎ\n" * 3, encoding="utf-8")
    assert exit_status(lambda: adapt.main(words)) == 2
    assert "more pieces, learned from a.txt" in capsys.readouterr().err
    assert exit_status(lambda: adapt.main([*words, "--triples", str(pairs)])) == 2
    assert "leave out --triples" in capsys.readouterr().err


def test_an_older_folder_does_not_say_where_its_pieces_begin(tmp_path: Path) -> None:
    older = {"encoder": "a", "encoder_revision": None, "pieces": 3}
    (tmp_path / "extension.json").write_text(json.dumps(older), encoding="utf-8")
    found = read_extension(tmp_path)
    assert found == Extension("a", None, 3, 9) and found.lr == 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "ds"), [(1, "zero2.json"), (2, "zero3.json")])
def test_rows_survive_a_kill_and_old_ones_stay(ranks: int, ds: str, tmp_path: Path) -> None:
    base = extended("mt5", tmp_path / "mt5")
    more = (*ROWS, "adapt.token_weight=10", "adapt.english_share=0", f"data.mixture=[{tmp_path / 'pairs'}=1]")
    run, _, said = twice(tmp_path, base, ranks, ds, *more)
    assert "new rows of the encoder" in said and "nearest to itself 100.0 %" in said
    before, after = load_file(base / "model.safetensors"), load_file(run / "encoder" / "model.safetensors")
    for name, tensor in after.items():
        old = slice(0, FIRST) if tensor.shape[0] > FIRST and "shared" in name else slice(None)
        assert torch.equal(tensor[old], before[name][old]), name
    held = load_file(run / "checkpoints" / LAST / "encoder.safetensors")
    assert list(held) == ["encoder.rows.weight"] and "added pieces alone" in (run / "encoder" / "README.md").read_text()
    model = build_model(config(run / "encoder", "data.objective=align"), None)
    assert isinstance(model, EncoderAlone)


def test_the_option_sets_what_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _, words: started.append(words))
    monkeypatch.setattr(adapt, "_extended", lambda *_: ["model.encoder=elsewhere"])
    for name in ("RANK", "SLURM_STEP_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "a.txt").write_text("eins zwei\n", encoding="utf-8")
    (tmp_path / "b.tsv").write_text("source\ttarget\neins zwei\tone two\n", encoding="utf-8")
    words = ["--text", str(tmp_path / "a.txt"), "--parallel", str(tmp_path / "b.tsv"), "--extend-vocabulary", "20"]
    words += ["--new-rows-only", "--set", f"run.output={tmp_path / 'run'}", "--set", "train.lr=3e-2"]
    adapt.main(words)
    found = load_config("adapt", parse_train(started[0][started[0].index("--recipe") :]).overrides)
    assert found.data.shards == str(tmp_path / "run" / "shards" / "pairs") and not found.data.mixture
    assert not (tmp_path / "run" / "shards" / "text").exists() and found.adapt.new_rows_only
    assert (found.lora.rank, found.encoder.trainable, found.data.objective) == (0, False, "align")
    assert (found.adapt.english_share, found.adapt.token_weight, found.train.lr) == (0, 10, 3e-2)
    # Without a rate of the user's, a tenth of the old embeddings' deviation.
    (tmp_path / "run" / "extended").mkdir()
    Extension("somewhere/else", None, 20, FIRST, 0.2807).write(tmp_path / "run" / "extended")
    adapt.main(words[:-2])
    assert load_config("adapt", parse_train(started[1][started[1].index("--recipe") :]).overrides).train.lr == 2.8e-2
