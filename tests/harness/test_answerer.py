"""Scores equal the scorer's own, rows do not depend on their batch, and what is written is what greedy scoring says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from bridge_ds.config.load import load_run_config
from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.text.plain import template_ids, text_ids
from bridge_ds.data.text.prompting import Context
from bridge_ds.errors import DataError
from bridge_ds.evaluation.scorer import Scorer
from bridge_ds.harness.answerer import Answerer
from bridge_ds.harness.requests import Continuation
from bridge_ds.inference.load import load_trained
from bridge_ds.tasks.base import Example
from tests import tiny
from tests.evaluation.fakes import FakeTask
from tests.made import harness_answerer, make_run

SOURCES = ["the cat sat on the mat", "a dog", "one river of rain and a bridge that joins two banks"]
LABELS = ("Entailment", "Neutral", "Contradiction", "good day")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    encoder = tiny.make_encoder("mt5", root / "mt5")
    return {
        kind: make_run(
            root / f"run-{kind}",
            [f"model.encoder={encoder}", f"model.llm={tiny.make_llm(kind, root / kind)}", "data.max_source_tokens=60"],
        )
        for kind in tiny.LLMS
    }


def load(run: Path, bridge: bool = True, **data: object) -> Answerer:
    config = load_run_config(run)
    model, tokenizers, _ = load_trained(run, config, torch.device("cpu"))
    return harness_answerer(model, tokenizers, dataclasses.replace(config.data, **data), bridge)  # type: ignore[arg-type]


def row(answerer: Answerer, context: Context, following: int) -> tuple[list[int], list[int], list[int], list[int]]:
    ids = answerer.prompts.ids(context, following)
    return ids.head, ids.source, ids.prompt, ids.tail


@pytest.mark.parametrize("kind", tiny.LLMS)
@pytest.mark.parametrize(("bridge", "prompt"), [(True, False), (True, True), (False, False)])
def test_scores_are_those_of_the_scorer(runs: dict[str, Path], kind: str, bridge: bool, prompt: bool) -> None:
    answerer = load(runs[kind], bridge=bridge, augment_prompt=prompt)
    data = load_run_config(runs[kind]).data
    data = dataclasses.replace(data, augment_prompt=prompt)
    scorer = Scorer(answerer.generator.model, answerer.tokenizers, data, torch.device("cpu"), bridge=bridge)
    task = FakeTask(labels=LABELS)
    made = [
        scorer([Example(source, "", label, "en", source) for source in SOURCES], task).predictions
        for label in range(len(LABELS))
    ]
    scores, greedy = (
        torch.tensor([p.scores for p in made[0]]),
        [[own[row].exact_match for own in made] for row in range(3)],
    )
    found = answerer.score([Context(source) for source in SOURCES], [[Continuation(f" {n}") for n in LABELS]] * 3)
    assert torch.allclose(torch.tensor([[score for score, _ in row] for row in found]), scores, atol=2e-4)
    assert [[hit for _, hit in row] for row in found] == greedy


@pytest.mark.parametrize("kind", tiny.LLMS)
def test_a_row_does_not_depend_on_its_batch(runs: dict[str, Path], kind: str) -> None:
    answerer = load(runs[kind], augment_prompt=True)
    contexts = [*map(Context, SOURCES), Context(None), Context(""), Context("a cat", "be brief: ", "\nso ")]
    wanted = [
        [Continuation(f" {name}", whole) for name in LABELS[: k + 1] for whole in (True, False)] for k in range(4)
    ]
    wanted += [[], [Continuation(""), Continuation("", whole=False), Continuation("wet")]]
    together = answerer.score(contexts, wanted)
    for context, own, found in zip(contexts, wanted, together, strict=True):
        (alone,) = answerer.score([context], [own])
        assert torch.allclose(torch.tensor([s for s, _ in alone]), torch.tensor([s for s, _ in found]), atol=2e-4)
        assert [hit for _, hit in alone] == [hit for _, hit in found]
    assert together[5][1] == (0.0, True), "nothing to score"
    texts = answerer.write(contexts, 5, [])
    assert texts == [answerer.write([context], 5, [])[0] for context in contexts]


@torch.no_grad()
def test_the_llm_alone_is_the_plain_llm(runs: dict[str, Path]) -> None:
    answerer = load(runs["llama"], bridge=False)
    of, llm = answerer.tokenizers, answerer.generator.model.llm.model
    ids = [of.bos_id, *of.prompt_ids(SOURCES[0]), *of.labels(["wet"])[0]]
    count = len(of.labels(["wet"])[0])
    log_p = torch.log_softmax(llm(torch.tensor([ids])).logits[0].float(), -1)
    expected = sum(log_p[place - 1, ids[place]] for place in range(len(ids) - count, len(ids)))
    (((score, _),),) = answerer.score([Context(SOURCES[0])], [[Continuation(" wet")]])
    assert score == pytest.approx(float(expected), abs=1e-4)


def test_what_is_written_is_what_greedy_scoring_finds(runs: dict[str, Path]) -> None:
    answerer = load(runs["llama"])
    contexts = [Context(source) for source in SOURCES]
    for context, text in zip(contexts, answerer.write(contexts, 6, []), strict=True):
        ids = answerer.tokenizers.llm(" " + text, add_special_tokens=False)["input_ids"]
        if len(ids) == 6 and text.strip() == text:  # else it was ended, or is no text that a target can be
            (((_, greedy),),) = answerer.score([context], [[Continuation(text, whole=False)]])
            assert greedy
    (whole,) = answerer.write(contexts[:1], 12, [])
    stop = whole[3:5]
    assert answerer.write(contexts[:1], 12, ["never", stop]) == [whole.split(stop)[0]]
    sampled = [answerer.write(contexts[:1], 12, [], {"do_sample": True, "temperature": 5.0}) for _ in range(3)]
    assert len({texts[0] for texts in sampled}) > 1
    # As lm_eval gives them, a temperature beside greedy decoding included.
    asked = {"do_sample": False, "temperature": 0.0, "top_k": 1}
    assert answerer.write(contexts[:1], 12, [], asked) == [whole]
    for more in ({"num_beams": 8}, {"repetition_penalty": 0.5}):
        assert answerer.write(contexts[:1], 12, [], asked | more) != [whole], more


def test_a_chat_template_stands_around_the_soft_prompt(runs: dict[str, Path]) -> None:
    answerer = load(runs["llama"])
    of, model = answerer.tokenizers, answerer.generator.model
    head, tail = "<s>one river", "\nmat:"
    spliced = answerer._prefix([Context("a dog", head, tail)], [4])
    parts = [template_ids(of.llm, part) for part in (head, tail)]
    text = [model.llm.embed(torch.tensor([part])) for part in parts]
    assert parts[0][0] == of.bos_id, "the template's own opening token is the only one"
    source = torch.tensor([of.source_ids("a dog")])
    none = source[:, :0]
    soft = model.soft(Batch(source, torch.ones_like(source), none, none, none, none)).embeds_BKH
    assert torch.allclose(spliced.embeds_BXH, torch.cat([text[0], soft, text[1]], dim=1), atol=1e-6)
    alone = of.llm("mat", add_special_tokens=False)["input_ids"]
    for given in ("mat", " mat"):  # lm_eval may put a delimiter before it
        assert answerer._continuation(Context("a dog", head, tail), Continuation(given)) == [*alone, of.eos_id]
    begun = Context("a dog", head, f"{tail}on the", begun=True)
    spaced = of.llm(" mat", add_special_tokens=False)["input_ids"]
    assert answerer._continuation(begun, Continuation(" mat")) == [*spaced, of.eos_id] != [*alone, of.eos_id]


def test_long_contexts_are_truncated_at_the_side_of_the_run_and_counted(runs: dict[str, Path]) -> None:
    of = (answerer := load(runs["llama"], augment_prompt=True, max_source_tokens=5, max_prompt_tokens=3)).tokenizers
    text = " ".join(SOURCES)
    _, source, prompt, _ = row(answerer, Context(text), 4)
    assert source == [*of.source_ids(text)[:4], of.source_ids(text)[-1]] and prompt == of.prompt_ids(text)[:3]
    assert answerer.prompts.truncated == {"texts": 1, "source": 1, "prompt": 1}
    piece = Continuation("坐 on", whole=False, parted=False)
    assert answerer._continuation(Context("猫", continues=True), piece) == text_ids(of.llm, ["坐 on"], special=False)[0]
    # The rest of a text goes on from its context's end, as in prefix_lm.
    _, source, prompt, _ = row(answerer, Context(text, continues=True), 4)
    assert source == of.source_ids(text)[-5:] and prompt == of.prompt_ids(text)[-3:]
    answerer = load(
        runs["llama"], augment_prompt=True, max_source_tokens=5, max_prompt_tokens=3, truncation_side="left"
    )
    _, source, prompt, _ = row(answerer, Context(text), 4)
    assert source == of.source_ids(text)[-5:] and prompt == of.prompt_ids(text)[-3:]
    assert answerer.prompts.truncated == {"texts": 1, "source": 1, "prompt": 1}
    # 128 places in all: what is asked for comes first, the context takes the rest.
    roomy = load(runs["llama"], augment_prompt=True, max_source_tokens=900, max_prompt_tokens=900)
    head, source, prompt, tail = row(roomy, Context(text * 9, "", ""), 40)
    assert len(head) + len(source) + 1 + len(prompt) + len(tail) + 40 == 128
    roomy.score([Context(text * 9)], [[Continuation("wet " * 20)]])
    with pytest.raises(DataError, match="the LLM has 128; shorten"):
        roomy.score([Context("a")], [[Continuation("猫" * 90)]])
