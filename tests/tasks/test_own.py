"""A task of the user's own, declared in YAML: what files may look like, and what is wrong in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge_ds.config.effect import idle
from bridge_ds.config.load import load_config, load_run_config, overridden, save_config
from bridge_ds.config.schema import TaskDataConfig
from bridge_ds.errors import BridgeError, ConfigError, DataError
from bridge_ds.evaluation.jobs import load_jobs, wanted
from bridge_ds.start import RunFolder
from bridge_ds.tasks import Task, find_tasks, tasks_of
from bridge_ds.tasks.own import OwnTask
from bridge_ds.tasks.rows import local_languages
from bridge_ds.world import World

from . import local

NEWS = {"prompt": "News: {text} Topic:", "labels": "{0: Business, 1: Sports}"}


def declared(source: Path | str, **settings: Any) -> OwnTask:
    """`tasks.mine` with these settings, as a recipe or a command line gives them."""
    values = {"source": source} | settings
    config = load_config("testbed", [f"tasks.mine.{key}={value}" for key, value in values.items()])
    (task,) = find_tasks(["mine"], own=config.tasks)
    assert isinstance(task, OwnTask) and isinstance(task, Task)
    return task


def csv(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_recipe_declares_a_task_that_others_inherit_and_a_run_folder_remembers(tmp_path: Path) -> None:
    for language in ("si", "en"):
        csv(tmp_path / "news" / f"{language}.csv", "headline,topic", f"{language} one, biz ", f"{language} two,Sports")
    csv(tmp_path / "news" / "train" / "en.csv", "headline,topic", "x,SPORT")
    text = f"""
base: testbed
tasks:
  my_news:
    source: {tmp_path}/news
    prompt: "News: {{text}} Topic:"
    fields: {{text: headline, label: topic}}
    labels: {{biz: Business, sport: Sports}}
