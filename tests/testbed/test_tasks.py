"""The tasks: examples are the same in every run, parallel, balanced, and apart in train and test."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

from bridge_ds.errors import ConfigError
from bridge_ds.testbed import ENGLISH, LABELS, LANGUAGES, PROMPTS, TASKS, english_rows, examples
from bridge_ds.testbed.samplers import CONTRADICTION, ENTAILMENT, NEUTRAL
from bridge_ds.testbed.tasks import meanings, source_words

EACH_TASK = pytest.mark.parametrize("task", TASKS)


@EACH_TASK
def test_same_arguments_give_same_examples(task: str):
    assert examples(task, "qab", "test", 40, seed=3) == examples(task, "qab", "test", 40, seed=3)
    assert examples(task, "qab", "test", 40, seed=3) != examples(task, "qab", "test", 40, seed=4)


def test_examples_do_not_depend_on_the_process():
    code = "from bridge_ds.testbed import examples; print(examples('inference', 'qae', 'train', 5)[4].source)"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": str(seed)}, check=True, capture_output=True, text=True
        ).stdout
        for seed in (1, 2)
    }
    assert runs == {examples("inference", "qae", "train", 5)[4].source + "\n"}


def test_import_is_light():
    code = "import sys, bridge_ds.testbed; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


@EACH_TASK
@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_are_exactly_balanced(task: str, split: str):
    counts = Counter(example.label for example in examples(task, ENGLISH, split, 300))
    assert set(counts.values()) == {300 // len(LABELS[task])}


@EACH_TASK
def test_no_example_twice_and_splits_apart(task: str):
    train = {example.key for seed in (0, 1) for example in examples(task, ENGLISH, "train", 1500, seed)}
    test = [example.key for example in examples(task, ENGLISH, "test", 900)]
    assert len(set(test)) == 900
    assert not train & set(test)


@EACH_TASK
def test_examples_are_parallel(task: str):
    columns = [examples(task, language, "test", 60) for language in LANGUAGES]
    for row in zip(*columns, strict=True):
        assert len({(example.key, example.label, example.target) for example in row}) == 1
        assert len({example.source for example in row}) == len(LANGUAGES)


@EACH_TASK
def test_prompts_stay_english_around_the_sentence(task: str):
    opening, closing = PROMPTS[task].split("{")[0], PROMPTS[task].split("}")[-1].rstrip()
    for language in LANGUAGES:
        for example in examples(task, language, "test", 20):
            assert example.source.startswith(opening)
            assert example.source.endswith(closing)
            assert example.target == LABELS[task][example.label]


@EACH_TASK
def test_sequences_are_short(task: str):
    assert all(
        len(example.source.split()) < 24 for language in LANGUAGES for example in examples(task, language, "train", 500)
    )


@EACH_TASK
def test_length_does_not_give_the_label_away(task: str):
    lengths: dict[int, list[int]] = {}
    for meaning in islice(meanings(task, "train"), 6000):
        lengths.setdefault(meaning.label, []).append(len(source_words(meaning, "qab")))
    averages = [sum(found) / len(found) for found in lengths.values()]
    assert max(averages) - min(averages) < 0.15


def test_inference_labels_follow_from_the_words():
    known = {
        ("dog", "animal"): ENTAILMENT,
        ("animal", "dog"): NEUTRAL,
        ("dog", "cat"): CONTRADICTION,
        ("red", "coloured"): ENTAILMENT,
        ("coloured", "red"): NEUTRAL,
        ("red", "blue"): CONTRADICTION,
    }
    met = Counter()
    for meaning in islice(meanings("inference", "train"), 6000):
        premise, hypothesis = (
            [word.concept for word in source_words(meaning, "qaa") if word.slot.startswith(number)] for number in "01"
        )
        if "not" in hypothesis:
            continue
        (change,) = [pair for pair in zip(premise, hypothesis, strict=True) if pair[0] != pair[1]]
        if change in known:
            met[change] += 1
            assert meaning.label == known[change]
    assert len(met) >= 4


def test_english_rows_take_turns_and_are_english():
    rows = list(english_rows(30, seed=5))
    assert [row["task"] for row in rows] == list(TASKS) * 10
    assert {row["lang"] for row in rows} == {ENGLISH}
    assert len({row["id"] for row in rows}) == 30
    assert rows == list(english_rows(30, seed=5))
    assert all(row["target"] in LABELS[row["task"]] for row in rows)


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigError, match="inference, news, reviews"):
        examples("weather", ENGLISH, "test", 5)
    with pytest.raises(ConfigError, match="qaa"):
        examples("news", "fr", "test", 5)
    with pytest.raises(ConfigError, match="train, test"):
        examples("news", ENGLISH, "dev", 5)
