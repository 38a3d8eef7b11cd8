"""The LLM after a prompt: scores of choices, and answers written greedily, by sampling or by beam search.

End ids, stop strings, room among the LLM's positions and decoding are the same for all of them.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.errors import DataError
from bridge_ds.inference.greedy import decode_greedily
from bridge_ds.inference.score import Read, score_choices
from bridge_ds.inference.stops import Answer, Decoder, StopStrings, stop_criterion
from bridge_ds.llm.splice import Spliced

if TYPE_CHECKING:
    from transformers import GenerationConfig

__all__ = ["ANSWER_TOKENS", "AnswerLength", "Generator", "Sampling", "mixed_seed", "stops_of", "write_as_alone"]

_log = logging.getLogger(__name__)
ANSWER_TOKENS = 128
"""Most tokens of an answer where nothing says how many."""


@dataclass(frozen=True)
class AnswerLength:
    """How long an answer may be."""

    tokens: int | None = None
    """Most tokens of it (max_new_tokens)."""
    whole: int | None = None
    """Most positions of prompt and answer together (max_length); only without `tokens`."""

    @classmethod
    def of(cls, *options: Mapping[str, Any]) -> AnswerLength:
        """From options of transformers' generate: of several the first that say it; ANSWER_TOKENS where none does."""
        for each in options:
            tokens, whole = each.get("max_new_tokens"), each.get("max_length")
            if tokens is not None or whole is not None:
                return cls(tokens, whole if tokens is None else None)
        return cls(ANSWER_TOKENS)

    def after(self, used: int) -> int:
        """Most tokens after a prompt of `used` positions; below 1 where there is no room for any."""
        return self.tokens if self.tokens is not None else (self.whole or 0) - used


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; greedily by default."""

    temperature: float = 0.0
    """0 = the likeliest token each time."""
    top_p: float = 1.0
    """Share of probability that is sampled from (0 to 1)."""
    top_k: int = 0
    """Tokens that are sampled from; 0 = all."""
    beams: int = 1
    """Of a beam search."""

    def options(self) -> dict[str, Any]:
        """As options of transformers' generate."""
        found: dict[str, Any] = {"num_beams": self.beams, "do_sample": self.temperature > 0}
        if self.temperature > 0:
            found |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return found


def stops_of(config: GenerationConfig) -> tuple[str, ...]:
    """The stop strings in options of transformers' generate."""
    found = config.stop_strings or ()
    return (found,) if isinstance(found, str) else tuple(found)