"""
    (tmp_path / "tasks.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "mine.yaml").write_text("base: tasks.yaml\nevaluation: {tasks: [my_news, testbed_news]}\n")
    config = load_config(str(tmp_path / "mine.yaml"))
    save_config(config, tmp_path / "config.yaml")
    assert load_run_config(tmp_path) == config
    news, other = tasks_of(config)
    assert (news.name, other.name, news.kind, news.labels) == (
        "my_news",
        "testbed_news",
        "labels",
        ("Business", "Sports"),
    )
    assert news.languages == ("en", "si") and news.chance == 0.5
    (first, second) = news.examples("si", 0)
    assert (first.source, first.null) == ("News: si one Topic:", "News: Topic:")
    assert [(e.target, e.label, e.key) for e in (first, second)] == [
        ("Business", 0, "my_news-si-0"), ("Sports", 1, "my_news-si-1")
    ]  # fmt: skip
    assert isinstance(news, OwnTask) and [e.target for e in news.train()] == ["Sports"]
    assert [(job.language, len(job.examples)) for job in load_jobs([news], [], 1, World())] == [("en", 1), ("si", 1)]
    moved = tasks_of(load_config(str(tmp_path / "mine.yaml"), [f"evaluation.data.my_news.source={tmp_path / 'x'}",
                                                              "tasks.my_news.languages=[en]"]))  # fmt: skip
    assert isinstance(moved[0], OwnTask) and moved[0].source == f"{tmp_path / 'x'}"


def test_a_task_has_no_built_in_name_and_is_offered_by_its_own(tmp_path: Path) -> None:
    own = load_config("testbed", [f"tasks.xnli.source={tmp_path}", "tasks.xnli.prompt={a}", "tasks.xnli.labels=[a, b]"])
    with pytest.raises(ConfigError, match=r"tasks.xnli has the name of a built-in task; expected another; rename it"):
        find_tasks([], own=own.tasks)
    own = load_config(
        "testbed", [f"tasks.my_news.{key}={value}" for key, value in {"source": tmp_path, **NEWS}.items()]
    )
    with pytest.raises(ConfigError, match=r"unknown task 'my_new'; .*, my_news; did you mean 'my_news'\?"):
        find_tasks(["my_new"], own=own.tasks)


@pytest.mark.parametrize(
    ("labels", "value", "right"),
    [
        ("{0: Business, 1: Sports}", 1, 1), ("{0: Business, 1: Sports}", "1.0", 1), ("[Business, Sports]", 1, 1),
        ("[Business, Sports]", "sports ", 1), ("{a: Bad, b: Good, c: Bad}", "C", 0), ("{true: Yes, no: No}", True, 0),
        ("{0: '1', 1: '0'}", 0, 0), ("[0, 1]", "1", 1), ("{1: '1', 2: '2', 3: '3'}", "2", 1),
        ("{-1: Bad, 1: Good}", -1, 0), ("{2.5: Low, 5.0: High}", 5.0, 1),
    ],
)  # fmt: skip
def test_values_become_labels(tmp_path: Path, labels: str, value: Any, right: int) -> None:
    local.jsonl(tmp_path / "en.jsonl", [{"text": "a", "label": value}])
    (example,) = declared(tmp_path, **NEWS | {"labels": labels}).examples("en", 0)
    assert example.label == right


def test_class_labels_whose_names_are_numbers(tmp_path: Path) -> None:
    """Five ratings: number 1 in the column is the name 2. Settings with all names mean names, else numbers."""
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["1", "2", "3"])})
    Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 2]}, features=features).to_parquet(
        tmp_path / "en.parquet"
    )
    for labels in ("{1: Bad, 2: Fair, 3: Good}", "{0: Bad, 1: Fair, 2: Good}", "[Bad, Fair, Good]"):
        task = declared(tmp_path, **NEWS | {"labels": labels})
        assert [e.target for e in task.examples("en", 0)] == ["Bad", "Fair", "Good"], labels


def test_files_named_by_splits_are_no_languages(tmp_path: Path) -> None:
    csv(tmp_path / "train.csv", "text,label", "a,0")
    with pytest.raises(DataError, match=r"has train\.\*, which names no language; expected LANGUAGE.csv for the test"):
        _ = declared(tmp_path, **NEWS).languages
    csv(tmp_path / "hub" / "README.md", "a copy")
    csv(tmp_path / "hub" / "test-00000-of-00001.csv", "text,label", "a,0")
    with pytest.raises(ConfigError, match=r"a copy from the hub, and tasks.mine.languages is empty"):
        declared(tmp_path / "hub", **NEWS)


def test_english_by_another_code_is_packed(tmp_path: Path) -> None:
    for name in ("eng_Latn", "sin_Sinh", "train/eng_Latn"):
        csv(tmp_path / "a" / f"{name}.csv", "text,label", f"{name},1")
    assert [e.source for e in declared(tmp_path / "a", **NEWS).train()] == ["News: train/eng_Latn Topic:"]
    csv(tmp_path / "b" / "eng.train.csv", "text,label", "x,1")  # nothing to score yet
    task = declared(tmp_path / "b", **NEWS, languages="[eng]")
    assert [e.language for e in task.train()] == ["eng"] and declared(tmp_path / "b", **NEWS).languages == ()


def test_a_copy_of_the_hub_needs_its_languages_and_a_revision_is_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("a copy")
    with pytest.raises(ConfigError, match=r"a copy from the hub, and tasks.mine.languages is empty"):
        declared(tmp_path, **NEWS)
    assert declared(tmp_path, **NEWS, languages="si,en").languages == ("en", "si")
    config = load_config("testbed", [f"tasks.mine.{k}={v}" for k, v in (NEWS | {"source": tmp_path}).items()])
    assert not [line for line in idle(config) if "tasks" in line]
    config = overridden(config, ["tasks.mine.revision=main"])
    assert f"tasks.mine.revision has no effect, as {tmp_path} is a folder." in idle(config)


def test_a_file_is_no_source(tmp_path: Path) -> None:
    file = csv(tmp_path / "news.csv", "text,lang,label", "Stocks fall,English,Business")
    task = declared(file, **NEWS, fields="{language: lang}", languages="{en: English, si: Sinhala}")
    with pytest.raises(DataError, match=r"source is the file .*news.csv; expected a folder with a file a language"):
        task.examples("en", 0)


def test_nested_columns_and_parallel_ids(tmp_path: Path) -> None:
    rows = [{"id": f"n{n}", "news": {"title": f"t{n}"}, "answers": {"label": [n]}} for n in (1, 0)]
    for language in ("en", "sin_Sinh"):
        local.jsonl(tmp_path / "test" / f"{language}.jsonl", rows)
    fields = "{text: news.title, label: answers.label.0, id: id}"
    task = declared(tmp_path, **NEWS, fields=fields, languages="{si: sin_Sinh, en: en}", parallel="true")
    assert task.languages == ("en", "si") and task.code_of("sin_Sinh") == "si"
    assert [(e.source, e.label, e.key) for e in task.examples("si", 0)] == [
        ("News: t1 Topic:", 1, "mine-n1"), ("News: t0 Topic:", 0, "mine-n0")
    ]  # fmt: skip


def test_class_labels_are_known_by_their_names(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "topic": ClassLabel(names=["biz", "sport"])})
    rows = Dataset.from_dict({"text": ["a", "b"], "topic": [1, 0]}, features=features)
    rows.to_parquet(tmp_path / "files" / "en.parquet")
    rows.save_to_disk(tmp_path / "saved" / "copy")
    for folder in (tmp_path / "files", tmp_path / "saved" / "copy"):
        fields = {"fields": "{label: topic}", "languages": "[en]"}
        named = declared(folder, **NEWS | fields | {"labels": "{sport: Sports, biz: Business}"}, test_split="train")
        assert [e.target for e in named.examples("en", 0)] == ["Sports", "Business"]
        assert [e.target for e in declared(folder, **NEWS | fields, test_split="train").examples("en", 0)] == [
            "Sports", "Business"
        ]  # fmt: skip
        wrong = declared(
            folder, **NEWS | fields | {"labels": "{sport: Sports, business: Business}"}, test_split="train"
        )
        with pytest.raises(
            DataError, match=r"the label 0 .*; the values there are 1 = sport \(1\), 0 = biz \(1\): map"
        ):
            wrong.examples("en", 0)


def test_rows_of_all_languages_in_one_file(tmp_path: Path) -> None:
    csv(tmp_path / "test.csv", "text,label,lang", "a,0,Sinhala", "b,1,English", "c,1,Sinhala")
    csv(tmp_path / "train.csv", "text,label,lang", "d,0,Sinhala", "e,1,English")
    task = declared(tmp_path, **NEWS, fields="{language: lang}", languages="{si: Sinhala, en: English}")
    assert [(e.source[6], e.key) for e in task.examples("si", 0)] == [("a", "mine-si-0"), ("c", "mine-si-1")]
    assert [e.source[6] for e in task.train()] == ["e"]
    assert declared(tmp_path, **NEWS, fields="{language: lang}").languages == ("English", "Sinhala")
    csv(tmp_path / "gap" / "test.csv", "text,label,lang", "a,0,si", "b,1, ")
    with pytest.raises(DataError, match=r"test.csv:3 has no language in column 'lang'; expected one in each row"):
        _ = declared(tmp_path / "gap", **NEWS, fields="{language: lang}").languages
    with pytest.raises(DataError, match=r"test.csv:2 has no column 'lng'; it has text, label, lang; expected the lang"):
        _ = declared(tmp_path, **NEWS, fields="{language: lng}").languages


@pytest.mark.parametrize(
    ("settings", "row", "right"),
    [
        ({"choices": "[a, b]"}, {"a": "x", "b": "y", "answer": 1}, 1),
        ({"choices": "[a, b]", "first_choice": 1}, {"a": "x", "b": "y", "answer": "2"}, 1),
        ({"choices": "[options]"}, {"options": ["x", "y", "z"], "answer": "c"}, 2),
        ({"choices": "[options.text]"}, {"options": {"text": ["3", "1"]}, "answer": "1"}, 1),
        ({"choices": "[options.text]"}, {"options": {"text": ["3", "1"]}, "answer": 0}, 0),
        ({"choices": "[options]"}, {"options": '["x", "y"]', "answer": "y"}, 1),
    ],
)
def test_choices_of_each_samples_own(tmp_path: Path, settings: dict[str, Any], row: dict[str, Any], right: int) -> None:
    local.jsonl(tmp_path / "en.jsonl", [row | {"question": "Q?"}])
    task = declared(tmp_path, kind="choices", prompt="{question}", **settings)
    (example,) = task.examples("en", 0)
    assert (example.label, example.target) == (right, example.choices[right]) and task.labels == ()
    assert task.chance == pytest.approx(1 / len(example.choices))


def test_a_number_is_read_as_those_of_mgsm(tmp_path: Path) -> None:
    csv(tmp_path / "en.csv", "question,solution", '"2 + 2?","So #### 1,004"')
    task = declared(tmp_path, kind="number", prompt="{question}", fields="{answer: solution}")
    (example,) = task.examples("en", 0)
    assert (example.target, example.label, example.choices, task.chance) == ("1004", -1, (), 0.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": ""}, "tasks.mine.source is empty; expected a folder"),
        ({"prompt": "News"}, "tasks.mine.prompt is 'News'; expected a text with columns in braces"),
        ({"prompt": "{text} {label}"}, "has {label}, which is the right answer"),
        (
            {"prompt": "{text.a}"},
            "has {text.a}, which is not one column; expected columns such as {text}, nested ones by",
        ),
        ({"prompt": "{text} {"}, "tasks.mine.prompt '{text} {' is no template"),
        (
            {"fields": "{txt: a}"},
            "tasks.mine.fields has 'txt'; expected names in the prompt's braces, or one of label, id",
        ),
        ({"labels": "{}"}, "tasks.mine.labels is empty; expected something such as {0: Business, 1: Sports}"),
        ({"labels": "[a]"}, "tasks.mine.labels has ['a']; expected two or more"),
        ({"labels": "{a: x, A: y}"}, "tasks.mine.labels has 'a' twice, in other letters"),
        ({"labels": "[it, IT]"}, "tasks.mine.labels has 'it' twice, in other letters"),
        (
            {"labels": "[1, 2, 3]"},
            "tasks.mine.labels is ['1', '2', '3'], where 1 is a label and the number of another one; expected a "
            "mapping from what the data has, such as {1: 1}; write one.",
        ),
        ({"kind": "choices", "labels": "{}"}, "tasks.mine.choices is empty"),
        ({"choices": "[a, b]"}, "tasks.mine has choices and is of kind labels"),
        ({"languages": "{si: x, ta: x}"}, "tasks.mine.languages has 'x' twice"),
        ({"lables": "[a]"}, "unknown key 'tasks.mine.lables'; did you mean 'tasks.mine.labels'?"),
        ({"kind": "label"}, "tasks.mine.kind is 'label'; expected one of labels, choices, number"),
        ({"source": "a/hub-id"}, "tasks.mine.source is 'a/hub-id', no folder here, and tasks.mine.languages is empty"),
        ({"source": __file__}, ", a file, and tasks.mine.languages is empty; expected a folder with LANGUAGE.csv"),
    ],
)
def test_wrong_settings_are_one_sentence(tmp_path: Path, settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as found:
        declared(**{"source": tmp_path} | NEWS | settings)  # type: ignore[arg-type]
    assert words in str(found.value) and "\n" not in str(found.value)


CHOICES = {"kind": "choices", "labels": "{}"}


@pytest.mark.parametrize(
    ("settings", "row", "words"),
    [
        ({}, {"txt": "a", "label": 0},
         "no column 'text'; it has txt, label; expected the text of mine: name its column in tasks.mine.fields."),
        ({"fields": "{label: n.topic}"}, {"text": "a", "n": {"topics": 0, "m": 1}},
         "no column 'n.topic'; it has text, n.topics, n.m; expected the label of mine"),
        ({}, {"text": "a", "label": "Sport"},
         "has the label 'Sport' in column 'label'; expected one of 0 (Business), 1 (Sports); the values there are "
         "1 (2), Sport (1): map each in tasks.mine.labels, such as {Sport: Sports}."),
        ({}, {"text": "a", "label": [0]},
         "has [0] in column 'label'; expected one value, the label of mine; name a part of it in tasks.mine.fields, "
         "such as {label: label.0}."),
        (CHOICES | {"choices": "[a, b]"}, {"text": "t", "a": "x", "c": "y", "answer": 0},
         "no column 'b'; it has text, a, c, answer; expected a choice of mine: name the columns in "
         "tasks.mine.choices."),
        (CHOICES | {"choices": "[o]"}, {"text": "t", "o": "x;y", "answer": 0},
         "has ['x;y'] in 'o'; expected two or more choices"),
        (CHOICES | {"choices": "[o]"}, {"text": "t", "o": ["x", "y"], "answer": 2},
         "has the answer 2 in column 'answer'; expected the text, the letter or the number (0 to 1) of one of its "
         "choices ('x', 'y'); correct the data, tasks.mine.fields or tasks.mine.first_choice."),
        (CHOICES | {"choices": "[a, b]"}, {"text": "t", "a": "1", "b": "3", "answer": "1"},
         "has the answer '1' in column 'answer', the text of choice A and the number of choice B of ('1', '3'); "
         "expected one of the two; write the letter."),
        ({"prompt": "{text} {a}", "labels": "[x, y]"}, {"text": " ", "a": "", "label": 0},
         "has nothing in 'text', 'a'; expected a text for tasks.mine.prompt; fill it in, or remove the row."),
        ({"kind": "number", "labels": "{}"}, {"text": "t", "answer": "none"},
         "has the answer 'none'; expected a number"),
    ],
)  # fmt: skip
def test_wrong_rows_are_one_sentence_with_their_place(
    tmp_path: Path, settings: dict[str, str], row: dict[str, Any], words: str
) -> None:
    good = {"text": "a", "label": 1, "n": {"topic": 1}, "a": "x", "b": "y", "o": ["x", "y"], "answer": 1}
    path = local.jsonl(tmp_path / "en.jsonl", [good, row, good])
    with pytest.raises(BridgeError) as found:
        declared(tmp_path, **NEWS | settings).examples("en", 0)
    assert str(found.value).startswith(f"{path}:2 ") and words in str(found.value) and "\n" not in str(found.value)


def test_a_run_keeps_the_shards_of_its_first_start_and_refuses_another_tasks(tmp_path: Path) -> None:
    settings = [f"run.output={tmp_path}/run"]
    for name in ("one", "two"):
        csv(tmp_path / name / "train" / "en.csv", "text,label", f"{name} a,0", f"{name} b,1")
        settings += [f"tasks.{name}.{key}={value}" for key, value in (NEWS | {"source": tmp_path / name}).items()]
    folder = RunFolder(f"{tmp_path}/run")
    first = load_config("testbed", [*settings, "data.shards=task:one"])
    shards = folder.made_shards(first)
    assert b"News: one a Topic:" in (shards / "shard-000000.tar").read_bytes()
    before = (shards / "index.json").stat()
    assert folder.made_shards(first) == shards and (shards / "index.json").stat() == before
    for other in ("task:two", "testbed/english"):
        with pytest.raises(DataError, match=rf"for data.shards 'task:one'; this start has '{other}'; .*run/shards.$"):
            folder.made_shards(load_config("testbed", [*settings, f"data.shards={other}"]))


def test_a_run_refuses_its_shards_where_the_task_is_defined_otherwise(tmp_path: Path) -> None:
    for name in ("news", "other"):
        csv(tmp_path / name / "train" / "en.csv", "text,title,label", f"{name} a,A,0", f"{name} b,B,1")
        csv(tmp_path / name / "en.csv", "text,title,label", "c,C,0")
    folder = RunFolder(f"{tmp_path}/run")

    def start(**settings: Any) -> Path:
        values = NEWS | {"source": tmp_path / "news"} | settings
        given = [f"tasks.mine.{key}={value}" for key, value in values.items()]
        given += [f"run.output={tmp_path}/run", "data.shards=task:mine"]
        return folder.made_shards(load_config("testbed", given))

    shards = start()
    assert start(languages="[en, si]", test_split="validation") == shards  # what is scored may change
    other = tmp_path / "other"
    for key, value, words in (
        ("prompt", "{text} It is", "with prompt 'News: {text} Topic:'; this start has '{text} It is'; "),
        ("labels", "{0: Money, 1: Sports}", "this start has {'0': 'Money', '1': 'Sports'}"),
        ("fields", "{text: title}", "'text': 'title'"),
        ("source", other, f"this start has '{other}'"),
        ("languages", "{en: eng_Latn}", "with languages None; this start has 'eng_Latn'"),
        ("revision", "v2", "with revision None; this start has 'v2'"),
    ):
        with pytest.raises(DataError) as found:
            start(**{key: value})
        assert words in str(found.value) and str(found.value).endswith(f"or remove {shards}.")
    manifest = shards / "manifest.json"
    manifest.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"manifest.json is not readable as JSON .*; expected the file that was"):
        start()
    manifest.unlink()  # as shards of an earlier version
    assert start(prompt="{text} It is") == shards


def test_a_code_that_several_files_may_mean_is_asked_for(tmp_path: Path) -> None:
    for code in ("en", "pt-BR", "pt-PT", "zh-CN", "zh-TW", "hi"):
        csv(tmp_path / f"{code}.csv", "text,label", "a,0")
    task = declared(tmp_path, **NEWS)
    assert [task.code_of(code) for code in ("eng", "hin", "hi-IN", "zh", "zh_Hant")] == [
        "en", "hi", "hi", "zh-CN", "zh-TW"
    ]  # fmt: skip
    for unclear in ("pt", "por", "pt-AO", "hi-romanized"):
        with pytest.raises(ConfigError, match=f"'{unclear}', which no task has"):
            wanted([task], [unclear])


def test_files_of_a_folder_data_have_languages_with_regions(tmp_path: Path) -> None:
    for code in ("en", "pt-BR", "si"):
        csv(tmp_path / "data" / f"{code}.csv", "text,label", "a,0")
    task = declared(tmp_path, **NEWS)
    assert task.languages == ("en", "pt-BR", "si") and len(task.examples("pt-BR", 0)) == 1


@pytest.mark.parametrize("train", ["en", "eng"])
def test_english_may_have_another_code_in_the_files(tmp_path: Path, train: str) -> None:
    for place in ("eng", "sin", f"train/{train}"):
        csv(tmp_path / f"{place}.csv", "text,label", f"{place},1")
    task = declared(tmp_path, **NEWS)
    (example,) = task.train()
    assert example.source == f"News: train/{train} Topic:" and task.languages == ("eng", "sin")
    xnli = find_tasks(["xnli"], {"xnli": TaskDataConfig(source=str(tmp_path / "xnli"))})[0]
    for place in ("eng", f"train/{train}"):
        csv(tmp_path / "xnli" / f"{place}.csv", "premise,hypothesis,label", "a,b,0")
    assert len(list(xnli.train())) == 1  # type: ignore[attr-defined]


def test_english_in_one_file_for_all_may_have_another_code(tmp_path: Path) -> None:
    for split in ("test", "train"):
        csv(tmp_path / f"{split}.csv", "text,label,lang", "a,0,eng", "b,1,sin")
    task = declared(tmp_path, **NEWS, fields="{language: lang}")
    assert [example.source for example in task.train()] == ["News: a Topic:"]
    for split, english in (("test", "English"), ("train", "en")):
        (tmp_path / english).mkdir()
        csv(tmp_path / english / f"{split}.csv", "text,label,lang", f"a,0,{english}", "b,1,Sinhala")
        csv(tmp_path / english / "train.csv", "text,label,lang", f"a,0,{english}", "b,1,Sinhala")
        named = f"{{eng: {english}, sin: Sinhala}}"
        task = declared(tmp_path / english, **NEWS, fields="{language: lang}", languages=named)
        assert [example.source for example in task.train()] == ["News: a Topic:"]
    (tmp_path / "test.csv").unlink()  # packing needs no test rows
    config = load_config("testbed", [f"tasks.mine.source={tmp_path}", "tasks.mine.fields={language: lang}",
                                     *(f"tasks.mine.{key}={value}" for key, value in NEWS.items())])  # fmt: skip
    (task,) = find_tasks(["mine"], own=config.tasks)
    assert isinstance(task, OwnTask) and len(list(task.train())) == 1


def test_parts_of_a_split_are_no_languages(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    for split in ("test", "train", "dev"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}-00000-of-00001.parquet").touch()
    assert local_languages(str(tmp_path)) is None


def test_no_two_samples_have_one_key(tmp_path: Path) -> None:
    csv(tmp_path / "en.csv", "text,label,id", "a,0,x", "b,0,x", "c,1,x-2", "d,1,x")
    task = declared(tmp_path, **NEWS, fields="{id: id}")
    keys = [example.key for example in task.examples("en", 0)]
    assert len(set(keys)) == 4 and keys[:2] == ["mine-en-x", "mine-en-x-2"]


def test_the_empty_prompt_of_labels_is_the_same_for_all(tmp_path: Path) -> None:
    csv(tmp_path / "en.csv", "text,connective,label", "a,so,0", "b,because,1")
    task = declared(tmp_path, **NEWS | {"prompt": "News: {text} {connective}"})
    assert {example.null for example in task.examples("en", 0)} == {"News:"}
