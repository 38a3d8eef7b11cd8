"""What is around the soft prompt, and what is answered: by every door what the source's own code gives.

The ids are written down here, from what each project's code does (cited in bridge_ds/convert/*.py):

- the paper: BOS whatever the tokenizer does; a target alone, no space before it, the end token behind; a prompt, where
  one is shown, with the blank that its templates end with; what is written is compared as stripped text.
- MindMerger: the same, its prompts unchanged.
- LangBridge: BOS; a target alone, without a space and without an end token; no prompt.

Vocabularies: tests/convert/readable.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.config.load import load_run_config
from bridge_ds.convert import SOURCES
from bridge_ds.convert.job import prepare
from tests import tiny
from tests.convert import doors, peers, readable, saved
from tests.convert.readable import END, SOFT
from tests.made import make_run

SOURCE = "wet Label:"
LLAMA3 = dict(bos="<|begin|>", adds=True)
GPT2 = dict(bos="<|end|>", adds=False)
"""BOS and end token are one."""
SMOLLM2 = dict(bos="<|begin|>", adds=False)
"""A BOS that no text begins with."""
LLAMA2: dict[str, Any] = {}
"""SentencePiece."""


@dataclass(frozen=True)
class Case:
    """One run, and what its LLM reads and writes."""

    source: str
    """Name in SOURCES, or `native`."""
    tokenizer: Mapping[str, Any]
    """One of the four."""
    head: list[int]
    """Ids before the soft prompt."""
    shown: list[int]
    """Ids after it."""
    target: list[int]
    """Ids of the target Entailment."""
    written: list[int]
    """What the LLM writes after the prompt; then an end token."""
    settings: list[str] = field(default_factory=list)
    """`key=value`."""


PROMPT = ["data.augment_prompt=true"]
CASES = {
    "paper, Llama 3.2": Case("paper", LLAMA3, [0], [], [259, 261, 264, 1], [259, 261, 264]),
    "paper, Llama 3.2, prompt": Case(
        "paper", LLAMA3, [0], [278, 270, 27, 222], [259, 261, 264, 1], [259, 261, 264], PROMPT
    ),
    "paper, BOS is EOS": Case("paper", GPT2, [1], [], [259, 261, 264, 1], [259, 261, 264]),
    "mindmerger, Llama 2": Case("mindmerger", LLAMA2, [1], [296, 287, 259], [282, 278, 281, 2], [282, 278, 281]),
    "mindmerger, BOS is EOS": Case("mindmerger", GPT2, [1], [278, 270, 27], [259, 261, 264, 1], [259, 261, 264]),
    "mindmerger, BOS not added": Case("mindmerger", SMOLLM2, [0], [278, 270, 27], [259, 261, 264, 1], [259, 261, 264]),
    "langbridge, Llama 2": Case("langbridge", LLAMA2, [1], [], [282, 278, 281], [282, 278, 281]),
    "langbridge, Llama 3": Case("langbridge", LLAMA3, [0], [], [259, 261, 264], [259, 261, 264]),
    "native, Llama 3": Case("native", LLAMA3, [0], [278, 270, 27], [265, 261, 264, 1], [265, 261, 264], PROMPT),
    "native, BOS is EOS": Case("native", GPT2, [], [], [265, 261, 264, 1], [265, 261, 264]),
    "native, BOS not added": Case("native", SMOLLM2, [], [], [265, 261, 264, 1], [265, 261, 264]),
    "native, Llama 2": Case("native", LLAMA2, [1], [], [282, 278, 281, 2], [282, 278, 281]),
    "native from before the settings, BOS not added": Case(
        "native", SMOLLM2, [0], [278, 270, 27], [265, 261, 264, 1], [265, 261, 264], PROMPT
    ),
    "text the same, tokens not": Case("paper", LLAMA3, [0], [], [259, 261, 264, 1], [265, 261, 264, 200]),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_encoder("mt5", tmp_path_factory.mktemp("conventions") / "mt5")


def follows(case: Case) -> dict[int, int]:
    """The LLM's table: the answer after the last position; and Neutral after others, with which a wrong prompt ends."""
    neutral = [293, 292] if case.tokenizer is LLAMA2 else [273, 275]
    wrong = {END: neutral[0], 27: neutral[0], 1: neutral[0], neutral[0]: neutral[1]}
    last = case.shown[-1] if case.shown else END
    return wrong | dict(zip([last, *case.written], case.written, strict=False))


def llm_of(case: Case, folder: Path) -> Path:
    if case.tokenizer is LLAMA2:
        readable.sentence_piece(folder)
    else:
        readable.byte_level(folder, **case.tokenizer)
    return readable.save_llm(folder, follows(case), 2 if case.tokenizer is LLAMA2 else 1)


