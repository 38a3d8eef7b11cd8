"""From text to answers: tokenizers and model behind the one callable that evaluation asks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.config.schema import DataConfig
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.data.text.prompting import Context, ContextIds
from bridge_ds.errors import DataError
from bridge_ds.evaluation.predictions import Prediction
from bridge_ds.evaluation.store import Answers
from bridge_ds.evaluation.written import Wanted
from bridge_ds.inference.generator import Generator
from bridge_ds.inference.prompt import PromptBuilder
from bridge_ds.inference.score import Read
from bridge_ds.llm.splice import Spliced
from bridge_ds.tasks.base import Example, Task
from bridge_ds.tasks.numbers import is_right

__all__ = ["Scorer"]

POSITIONS = 2048
"""Positions that a CPU reads together. With more of them, what an operator writes has left the caches when the next one
reads it."""
ENGLISH = "en"
"""Language of the prompts around a benchmark's texts."""


class Scorer:
    """`scorer(examples, task) -> Answers`, by the bridge or by the LLM alone."""

    def __init__(
        self,
        model: BridgeModel,
        tokenizers: Tokenizers,
        data: DataConfig,
        device: torch.device,
        *,
        bridge: bool,
        calibrate: bool = False,
        max_new_tokens: int = 512,
        any_of: Callable[[bool], bool] = bool,
    ) -> None:
        """Args:
        bridge: True = as the run was trained: soft prompt, and the text prompt where the run has one; False = the LLM
            alone reads the source itself.
        calibrate: score every choice after a null source too.
        max_new_tokens: most tokens of a written answer.
        any_of: whether a flag is set on some rank (a collective), see :class:`bridge_ds.inference.generator.Generator`.
        """
        self.model, self.tokenizers, self.device = model, tokenizers, device
        self.bridge = bridge and tokenizers.has_encoder
        self.calibrate, self.max_new_tokens, self.any_of = calibrate, max_new_tokens, any_of
        self.prompts = PromptBuilder.of(data, tokenizers, model.llm.positions, model.soft_prompt, bridge=self.bridge)
        self.generator = Generator(model, tokenizers, bridge=bridge, any_of=any_of)
        self._null: dict[tuple[str, tuple[str, ...]], tuple[float, ...]] = {}

    @torch.no_grad()
    def __call__(self, examples: Sequence[Example], task: Task) -> Answers:
        """Answers to B samples of one task.

        Raises:
            DataError: a source without any token, or choices for which the LLM has no positions.
        """
        rows, ids = self._asked(examples, task)
        # Where an answer is written, each of its tokens reads all weights: there, larger batches are faster.
        if self.device.type != "cpu" or task.kind == "number":
            return self._answers(examples, rows, ids, task)
        parts = self._parts(rows)
        found: list[Answers] = []
        # Under ZeRO-3 every rank must run the models as often as the others: one that is done repeats its last part.
        while self.any_of(len(found) < len(parts)):
            part = parts[min(len(found), len(parts) - 1)]
            some, own, choices = [examples[n] for n in part], [rows[n] for n in part], [ids[n] for n in part]
            found.append(self._answers(some, own, choices, task))
        return joined(found[: len(parts)], parts)

    def check(self, examples: Sequence[Example], task: Task) -> None:
        """Raises DataError as a call with the same samples would, and runs no model."""
        _, ids = self._asked(examples, task)
        if self.calibrate and task.kind != "number":
            self._null_rows(examples, task, ids)

    def _asked(
        self, examples: Sequence[Example], task: Task
    ) -> tuple[list[ContextIds], Sequence[Sequence[Sequence[int]]]]:
        """Prompts and choices as ids."""
        ids: Sequence[Sequence[Sequence[int]]] = [[] for _ in examples]
        following = [self.prompts.room(self.max_new_tokens)] * len(examples)
        if task.kind != "number":
            ids = self._choice_ids([example.choices or task.labels for example in examples])
            following = [max(map(len, own)) for own in ids]
        return self._rows([(example.source, example.language) for example in examples], following, task), ids

    def _parts(self, rows: Sequence[ContextIds]) -> list[list[int]]:
        """Numbers of the rows that a CPU reads together, the longest first: at most :data:`POSITIONS`, padding
        included."""
        lengths = [max(len(row.source), self.prompts.length(row)) for row in rows]
        parts: list[list[int]] = []
        for number in sorted(range(len(rows)), key=lambda number: -lengths[number]):
            if not parts or (len(parts[-1]) + 1) * lengths[parts[-1][0]] > POSITIONS:
                parts.append([])
            parts[-1].append(number)
        return parts

    def _answers(
        self,
        examples: Sequence[Example],
        rows: Sequence[ContextIds],
        ids: Sequence[Sequence[Sequence[int]]],
        task: Task,
    ) -> Answers:
        """Answers to samples whose prompts and choices are known as ids."""
        prefix = self._prefix(rows)
        # Before anything else goes through the fusion.
        weights_L = self.model.fusion.weights() if self.bridge else torch.zeros(0)  # type: ignore[operator]
        if task.kind == "number":
            predictions = self._numbers(examples, prefix)
        else:
            predictions = self._choices(examples, task, prefix, ids)
        counts = self._counts(examples, rows)
        most = self.prompts.limits.source
        read_tokens = [
            len(row.source) if self.bridge else min(most, n) for row, (n, _) in zip(rows, counts, strict=True)
        ]
        tokens = sum(read_tokens)
        read = ("source",) * self.bridge + ("prompt",) * (self.prompts.prompt or not self.bridge)
        return Answers(
            [
                dataclasses.replace(found, source_tokens=count, unknown=unknown)
                for found, (count, unknown) in zip(predictions, counts, strict=True)
            ],
            [weight * tokens for weight in weights_L.tolist()],
            tokens,
            {"texts": len(rows)} | {name: sum(name in row.truncated for row in rows) for name in read},
        )

    def count_tokens(self, examples: Sequence[Example]) -> list[int]:
        """LLM or encoder tokens that are read of each source."""
        of, limits = self.tokenizers, self.prompts.limits
        if not self.bridge:
            return [min(limits.prompt, len(of.prompt_ids(example.source))) for example in examples]
        return [
            min(limits.source, len(of.source_ids(example.source, self._tag(example.language)))) for example in examples
        ]

    def _choices(
        self, examples: Sequence[Example], task: Task, prefix: Spliced, ids: Sequence[Sequence[Sequence[int]]]
    ) -> list[Prediction]:
        texts = [example.choices or task.labels for example in examples]
        scores, greedy, begins, read = self.generator.score(prefix, ids)
        labels = [example.label for example in examples]
        right = [own[label] for own, label in zip(texts, labels, strict=True)]
        usual = [row[label] for row, label in zip(greedy, labels, strict=True)]
        exact = self._written(prefix, right, usual, begins, read)
        nulls = self._nulls(examples, task, ids) if self.calibrate else [()] * len(examples)
        return [
            Prediction(
                key=example.key,
                source=example.source,
                label=example.label,
                answer=example.target,
                choices=example.choices,
                scores=tuple(scores[row]),
                tokens=tuple(map(len, ids[row])),
                null=nulls[row],
                exact_match=exact[row],
            )
            for row, example in enumerate(examples)
        ]

    def _numbers(self, examples: Sequence[Example], prefix: Spliced) -> list[Prediction]:
        texts = [text.strip() for text in self.generator.texts(self.generator.greedy(prefix, self.max_new_tokens))]
        return [
            Prediction(
                key=example.key,
                source=example.source,
                answer=example.target,
                exact_match=is_right(text, example.target),
                text=text,
            )
            for example, text in zip(examples, texts, strict=True)
        ]

    def _written(
        self, prefix: Spliced, targets: Sequence[str], greedy: Sequence[bool], begins: list[int], read: Read | None
    ) -> list[bool]:
        """Whether greedy decoding writes each row's right text, in whatever tokens and white space around it.

        Args:
            prefix: what it is written after.
            targets: the right texts.
            greedy: whether its usual tokens are what is written.
            begins: each row's first token.
            read: the prefix, if it can be continued as it was read.
        """
        of = self.tokenizers
        wanted = [Wanted(target, of) for target in targets]
        ids = [[] if begin in self.generator.ends else [begin] for begin in begins]
        unsure = [
            not sure and bool(row) and each.open(row) for sure, each, row in zip(greedy, wanted, ids, strict=True)
        ]
        if self.any_of(any(unsure)):  # seldom: other answers begin otherwise
            asked = [row for row, open_ in enumerate(unsure) if open_] or [0]  # another rank has some
            longer = self.generator.greedy(
                prefix.rows(asked),
                self.max_new_tokens,
                lambda place, so_far: unsure[asked[place]] and wanted[asked[place]].open(so_far),
                read=read and read.rows(asked),
            )
            for row, new in zip(asked, longer, strict=True):
                ids[row] = new if unsure[row] else ids[row]
        return [sure or each.done(row) for sure, each, row in zip(greedy, wanted, ids, strict=True)]

    def _choice_ids(self, texts: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """LLM ids of each row's choices, each text tokenized once."""
        flat = list(dict.fromkeys(text for row in texts for text in row))
        ids = dict(zip(flat, self.prompts.answers(flat), strict=True))
        return [[ids[text] for text in row] for row in texts]

    def _nulls(
        self, examples: Sequence[Example], task: Task, ids: Sequence[Sequence[Sequence[int]]]
    ) -> list[tuple[float, ...]]:
        """Scores of each sample's choices after its null source; of labels they are computed once."""
        if any(example.choices for example in examples):
            rows = self._null_rows(examples, task, ids)
            return [tuple(row) for row in self.generator.score(self._prefix(rows), ids)[0]]
        key = (examples[0].null, task.labels)  # one prompt a task, so all ranks compute it in the same turn
        if key not in self._null:
            prefix = self._prefix(self._null_rows(examples, task, ids))
            self._null[key] = tuple(self.generator.score(prefix, ids[:1])[0][0])
        return [self._null[key]] * len(examples)

    def _null_rows(
        self, examples: Sequence[Example], task: Task, ids: Sequence[Sequence[Sequence[int]]]
    ) -> list[ContextIds]:
        """Null prompts of samples with choices of their own; of labels the one that all have."""
        if any(example.choices for example in examples):
            following = [max(map(len, own)) for own in ids]
            return self._rows([(example.null or " ", example.language) for example in examples], following, task)
        return self._rows([(examples[0].null, ENGLISH)], [max(map(len, ids[0]))], task)

    def _rows(self, texts: Sequence[tuple[str, str]], following: Sequence[int], task: Task) -> list[ContextIds]:
        """Prompts of (source, its language), each with as many positions free behind it."""
        rows = []
        for (source, language), room in zip(texts, following, strict=True):
            row = self.prompts.ids(Context(source, language=self._tag(language)), room)
            if self.bridge and not row.source:
                raise DataError(
                    f"a sample of {task.name} ({source[:60]!r}) has a source without any token of the encoder; "
                    "expected text that its tokenizer knows; fix its data."
                )
            rows.append(row)
        return rows

    def _tag(self, language: str) -> str:
        return self.tokenizers.languages.tag_or_default(language) if self.tokenizers.languages else ""

    def _prefix(self, rows: Sequence[ContextIds]) -> Spliced:
        return self.generator.prefix(self.prompts.batch(rows), self.device)

    def _counts(self, examples: Sequence[Example], rows: Sequence[ContextIds]) -> list[tuple[int, int]]:
        """Encoder tokens of each whole source, also of one that is truncated or that the LLM alone reads, and how many
        of them are unknown."""
        unknown = self.tokenizers.encoder.unk_token_id
        counts = []
        for example, row in zip(examples, rows, strict=True):
            whole = self.bridge and "source" not in row.truncated
            ids = row.source if whole else self.tokenizers.source_ids(example.source, self._tag(example.language))
            counts.append((len(ids), 0 if unknown is None else ids.count(unknown)))
        return counts


def joined(found: Sequence[Answers], parts: Sequence[Sequence[int]]) -> Answers:
    """Answers to parts of some samples as those to all of them, in the samples' order.

    Args:
        found: of each part.
        parts: numbers of its samples.
    """
    numbered = zip(
        (number for part in parts for number in part), (each for one in found for each in one.predictions), strict=True
    )
    cut: Counter[str] = Counter()
    for one in found:
        cut.update(one.cut)
    return Answers(
        [each for _, each in sorted(numbered, key=lambda pair: pair[0])],
        [sum(layer) for layer in zip(*(one.weights for one in found), strict=True)],
        sum(one.tokens for one in found),
        dict(cut),
    )
