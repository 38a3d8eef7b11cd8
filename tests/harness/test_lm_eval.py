"""The real lm-evaluation-harness on local tasks: its numbers are our scorer's, on one process and on two."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bridge_ds.config.load import load_run_config
from bridge_ds.entry import exit_status
from bridge_ds.errors import ConfigError
from bridge_ds.evaluation.scorer import Scorer
from bridge_ds.inference.load import load_trained
from bridge_ds.tasks import TASKS
from tests.launch import ROOT, Job, succeed
from tests.made import make_run
from tests.trained import STEPS

HAS_HARNESS = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not HAS_HARNESS, reason="lm_eval is not installed (pip install '.[harness]')")
COUNT = 31
CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
# As lm_eval's own xnli: the whole sample is in the choices.
INSIDE = (
    CHOICE.replace('"{{{{text}}}}"', '""').replace(
        '"{{{{choices}}}}"', "\"{{{{[text + ' Very Negative', text + ' Very Positive', text + ' Neutral']}}}}\""
    )
).replace("doc_to_target: label", "doc_to_target: 0")
WRITE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{choices[label]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, do_sample: false, temperature: 0.0}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
ROLLING = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}, {{metric: word_perplexity}}]
"""
LANGUAGES = ("en", "qab")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The testbed's two models and a bridge that nobody trained."""
    return make_run(tmp_path_factory.mktemp("harness") / "run", [])


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task YAMLs and their local data."""
    folder = tmp_path_factory.mktemp("tasks")
    task = TASKS["testbed_reviews"]
    for language in LANGUAGES:
        rows = [
            {"text": e.source, "label": e.label, "choices": list(task.labels)} for e in task.examples(language, COUNT)
        ]
        data = folder / f"{language}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for kind, text in {"choice": CHOICE, "inside": INSIDE, "write": WRITE, "rolling": ROLLING}.items():
            (folder / f"{kind}_{language}.yaml").write_text(text.format(name=f"{kind}_{language}", data=data))
    return folder


def scored(run: Path) -> dict[str, tuple[list[int], list[bool]]]:
    """By our scorer: for each language the chosen labels, and whether the right one is written out exactly."""
    config = load_run_config(run)
    model, tokenizers, _ = load_trained(run, config, torch.device("cpu"))
    scorer = Scorer(model, tokenizers, config.data, torch.device("cpu"), bridge=True)
    task, found = TASKS["testbed_reviews"], {}
    for language in LANGUAGES:
        examples = task.examples(language, COUNT)
        answered = scorer(examples, task).predictions
        found[language] = [p.chosen() for p in answered], [p.exact_match for p in answered]
    return found


def command(run: Path, tasks: Path, output: Path, *names: str, **more: object) -> list[str]:
    arguments = ",".join(f"{key}={value}" for key, value in ({"run": run} | more).items())
    return [
        sys.executable, "-m", "bridge_ds.harness", "--model", "bridge_ds", "--model_args", arguments,
        "--include_path", str(tasks), "--tasks", ",".join(names), "--output_path", str(output), "--log_samples",
    ]  # fmt: skip


def samples(output: Path, task: str) -> list[dict]:
    (path,) = output.rglob(f"samples_{task}_*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["doc_id"])


def chosen(row: dict) -> int:
    values = [float(response[0][0]) for response in row["resps"]]
    return values.index(max(values))


@needs_harness
@pytest.mark.slow
def test_lm_eval_gives_our_scorers_accuracy(trained_run: Path, tasks: Path, tmp_path: Path) -> None:
    run = trained_run
    names = [f"{kind}_{language}" for kind in ("choice", "inside", "write", "rolling") for language in LANGUAGES]
    environment = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    one = [*command(run, tasks, tmp_path / "one", *names), "--batch_size", "auto"]
    two = [*command(run, tasks, tmp_path / "two", *names[:2]), "--batch_size", "3"]
    succeed(Job(one, 1, tmp_path / "logs1", environment).wait(300))
    succeed(Job(two, 2, tmp_path / "logs2", environment).wait(300))
    ours = scored(run)
    (results,) = (tmp_path / "one").rglob("results_*.json")
    found = json.loads(results.read_text())
    assert found["config"]["checkpoint"] == f"step-{STEPS:08d}" and found["config"]["fusion"] == "transformer_softmax"
    for language in LANGUAGES:
        choices, exact = ours[language]
        rows = samples(tmp_path / "one", f"choice_{language}")
        labels = [row["doc"]["label"] for row in rows]
        assert [chosen(row) for row in rows] == choices and len(set(choices)) > 1
        accuracy = sum(c == label for c, label in zip(choices, labels, strict=True)) / COUNT
        assert found["results"][f"choice_{language}"]["acc,none"] == pytest.approx(accuracy)
        # Two ranks, batches of three: nothing lost or doubled, and the same choices.
        assert [chosen(row) for row in samples(tmp_path / "two", f"choice_{language}")] == choices
        # The sample inside the choices: its beginning is the same for all, so the choice is the one after a context.
        of_three = [0, 4, 2]
        inside = [of_three[chosen(row)] for row in samples(tmp_path / "one", f"inside_{language}")]
        values = [[float(response[0][0]) for response in row["resps"]] for row in rows]
        assert inside == [max(of_three, key=lambda place, row=row: row[place]) for row in values]
        written = found["results"][f"write_{language}"]["exact_match,none"]
        assert written == pytest.approx(sum(exact) / COUNT) and written > 0
        assert 0 < found["results"][f"rolling_{language}"]["bits_per_byte,none"] < 100


@needs_harness
@pytest.mark.slow
def test_what_a_user_gets_wrong_is_one_sentence(run: Path, tasks: Path, tmp_path: Path) -> None:
    line = command(run, tasks, tmp_path, "choice_en", promt=True)
    outcome = Job(line, 1, tmp_path / "logs", {"HF_DATASETS_CACHE": str(tmp_path / "cache")}).wait(120)
    assert outcome.codes == [2], outcome.text[-3000:]
    (last,) = re.findall(r"^error: .+$", outcome.text, re.MULTILINE)
    assert "has the unknown 'promt'; expected run=DIR" in last and "Traceback" not in outcome.text


@needs_harness
def test_a_folder_or_a_template_that_is_not_there_is_named(run: Path, tmp_path: Path) -> None:
    from bridge_ds.harness.model import BridgeLM

    with pytest.raises(ConfigError, match="holds no config"):
        BridgeLM(run=str(tmp_path))
    with pytest.raises(ConfigError, match="--apply_chat_template needs a chat template of testbed/llm"):
        BridgeLM(run=str(run)).chat_template(True)


@needs_harness
def test_a_chat_is_rendered_by_the_llms_own_template(tmp_path: Path) -> None:
    from lm_eval.api.instance import Instance

    from bridge_ds.data.text.prompting import parse
    from bridge_ds.harness.model import BridgeLM
    from tests import tiny

    llm = tiny.make_llm("llama", tmp_path / "llm")
    (llm / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m.role }}>{{ m.content | trim }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    encoder = tiny.make_encoder("mt5", tmp_path / "encoder")
    lm = BridgeLM(run=str(make_run(tmp_path / "run", [f"model.encoder={encoder}", f"model.llm={llm}"])), batch_size=2)
    assert lm.chat_template(True) == (llm / "chat_template.jinja").read_text()
    history = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a dog?"}]
    text = lm.apply_chat_template(history)
    context = parse(text)
    assert (context.head, context.source, context.tail) == ("<s><user>be brief\n\n", "a dog?", "<assistant>")
    started = parse(lm.apply_chat_template([*history, {"role": "assistant", "content": "It"}], False))
    assert started.tail == "<assistant>It"
    requests = [Instance("loglikelihood", {}, (text, word), k, ("t", 0, 1)) for k, word in enumerate(["wet", "dog"])]
    (wet, _), (dog, _) = lm.loglikelihood(requests, disable_tqdm=True)
    assert wet != dog and wet < 0 and dog < 0
    # Its options of writing hold in greedy decoding too.
    written = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False, "temperature": 0.0}
    asked = [written, written | {"repetition_penalty": 0.5}]
    one, other = lm.generate_until([Instance("generate_until", {}, (text, how), 0, ("t", 0, 1)) for how in asked], True)
    assert one != other
    # Under this name lm_eval caches the rendered requests.
    name = lm.tokenizer_name
    data = dataclasses.replace(lm.config.data, system_prompt="be brief")
    lm.config = dataclasses.replace(lm.config, data=data)
    assert name != lm.tokenizer_name and "/" not in name


@needs_harness
def test_batches_shrink_when_memory_is_short(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge_ds.harness.model import BridgeLM

    lm = BridgeLM(run=str(run), batch_size="auto", max_batch_size=16)
    seen: list[int] = []

    def work(rows: list[int]) -> list[int]:
        seen.append(len(rows))
        if len(rows) > 5:
            raise torch.OutOfMemoryError
        return rows

    assert sorted(lm._in_batches([3, 1, 2] * 4, work)) == [(row, row) for row in range(12)]
    assert seen == [12, 6, 3, 3, 3, 3]
    lm.auto = False
    lm.batch_size = 16
    with pytest.raises(torch.OutOfMemoryError):
        list(lm._in_batches([1] * 12, work))


def test_without_lm_eval_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "lm_eval.py").write_text("raise ImportError('none')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "bridge_ds.harness", "--model", "bridge_ds"],
        env=os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2 and "pip install 'bridge_ds[harness]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_task_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import lm_eval.__main__ as theirs

    from bridge_ds.harness.__main__ import main

    def evaluate() -> None:
        raise ValueError("Tasks not found: xcopa_xx")  # as lm_eval.config.evaluate_config has it

    monkeypatch.setattr(theirs, "cli_evaluate", evaluate)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert exit_status(lambda: main(["--tasks", "xcopa_xx"])) == 2
    said = capsys.readouterr().err
    assert "xcopa_xx" in said and said.count("\n") == 1
