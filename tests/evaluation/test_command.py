"""Local files of the benchmarks through packing, training and scoring: any ranks, any batch, a kill, bad input."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest

from bridge_ds.checkpoint.layout import trained_files
from bridge_ds.entry import exit_status
from bridge_ds.evaluation.__main__ import main as evaluation
from bridge_ds.evaluation.predictions import Prediction, read_index, read_predictions
from bridge_ds.inference.choice import CHOICE, Measured, read_choice
from bridge_ds.inference.load import open_run
from tests.launch import Outcome, Zygote, succeed
from tests.tasks import local
from tools.pack_shards import main as pack

pytestmark = pytest.mark.slow

RECIPE = """
base: testbed
tasks:
  my_news:
    source: {folder}
    prompt: "News: {{headline}} Topic:"
    fields: {{label: topic}}
    labels: {{0: Business, 1: Sports}}
"""

TASKS = ("xnli", "indicxnli", "sinhala_news", "amazon_reviews", "xcopa", "mgsm", "my_news")
LANGUAGES = {"xnli": {"en", "ar", "de", "th"}, "indicxnli": {"bn", "ta"}, "sinhala_news": {"en", "si"},
             "amazon_reviews": {"en", "ja"}, "xcopa": {"ta"}, "mgsm": {"de"},
             "my_news": {"en", "si", "ta"}}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote, small_run: list[str]) -> Path:
    """A run on shards of task:xnli and of a task of the user's own, declared in YAML, whose news are three CSV files;
    trained for a few steps by two ranks under ZeRO-3 and scored by them."""
    root = tmp_path_factory.mktemp("evidence")
    folders = local.all_four(root)
    folders["xcopa"], folders["mgsm"] = root / "xcopa", root / "mgsm"
    texts = [local.WORDS["ta"].split()[n : n + 3] for n in range(5)]
    local.jsonl(
        folders["xcopa"] / "ta.jsonl",
        [{"premise": " ".join(words) + ".", "choice1": words[0], "choice2": " ".join(words[1:]), "idx": n,
          "label": n % 2, "question": ("cause", "effect")[n % 2]} for n, words in enumerate(texts)],
    )  # fmt: skip
    local.jsonl(folders["mgsm"] / "de.jsonl", [{"question": f"{n} + 1?", "answer_number": n + 1} for n in range(5)])
    assert (
        pack(["task:xnli", "--dataset", str(folders["xnli"]), "--output", str(root / "shards"), "--shuffle", "0"]) == 0
    )
    for place in ("train/en", "en", "si", "ta"):
        lines = [f"{local.text(random.Random(f'{place} {n}'), place[-2:])},{n % 2}" for n in range(5)]
        path = root / "news" / f"{place}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["headline,topic", *lines, ""]), encoding="utf-8")
    recipe = root / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=root / "news"), encoding="utf-8")
    assert pack(["task:my_news", "--tasks", str(recipe), "--output", str(root / "news_shards")]) == 0
    settings = {
        "run.output": root / "run",
        "data.mixture": f"[{root / 'shards'}=1,{root / 'news_shards'}=1]",
        "train.steps": 3,
        "evaluation.batch": 4,
        "evaluation.tasks": ",".join(TASKS),
        "evaluation.null_scores": "true",
        "evaluation.choose": "true",
        "evaluation.max_new_tokens": 5,
    }
    settings |= {f"evaluation.data.{name}.source": folder for name, folder in folders.items()}  # fmt: skip
    arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = ["--recipe", str(recipe), *small_run, "--ds_config", "zero3.json", *arguments]
    succeed(zygote.start(command, 2, root / "logs").wait())
    return root / "run"


def score(zygote: Zygote, run: Path, ranks: int, *arguments: str) -> Outcome:
    """The scoring command to its end."""
    started = zygote.start(["--run", str(run), *arguments], ranks, run / "logs", program="evaluation")
    return started.wait()


def copy(run: Path, folder: Path) -> Path:
    """The trained run, without what was scored."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("evaluation*"))
    return folder


def files(run: Path) -> dict[str, str]:
    found = {str(p.relative_to(run)): p.read_text() for p in (run / "evaluation").rglob("*") if p.is_file()}
    return found | {"evaluation.json": (run / "evaluation.json").read_text()}


def predictions(run: Path) -> dict[str, Prediction]:
    found = {}
    for system in ("bridge", "llm"):
        folder = run / "evaluation" / system
        for task, scored in read_index(folder).tasks.items():
            for language, count in scored.samples.items():
                lines = list(read_predictions(folder, task, language))
                assert len(lines) == count
                found |= {f"{system} {task} {language} {p.key}": p for p in lines}
    return found


