"""Small models answer alike whatever the batch, keep what the report needs, and write numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.config.schema import Config, DataConfig, FusionConfig, ModelConfig
from bridge_ds.data.loading.collate import collate
from bridge_ds.data.loading.tokenize import Tokenizers, load_tokenizers
from bridge_ds.engine.setup import build_model
from bridge_ds.errors import DataError
from bridge_ds.evaluation.predictions import Prediction
from bridge_ds.evaluation.scorer import Scorer
from bridge_ds.evaluation.store import Answers
from bridge_ds.inference.greedy import decode_greedily
from bridge_ds.metrics import CHOICE_METRICS
from bridge_ds.tasks.base import Example
from tests.samples import tokenize_sample

CPU = torch.device("cpu")
LABELS = ("Entailment", "Neutral", "Contradiction", "no")
SOURCES = (
    "the cat",
    "a much longer source with many words in it that goes on",
    "දවස",
    "x",
    "rain fell on the river bank",
)


@dataclass(frozen=True)
class AnyTask:
    """Of one kind."""

    kind: str = "labels"
    name: str = "any"

    @property
    def labels(self) -> tuple[str, ...]:
        return LABELS if self.kind == "labels" else ()


def examples(kind: str = "labels") -> list[Example]:
    if kind == "number":
        return [Example(text, "7", -1, "en", str(place)) for place, text in enumerate(SOURCES)]
    if kind == "labels":
        return [Example(s, LABELS[n % 4], n % 4, "en", str(n), null="empty") for n, s in enumerate(SOURCES)]
    choices = [("a dog", "two"), ("one", "the mat and the dog", "numbers 1 2 3"), ("x", "y"), ("on", "at"), ("b", "cc")]
    return [
        Example(source, own[1], 1, "en", str(place), choices=own, null="because")
        for place, (source, own) in enumerate(zip(SOURCES, choices, strict=True))
    ]


@pytest.fixture(scope="module")
def loaded(models: dict[str, Path]) -> tuple[BridgeModel, Tokenizers]:
    config = Config(
        model=ModelConfig(encoder=str(models["encoder"]), llm=str(models["llm"]), dtype="float32"),
        fusion=FusionConfig(feedforward=32),
    )
    tokenizers = load_tokenizers(config.model)
    return build_model(config, tokenizers.bos_id).eval(), tokenizers


def scorer(loaded: tuple[BridgeModel, Tokenizers], bridge: bool = True, **more: object) -> Scorer:
    return Scorer(*loaded, DataConfig(), CPU, bridge=bridge, calibrate=True, max_new_tokens=12, **more)  # type: ignore[arg-type]


def assert_alike(one: list[Prediction], other: list[Prediction]) -> None:
    for a, b in zip(one, other, strict=True):
        assert replace(a, scores=(), null=()) == replace(b, scores=(), null=())
        assert a.scores == pytest.approx(b.scores, abs=1e-4) and a.null == pytest.approx(b.null, abs=1e-4)
        for normalization in CHOICE_METRICS[: 3 if a.null else 0]:
            assert a.chosen(normalization) == b.chosen(normalization)


@pytest.mark.parametrize("bridge", [True, False])
@pytest.mark.parametrize("kind", ["labels", "choices", "number"])
def test_answers_do_not_depend_on_the_batch(loaded: tuple[BridgeModel, Tokenizers], kind: str, bridge: bool) -> None:
    ask, task = scorer(loaded, bridge), AnyTask(kind)
    together = ask(examples(kind), task)
    alone = [ask([example], task) for example in examples(kind)]
    assert_alike(together.predictions, [p for answers in alone for p in answers.predictions])
    assert together.tokens == sum(answers.tokens for answers in alone)
    sums = [sum(layer) for layer in zip(*(answers.weights for answers in alone), strict=True)]
    assert together.weights == pytest.approx(sums, rel=1e-4) and bool(sums) == bridge
    if bridge:
        assert sum(together.weights) == pytest.approx(together.tokens, rel=1e-4)
    assert Answers.parse(together.line()).predictions == [Prediction.parse(p.line()) for p in together.predictions]


def test_a_cpu_reads_few_positions_at_a_time(
    loaded: tuple[BridgeModel, Tokenizers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are those of the whole batch, in its order. A rank with fewer parts runs the models as often as one
    with more, and asks the others as often."""
    llm = loaded[0].llm.model
    given: list[list[int]] = []
    hook = llm.register_forward_pre_hook(
        lambda _, __, options: given.append(list(options["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    flags: list[bool] = []

    def noted(flag: bool) -> bool:
        flags.append(flag)
        return flag

    whole = scorer(loaded)(examples(), AnyTask())
    del given[:]
    monkeypatch.setattr("bridge_ds.evaluation.scorer.POSITIONS", 30)
    parted = scorer(loaded, any_of=noted)(examples(), AnyTask())
    assert_alike(parted.predictions, whole.predictions)
    assert parted.weights == pytest.approx(whole.weights, rel=1e-4)
    assert (parted.tokens, parted.cut) == (whole.tokens, whole.cut)
    assert given[0][0] == 1 and all(rows * length <= 30 for rows, length in given if rows > 1), given
    times, of_others = len(given), iter(list(flags))
    del given[:]
    short = scorer(loaded, any_of=lambda flag: next(of_others) or flag)(examples()[3:4], AnyTask())
    hook.remove()
    assert len(given) == times > 4 and next(of_others, None) is None
    assert_alike(short.predictions, whole.predictions[3:4])


def test_scores_are_the_training_loss(loaded: tuple[BridgeModel, Tokenizers]) -> None:
    model, tokenizers = loaded
    for found, example in zip(scorer(loaded)(examples("choices"), AnyTask("choices")).predictions, examples("choices"),
                              strict=True):  # fmt: skip
        for source, scores in ((example.source, found.scores), (example.null, found.null)):
            for choice, score in zip(example.choices, scores, strict=True):
                row = tokenize_sample({"source": source, "target": choice}, tokenizers, DataConfig())
                batch = collate([row], tokenizers.encoder_pad_id, tokenizers.pad_id)
                with torch.no_grad():
                    assert score == pytest.approx(-float(model(batch)), abs=1e-4)
        assert found.tokens == tuple(len(tokenizers.labels([choice])[0]) for choice in example.choices)


def test_labels_are_scored_after_one_null_source(loaded: tuple[BridgeModel, Tokenizers]) -> None:
    ask = scorer(loaded)
    found = ask(examples(), AnyTask()).predictions
    (null,) = ask([Example("empty", LABELS[0], 0, "en", "null")], AnyTask()).predictions
    for prediction in found:
        assert prediction.null == pytest.approx(null.scores, abs=1e-4)
        assert prediction.choices == () and len(prediction.scores) == 4
    plain = Scorer(*loaded, DataConfig(), CPU, bridge=True)(examples(), AnyTask()).predictions
    assert all(prediction.null == () for prediction in plain)


def test_tokens_of_the_whole_source_and_unknown_ones_are_counted(
    loaded: tuple[BridgeModel, Tokenizers], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizers = loaded
    full = [len(tokenizers.source_ids(source)) for source in SOURCES]
    short = Scorer(model, tokenizers, DataConfig(max_source_tokens=4), CPU, bridge=True)
    answers = short(examples(), AnyTask())
    assert [p.source_tokens for p in answers.predictions] == full and max(full) > 4
    assert answers.tokens == sum(min(4, count) for count in full)
    assert short.count_tokens(examples()) == [min(4, count) for count in full]
    alone = Scorer(model, tokenizers, DataConfig(max_prompt_tokens=3), CPU, bridge=False)
    assert alone.count_tokens(examples()) == [min(3, len(tokenizers.prompt_ids(source))) for source in SOURCES]
    assert all(p.unknown == 0 for p in answers.predictions)
    unknown = tokenizers.source_ids("the")[0]
    monkeypatch.setattr(type(tokenizers.encoder), "unk_token_id", unknown, raising=False)
    counts = [p.unknown for p in short(examples(), AnyTask()).predictions]
    assert counts == [tokenizers.source_ids(source).count(unknown) for source in SOURCES] and counts[0] == 1


def test_what_is_written_is_what_transformers_writes(loaded: tuple[BridgeModel, Tokenizers]) -> None:
    model, tokenizers = loaded
    rows = [tokenize_sample({"source": s, "target": "x"}, tokenizers, DataConfig()) for s in SOURCES]
    prefix = model.prefix(collate(rows, tokenizers.encoder_pad_id, tokenizers.pad_id))
    with torch.no_grad():
        theirs = model.llm.model.generate(
            inputs_embeds=prefix.embeds_BXH, attention_mask=prefix.mask_BX, max_new_tokens=9, do_sample=False,
            eos_token_id=-1, pad_token_id=0,
        ).tolist()  # fmt: skip
    assert decode_greedily(model.llm, prefix, (), 9) == theirs
    # A row ends at its end token; the others go on.
    end = theirs[0][2]
    cut = [row[: row.index(end)] if end in row else row for row in theirs]
    assert decode_greedily(model.llm, prefix, {end}, 9) == cut
    assert decode_greedily(model.llm, prefix, (), 1) == [row[:1] for row in theirs]


def test_all_ranks_write_as_long_as_one_has_to(loaded: tuple[BridgeModel, Tokenizers]) -> None:
    model, tokenizers = loaded
    row = tokenize_sample({"source": "x", "target": "x"}, tokenizers, DataConfig())
    prefix = model.prefix(collate([row], tokenizers.encoder_pad_id, tokenizers.pad_id))
    first = decode_greedily(model.llm, prefix, (), 1)[0][0]
    asked: list[bool] = []

    def any_of(flag: bool) -> bool:
        asked.append(flag)
        return len(asked) < 4

    assert decode_greedily(model.llm, prefix, {first}, 9, any_of) == [[]]
    assert asked == [False] * 4


def test_a_number_is_read_from_what_was_written(
    loaded: tuple[BridgeModel, Tokenizers], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = loaded[1].prompt_ids("so 1 , 2 and 7 .")
    monkeypatch.setattr("bridge_ds.inference.generator.decode_greedily", lambda *_, **__: [ids, []])
    right, empty = scorer(loaded)(examples("number")[:2], AnyTask("number")).predictions
    assert (right.exact_match, right.correct(), right.text, right.answer) == (True, True, "so 1 , 2 and 7 .", "7")
    assert (empty.exact_match, empty.text, empty.label, empty.scores) == (False, "", -1, ())


def test_a_source_without_tokens_is_one_sentence(
    loaded: tuple[BridgeModel, Tokenizers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizers, "sources", lambda self, texts, languages=None: [[] for _ in texts])
    with pytest.raises(DataError, match=r"a sample of any \('the cat'\) has a source without any token"):
        scorer(loaded)(examples()[:1], AnyTask())