def mixed_seed(seed: int, number: int = 0) -> int:
    """A seed for torch from the one that was asked for and the number of a batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:8], "big") >> 1


def write_as_alone(longest: int, most: int, positions: int) -> bool:
    """Whether rows that share a batch can each write as much as alone. Padding takes positions, so that a shorter row
    has no more of them left than the longest one.

    Args:
        longest: positions of the longest prompt.
        most: tokens of the longest answer that one of them may have alone.
        positions: of the LLM; 0 = unknown.
    """
    return not positions or longest + most <= positions


class Generator:
    """Scores and writes with one loaded bridge."""

    def __init__(
        self, model: BridgeModel, tokenizers: Tokenizers, *, bridge: bool = True, any_of: Callable[[bool], bool] = bool
    ) -> None:
        """Args:
        model: in eval mode.
        tokenizers: both.
        bridge: False = the LLM alone, as it was loaded.
        any_of: whether a flag is set on some rank (a collective), for models that are sharded.
        """
        self.model, self.tokenizers, self.bridge, self.any_of = model, tokenizers, bridge, any_of
        self.ends = model.llm.end_ids(tokenizers.eos_id)
        """Ids that end an answer."""
        self.positions = model.llm.positions
        """Of the LLM; 0 = unknown."""

    def alone(self) -> Self:
        """The same for the LLM alone, as it was loaded; its prompts are those of :meth:`PromptBuilder.alone`."""
        found = copy.copy(self)
        found.bridge = False
        return found

    def prefix(self, batch: Batch, device: torch.device | str | None = None) -> Spliced:
        """What the LLM reads before an answer, left-padded.

        Args:
            batch: of :meth:`bridge_ds.inference.prompt.PromptBuilder.batch`.
            device: where the input goes; None = the model's own (not for models sharded by ZeRO-3).
        """
        device = torch.device(self.model.device if device is None else device)
        with self._llm():
            return self.model.prefix(batch if batch.source_ids.device == device else batch.to(device))

    def score(
        self, prefix: Spliced, choices: Sequence[Sequence[Sequence[int]]]
    ) -> tuple[list[list[float]], list[list[bool]], list[int], Read | None]:
        """For each row: log-probabilities (nats) and greedy matches of its choices, and its likeliest first token, see
        :func:`bridge_ds.inference.score.score_choices`. And the prefixes as they were read, for :meth:`greedy`."""
        with self._llm():
            found, counts = score_choices(self.model.llm, prefix, choices, self.any_of), list(map(len, choices))
        scores = [part.tolist() for part in found.log_p.cpu().split(counts)]
        return scores, [part.tolist() for part in found.greedy.cpu().split(counts)], found.first, found.read

    def greedy(
        self,
        prefix: Spliced,
        max_new_tokens: int,
        going: Callable[[int, list[int]], bool] | None = None,
        keep_end: bool = False,
        read: Read | None = None,
    ) -> list[list[int]]:
        """See :func:`bridge_ds.inference.greedy.decode_greedily`: every rank runs the model equally often."""
        with self._llm():
            return decode_greedily(
                self.model.llm, prefix, self.ends, max_new_tokens, self.any_of, going, keep_end, read
            )

    def config(self, **options: Any) -> GenerationConfig:
        """Options of transformers' generate with the end, pad and opening ids of this bridge. Never the LLM's own
        generation_config.json: the penalties and temperatures that some have were not chosen for a soft prompt."""
        from transformers import GenerationConfig

        of = self.tokenizers
        ids = {"bos_token_id": of.bos_id, "eos_token_id": sorted(self.ends), "pad_token_id": of.pad_id}
        return GenerationConfig(**{**ids, **options})

    def generate(
        self,
        prefix: Spliced,
        config: GenerationConfig | None,
        defaults: GenerationConfig | None = None,
        **options: Any,
    ) -> Any:
        """transformers' generate after a prefix, with all of its options.

        Args:
            prefix: left-padded.
            config: in force; None = `defaults`.
            defaults: fills what `config` leaves out; None = :meth:`config`.
            options: of transformers' `GenerationMixin.generate`; they win. `stop_strings` need no tokenizer.

        Returns:
            As transformers: [rows, tokens] ids without the prompt, or an output object.

        Raises:
            DataError: the prompt leaves the LLM no position to write to, or no token is asked for.
        """
        from transformers import GenerationConfig, StoppingCriteriaList

        defaults = defaults or self.config()
        config = copy.deepcopy(config or GenerationConfig())
        given = {name: options.pop(name, None) for name in ("max_new_tokens", "max_length")}
        length = AnswerLength.of(given, config.to_dict(), defaults.to_dict())
        most = self._max_new_tokens(prefix.mask_BX.shape[1], length)
        # In the order of transformers itself, which deprecates options beside a config.
        config.update(**defaults.to_dict(), defaults_only=True, allow_custom_entries=True)
        options = config.update(**options)
        config.max_new_tokens, config.max_length = most, None  # transformers wants one or the other
        stops, config.stop_strings = stops_of(config), None
        if stops:
            ends = config.eos_token_id or []
            ends = {*(ends if isinstance(ends, list) else [ends]), *self._stop_tokens(stops)}
            config.eos_token_id = sorted(ends) or None
            criteria = StoppingCriteriaList(options.pop("stopping_criteria", None) or [])
            criteria.append(stop_criterion(self.decoder(), StopStrings(stops)))
            options["stopping_criteria"] = criteria
        llm = self.model.llm.model
        with self._llm(), torch.no_grad(), self.model.llm.attending(prefix.injected), _without_own_config(llm):
            return llm.generate(
                inputs_embeds=prefix.embeds_BXH, attention_mask=prefix.mask_BX, generation_config=config, **options
            )

    def decoder(self, chat: bool = False) -> Decoder:
        """Ids of answers to text; `chat`: they follow a chat template that was asked for."""
        return Decoder(self.tokenizers, chat)

    def texts(self, rows: Sequence[Sequence[int]], stops: Sequence[str] = (), chat: bool = False) -> list[str]:
        """Answers as text, up to the first end id or stop string."""
        decode, until, ends = self.decoder(chat), StopStrings(tuple(stops)), self.ends | self._stop_tokens(stops)
        return [until.cut(decode(list(itertools.takewhile(lambda id: id not in ends, row)))) for row in rows]

    def answer(
        self, max_new_tokens: int | None = None, stops: Sequence[str] = (), chat: bool = False, streamed: bool = False
    ) -> Answer:
        """One answer that is to be followed while it is written, see :class:`bridge_ds.inference.stops.Answer`."""
        return Answer(self.decoder(chat), self.ends | self._stop_tokens(stops), stops, max_new_tokens, streamed)

    def _llm(self) -> contextlib.AbstractContextManager[None]:
        return self.model.llm.without_adapters(not self.bridge)

    def _stop_tokens(self, stops: Sequence[str]) -> set[int]:
        """Stop strings that are tokens of their own: they end an answer as end ids do, and are not in its text."""
        if not stops:  # the usual case: reading the vocabulary takes time, and this is asked for each answer
            return set()
        added = self.tokenizers.llm.get_added_vocab()
        return {added[stop] for stop in stops if stop in added}

    def _max_new_tokens(self, used: int, length: AnswerLength) -> int:
        """How many tokens may be written after a prompt of `used` positions."""
        if self.positions and used >= self.positions:
            raise DataError(
                f"the prompt takes {used} positions and the LLM has {self.positions}; expected room for an answer; "
                "lower max_source_tokens or max_prompt_tokens."
            )
        most = length.after(used)
        if most < 1 and length.tokens is None:
            raise DataError(
                f"max_length is {length.whole} and the prompt takes {used} positions; expected more of them."
            )
        if most < 1:
            raise DataError(f"max_new_tokens is {most}; expected at least 1.")
        if self.positions and used + most > self.positions:
            _log.warning(
                "max_new_tokens is %d; the prompt takes %d of the LLM's %d positions, so at most %d are written.",
                most, used, self.positions, self.positions - used,
            )  # fmt: skip
            most = self.positions - used
        return most


@contextlib.contextmanager
def _without_own_config(llm: Any) -> Iterator[None]:
    """While open, transformers takes nothing from the LLM's own generation_config.json."""
    own, llm.generation_config = llm.generation_config, type(llm.generation_config)()
    try:
        yield
    finally:
        llm.generation_config = own
