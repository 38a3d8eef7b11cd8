"""`bridge-ds probe`: on the testbed, whose languages the encoder is known to read, and on texts that it cannot read."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bridge_ds.__main__ import main
from bridge_ds.config.schema import TaskDataConfig
from bridge_ds.encoder.retrieval import Retrieval, centered, retrieval
from bridge_ds.entry import exit_status
from bridge_ds.errors import DataError
from bridge_ds.probe.against import scored as read_accuracies
from bridge_ds.probe.against import spearman
from bridge_ds.probe.measure import LanguageProbe, letters_lost
from bridge_ds.probe.parallel import read_parallel
from bridge_ds.probe.reader import Reader, encoder_reader, run_reader
from bridge_ds.probe.text import sentence
from bridge_ds.testbed import LANGUAGES, examples
from tests import tiny
from tests.made import make_run

CPU = torch.device("cpu")
TIBETAN = "ཞི་མི་གདན་ཐོག་ལ་བསྡད།"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parallel sentences of the testbed's six languages, and what its encoder cannot read as `bo`."""
    root = tmp_path_factory.mktemp("parallel")
    for code in LANGUAGES:
        texts = [example.source for example in examples("news", code, "test", 30)]
        (root / f"{code}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (root / "bo.txt").write_text("".join(f"{TIBETAN} {number}\n" for number in range(30)), encoding="utf-8")
    return root


CODES = [*LANGUAGES[1:], "bo"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders with accuracies."""
    root = tmp_path_factory.mktemp("runs")
    # The mean of both decides: of `two` alone, Tibetan is the best.
    accuracies = {
        "one": {"en": 1.0, **dict.fromkeys(CODES, 0.9), "bo": 0.5},
        "two": {"en": 0.1, **dict.fromkeys(CODES, 0.6), "bo": 0.7},
        "few": {"en": 1.0, "qaa": 0.5},
    }
    for name, accuracy in accuracies.items():
        (root / name).mkdir()
        scores = {"sib200": {code: {"acc": value, "exact_match": 0.0, "n": 9} for code, value in accuracy.items()}}
        (root / name / "evaluation.json").write_text(json.dumps({"bridge": scores, "chance": {"sib200": 0.1}}))
    return {name: str(root / name) for name in accuracies}


@pytest.fixture(scope="module")
def probed(
    folder: Path, scored: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    output = tmp_path_factory.mktemp("out") / "probe"
    words = ["probe", "--encoder", "testbed/encoder", "--data", str(folder), "--output", str(output)]
    assert main([*words, "--against", scored["one"], scored["two"]]) == 0
    return json.loads((output / "probe.json").read_text(encoding="utf-8")), output


def test_what_is_read_and_what_is_not(probed: tuple[dict[str, Any], Path]) -> None:
    content, output = probed
    assert (content["sentences"], content["english"], content["places"][0]) == (30, "en", "1")
    found = content["languages"]
    assert next(iter(found)) == "en" and found["en"]["best"] == 1.0 and found["en"]["tokens_per_english_token"] == 1.0
    for code in LANGUAGES[1:]:
        assert found[code]["verdict"] == "well" and found[code]["best"] > 0.9, code
        assert found[code]["unknown_tokens"] == found[code]["lost_letters"] == 0
    assert found["bo"]["verdict"] == "unread"
    assert found["bo"]["lost_letters"] > 0.8 and found["bo"]["unknown_tokens"] > 0.3
    assert found["bo"]["tokens_per_word"] is None and found["qaa"]["tokens_per_word"] >= 1
    text = (output / "probe.txt").read_text(encoding="utf-8")
    assert "Tibetan (bo): this encoder does not read it (" in text and "meant for 100 sentences" in text
    assert "differ from all others" not in text
    assert (output / "probe.png").stat().st_size > 10_000


def test_vectors_are_the_means_of_the_models_own_states(folder: Path) -> None:
    reader = encoder_reader("testbed/encoder", CPU)
    texts = [*read_parallel(str(folder), 25, ["qab"]).texts["qab"], "a"]
    rows = reader.ids(texts, "qab")
    found = reader.vectors(rows)
    assert len(found) == len(reader.places) == reader.encoder.num_layers
    for number in (0, 7, 25):
        alone = reader.encoder.model(input_ids=torch.tensor([rows[number]]), output_hidden_states=True).hidden_states
        for place, state in zip(found, alone[1:], strict=True):
            np.testing.assert_allclose(place[number], state[0].mean(0).numpy(), atol=1e-5)


def test_sentences_that_the_encoder_cannot_tell_apart_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The testbed's tokenizer has no digits: of 30 sentences, three are then the same."""
    (tmp_path / "in").mkdir()
    texts = [example.source for example in examples("news", "en", "test", 27)]
    for code in ("en", "qaa"):
        (tmp_path / "in" / f"{code}.txt").write_text("\n".join([*texts, "the bank 1", "the bank 2", "the bank 3"]))
    words = ["probe", "--encoder", "testbed/encoder", "--data", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert "English (en): only 90 % of its sentences differ from all others for this encoder" in capsys.readouterr().out


def test_a_runs_fusion_and_mapping(folder: Path, tmp_path: Path) -> None:
    """last_layer keeps the last state, and a linear mapping of the mean is the mean of the mapped, end vector aside."""
    llm = tiny.make_llm("llama", tmp_path / "llm")
    settings = [f"model.llm={llm}", "fusion.name=last_layer", "mapping.kind=linear", "model.dtype=float32"]
    run = make_run(tmp_path / "run", settings)
    words = ["probe", "--run", str(run), "--data", str(folder), "--languages", "qaa,qae", "--sentences", "25"]
    assert main(words) == 0
    content = json.loads((run / "probe" / "probe.json").read_text(encoding="utf-8"))
    assert content["places"][-2:] == ["fusion", "mapping"] and content["checkpoint"] == "step-00000001"
    for of in content["languages"].values():
        assert of["retrieval"]["fusion"]["both"] == of["last"] > 0.5
    reader = run_reader(run, CPU)
    *_, last, fused, mapped = reader.vectors(reader.ids(["a", "the old king sleeps"], "en"))
    alone = make_run(tmp_path / "alone", [*settings, "injection.form=every_layer", "injection.soft_prompt=false"])
    assert run_reader(alone, CPU).places == reader.places[:-2]  # there is no soft prompt
    assert reader.bridge is not None
    with torch.no_grad():
        expected = reader.bridge[1].scale * reader.bridge[1].project(torch.tensor(last).float())
    np.testing.assert_array_equal(fused, last)
    np.testing.assert_allclose(mapped, expected.numpy(), atol=1e-5)


def test_retrieval_of_known_vectors() -> None:
    english = np.eye(4)
    assert retrieval(3 * english, english) == Retrieval(1.0, 1.0, 1.0)
    assert retrieval(english[[1, 0, 2, 3]], english) == Retrieval(0.5, 0.5, 0.5)
    assert retrieval(np.ones((4, 4)), english) == Retrieval(0.0, 0.0, 0.0)  # ties are not found
    # Sentence 1 is near its translation, but sentence 0 is nearer to that one.
    own = np.array([[0.0, 1.0], [0.6, 1.0]])
    assert retrieval(own, np.array([[1.0, 0.0], [0.0, 1.0]])) == Retrieval(0.0, 0.5, 0.0)
    moved = english + np.array([9.0, 0.0, 0.0, 0.0])
    assert retrieval(centered(moved), centered(english)).both == 1.0


def test_letters_that_a_tokenizer_loses() -> None:
    class Upper:
        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids)).upper()

    assert letters_lost(["Ab ﬁ é, 5!"], [[*map(ord, "a b fi é 5")]], Upper()) == 0.0
    assert letters_lost(["abcd", ""], [[ord("a")], []], Upper()) == 0.75


def _language(best: float, lost: float = 0.0, per_english: float = 1.0) -> LanguageProbe:
    of = {"1": Retrieval(0.1, 0.1, 0.1), "2": Retrieval(best, best, best), "3": Retrieval(best, best, best)}
    return LanguageProbe("qu", 9, 1.0, per_english, 0.25, lost, 0.0, of, {})


@pytest.mark.parametrize(
    ("best", "lost", "verdict", "words"),
    [
        (0.8, 0.49, "well", "read well: 80 % of its sentences find their translation (layer 2); 25 % of its tokens"),
        (0.79, 0.0, "partly", "Quechua (qu): read in part: 79 %"),
        (0.49, 0.0, "barely", "barely read: 49 %"),
        (1.0, 0.5, "unread", "does not read it (25 % of its tokens are unknown, 50 % of its letters are lost)"),
    ],
)
def test_verdicts(best: float, lost: float, verdict: str, words: str) -> None:
    of = _language(best, lost)
    assert of.verdict == verdict and words in sentence(of)
    run = replace(of, retrieval=of.retrieval | {"fusion": Retrieval(0.71, 1, 1), "mapping": Retrieval(0.62, 1, 1)})
    assert run.verdict == verdict and run.mean == of.mean
    assert ("; after the fusion 71 %, after the mapping 62 %" in sentence(run)) == (verdict != "unread")
    assert of.best_layer == "2" and of.mean == pytest.approx((0.1 + 2 * best) / 3)
    assert ("3.5 tokens for an English one" in sentence(_language(best, lost, 3.5))) == (verdict != "unread")


def test_rank_correlation_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")

    def of_ranks(*samples: Any, axis: int = -1) -> Any:
        one, two = (stats.zscore(stats.rankdata(each, axis=axis), axis=axis) for each in samples)
        return (one * two).mean(axis)

    draw = np.random.default_rng(4)
    first = np.round(draw.random(30), 1)  # with ties
    second = first + draw.normal(size=30) * 0.3
    rho, low, high = spearman(first, second)
    assert rho == pytest.approx(stats.spearmanr(first, second).statistic)
    known = stats.bootstrap((first, second), of_ranks, paired=True, method="percentile", n_resamples=9999, rng=5)
    expected = known.confidence_interval
    assert (low, high) == (pytest.approx(expected.low, abs=0.02), pytest.approx(expected.high, abs=0.02))
    assert spearman(np.arange(9.0), np.exp(np.arange(9.0))) == (1.0, 1.0, 1.0)
    assert spearman(np.ones(9), np.arange(9.0)) == (None, None, None)


def test_against_accuracies(
    probed: tuple[dict[str, Any], Path], scored: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    content, output = probed
    against = content["against"]
    assert against["languages"] == sorted(CODES) and against["task"] == "sib200"
    assert against["runs"] == [scored["one"], scored["two"]]
    assert against["of"]["letters lost"]["rho"] == pytest.approx(-1.0)  # Tibetan alone differs, in both
    assert against["of"]["retrieval, last layer"]["rho"] > 0.5 and len(against["of"]) == 6
    later = ["probe", "--probe", str(output / "probe.json"), "--against"]
    assert main([*later, scored["one"], scored["two"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == against
    assert main([*later, scored["two"], "--task", "sib200"]) == 0
    said = capsys.readouterr().out
    assert "on sib200, one run,\nover 6 languages without English" in said
    assert re.search(r"letters lost +1\.00 \[1\.00, 1\.00\]", said)
    for words, message in (
        ([scored["few"]], "have 1 languages in common"),
        ([scored["one"], "--task", "xnli"], "has accuracies on sib200; expected xnli"),
        ([scored["one"], str(output)], "has accuracies on no task"),
    ):
        assert exit_status(lambda words=words: main([*later, *words])) == 2  # type: ignore[misc]
        assert message in capsys.readouterr().err


def test_accuracies_on_a_task_of_ones_own_by_any_code_of_the_language(tmp_path: Path) -> None:
    accuracies = {"en": 0.9, "si": 0.1, "tam": 0.2, "bo": 0.3, "swh_Latn": 0.4, "yo": 0.5}
    values = {code: {"acc": value, "exact_match": 0.0, "n": 9} for code, value in accuracies.items()}
    (tmp_path / "evaluation.json").write_text(json.dumps({"bridge": {"mine": values}, "chance": {"mine": 0.1}}))
    codes = ["eng_Latn", "sin_Sinh", "tam_Taml", "bod_Tibt", "sw", "yor_Latn", "sin_Latn"]
    found = dict(zip(codes[1:6], (0.1, 0.2, 0.3, 0.4, 0.5), strict=True))
    assert read_accuracies([tmp_path], "", "folder", codes) == ("mine", found)


def test_a_benchmarks_parallel_texts(tmp_path: Path) -> None:
    """By the sentence's number, whatever the order of the rows; test texts are never read."""
    for code, order in (("eng_Latn", 1), ("sin_Sinh", -1)):
        for split, first, count in (("train", 0, 30), ("dev", 30, 10), ("test", 40, 50)):
            lines = [f"{n}\ttravel\t{code} {n}" for n in range(first, first + count)][::order]
            text = "\n".join(["index_id\tcategory\ttext", *lines]) + "\n"
            (tmp_path / f"{code}.{split}.tsv").write_text(text)
    given = {"sib200": TaskDataConfig(source=str(tmp_path))}
    found = read_parallel("sib200", 25, ["sin_Sinh"], given)
    assert list(found.texts) == ["en", "si"] and found.english == "en"
    numbers = [[int(text.split()[1]) for text in texts] for texts in found.texts.values()]
    assert numbers[0] == numbers[1] and len(numbers[0]) == 25 and max(numbers[0]) < 30
    assert [b - a for a, b in zip(numbers[0], numbers[0][1:], strict=False)].count(1) > 15  # spread evenly
    # Data of the recipe's own tasks is no matter of these.
    assert read_parallel("sib200", 25, ["sin_Sinh"], {**given, "my_news": TaskDataConfig(source="x")}) == found
    everything = read_parallel("sib200", 1000, [], given).texts["en"]
    assert len(everything) == 40

    passages = tmp_path / "belebele"
    passages.mkdir()
    for code, order in (("en", 1), ("bo", -1)):
        rows = [{"flores_passage": f"{code} {n // 2}", "link": f"https://x/{n // 2}"} for n in range(50)][::order]
        (passages / f"{code}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_parallel("belebele", 100, [], {"belebele": TaskDataConfig(source=str(passages))})
    assert found.texts["bo"] == [f"bo {n}" for n in range(25)] == [f"bo{text[2:]}" for text in found.texts["en"]]


def test_tables_and_folders(tmp_path: Path) -> None:
    table = tmp_path / "all.tsv"
    rows = [f"{n}\tEnglish {n}\t{'' if n == 3 else f'සිංහල {n}'}" for n in range(24)]
    table.write_text("\n".join(["id\teng_Latn\tsin_Sinh", *rows]) + "\n", encoding="utf-8")
    found = read_parallel(str(table), 100, ["sin_Sinh"])
    assert list(found.texts) == ["eng_Latn", "sin_Sinh"] and len(found.texts["eng_Latn"]) == 23
    assert (found.texts["eng_Latn"][3], found.texts["sin_Sinh"][3]) == ("English 4", "සිංහල 4")
    lines = [{"en": f"English {n}"} | ({"si": f"සිංහල {n}"} if n else {}) for n in range(24)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_parallel(str(tmp_path / "all.jsonl"), 100)
    assert list(found.texts) == ["en", "si"] and len(found.texts["si"]) == 23
    with pytest.raises(DataError, match="has no letter in the column 'id'; expected sentences; name the columns that"):
        read_parallel(str(table), 100)  # id is Indonesian, too
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "en.txt").write_bytes("\ufeff".encode() + b"".join(b"line %d\r\n" % n for n in range(22)))
    (tmp_path / "f" / "si.txt").write_text("".join("\n" if n == 1 else f"x\u2028y {n}\n" for n in range(22)))
    found = read_parallel(str(tmp_path / "f"), 100)
    assert found.texts["en"][:2] == ["line 0", "line 2"] and found.texts["si"][1] == "x\u2028y 2"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "versions and devices are printed by: bridge-ds env"),
        (["--encoder", "testbed/encoder", "--run", "x"], "both --encoder and --run are given"),
        (["--encoder", "testbed/encoder"], "--data is missing"),
        (["--encoder", "testbed/encoder", "--data", "F", "--source", "E"], "--source is given with --data 'F'"),
        (["--probe", "T"], "--probe is given without --against"),
        (["--probe", "none.json", "--against", "F"], "none.json cannot be read"),
        (
            ["--probe", "none.json", "--against", "F", "--languages", "si", "--sentences", "50"],
            "--languages and --sentences have no effect on a probe that is there",
        ),
        (["--probe", "J", "--against", "F"], "J.jsonl has no languages; expected a probe.json"),
        (["--encoder", "testbed/encoder", "--data", "nothing"], "--data is 'nothing'; expected sib200 or belebele, a"),
        (["--encoder", "testbed/encoder", "--data", "F", "--languages", "xx"], "--languages names 'xx', which"),
        (
            ["--encoder", "testbed/encoder", "--data", "F", "--languages", "short"],
            "short.txt has 2 lines and en.txt 3",
        ),
        (["--encoder", "testbed/encoder", "--data", "F", "--languages", "few"], "has 3 sentences that all 2 languages"),
        (["--encoder", "testbed/encoder", "--data", "F", "--languages", "wide"], "is UTF-16 or UTF-32"),
        (["--encoder", "testbed/encoder", "--data", "T"], "expected English among them"),
        (["--encoder", "testbed/encoder", "--data", "J"], "has int in the column 'id'; expected a sentence"),
        (["--encoder", "testbed/encoder", "--data", "E"], "has no file LANGUAGE.txt"),
        (["--encoder", "no/such", "--data", "F", "--languages", "si"], "model.encoder 'no/such' cannot be found"),
        (["--encoder", "testbed/encoder", "--data", "F", "--languages", "si", "--device", "q"], "--device is 'q'"),
        (
            ["--encoder", "testbed/encoder", "--data", "F", "--languages", "si", "--output", "T.tsv/x"],
            "cannot be written",
        ),
        (["--run", "nowhere", "--data", "F"], "nowhere"),
    ],
)
def test_what_cannot_be_probed(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("F", "E"):
        Path(place).mkdir()
    for code, lines in (("en", 30), ("si", 30), ("short", 2)):
        Path("F", f"{code}.txt").write_text("a word\n" * lines)
    Path("F", "few.txt").write_text("a\nb\nc\n" + 27 * "\n")
    Path("F", "wide.txt").write_bytes("one\n".encode("utf-16"))
    Path("T.tsv").write_text("si\tbo\na\tb\n")
    Path("J.jsonl").write_text('{"id": 1, "en": "a"}\n')
    named = {"T": "T.tsv", "J": "J.jsonl"}
    assert exit_status(lambda: main(["probe", *(named.get(word, word) for word in words)])) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and said.count("\n") == 1
    assert not Path("runs", "probe", "probe.json").exists()


def test_language_tags_and_long_sentences() -> None:
    """An encoder with language tags gets each language's own, and the default for one that it lacks."""
    from bridge_ds.data.text.languages import SourceLanguages

    reader = encoder_reader("testbed/encoder", CPU)
    tags = SourceLanguages("eng_Latn", {"eng_Latn": ((5,), (1,)), "sin_Sinh": ((6,), (1,))})
    tagged = Reader("x", reader.encoder, reader.tokenizer, tags, limit=4)
    (plain,) = reader.ids(["the old king sleeps in the forest"], "si")
    for code, tag in (("si", 6), ("bo", 5)):
        (row,) = tagged.ids(["the old king sleeps in the forest"], code)
        assert row == [tag, *plain[:-1], 1]
        assert tagged.cut(row) == [tag, *plain[:2], 1]