def assert_alike(run: Path, other: Path) -> None:
    one, two = predictions(run), predictions(other)
    assert one.keys() == two.keys()
    for name, p in one.items():
        q = two[name]
        assert (p.source, p.answer, p.text, p.exact_match, p.tokens) == (
            q.source,
            q.answer,
            q.text,
            q.exact_match,
            q.tokens,
        ), name
        assert p.scores == pytest.approx(q.scores, abs=1e-4) and p.null == pytest.approx(q.null, abs=1e-4), name
        assert p.chosen() == q.chosen(), name
    assert json.loads((run / "evaluation.json").read_text()) == json.loads((other / "evaluation.json").read_text())


def test_the_job_leaves_predictions(run: Path) -> None:
    results = json.loads((run / "evaluation.json").read_text())
    assert set(results) == {"bridge", "llm", "chance", "checkpoint"}
    for system in ("bridge", "llm"):
        assert {task: set(found) for task, found in results[system].items()} == LANGUAGES
        index = read_index(run / "evaluation" / system)
        assert index.checkpoint == ("step-00000003" if system == "bridge" else "")
        assert {task: set(scored.samples) for task, scored in index.tasks.items()} == LANGUAGES
        for task, scored in index.tasks.items():
            assert set(scored.layer_weights) == (LANGUAGES[task] if system == "bridge" else set())
            assert all(sum(weights) == pytest.approx(1, rel=1e-4) for weights in scored.layer_weights.values())
            for language, counted in results[system][task].items():
                lines = list(read_predictions(run / "evaluation" / system, task, language))
                assert counted["n"] == len(lines) == scored.samples[language]
                assert counted["acc"] == sum(p.correct() for p in lines) / len(lines)
                assert ("acc_mutual_info" in counted) == ("acc_norm_tokens" in counted) == (scored.kind != "number")
                assert all(p.source_tokens > 1 for p in lines)
    table, (config, checkpoint) = read_choice(run / CHOICE), open_run(run)
    files, base = trained_files(checkpoint.folder), checkpoint.manifest["base"]
    assert table.measured == Measured.of("step-00000003", files, base, config.data)
    assert {task: set(found) for task, found in table.tasks.items()} == LANGUAGES
    assert set(table.languages) == set().union(*LANGUAGES.values())
    assert {task: scored.kind for task, scored in index.tasks.items()} == {
        name: {"xcopa": "choices", "mgsm": "number"}.get(name, "labels") for name in TASKS
    }


def test_any_number_of_ranks_gives_the_same_predictions(run: Path, zygote: Zygote, tmp_path: Path) -> None:
    seen = []
    for ranks in (1, 2, 3):
        other = copy(run, tmp_path / f"ranks{ranks}")
        outcome = succeed(score(zygote, other, ranks))
        assert outcome.text.count("LLM alone  acc ") == len(TASKS)
        seen.append(files(other))
        assert_alike(run, other)  # whole models and ZeRO-3
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("batch", [1, 32])
def test_batches_give_the_same_predictions(run: Path, zygote: Zygote, tmp_path: Path, batch: int) -> None:
    other = copy(run, tmp_path / "run")
    succeed(score(zygote, other, 1, "--batch", str(batch)))
    assert_alike(run, other)


def test_killed_in_the_middle_and_started_again(run: Path, zygote: Zygote, tmp_path: Path) -> None:
    ranks = 2
    whole, killed = copy(run, tmp_path / "whole"), copy(run, tmp_path / "killed")
    succeed(score(zygote, whole, ranks, "--batch", "1"))
    part = killed / "evaluation" / "bridge" / "sinhala_news" / ".en.part"
    job = zygote.start(["--run", str(killed), "--batch", "1"], ranks, killed / "logs", program="evaluation")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not part.is_file() or part.read_text().count("\n") < 4):
        time.sleep(0.002)
    job.kill()
    assert part.is_file() and not (killed / "evaluation.json").exists()
    assert (killed / "evaluation" / "bridge" / "xnli" / "de.jsonl").is_file()
    # What was scored is taken up: a mark on the first sample that was done is still there afterwards.
    content = part.read_text()
    part.write_text(content.replace('\\"unknown\\": 0', '\\"unknown\\": 77', 1))
    succeed(score(zygote, killed, ranks, "--batch", "1"))
    found, expected = files(killed), files(whole)
    marked = "evaluation/bridge/sinhala_news/en.jsonl"
    assert found[marked].count('"unknown": 77') == 1
    assert found.pop(marked).replace('"unknown": 77', '"unknown": 0') == expected.pop(marked)
    assert found == expected


