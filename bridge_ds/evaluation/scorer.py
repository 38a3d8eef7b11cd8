"""From text to answers: tokenizers and model behind the one callable that evaluation asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.config.schema import DataConfig
from bridge_ds.data.loading.collate import collate
from bridge_ds.data.loading.tokenize import TokenizedSample, Tokenizers, tokenize_samples
from bridge_ds.data.shards.samples import BadSample
from bridge_ds.data.text.chat import frame_of
from bridge_ds.data.text.prompting import answers
from bridge_ds.data.text.truncate import side_of
from bridge_ds.errors import DataError
from bridge_ds.evaluation.predictions import Prediction
from bridge_ds.evaluation.store import Answers
from bridge_ds.evaluation.written import Wanted
from bridge_ds.llm.generate import end_ids, generate
from bridge_ds.llm.score import score_and_begin
from bridge_ds.llm.splice import Spliced
from bridge_ds.tasks.base import Example, Task
from bridge_ds.tasks.numbers import is_right

__all__ = ["Scorer"]

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
        bridge: True = soft prompt, and the text prompt where the run has one; False = the LLM reads the source itself.
        calibrate: score every choice after a null source too.
        max_new_tokens: most tokens of a written answer.
        any_of: whether a flag is set on some rank (a collective), see :func:`bridge_ds.llm.generate.generate`.
        """
        self.model, self.tokenizers, self.device, self.bridge = model, tokenizers, device, bridge
        self.calibrate, self.max_new_tokens, self.any_of = calibrate, max_new_tokens, any_of
        self.data = dataclasses.replace(
            data, objective="task", augment_prompt=data.augment_prompt or not bridge, truncation_side=side_of(data)
        )
        self._frame = frame_of(tokenizers.llm, data.chat_template, data.system_prompt)
        self.ends = end_ids(model.llm.model, tokenizers.eos_id)
        self._null: dict[tuple[str, tuple[str, ...]], tuple[float, ...]] = {}

    @torch.no_grad()
    def __call__(self, examples: Sequence[Example], task: Task) -> Answers:
        """Answers to B samples of one task.

        Raises:
            DataError: a source without any token.
        """
        with self.model.llm.without_adapters(not self.bridge):
            return self._answers(examples, task)

    def _answers(self, examples: Sequence[Example], task: Task) -> Answers:
        rows = self._rows([(example.source, example.target, example.language) for example in examples], task)
        read = ("source",) * self.bridge + ("prompt",) * self.data.augment_prompt
        cut = {"texts": len(rows)} | {name: sum(name in row.cut for row in rows) for name in read}
        prefix = self._prefix(rows)
        # Before anything else goes through the fusion.
        weights_L = self.model.fusion.weights() if self.bridge else torch.zeros(0)  # type: ignore[operator]
        tokens = sum(len(row.source) for row in rows)
        if task.kind == "number":
            predictions = self._numbers(examples, prefix)
        else:
            predictions = self._choices(examples, task, prefix)
        counts = self._counts(examples, rows)
        return Answers(
            [
                dataclasses.replace(found, source_tokens=count, unknown=unknown)
                for found, (count, unknown) in zip(predictions, counts, strict=True)
            ],
            [weight * tokens for weight in weights_L.tolist()],
            tokens,
            cut,
        )

    def _choices(self, examples: Sequence[Example], task: Task, prefix: Spliced) -> list[Prediction]:
        texts = [example.choices or task.labels for example in examples]
        scores, lengths, greedy, begins = self._score(prefix, texts)
        labels = [example.label for example in examples]
        right = [own[label] for own, label in zip(texts, labels, strict=True)]
        usual = [row[label] for row, label in zip(greedy, labels, strict=True)]
        exact = self._written(prefix, right, usual, begins)
        nulls = self._nulls(examples, task) if self.calibrate else [()] * len(examples)
        return [
            Prediction(
                key=example.key,
                source=example.source,
                label=example.label,
                answer=example.target,
                choices=example.choices,
                scores=tuple(scores[row]),
                tokens=tuple(lengths[row]),
                null=nulls[row],
                exact_match=exact[row],
            )
            for row, example in enumerate(examples)
        ]

    def _numbers(self, examples: Sequence[Example], prefix: Spliced) -> list[Prediction]:
        written = generate(self.model.llm, prefix, self.ends, self.max_new_tokens, self.any_of)
        texts = [str(self.tokenizers.llm.decode(ids, skip_special_tokens=True)).strip() for ids in written]
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
        self, prefix: Spliced, targets: Sequence[str], greedy: Sequence[bool], begins: list[int]
    ) -> list[bool]:
        """Whether greedy decoding writes each row's right text, in whatever tokens and white space around it.

        Args:
            prefix: what it is written after.
            targets: the right texts.
            greedy: whether its usual tokens are what is written.
            begins: each row's first token.
        """
        of = self.tokenizers
        wanted = [Wanted(target, of) for target in targets]
        ids = [[] if begin in self.ends else [begin] for begin in begins]
        unsure = [
            not sure and bool(row) and each.open(row) for sure, each, row in zip(greedy, wanted, ids, strict=True)
        ]
        if self.any_of(any(unsure)):  # seldom: other answers begin otherwise
            longer = generate(
                self.model.llm, prefix, self.ends, self.max_new_tokens, self.any_of,
                lambda row, so_far: unsure[row] and wanted[row].open(so_far),
            )  # fmt: skip
            ids = [new if row else old for row, new, old in zip(unsure, longer, ids, strict=True)]
        return [sure or each.done(row) for sure, each, row in zip(greedy, wanted, ids, strict=True)]

    def _score(
        self, prefix: Spliced, texts: Sequence[Sequence[str]]
    ) -> tuple[list[list[float]], list[list[int]], list[list[bool]], list[int]]:
        """For each row: scores, token counts and greedy matches of its choices, and its likeliest first token."""
        flat = list(dict.fromkeys(text for row in texts for text in row))
        ids = dict(zip(flat, answers(self.tokenizers, flat, self._frame.before_answer), strict=True))
        choices = [[ids[text] for text in row] for row in texts]
        counts = [len(row) for row in choices]
        scores_R, greedy_R, begins = score_and_begin(self.model.llm, prefix, choices, self.any_of)
        scores = [part.tolist() for part in scores_R.cpu().split(counts)]
        greedy = [part.tolist() for part in greedy_R.cpu().split(counts)]
        return scores, [[len(choice) for choice in row] for row in choices], greedy, begins

    def _nulls(self, examples: Sequence[Example], task: Task) -> list[tuple[float, ...]]:
        """Scores of each sample's choices after its null source; of labels they are computed once."""
        if any(example.choices for example in examples):
            rows = self._rows([(example.null or " ", example.target, example.language) for example in examples], task)
            scores = self._score(self._prefix(rows), [example.choices for example in examples])[0]
            return [tuple(row) for row in scores]
        key = (examples[0].null, task.labels)  # one prompt a task, so all ranks compute it in the same turn
        if key not in self._null:
            prefix = self._prefix(self._rows([(key[0], task.labels[0], ENGLISH)], task))
            self._null[key] = tuple(self._score(prefix, [task.labels])[0][0])
        return [self._null[key]] * len(examples)

    def _rows(self, texts: Sequence[tuple[str, str, str]], task: Task) -> list[TokenizedSample]:
        """Token ids of (source, target, language of the source)."""
        samples = [
            {"source": source, "target": target, "language": self._tag(language)} for source, target, language in texts
        ]
        rows: list[TokenizedSample] = []
        for sample, row in zip(samples, tokenize_samples(samples, self.tokenizers, self.data), strict=True):
            if isinstance(row, BadSample):
                raise DataError(f"a sample of {task.name} ({sample['source'][:60]!r}) {row}; mend its data.")
            rows.append(row if self.bridge else dataclasses.replace(row, prompt=self.tokenizers.opened(row.prompt)))
        return rows

    def _tag(self, language: str) -> str:
        return self.tokenizers.languages.tag_or_default(language) if self.tokenizers.languages else ""

    def _prefix(self, rows: Sequence[TokenizedSample]) -> Spliced:
        batch = collate(rows, self.tokenizers.encoder_pad_id, self.tokenizers.pad_id).to(self.device)
        return self.model.prefix(batch, use_bridge=self.bridge)

    def _counts(self, examples: Sequence[Example], rows: Sequence[TokenizedSample]) -> list[tuple[int, int]]:
        """Encoder tokens of each whole source, also where the model sees it cut, and unknown ones among them."""
        unknown = self.tokenizers.encoder.unk_token_id
        counts = []
        for example, row in zip(examples, rows, strict=True):
            whole = "source" not in row.cut
            ids = row.source if whole else self.tokenizers.source_ids(example.source, self._tag(example.language))
            counts.append((len(ids), 0 if unknown is None else ids.count(unknown)))
        return counts