def run_of(case: Case, name: str, encoder: Path, root: Path) -> Path:
    llm, run = llm_of(case, root / "llm"), root / "run"
    soft, end = (readable.vector(id, follows(case)) for id in (SOFT, END))
    torch.manual_seed(0)
    settings = ["model.dtype=float32", *case.settings]
    if case.source == "native":

        def change(model: BridgeModel) -> None:
            model.mapping.scale.fill_(1.0)
            model.mapping.project.weight.zero_()
            model.mapping.project.bias.copy_(soft)
            model.mapping.end.copy_(end)

        models = [f"model.encoder={encoder}", f"model.llm={llm}", "mapping.kind=linear", "data.max_source_tokens=60"]
        make_run(run, [*models, *settings], change=change)
        if "before" in name:
            forget(run)
        return run
    with torch.no_grad():
        if case.source == "langbridge":
            bridge = peers.LangBridgeModel(encoder, llm, "linear")
            last, vector = bridge.lb.alignment.linear, bridge.lb.alignment.enc_eos
        elif case.source == "mindmerger":
            bridge = peers.MindMerger(encoder, llm)
            last, vector = bridge.mapping.mlp.linear2, bridge.mapping.end_boundary
        else:
            bridge = peers.MPTModel(encoder, llm, "last_layer")
            last, vector = bridge.mapping.mlp.fc, bridge.mapping.end_boundary
        last.weight.zero_()
        last.bias.copy_(soft)
        vector.copy_(end.reshape(vector.shape))
    state = bridge.mapping.state_dict() if case.source == "mindmerger" else bridge.state_dict()
    checkpoint = saved.wrapped(state, root / "peer")
    prepare(
        SOURCES[case.source], checkpoint, encoder=str(encoder), llm=str(llm), overrides=settings, add_tokens=False
    ).write(run)
    return run


def forget(run: Path) -> None:
    """As a run that was made before there were these settings."""
    import yaml

    values = yaml.safe_load((run / "config.yaml").read_text())
    (path,) = run.glob("checkpoints/*/manifest.json")
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    for data in (values["data"], manifest["config"]["data"]):
        for key in ("bos", "separator", "target_space", "target_end"):
            del data[key]
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", CASES)
def test_every_door_reads_and_answers_as_the_sources_own_code(name: str, encoder: Path, tmp_path: Path) -> None:
    case = CASES[name]
    run = run_of(case, name, encoder, tmp_path)
    found = doors.every_door(run, SOURCE, tmp_path / "export")

    from transformers import AutoTokenizer

    soft = [SOFT] * len(AutoTokenizer.from_pretrained(encoder)(SOURCE).input_ids)
    before = [*case.head, *soft, END, *case.shown]
    with_target = [*before, *case.target]
    reads = {door: asked.reads for door, asked in found.items()}
    assert reads == {door: with_target if door == "training" or door.endswith("loss") else before for door in found}
    answers = {door: asked.answer for door, asked in found.items()}
    usual = case.written == case.target[: len(case.written)]
    expected = dict.fromkeys(found, "Entailment")
    if usual:
        expected |= {"evaluation": "Entailment True", "harness, scored": "Entailment True"}
    end = "</s>" if case.tokenizer is LLAMA2 else "<|end|>"
    space = " " if case.target[0] == 265 else ""
    closed = end if case.target[-1] in (1, 2) else ""
    expected["doctor"] = f"{space}Entailment{closed}|{space}Entailment{end}"
    expected |= {door: "0.0" for door in found if door == "training" or door.endswith("loss")}
    if not usual:
        # The stripped text is right, whatever its tokens are; the rest is recorded as it was written.
        assert answers["evaluation"].endswith(" True")
        assert answers["harness, scored"].endswith(" False")
        assert {answers[door] for door in ("generate", "serve", "BridgeForCausalLM", "harness")} == {" Entailment\n"}
        return
    assert answers == expected


def test_converted_settings_are_recorded(encoder: Path, tmp_path: Path) -> None:
    name = "langbridge, Llama 3"
    data = load_run_config(run_of(CASES[name], name, encoder, tmp_path)).data
    assert (data.bos, data.separator, data.target_space, data.target_end) == ("always", "", "none", False)


def test_an_llm_alone_that_nothing_opens_is_scored_all_the_same(encoder: Path, tmp_path: Path) -> None:
    """No BOS, and a null source of nothing: a token must be predicted from some token."""
    from bridge_ds.evaluation.scorer import Scorer
    from bridge_ds.inference.load import load_trained
    from bridge_ds.tasks.base import Example

    name = "native, BOS is EOS"
    run = run_of(CASES[name], name, encoder, tmp_path)
    config = load_run_config(run)
    model, tokenizers, _ = load_trained(run, config, doors.CPU, note=pytest.fail)
    scorer = Scorer(model, tokenizers, config.data, doors.CPU, bridge=False, calibrate=True)
    examples = [Example(text, "Neutral", 0, "en", text, null=" ") for text in (SOURCE, " ")]
    with readable.reading(model.llm.model) as seen:
        answers = scorer(examples, doors.Task()).predictions
    assert seen[0] == [[278, 270, 27], [1]]
    assert [1] in [rows[0] for rows in seen[1:]]  # the null source
    # Alone or beside others, the same.
    assert scorer(examples[1:], doors.Task()).predictions[0].scores == pytest.approx(answers[1].scores, abs=1e-5)
    assert all(all(torch.isfinite(torch.tensor(found.scores + found.null))) for found in answers)


def test_a_text_is_given_to_both_models_as_it_stands(encoder: Path, tmp_path: Path) -> None:
    """As in training: the processor and the harness took white space off that may be a token of its own."""
    from bridge_ds.data.text.prompting import Context, Limits, context_ids
    from bridge_ds.inference.load import load_trained
    from tests.samples import tokenize_sample

    name = "mindmerger, BOS is EOS"
    run = run_of(CASES[name], name, encoder, tmp_path)
    config = load_run_config(run)
    _, tokenizers, _ = load_trained(run, config, doors.CPU, note=pytest.fail)
    text = "\nwet Label: \n"
    row = tokenize_sample({"source": text, "target": "x"}, tokenizers, config.data)
    ids = context_ids(tokenizers, Context(text), Limits(60, 60), 4, prompt=True)
    assert (ids.source, ids.prompt) == (row.source, row.prompt)
    assert row.prompt == [200, 278, 270, 27, 222, 200]
    assert dataclasses.replace(ids, source=[], prompt=[]).head == [1]
