"""The benchmarks give the papers' prompts and labels, from the hub's columns or local files, and refuse all else."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bridge_ds import testbed
from bridge_ds.config.schema import TaskConfig, TaskDataConfig
from bridge_ds.errors import BridgeError, ConfigError, DataError
from bridge_ds.tasks import TASKS, TableTask, Task, find_tasks
from bridge_ds.tasks.base import KINDS

from . import local


def given(name: str, source: Path | str = "", **more: Any) -> TableTask:
    (task,) = find_tasks([name], {name: TaskDataConfig(source=str(source), **more)})
    assert isinstance(task, TableTask)
    return task


@pytest.mark.parametrize("name", TASKS)
def test_every_task_keeps_the_contract(name: str) -> None:
    task = TASKS[name]
    assert isinstance(task, Task) and task.name == name
    assert task.kind in KINDS and (len(task.labels) >= 2) == (task.kind == "labels")
    assert len(set(task.labels)) == len(task.labels)
    assert len(set(task.languages)) == len(task.languages)
    assert "en" not in task.languages[1:]
    if task.kind == "labels":
        assert task.chance == pytest.approx(1 / len(task.labels))


def test_languages_of_the_benchmarks() -> None:
    counts = {"xnli": 15, "indicxnli": 11, "sinhala_news": 2, "amazon_reviews": 6, "belebele": 122, "xcopa": 11,
              "mgsm": 11, "msvamp": 10, "sib200": 205, "masakhanews": 16, "afrixnli": 18, "afrimgsm": 19,
              "xstorycloze": 11,
              "global_mmlu": 42}  # fmt: skip
    assert {name: len(TASKS[name].languages) for name in counts} == counts


def test_languages_have_two_letters_where_there_are_some_and_the_hubs_name_too(tmp_path: Path) -> None:
    from bridge_ds.evaluation.jobs import wanted

    for name in ("belebele", "sib200"):
        task = TASKS[name]
        assert task.languages[0] == "en" and {"si", "ta", "sw", "bo", "shn_Mymr"} <= set(task.languages)
        assert task.code_of("sin_Sinh") == task.code_of("si") == "si" and task.code_of("xx") == "xx"
    assert TASKS["afrixnli"].code_of("swa") == TASKS["masakhanews"].code_of("swa") == "sw"
    tasks = [TASKS["sib200"], TASKS["afrixnli"]]
    assert [(task.name, code) for task, code in wanted(tasks, ["swh_Latn", "zu"])] == [
        ("sib200", "sw"), ("sib200", "zu"), ("afrixnli", "sw"), ("afrixnli", "zu")
    ]  # fmt: skip
    other = {code for _, code in wanted([TASKS["sib200"]], ["quy", "bod", "nqo", "sat", "sin"])}
    assert other == {"qu", "bo", "nqo_Nkoo", "sat_Olck", "si"}
    news = TASKS["testbed_news"]
    assert [code for _, code in wanted([news], [])] == list(testbed.LANGUAGES)
    assert [code for _, code in wanted([news], [testbed.UNSEEN, "en"])] == ["en", testbed.UNSEEN]
    with pytest.raises(ConfigError, match="names si twice"):
        wanted([TASKS["sib200"]], ["si", "sin_Sinh"])
    for unclear in ("sin_Shin", "taq"):  # two scripts
        with pytest.raises(ConfigError, match=f"'{unclear}', which no task has; expected some of en, .*, ... \\("):
            wanted(tasks, [unclear])


@pytest.mark.parametrize("kind", testbed.TASKS)
def test_testbed_samples_are_parallel_and_balanced(kind: str) -> None:
    task = TASKS[f"testbed_{kind}"]
    english, other = task.examples("en", 30), task.examples(task.languages[1], 30)
    assert [(e.key, e.label) for e in english] == [(e.key, e.label) for e in other]
    counts = [sum(e.label == label for e in english) for label in range(len(task.labels))]
    assert max(counts) - min(counts) <= 1
    for example in english:
        assert example.target == task.labels[example.label]
        assert example.source == example.source.strip() and example.language == "en"
        assert example.null in {"Premise: Hypothesis: Label:", "News Sentence: Category:", "Review: Label:"}
    assert len(task.examples("en", 0)) == 300


def test_an_unknown_task_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'testbed_new'; .* did you mean 'testbed_news'\?"):
        find_tasks(["xnli", "testbed_new"])
    with pytest.raises(ConfigError, match=r"unknown task 'xnil'; .* did you mean 'xnli'\?"):
        find_tasks([], {"xnil": TaskDataConfig()})
    assert [task.name for task in find_tasks(["xnli", "testbed_news"])] == ["xnli", "testbed_news"]


def test_the_papers_benchmarks_from_local_files(tmp_path: Path) -> None:
    folders = local.all_four(tmp_path)
    tasks = {name: given(name, folder) for name, folder in folders.items()}
    assert {name: task.languages for name, task in tasks.items()} == {
        "xnli": ("en", "ar", "de", "th"), "indicxnli": ("bn", "ta"), "sinhala_news": ("en", "si"),
        "amazon_reviews": ("en", "ja"),
    }  # fmt: skip

    (first, *_), rows = tasks["xnli"].examples("th", 0), local.pairs("th", 12)
    assert first.source == f"Premise: {rows[0]['premise']} Hypothesis: {rows[0]['hypothesis']} Label:"
    assert first.target == ("Entailment", "Neutral", "Contradiction")[rows[0]["label"]]
    assert (first.label, first.language, first.key) == (rows[0]["label"], "th", "xnli-0")
    assert first.null == "Premise: Hypothesis: Label:"
    assert len(tasks["xnli"].examples("th", 5)) == 5 and len(tasks["xnli"].examples("th", 0)) == 12

    assert tasks["indicxnli"].examples("ta", 1)[0].key == "indicxnli-0"
    news = tasks["sinhala_news"].examples("si", 0)
    assert news[0].source.startswith("News Sentence: ") and news[0].source.endswith(" Category:")
    assert all(example.target == local.NEWS[example.label] for example in news)
    assert news[0].key == "sinhala_news-si-0"  # not the sentence of the same number in English
    reviews = tasks["amazon_reviews"].examples("ja", 0)
    assert [example.label for example in reviews] == [n % 5 for n in range(9)]
    assert reviews[0].target == "Very Negative" and "\n\n" in reviews[0].source


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet"])
def test_a_folder_with_a_file_for_each_language(tmp_path: Path, ending: str) -> None:
    for language in ("de", "en", "si"):
        rows = [{"sentence1": f"a {language}, b", "hypothesis": '"c"', "gold": label} for label in ("0", "neutral", 2)]
        path = tmp_path / f"{language}.{ending}"
        if ending == "jsonl":
            local.jsonl(path, rows)
        elif ending == "parquet":
            local.parquet(path, [row | {"gold": str(row["gold"])} for row in rows])
        elif ending == "tsv":
            path.write_text("".join("\t".join(map(str, row)) + "\n" for row in [rows[0], *(r.values() for r in rows)]))
        else:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
    task = given("xnli", tmp_path, fields={"premise": "sentence1", "label": "gold"})
    assert task.languages == ("en", "de", "si")
    assert [(e.label, e.source) for e in task.examples("si", 0)] == [
        (label, 'Premise: a si, b Hypothesis: "c" Label:') for label in (0, 1, 2)
    ]


def test_a_prompt_of_ones_own(tmp_path: Path) -> None:
    local.jsonl(tmp_path / "en.jsonl", [{"premise": "A", "hypothesis": "B", "label": 0}])
    task = given("xnli", tmp_path, prompt="{hypothesis}? {premise}! Answer:")
    (example,) = task.examples("en", 0)
    assert (example.source, example.null) == ("B? A! Answer:", "? ! Answer:")
    with pytest.raises(ConfigError, match=r"evaluation.data.xnli.prompt has \{premis\}; expected some of \{premise\}"):
        given("xnli", tmp_path, prompt="{premis}")
    with pytest.raises(ConfigError, match="is no template"):
        given("xnli", tmp_path, prompt="{premise")


def test_belebele_asks_for_letters(tmp_path: Path) -> None:
    row = {"link": "https://a/b", "question_number": 1, "flores_passage": "P.", "question": "Q?", "mc_answer1": "w",
           "mc_answer2": "x", "mc_answer3": "y", "mc_answer4": "z", "correct_answer_num": "3", "dialect": "sin_Sinh",
           "ds": "2023-05-03"}  # fmt: skip
    local.jsonl(tmp_path / "data" / "sin_Sinh.jsonl", [row, row | {"question_number": 2}, row])
    local.jsonl(tmp_path / "data" / "sin_Latn.jsonl", [row])
    task = given("belebele", tmp_path)
    assert task.languages == ("sin_Latn", "si")
    examples = task.examples("si", 0)
    assert examples[0].source == "Passage: P.\nQuestion: Q?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    assert (examples[0].target, examples[0].label, examples[0].choices) == ("C", 2, ())
    # The same question has the same key in another variant; keys stay one of a kind.
    assert task.examples("sin_Latn", 0)[0].key == examples[0].key
    assert examples[2].key == examples[0].key + "-2" != examples[1].key


def test_xcopa_continues_the_premise(tmp_path: Path) -> None:
    row = {"premise": "L'uomo aprì il rubinetto.", "choice1": "Il gabinetto si riempì d'acqua.",
           "choice2": "Dell'acqua fluì dal beccuccio.", "question": "effect", "label": 1,
           "idx": 7, "changed": False}  # fmt: skip
    local.jsonl(tmp_path / "it.jsonl", [row])
    local.jsonl(tmp_path / "xx.jsonl", [row])
    task = given("xcopa", tmp_path)
    (example,) = task.examples("it", 0)
    assert example.source == "L'uomo aprì il rubinetto quindi" and example.null == "quindi"
    assert example.choices == ("il gabinetto si riempì d'acqua.", "dell'acqua fluì dal beccuccio.")
    assert (example.label, example.target, example.key) == (1, example.choices[1], "xcopa-7")
    with pytest.raises(ConfigError, match="knows no word for 'because' in 'xx'"):
        task.examples("xx", 0)
    local.jsonl(tmp_path / "xx.jsonl", [row | {"connective": "also"}])
    assert task.examples("xx", 0)[0].source.endswith("rubinetto also")
    local.jsonl(tmp_path / "it.jsonl", [row | {"question": "why"}])
    with pytest.raises(DataError, match="question 'why'; expected cause or effect"):
        task.examples("it", 0)


def test_maths(tmp_path: Path) -> None:
    local.jsonl(tmp_path / "mgsm" / "bn.jsonl", [{"question": "কত?", "answer": None, "answer_number": 1200,
                                                  "equation_solution": None}])  # fmt: skip
    local.jsonl(tmp_path / "msvamp" / "sw.jsonl", [{"m_query": "Ngapi?", "response": "7.0", "equation": "3 + 4"}])
    (one,) = given("mgsm", tmp_path / "mgsm").examples("bn", 0)
    assert (one.source, one.target, one.label) == ("Question: কত?\nStep-by-Step Answer:", "1200", -1)
    (two,) = given("msvamp", tmp_path / "msvamp").examples("sw", 0)
    assert (two.source, two.target, two.key) == ("Question: Ngapi?\nStep-by-Step Answer:", "7", "msvamp-0")
    local.jsonl(tmp_path / "mgsm" / "bn.jsonl", [{"question": "?", "answer_number": "many"}])
    with pytest.raises(DataError, match="the answer 'many'; expected a number"):
        given("mgsm", tmp_path / "mgsm").examples("bn", 0)


def test_topics(tmp_path: Path) -> None:
    """The releases' own files."""
    head, line = "index_id\tcategory\ttext\n", '7\tscience/technology\t"පරමාණු ""q"""\n'
    for split in ("train", "dev", "test"):
        (tmp_path / f"eng_Latn.{split}.tsv").write_text(head + "7\ttravel\tA road.\n")
        (tmp_path / f"sin_Sinh.{split}.tsv").write_text(head + line)
    task = given("sib200", tmp_path)
    assert task.languages == ("en", "si")
    for language in ("si", "sin_Sinh"):
        (example,) = task.examples(language, 0)
        assert (example.source, example.target) == ('Sentence: පරමාණු "q" Topic:', "science/technology")
        assert (example.key, example.language, example.null) == ("sib200-7", "si", "Sentence: Topic:")
    assert [example.target for example in task.train()] == ["travel"]

    path = tmp_path / "news" / "swa" / "test.tsv"
    path.parent.mkdir(parents=True)
    path.write_text("category\theadline\ttext\turl\nsports\tTimu yashinda\tJana ...\thttps://a/b\n")
    (example,) = given("masakhanews", tmp_path / "news").examples("sw", 0)
    assert (example.source, example.target) == ("Headline: Timu yashinda Topic:", "sports")
    local.parquet(tmp_path / "hub" / "swa" / "test" / "0000.parquet", [{"label": 5, "headline": "Timu", "text": "..."}])
    assert given("masakhanews", tmp_path / "hub").examples("sw", 0)[0].target == "sports"


