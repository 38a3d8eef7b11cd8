"""Whether a class of LLM can stand behind a bridge, and how it is to be run: seen on a tiny copy of it, before any
weight is read.

A table of names would miss the next family, and a model's config does not say whether its class looks at token ids, at
later positions or at padding.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from bridge_ds.compat.transformers import cache_of, generate_from_embeds, given_cache, quiet
from bridge_ds.errors import ConfigError
from bridge_ds.llm.behavior import Behavior
from bridge_ds.llm.beside import sees_all, side_by_side
from bridge_ds.llm.packed import packs_and_trims
from bridge_ds.llm.tiny_copy import VOCABULARY, in_table, llm_class, tiny_copy

__all__ = ["Behavior", "behavior_of", "check_llm", "llm_table", "positions_of"]

_TOLERANCE = 1e-3
"""Largest difference of logits that is rounding, in standard deviations of the logits. What a class does wrong differs
by 3e-3 to 3, rounding by 1e-5."""
_SHIFT, _SOFT, _LENGTH, _CUT = 3, 3, 12, 8
"""Padding of the second row, soft positions after it, all positions of a row, and how many of them are the prefix."""


class _Refused(Exception):
    """Why a class cannot be used."""


_ANEW = Behavior(
    False, False, False, remark="it is computed anew for each token and choice: evaluation and greedy decoding are slow"
)


def check_llm(name: str, config: Any, trust_remote_code: bool = False) -> str:
    """Refuse an LLM whose class cannot stand behind a bridge; it is not loaded.

    Args:
        name: `model.llm`, for messages.
        config: transformers config of the model.
        trust_remote_code: run code that comes with it.

    Returns:
        a remark for the user; empty = nothing to say.

    Raises:
        ConfigError: it cannot.
    """
    return behavior_of(name, config, trust_remote_code).remark


def behavior_of(name: str, config: Any, trust_remote_code: bool = False) -> Behavior:
    """What may be done with the LLM's cache; arguments and errors as of :func:`check_llm`."""
    reason = _refusal(config)
    if not reason:
        try:
            kind, text = llm_class(config, name, trust_remote_code)
        except (OSError, ValueError, ImportError):
            return _ANEW  # loading the model says what is wrong
        try:
            with quiet():
                return _observed(kind, text, json.dumps(config.to_dict(), sort_keys=True, default=str))
        except _Refused as refused:
            reason = str(refused)
    raise ConfigError(
        f"model.llm {name!r} (type {config.model_type!r}) {reason}; expected a decoder-only language model that takes "
        "embeddings (inputs_embeds) in training and in generation, as Llama, Qwen, Mistral or Gemma 2; choose another."
    )


def llm_table(name: str, config: Any, trust_remote_code: bool = False) -> int:
    """Positions for which the LLM has a table; 0 = it has none, or it is unknown. Arguments and errors as of
    :func:`check_llm`."""
    spare, declared = behavior_of(name, config, trust_remote_code).spare, positions_of(config)
    return 0 if spare is None or not declared else declared + spare


