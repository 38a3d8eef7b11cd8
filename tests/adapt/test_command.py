"""`bridge-ds adapt`: what it packs, what it starts, and what it refuses."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow
import pytest

from bridge_ds.commands import adapt
from bridge_ds.config.effect import idle
from bridge_ds.config.load import load_config
from bridge_ds.config.zero import resolve_micro_batch
from bridge_ds.data.packing.lines import pack_pairs, pack_text, sources, text_lines
from bridge_ds.data.shards.index import load_index
from bridge_ds.data.shards.reader import SampleReader
from bridge_ds.data.shards.samples import BadSample, check_sample
from bridge_ds.entry import exit_status
from bridge_ds.errors import ConfigError, DataError, LaunchError
from bridge_ds.objectives import OBJECTIVES
from bridge_ds.training_options import parse_train


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def samples(folder: Path, objective: str) -> list[dict[str, object]]:
    index = load_index(folder)
    return [SampleReader(index, objective).read(0, row) for row in range(index.samples)]


def test_lines_become_samples(tmp_path: Path) -> None:
    text = write(tmp_path / "a.txt", "\ufefferste Zeile", "", "  zweite Zeile  ", "Wort")
    english = write(tmp_path / "b.txt", "first line", "nothing", "second line", "word")
    pack_text(text, tmp_path / "text")
    assert samples(tmp_path / "text", "denoise") == [{"text": "erste Zeile"}, {"text": "zweite Zeile"}]
    pack_pairs([text, english], tmp_path / "pairs")
    found = samples(tmp_path / "pairs", "align")
    assert found[:2] == [
        {"source": "erste Zeile", "target": "first line"},
        {"source": "zweite Zeile", "target": "second line"},
    ]
    table = write(tmp_path / "c.tsv", "source\ttarget", "eins\tone")
    pack_pairs([table], tmp_path / "table")
    assert list(sources([text, english])) == ["erste Zeile", "zweite Zeile", "Wort"] and [*sources([table])] == ["eins"]
    write(tmp_path / "g.tsv", "text\tid", "erste Zeile\t1", "Wort\t2", "\t3")
    pack_text(tmp_path / "g.tsv", tmp_path / "rows")  # one bad sample would end the run
    assert [each["text"] for each in samples(tmp_path / "rows", "denoise")] == ["erste Zeile"]
    assert samples(tmp_path / "table", "denoise_and_align") == [{"source": "eins", "target": "one"}]
    pack_text(text, tmp_path / "text")  # nothing to do
    with pytest.raises(DataError, match=r"holds the samples of a.txt .*, and this start has b.txt"):
        pack_text(english, tmp_path / "text")
    short = write(tmp_path / "d.txt", "one", "two")
    with pytest.raises(DataError, match=r"a.txt has 4 lines and .*d.txt 2; expected line N of both"):
        pack_pairs([text, short], tmp_path / "unequal")
    with pytest.raises(DataError, match="the input holds no sample"):
        pack_text(write(tmp_path / "e.txt", " "), tmp_path / "empty")
    (tmp_path / "f.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"f\.txt is not UTF-8"):
        pack_text(tmp_path / "f.txt", tmp_path / "latin")
    with pytest.raises(DataError, match=r"absent\.txt cannot be read"):
        pack_text(tmp_path / "absent.txt", tmp_path / "absent")


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    foreign, english = tmp_path / "a.txt", tmp_path / "b.txt"
    foreign.write_bytes(b"uno\rdos\r\ntres\xe2\x80\xa8cuatro\nseis siete\n")
    english.write_bytes(b"one two\nthree four\nsix\rseven\n")
    pack_pairs([foreign, english], tmp_path / "pairs")
    assert samples(tmp_path / "pairs", "align") == [
        {"source": "uno\rdos", "target": "one two"},
        {"source": "tres\u2028cuatro", "target": "three four"},
        {"source": "seis siete", "target": "six\rseven"},
    ]
    foreign.write_bytes(b"uno\rdos\rtres\r")
    with pytest.raises(DataError, match=r"a\.txt holds line ends of an old Mac \(CR alone\); expected LF or CR LF"):
        pack_text(foreign, tmp_path / "mac")


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_text_has_the_same_lines(ending: str, tmp_path: Path) -> None:
    lines = [f"una frase {number}" for number in range(9)]
    plain = write(tmp_path / "a.txt", *lines)
    packed = Path(f"{plain}{ending}")
    raw = plain.read_bytes()
    packed.write_bytes(gzip.compress(raw) if ending == ".gz" else pyarrow.compress(raw, codec="zstd", asbytes=True))
    assert list(text_lines(packed)) == list(text_lines(plain)) == lines
    pack_pairs([packed, plain], tmp_path / "pairs")
    assert samples(tmp_path / "pairs", "align") == [{"source": line, "target": line} for line in lines]


def test_what_a_sample_must_hold() -> None:
    both = OBJECTIVES["denoise_and_align"]
    assert OBJECTIVES["denoise"].read({"text": "a", "source": "wikipedia"}) == "text"
    assert OBJECTIVES["denoise"].read({"text": None, "source": "a"}) == "source"
    assert both.read({"text": "a", "source": "b", "target": "c"}) == "source" and both.read({"text": "a"}) == "text"
    check_sample({"text": "a", "source": 1, "target": None}, "denoise_and_align")  # an origin, which nothing reads
    assert OBJECTIVES["prefix_lm"].read({"text": "a", "source": "wikipedia"}) == "text"
    assert OBJECTIVES["self_teaching"].read({"text": "a", "source": "b"}) == "source"
    with pytest.raises(BadSample, match="has no `source` or `text`; the objective self_teaching needs one of them"):
        check_sample({"target": "a"}, "self_teaching")
    with pytest.raises(BadSample, match="has a `text` of type int"):
        check_sample({"source": "a", "text": 1}, "self_teaching")
    with pytest.raises(BadSample, match="has no `target`; the objective align needs `source` and `target`"):
        check_sample({"source": "a"}, "align")
    with pytest.raises(BadSample, match="has no `source`; the objective denoise_and_align needs `source` and `target`"):
        check_sample({"text": "a", "target": "b"}, "denoise_and_align")
    with pytest.raises(BadSample, match="has no `text` or `source`; the objective denoise needs one of them"):
        check_sample({"prompt": "a"}, "denoise")


def test_the_command_is_the_trainers_with_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _, words: started.append(words))
    for name in ("RANK", "SLURM_STEP_ID", "SLURM_PROCID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    text, pairs = write(tmp_path / "a.txt", "eins zwei"), write(tmp_path / "c.tsv", "source\ttarget", "eins\tone")
    run = ["--set", f"run.output={tmp_path / 'run'}", "--set", "train.steps=7"]
    adapt.main(["--num_gpus", "2", "--text", str(text), *run])
    adapt.main([f"--text={text}", *run, "--parallel", str(pairs), "--", "--hostfile", "hosts"])
    first, second = ([*words[words.index("--recipe") :]] for words in started)
    assert started[0][4] == "--num_gpus=2" and "hosts" in started[1]
    shards = tmp_path / "run" / "shards"
    config = load_config("adapt", parse_train(first).overrides)
    assert (config.data.objective, config.data.shards, config.train.steps) == ("denoise", str(shards / "text"), 7)
    config = load_config("adapt", parse_train(second).overrides)
    assert config.data.mixture == (f"{shards / 'text'}=1", f"{shards / 'pairs'}=1")
    assert (config.data.objective, config.train.steps, config.train.global_batch) == ("denoise_and_align", 7, 32)
    assert (config.train.lr, config.lora.rank, config.model.has_llm, config.evaluation.tasks) == (1e-4, 16, False, ())
    assert load_config("adapt").train.steps == 100_000 and load_config("adapt").train.global_batch == 16
    own = write(tmp_path / "own.yaml", "base: adapt", "train: {steps: 3}", "data: {mixture: [a=1]}")
    adapt.main(["--recipe", str(own), "--parallel", str(pairs), "--set", f"run.output={tmp_path / 'run'}"])
    config = load_config(str(own), parse_train(started[2][started[2].index("--recipe") :]).overrides)
    assert (config.data.objective, config.train.steps, config.train.global_batch) == ("align", 3, 16)
    assert (config.data.shards, config.data.mixture) == (str(shards / "pairs"), ())
    triples = write(tmp_path / "k.jsonl", '{"head": "eins", "relation": "IsA", "tail": "Zahl"}')
    templates = write(tmp_path / "t.yaml", "IsA: '{head} ist eine {tail}'")
    graph = ["--triples", str(triples), "--templates", str(templates)]
    adapt.main([*graph, "--set", f"run.output={tmp_path / 'graph'}"])
    config = load_config("adapt", parse_train(started[3][started[3].index("--recipe") :]).overrides)
    assert (config.data.objective, config.train.steps, config.train.global_batch) == ("denoise", 25_000, 16)
    assert samples(Path(config.data.shards), "denoise") == [{"text": "eins ist eine Zahl"}]
    adapt.main([*graph, "--text", str(text), "--parallel", str(pairs), "--set", f"run.output={tmp_path / 'all'}"])
    config = load_config("adapt", parse_train(started[4][started[4].index("--recipe") :]).overrides)
    names = [f"{tmp_path / 'all' / 'shards' / name}=1" for name in ("text", "triples", "pairs")]
    assert list(config.data.mixture) == names and config.data.objective == "denoise_and_align"
    adapt.main([*graph, "--text", str(text), "--set", f"run.output={tmp_path / 'both'}"])
    config = load_config("adapt", parse_train(started[5][started[5].index("--recipe") :]).overrides)
    assert (config.train.steps, len(config.data.mixture)) == (100_000, 2)
    adapt.main(["--recipe", str(own), *graph, "--set", f"run.output={tmp_path / 'own'}"])
    assert load_config(str(own), parse_train(started[6][started[6].index("--recipe") :]).overrides).train.steps == 3
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(LaunchError, match=r"--text, --triples and --parallel are packed once.*--prepare first"):
        adapt.main(["--text", str(text), *run])
    monkeypatch.delenv("RANK")
    for name, value in {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    adapt.main(["--num_gpus", "2", "--text", str(text), *run])  # srun has started one process, which starts two
    assert started[-1][4] == "--num_gpus=2" and len(started) == 8


def test_prepare_writes_the_recipe_of_the_run_for_other_launchers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.execv", lambda *_: pytest.fail("nothing is started"))
    monkeypatch.setenv("RANK", "0")  # inside a job, by one process
    pairs = write(tmp_path / "c.tsv", "source\ttarget", "eins\tone")
    words = ["--parallel", str(pairs), "--set", f"run.output={tmp_path / 'run'}", "--set", "train.lr=1e-3"]
    assert adapt.main([*words, "--prepare"]) == 0
    recipe = tmp_path / "run" / "prepared.yaml"
    assert f"RECIPE={recipe} OUTPUT={tmp_path / 'run'} sbatch" in capsys.readouterr().out
    config = load_config(str(recipe))
    assert (config.data.objective, config.train.steps, config.train.global_batch) == ("align", 1000, 32)
    assert (config.train.lr, config.data.shards) == (1e-3, str(tmp_path / "run" / "shards" / "pairs"))
    assert samples(Path(config.data.shards), "align") == [{"source": "eins", "target": "one"}]


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = str(write(tmp_path / "a.txt", "eins zwei"))
    output = ["--set", f"run.output={tmp_path / 'run'}"]
    for words, what in (
        (["--extend-vocabulary", "200000", "--text", text], "is more than 100,000"),
        (["--extend-vocabulary", "20"], "expected --text, --triples or --parallel too"),
        (["--prepare"], "--prepare packs files; expected --text, --triples or --parallel too"),
        ([], "no data is named; expected --text, --triples or --parallel, or --set data.shards=FOLDER"),
        (["--text", text, "--templates", text], "--templates puts triples into words; expected --triples too"),
        (["--parallel", text, text, text], "--parallel has 3 files; expected one, or two"),
        (
            ["--text", text, "--extend-vocabulary", "20", "--set", "lora.rank=4"],
            "lora.rank is 4 and encoder.trainable is",
        ),
        (
            ["--text", text, "--extend-vocabulary", "20", "--set", "encoder.train_embeddings=false"],
            "encoder.train_embeddings is false",
        ),
        (["--text", text, "--set", "data.shards=s"], "data.shards is given beside --text, --triples or --parallel"),
        (["--text", str(tmp_path / "none.txt")], "none.txt cannot be read"),
    ):
        assert exit_status(lambda words=words: adapt.main([*words, *output])) == 2  # type: ignore[misc]
        assert what in capsys.readouterr().err, what
    for settings, sentence in (
        (["lora.rank=0"], "lora.rank is 0 and encoder.trainable is false; expected updates of the encoder"),
        (["data.objective=task"], "model.llm is none and data.objective is task; expected one of denoise"),
        (["data.objective=align", "train.micro_batch=1"], "train.micro_batch is 1; expected 2 or more"),
        (["data.objective=align", "data.tokens_per_micro_batch=4096"], "is 4096, with which a long pair is alone"),
        (["evaluation.tasks=[sib200]"], "evaluation.tasks is sib200; expected no tasks"),
        (["model.encoder=none"], "model.encoder and model.llm are both none"),
        (["llm.finetune=true"], "llm.finetune is true and model.llm is none; expected an LLM to teach"),
        (["model.llm=x"], "data.objective is denoise and model.llm is x; expected no LLM"),
        (["adapt.mask_share=1"], "adapt.mask_share is 1; expected above 0 to 0.9"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            load_config("adapt", settings)
    with pytest.raises(LaunchError, match=r"train.global_batch 16 leaves one sample to each of 16 ranks"):
        resolve_micro_batch(load_config("adapt", ["data.objective=align"]), 16)
    assert resolve_micro_batch(load_config("adapt"), 16).train.micro_batch == 1
    said = idle(load_config("adapt", ["encoder.dropout=true"]))
    assert said == ["encoder.dropout has no effect, as model.llm is none and encoder.trainable false."]
    assert idle(load_config("adapt")) == []
    said = idle(load_config("adapt", ["adapt.temperature=1", "adapt.pair_weight=3"]))
    assert any("adapt.temperature has no effect, as data.objective does not have align" in line for line in said)
    assert any("adapt.pair_weight has no effect" in line for line in said)