def test_afrixnli_and_afrimgsm_read_as_xnli_and_mgsm(tmp_path: Path) -> None:
    row = {"premise": "A", "hypothesis": "B", "label": 2}
    local.jsonl(tmp_path / "nli" / "test" / "zul.jsonl", [row])
    (example,) = given("afrixnli", tmp_path / "nli").examples("zu", 0)
    assert example.source == "Premise: A Hypothesis: B Label:" and example.target == "Contradiction"
    local.jsonl(tmp_path / "sums" / "test" / "zul.jsonl", [{"question": "Q?", "answer": None, "answer_number": 18}])
    (example,) = given("afrimgsm", tmp_path / "sums").examples("zu", 0)
    assert (example.source, example.target) == ("Question: Q?\nStep-by-Step Answer:", "18")


def test_xstorycloze_continues_the_story(tmp_path: Path) -> None:
    row = {"story_id": "ab", "answer_right_ending": 2, "sentence_quiz1": "He left.", "sentence_quiz2": "He ate."}
    row |= {f"input_sentence_{number}": f"S{number}." for number in range(1, 5)}
    local.jsonl(tmp_path / "my.jsonl", [row])
    (example,) = given("xstorycloze", tmp_path).examples("my", 0)
    assert (example.source, example.choices) == ("S1. S2. S3. S4.", ("He left.", "He ate."))
    assert (example.target, example.label, example.key, example.null) == ("He ate.", 1, "xstorycloze-ab", "")