def positions_of(config: Any) -> int:
    """Positions that a causal language model was built for, from its transformers config; 0 = unknown."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 0)


class _Keyed:
    """A class and a config, equal to others of the same config."""

    def __init__(self, kind: Any, config: Any, text: str) -> None:
        self.kind, self.config, self.text = kind, config, text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Keyed) and (self.kind, self.text) == (other.kind, other.text)

    def __hash__(self) -> int:
        return hash(self.text)


def _observed(kind: Any, config: Any, text: str) -> Behavior:
    found = _observe(_Keyed(kind, config, text))
    if isinstance(found, str):
        raise _Refused(found)
    return found


def _refusal(config: Any) -> str:
    """What the config itself says against it."""
    if getattr(config, "is_encoder_decoder", False):
        return "is an encoder with a decoder"
    try:
        config.get_text_config()
    except ValueError:
        return "is made of several language models"
    return ""


@functools.lru_cache(maxsize=32)
def _observe(of: _Keyed) -> Behavior | str:
    """The behavior, or why the class is refused."""
    if "inputs_embeds" not in inspect.signature(of.kind.forward).parameters:
        return "takes no embeddings (inputs_embeds)"
    try:
        model = tiny_copy(of.kind, of.config)
        generate_from_embeds(model)
        embed = model.get_input_embeddings()
    except Exception:  # whatever a class raises that takes no config made so small
        return _ANEW
    try:
        with torch.no_grad():
            probe = _Probe(model, embed)
            behavior = replace(probe.behavior(), shifts=probe.shifts())
        packs, trims = packs_and_trims(of.kind, of.config)
        eager = model.config.get_text_config()._attn_implementation == "eager"
        return replace(behavior, packs=packs, trims=trims, eager=eager)
    except _Refused as refused:
        return str(refused)


class _Probe:
    """Runs the tiny copy in all the ways in which a bridge runs its LLM.

    Two rows: the second one's first positions are padding where it is padded on the left. Reference are rows alone,
    without mask, cache and padding, as in training.
    """

    def __init__(self, model: Any, embed: Any) -> None:
        self.model, self.embed = model, embed
        draw = torch.Generator().manual_seed(1)
        self.ids = torch.randint(8, VOCABULARY - 8, (2, _LENGTH), generator=draw)
        self.mask = torch.ones(2, _LENGTH, dtype=torch.long)
        self.mask[1, :_SHIFT] = 0
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        table = embed(torch.arange(VOCABULARY - 8))
        self.soft = torch.randn((2, _SOFT, table.shape[-1]), generator=draw) * table.std()
        """A soft prompt, no vector of which is a token's."""

    def behavior(self) -> Behavior:
        """What may be done with the cache.

        Raises:
            _Refused: the class cannot be used at all.
        """
        if self.model.get_output_embeddings() is None:
            raise _Refused("has no output head that transformers knows (get_output_embeddings)")
        by_ids = self._try(lambda: self.model(input_ids=self.ids[:1], use_cache=False, return_dict=True).logits)
        try:
            alone = [self._alone(self._row(row)) for row in (0, 1)]
        except Exception as error:
            if by_ids is None:  # this config, so small, is nothing for the class: nothing is known
                return _ANEW
            raise (
                error
                if isinstance(error, _Refused)
                else _Refused(f"cannot be run on embeddings without token ids ({_words(error)})")
            ) from None
        self.scale = float(alone[0].std())
        self._check_input(by_ids)
        if not self._check_generation():
            return _ANEW
        steps = self._steps(alone, mask=True)
        maskless = not steps and self._steps(alone, mask=False)
        reuse = self._reuse(alone)
        spare = self._spare()
        if steps and reuse:
            return Behavior(spare=spare, beside=sees_all(self.model.config) and self._beside(alone))
        remark = "its cache cannot be shared by choices: evaluation runs the whole prompt anew for each choice"
        remark += "" if steps or maskless else ", and greedy decoding for each token"
        return Behavior(steps or maskless, not maskless, reuse, False, spare, remark)

    def shifts(self) -> bool:
        """Whether the first row gives the same at positions that begin below 0."""

        def run(by: int) -> Any:
            places = torch.arange(_LENGTH)[None] - by
            return self.model(inputs_embeds=self._row(0), position_ids=places, use_cache=False).logits

        found = [self._try(partial(run, by)) for by in (0, 5)]
        return found[0] is not None and found[1] is not None and self._same(found[1], found[0])

    def _spare(self) -> int | None:
        if not positions_of(self.model.config):
            return None
        return in_table(self.model, lambda ids: self.model(inputs_embeds=self.embed(ids), use_cache=False))

    def _try(self, run: Callable[[], Any]) -> Any:
        """None if the class raises anything."""
        try:
            return run()
        except Exception:
            return None

    def _check_input(self, by_ids: torch.Tensor | None) -> None:
        ids = self.ids[:1]
        logits = self._alone(self.embed(ids))
        if by_ids is not None and not self._same(logits, by_ids):
            raise _Refused("reads its token ids beside the embeddings, and a soft prompt has none")
        other = ids.clone()
        other[0, -1] = VOCABULARY - 4
        if not self._same(self._alone(self.embed(other))[:, :-1], logits[:, :-1]):
            raise _Refused("lets a position attend to later ones, so that it would see the answer in training")

    def _check_generation(self) -> bool:
        """transformers' own generate() after left-padded embeddings writes what the model predicts. False: it writes
        after token ids neither."""
        padded, new = self._padded(), 3
        options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        options |= {"output_logits": True, "return_dict_in_generate": True}
        try:
            written = self.model.generate(inputs_embeds=padded, attention_mask=self.mask, **options)
            ids, found = written.sequences[:, -new:], torch.stack(written.logits, 1)
        except Exception as error:
            if self._try(lambda: self.model.generate(self.ids, **options)) is None:
                return False
            raise _Refused(f"does not generate after embeddings ({_words(error)})") from None
        for row in (0, 1):
            whole = torch.cat([self._row(row), self.embed(ids[row : row + 1])], dim=1)
            if not self._same(self._alone(whole)[:, -new - 1 : -1], found[row : row + 1]):
                raise _Refused("generates otherwise in a batch, where shorter texts are padded on the left, than alone")
        return True

    def _steps(self, alone: list[torch.Tensor], mask: bool) -> bool:
        try:
            cache = self._prefix(_LENGTH - 2)
            for at in (_LENGTH - 2, _LENGTH - 1):
                output = self._continue(cache, slice(at, at + 1), [0, 1], mask)
                cache = cache_of(output)
        except Exception:
            return False
        return cache is not None and all(self._same(output.logits[r : r + 1, -1:], alone[r][:, -1:]) for r in (0, 1))

    def _reuse(self, alone: list[torch.Tensor]) -> bool:
        """Not with a state beside keys and values: kernels for GPUs may continue such by one token alone."""
        rows, rest = [1, 0, 1], slice(_CUT, _LENGTH)
        try:
            cache = self._prefix(_CUT)
            layers = getattr(cache, "layers", None)
            if not layers or any(hasattr(layer, "conv_states") for layer in layers):
                return False
            cache.reorder_cache(torch.tensor(rows))  # type: ignore[attr-defined]
            logits = self._continue(cache, rest, rows, True).logits
        except Exception:
            return False
        return all(self._same(logits[n : n + 1], alone[r][:, _CUT - _LENGTH :]) for n, r in enumerate(rows))

    def _beside(self, alone: list[torch.Tensor]) -> bool:
        one, two = self.ids[:, _CUT:].tolist()
        given = side_by_side(self.mask[:, :_CUT], [[one[:2], one], [two[:2], two]], self.soft.dtype)
        options = given_cache(self.model, self._prefix(_CUT)) | given.options()
        output = self._try(lambda: self.model(inputs_embeds=self.embed(given.ids_BC), return_dict=True, **options))
        return output is not None and all(
            self._same(output.logits[row : row + 1, 2:], alone[row][:, _CUT - _LENGTH :]) for row in (0, 1)
        )

    def _prefix(self, length: int) -> object:
        output = self.model(
            inputs_embeds=self._padded()[:, :length], attention_mask=self.mask[:, :length],
            position_ids=self.positions[:, :length], use_cache=True, return_dict=True,
        )  # fmt: skip
        return cache_of(output)

    def _continue(self, cache: object, at: slice, rows: list[int], mask: bool) -> Any:
        options = given_cache(self.model, cache) | ({"attention_mask": self.mask[rows, : at.stop]} if mask else {})
        return self.model(
            inputs_embeds=self.embed(self.ids[rows, at]), position_ids=self.positions[rows, at], use_cache=True,
            return_dict=True, **options,
        )  # fmt: skip

    def _padded(self) -> torch.Tensor:
        """[2, _LENGTH, H]: padding, soft prompt, tokens."""
        embeds = self.embed(self.ids) * self.mask[..., None]
        for row, skipped in enumerate((0, _SHIFT)):
            embeds[row, skipped : skipped + _SOFT] = self.soft[row]
        return embeds

    def _row(self, row: int) -> torch.Tensor:
        """[1, positions, H]: one row of :meth:`_padded` without its padding."""
        return self._padded()[row : row + 1, row * _SHIFT :]

    def _alone(self, embeds: torch.Tensor) -> torch.Tensor:
        """Logits without mask and padding, as in training."""
        before = embeds.clone()
        logits = self.model(inputs_embeds=embeds, use_cache=False, return_dict=True).logits
        if not torch.equal(embeds, before):
            raise _Refused("writes into the embeddings that it is given")
        return logits

    def _same(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        return found.shape == expected.shape and float((found - expected).abs().max()) <= _TOLERANCE * self.scale


def _words(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:120].rstrip(".")