def test_what_was_scored_is_reported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The four benchmarks, two more and the user's own, from packing to the report, whose numbers are those of
    evaluation.json."""
    output = tmp_path / "report"
    assert evaluation(["report", f"one={run}", f"two={run}", "--baseline", "one", "--output", str(output)]) == 0
    report, scored = json.loads((output / "report.json").read_text()), json.loads((run / "evaluation.json").read_text())
    assert report["systems"] == ["LLM alone", "one", "two"] and set(report["tasks"]) == set(TASKS)
    for name, system in (("one", "bridge"), ("two", "bridge"), ("LLM alone", "llm")):
        for task in TASKS:
            found = report["tasks"][task]["accuracy"][name]
            assert set(found) == LANGUAGES[task]
            for language, counted in scored[system][task].items():
                assert found[language]["value"] == pytest.approx(counted["acc"]), (name, task, language)
    verdicts = {cell["verdict"] for of_task in report["tests"]["two"].values() for cell in of_task.values()}
    assert verdicts == {"undecided"}  # a system differs in nothing from itself
    text = (output / "report.html").read_text()
    assert all(word in text for word in ("sinhala_news", "Sinhala", "amazon_reviews", "my_news"))


def test_some_languages_of_some_tasks(run: Path, zygote: Zygote, tmp_path: Path) -> None:
    other = copy(run, tmp_path / "run")
    succeed(score(zygote, other, 1, "--task", "indicxnli,sinhala_news", "--languages", "si,ta", "--limit", "4"))
    results = json.loads((other / "evaluation.json").read_text())
    assert {task: list(found) for task, found in results["bridge"].items()} == {
        "indicxnli": ["ta"], "sinhala_news": ["si"]
    }  # fmt: skip
    assert results["llm"]["indicxnli"]["ta"]["n"] == 4
    more = tmp_path / "more.yaml"  # a task that the run's config does not declare
    more.write_text(RECIPE.format(folder=run.parent / "news").replace("my_news", "more_news"), encoding="utf-8")
    succeed(score(zygote, other, 1, "--tasks", f"indicxnli,{more}", "--languages", "bn,si"))
    tasks = read_index(other / "evaluation" / "bridge").tasks
    assert tasks["indicxnli"].samples == {"ta": 4, "bn": 10} and tasks["more_news"].samples == {"si": 5}
    assert tasks["more_news"].labels == ("Business", "Sports") and tasks["more_news"].chance == 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--languages", "xx"], "evaluation.languages has 'xx', which no task has"),
        (["--tasks", "xnil"], "unknown task 'xnil'"),
        (["--tasks", "testbed.yaml"], "--tasks testbed.yaml declares no tasks; expected `tasks:` in it"),
        (["--set", "evaluation.data.xnli.sorce=x"], "unknown key 'evaluation.data.xnli.sorce'; did you mean"),
        (["--set", "evaluation.llm_from=nowhere"], "nowhere/evaluation/llm/index.json cannot be read"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(
    run: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(lambda: evaluation(["--run", str(run), *arguments])) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert sum(line.startswith("error:") for line in said.splitlines()) == 1


def test_a_wrong_label_or_column_is_one_sentence_on_all_ranks(run: Path, zygote: Zygote, tmp_path: Path) -> None:
    rows = local.pairs("de", 3)
    rows[2]["label"] = 7
    local.jsonl(tmp_path / "data" / "de.jsonl", rows)
    for name, words, settings in (
        ("label", "de.jsonl:3 has the label 7; expected one of 0 (Entailment)", [f"source={tmp_path / 'data'}"]),
        (
            "column",
            "has no column 'gold'; it has headline, topic; expected the label of my_news",
            ["fields={label: gold}"],
        ),
    ):
        other = copy(run, tmp_path / name)
        task, key = ("xnli", "evaluation.data.xnli") if name == "label" else ("my_news", "tasks.my_news")
        changed = [part for text in settings for part in ("--set", f"{key}.{text}")]
        outcome = score(zygote, other, 2, "--tasks", task, *changed)
        assert set(outcome.codes) == {2}, outcome.text[-3000:]
        assert words in outcome.outputs[0] and "Traceback" not in outcome.text
        assert sum(line.startswith("error:") for line in outcome.outputs[0].splitlines()) == 1


def test_ranks_do_not_split_models_each_for_itself(run: Path, zygote: Zygote) -> None:
    outcome = score(zygote, run, 2, "--device-map", "auto")
    assert set(outcome.codes) == {2} and "Traceback" not in outcome.text
    assert "error: a device map is given to 2 ranks; expected one process" in outcome.outputs[0]


def test_a_run_with_an_unknown_language_is_refused_before_training(
    zygote: Zygote, small_run: list[str], tmp_path: Path
) -> None:
    wrong = ["--set", "evaluation.tasks=testbed_news", "--set", "evaluation.languages=zz"]
    outcome = zygote.start([*small_run, *wrong, "--set", f"run.output={tmp_path / 'run'}"], 1, tmp_path).wait()
    assert outcome.codes == [2] and "'zz', which no task has" in outcome.text
    assert not (tmp_path / "run").exists()