def test_global_mmlu_asks_for_letters(tmp_path: Path) -> None:
    row = {"sample_id": "anatomy/test/0", "question": "Q?", "answer": "B"}
    row |= {f"option_{letter}": letter * 2 for letter in "abcd"}
    local.jsonl(tmp_path / "si.jsonl", [row])
    (example,) = given("global_mmlu", tmp_path).examples("si", 0)
    assert example.source == "Q?\nA. aa\nB. bb\nC. cc\nD. dd\nAnswer:"
    assert (example.target, example.label, example.key) == ("B", 1, "global_mmlu-anatomy/test/0")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"premise": "A", "label": 0}, "no column 'hypothesis'; it has premise, label; expected the hypothesis"),
        ({"premise": None, "hypothesis": "B", "label": 0}, "an empty column 'premise'"),
        ({"premise": ["A"], "hypothesis": "B", "label": 0}, "has list in column 'premise'; expected text"),
        ({"premise": "A", "hypothesis": "B", "label": 3}, r"the label 3; expected one of 0 \(Entailment\), 1"),
        ({"premise": "A", "hypothesis": "B", "label": -1}, "the label -1"),
        ({"premise": "A", "hypothesis": "B", "label": "maybe"}, "the label 'maybe'"),
        ({"premise": "A", "hypothesis": "B", "label": 0.5}, "the label 0.5"),
    ],
)  # fmt: skip
def test_wrong_rows_are_one_sentence(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = local.jsonl(tmp_path / "en.jsonl", [{"premise": "A", "hypothesis": "B", "label": 1}, row])
    with pytest.raises(DataError, match=words) as found:
        given("xnli", tmp_path).examples("en", 0)
    assert f"{path}:2" in str(found.value) and "\n" not in str(found.value)


def test_what_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    folder = local.xnli(tmp_path / "xnli")
    with pytest.raises(ConfigError, match=r"language 'si' is not in xnli .* expected one of en, ar, de, th; correct"):
        given("xnli", folder).examples("si", 1)
    with pytest.raises(ConfigError, match="language 'si' is not in xnli"):
        TASKS["xnli"].examples("si", 1)
    with pytest.raises(ConfigError, match=r"fields has 'premis'; .* did you mean 'premise'\?"):
        given("xnli", folder, fields={"premis": "a"})
    with pytest.raises(ConfigError, match="testbed_news gives data to a task that generates its own"):
        find_tasks(["testbed_news"], {"testbed_news": TaskDataConfig(source="x")})
    with pytest.raises(DataError, match=r"has no train file for the language 'en' .* expected train/en.jsonl"):
        next(given("xnli", local.indicxnli(tmp_path / "indic")).train())
    with pytest.raises(ConfigError, match="indicxnli has no English train split"):
        given("indicxnli").train()
    (tmp_path / "nothing").mkdir()
    assert given("xnli", tmp_path / "nothing").languages == ()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is asked of `datasets`, which knows nothing."""
    import datasets

    calls: list[tuple[Any, ...]] = []

    def unreachable(*names: object, **options: object) -> None:
        calls.append((*names, {key: value for key, value in options.items() if value is not None}))
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    return calls


@pytest.mark.parametrize(
    ("name", "language", "expected"),
    [
        ("xnli", "sw", ("facebook/xnli", "sw", {"split": "test"})),
        ("indicxnli", "ta", ("parquet", {"data_files": {"test": "hf://datasets/Divyanshu/indicxnli@refs/convert/parquet"
                                                        "/ta/test/*.parquet"}, "split": "test"})),
        ("sinhala_news", "si", ("Themira/en_si_news_classification_with_label_name", None, {"split": "test_si"})),
        ("amazon_reviews", "ja", ("json", {"data_files": {"test": "hf://datasets/mteb/amazon_reviews_multi/ja/"
                                                          "test.jsonl"}, "split": "test"})),
        ("belebele", "si", ("facebook/belebele", "sin_Sinh", {"split": "test"})),
        ("xcopa", "ta", ("cambridgeltl/xcopa", "ta", {"split": "test"})),
        ("mgsm", "bn", ("parquet", {"data_files": {"test": "hf://datasets/juletxara/mgsm@refs/convert/parquet/bn/test/"
                                                   "*.parquet"}, "split": "test"})),
        ("msvamp", "sw", ("Mathoctopus/MSVAMP", "sw", {"split": "test"})),
        ("sib200", "si", ("Davlan/sib200", "sin_Sinh", {"split": "test"})),
        ("masakhanews", "yo", ("parquet", {"data_files": {"test": "hf://datasets/masakhane/masakhanews@refs/convert/"
                                                          "parquet/yor/test/*.parquet"}, "split": "test"})),
        ("afrixnli", "wo", ("masakhane/afrixnli", "wol", {"split": "test"})),
        ("afrimgsm", "wo", ("masakhane/afrimgsm", "wol", {"split": "test"})),
        ("xstorycloze", "my", ("parquet", {"data_files": {"test": "hf://datasets/juletxara/xstory_cloze@refs/convert/"
                                                          "parquet/my/eval/*.parquet"}, "split": "test"})),
        ("global_mmlu", "si", ("CohereLabs/Global-MMLU", "si", {"split": "test"})),
    ],
)  # fmt: skip
def test_what_is_asked_of_the_hub(
    asked: list[tuple[Any, ...]], name: str, language: str, expected: tuple[Any, ...]
) -> None:
    with pytest.raises(
        BridgeError, match=rf"\({language}, test\) could not be loaded .*no route to host.*name a folder"
    ):
        TASKS[name].examples(language, 1)
    assert asked == [expected]


def test_what_a_users_task_asks_of_the_hub(asked: list[tuple[Any, ...]]) -> None:
    own = TaskConfig(
        source="me/news", revision="abc", prompt="{text}", labels={"0": "a", "1": "b"}, languages={"si": "sin_Sinh"},
        test_split="validation", fields={"text": "title"},
    )  # fmt: skip
    for config in (own, dataclasses.replace(own, fields={"language": "lang"})):
        (task,) = find_tasks(["mine"], own={"mine": config})
        with pytest.raises(
            DataError, match=r"me/news \(si, test\) could not be loaded .*tasks.mine.source in a recipe"
        ):
            task.examples("sin_Sinh", 1)
    assert asked == [
        ("me/news", "sin_Sinh", {"split": "validation", "revision": "abc"}),
        ("me/news", None, {"split": "validation", "revision": "abc"}),
    ]


def test_another_id_and_revision(asked: list[tuple[Any, ...]]) -> None:
    for more in ({"revision": "abc"}, {"revision": "refs/convert/parquet"}):
        with pytest.raises(DataError):
            given("xnli", "me/mine", **more).examples("en", 1)
    with pytest.raises(DataError):
        given("xnli", revision="v2").examples("en", 1)
    assert asked == [
        ("me/mine", "en", {"split": "test", "revision": "abc"}),
        ("parquet", {"data_files": {"test": "hf://datasets/me/mine@refs/convert/parquet/en/test/*.parquet"},
                     "split": "test"}),
        ("facebook/xnli", "en", {"split": "test", "revision": "v2"}),
    ]  # fmt: skip


def test_a_copy_of_a_hub_repository_is_read_as_its_card_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "clone"
    local.parquet(folder / "files" / "german.parquet", local.pairs("de", 3))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: de\n  data_files:\n  - split: test\n    path: files/german.parquet\n---\n"
    )
    task = given("xnli", folder)
    assert "de" in task.languages
    assert len(task.examples("de", 0)) == 3


@pytest.mark.parametrize(
    "label", [True, 0.5, -1, 3, "0_1", "१", "nan", None, [0], {"a": 0}, float("nan"), 10**30, "1e0", ""]
)
def test_a_label_without_meaning_is_refused(tmp_path: Path, label: Any) -> None:
    local.jsonl(tmp_path / "en.jsonl", [{"premise": "a", "hypothesis": "b", "label": label}])
    with pytest.raises(DataError, match=r"en.jsonl:1 has (the label|an empty column)"):
        given("xnli", tmp_path).examples("en", 0)


@pytest.mark.parametrize("label", [1, 1.0, "1", "1.0", " 1 ", "neutral"])
def test_a_label_with_meaning_is_read(tmp_path: Path, label: Any) -> None:
    local.jsonl(tmp_path / "en.jsonl", [{"premise": "a", "hypothesis": "b", "label": label}])
    assert given("xnli", tmp_path).examples("en", 0)[0].label == 1


@pytest.mark.parametrize(
    ("answer", "right"),
    [(1e16, "10000000000000000"), ("1e3", "1000"), (12.0, "12"), (-3, "-3"), ("#### 1,234", "1234"), (True, None),
     ([1, 2], None), ({"a": 3}, None), (float("nan"), None), (float("inf"), None), ("none", None), (1e300, None)],
)  # fmt: skip
def test_the_answer_of_a_problem_is_a_number(tmp_path: Path, answer: Any, right: str | None) -> None:
    local.jsonl(tmp_path / "en.jsonl", [{"question": "q", "answer_number": answer}])
    if right is None:
        with pytest.raises(DataError, match=r"en.jsonl:1 has the answer .*; expected a number"):
            given("mgsm", tmp_path).examples("en", 0)
    else:
        assert given("mgsm", tmp_path).examples("en", 0)[0].target == right


def test_texts_of_benchmarks_are_text(tmp_path: Path) -> None:
    for wrong in (float("nan"), 5, None, ["a"], {"a": 1}):
        local.jsonl(tmp_path / "en.jsonl", [{"premise": wrong, "hypothesis": "b", "label": 0}])
        with pytest.raises(DataError, match=r"en.jsonl:1 has .* column 'premise'"):
            given("xnli", tmp_path).examples("en", 0)
    rows = [{"premise": "a", "question": "cause", "choice1": " ", "choice2": "b", "label": 0}]
    local.jsonl(tmp_path / "et.jsonl", rows)
    with pytest.raises(DataError, match=r"et.jsonl:1 has an empty choice"):
        given("xcopa", tmp_path).examples("et", 0)
    for prompt in ("{premise!r}", "{premise:>99999999999}"):
        with pytest.raises(ConfigError, match="a field has a format of its own"):
            given("xnli", tmp_path, prompt=prompt)
    local.jsonl(tmp_path / "a[b].jsonl", [{"premise": "a", "hypothesis": "b", "label": 0}])
    assert len(given("xnli", tmp_path).examples("a[b]", 0)) == 1
