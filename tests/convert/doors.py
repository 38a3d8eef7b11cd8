"""Every way to ask a run: what its LLM reads each time, as ids, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bridge_ds.config.load import load_run_config
from bridge_ds.data.loading.collate import collate
from bridge_ds.data.text.prompting import Context
from bridge_ds.doctor.example import look
from bridge_ds.doctor.load import LoadedRun
from bridge_ds.evaluation.scorer import Scorer
from bridge_ds.generate.pipeline import GenerateOptions, Pipeline
from bridge_ds.harness.requests import Continuation
from bridge_ds.hub.model import BridgeForCausalLM
from bridge_ds.hub.processor import BridgeProcessor
from bridge_ds.inference.load import load_trained
from bridge_ds.serve.backends import LocalBackend, ServedModel
from bridge_ds.serve.protocol import CompletionRequest
from bridge_ds.serve.replies import Event
from bridge_ds.tasks.base import Example
from tests.convert.readable import reading
from tests.made import harness_answerer
from tests.samples import tokenize_sample

LABELS = ("Neutral", "Entailment")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Task:
    """Of two labels, or of a number."""

    kind: str = "labels"
    name: str = "two"
    labels: tuple[str, ...] = LABELS


@dataclass(frozen=True)
class Asked:
    """What came of one way."""

    reads: list[int]
    """Ids of the first input of the LLM."""
    answer: str
    """Text."""


def every_door(run: Path, source: str, export: Path) -> dict[str, Asked]:
    """Ask for the label of a source in every way; `export` is made on the way."""
    return inside(run, source) | outside(run, source) | hub(run, source, "BridgeForCausalLM", export) | (
        hub(export, source, "exported")
    )  # fmt: skip


def inside(run: Path, source: str) -> dict[str, Asked]:
    """Training, evaluation, harness and doctor, on the run as they load it."""
    config = load_run_config(run)
    model, tokenizers, checkpoint = load_trained(run, config, CPU, note=pytest.fail)
    row = tokenize_sample({"source": source, "target": LABELS[1]}, tokenizers, config.data)
    batch = collate([row], tokenizers.encoder_pad_id, tokenizers.pad_id)
    data = config.data
    harness = harness_answerer(model, tokenizers, data, end_token=data.objective == "task" and data.target_end)
    scorer = Scorer(model, tokenizers, data, CPU, bridge=True, calibrate=True, max_new_tokens=12)

    def evaluated(kind: str) -> str:
        target, label = ("7", -1) if kind == "number" else (LABELS[1], 1)
        (found,) = scorer([Example(source, target, label, "en", "0", null="wet")], Task(kind)).predictions
        return found.text if kind == "number" else f"{LABELS[found.chosen()]} {found.exact_match}"

    def continued() -> str:
        (scores,) = harness.score([Context(source)], [[Continuation(f" {label}") for label in LABELS]])
        return LABELS[max(range(2), key=lambda number: scores[number][0])] + f" {scores[1][1]}"

    def trained() -> str:
        with torch.no_grad():
            return f"{float(model(batch)):.1f}"

    def diagnosed() -> str:
        found = look(LoadedRun(run, config, model, tokenizers, checkpoint), row)
        assert found.opening == ("" if tokenizers.bos_id is None else str(tokenizers.llm.decode([tokenizers.bos_id])))
        return f"{found.target}|{found.written}"

    llm = model.llm.model
    return {
        "training": _asked(llm, trained),
        "evaluation": _asked(llm, lambda: evaluated("labels")),
        "evaluation, written": _asked(llm, lambda: evaluated("number")),
        "harness": _asked(llm, lambda: harness.write([Context(source)], 12, [])[0]),
        "harness, scored": _asked(llm, continued),
        "doctor": _asked(llm, diagnosed),
    }


def outside(run: Path, source: str) -> dict[str, Asked]:
    """python -m bridge_ds.generate, and the server."""
    writer = Pipeline.load(str(run), GenerateOptions(max_new_tokens=12))
    served_model = ServedModel(writer.model)

    def served() -> str:
        said: list[Event] = []
        ask = CompletionRequest(model="x", prompt=[source], max_tokens=12, stream=True)
        rows = served_model.rows(ask, said.append)
        LocalBackend(served_model).start(rows, lambda _: None)
        assert said[-1].reason == "stop"
        return "".join(event.text for event in said)

    llm = writer.model.bridge.llm.model
    return {
        "generate": _asked(llm, lambda: writer.write([writer.row(source)])[0]),
        "serve": _asked(llm, served),
    }


def hub(folder: Path, source: str, name: str, export: Path | None = None) -> dict[str, Asked]:
    """BridgeForCausalLM and its processor: writing, the loss of a label, and with nothing said about its opening."""
    model, processor = BridgeForCausalLM.from_pretrained(folder), BridgeProcessor.from_pretrained(folder)
    if export:
        model.save_pretrained(export)
    features = processor([source], text_target=[LABELS[1]])

    def wrote() -> str:
        return processor.batch_decode(model.generate(**features, max_new_tokens=12))[0]

    def lost() -> str:
        with torch.no_grad():
            return f"{float(model(**features).loss):.1f}"

    bare = {key: value for key, value in features.items() if not key.startswith("prefix")}
    llm = model.bridge.llm.model
    return {
        f"{name}": _asked(llm, wrote),
        f"{name}, loss": _asked(llm, lost),
        f"{name}, unopened": _asked(
            llm, lambda: processor.batch_decode(model.generate(**bare, max_new_tokens=12))[0]
        ),
    }  # fmt: skip


def _asked(llm: object, ask: Callable[[], str]) -> Asked:
    with reading(llm) as seen:
        answer = ask()
    return Asked(seen[0][0], answer)
