"""generation_config.json of a shared bridge: options of transformers' generate, typed before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import FiniteFloat

from bridge_ds.errors import ConfigError, brief
from bridge_ds.typed import Share, typed_object

__all__ = ["read_generation"]

_Tokens = Annotated[int, Ge(0), Le(2**31 - 1)]
_Id = Annotated[int, Ge(0), Le(2**31 - 1)]
_Few = Annotated[int, Ge(1), Le(1024)]
"""Rows that are held in memory for each prompt."""
_Positive = Annotated[FiniteFloat, Gt(0)]


@dataclass(frozen=True)
class _Generation:
    """Names and meanings as in transformers' GenerationConfig."""

    max_new_tokens: Annotated[int, Ge(1), Le(2**31 - 1)] | None = None
    max_length: _Tokens | None = None
    min_new_tokens: _Tokens | None = None
    min_length: _Tokens | None = None
    max_time: _Positive | None = None
    stop_strings: str | list[str] | None = None
    do_sample: bool | None = None
    num_beams: _Few | None = None
    num_return_sequences: _Few | None = None
    early_stopping: bool | Literal["never"] | None = None
    use_cache: bool | None = None
    cache_implementation: str | None = None
    temperature: Annotated[FiniteFloat, Ge(0)] | None = None
    top_k: _Tokens | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    top_h: Share | None = None
    typical_p: Share | None = None
    epsilon_cutoff: Share | None = None
    eta_cutoff: Share | None = None
    repetition_penalty: _Positive | None = None
    encoder_repetition_penalty: _Positive | None = None
    length_penalty: FiniteFloat | None = None
    guidance_scale: FiniteFloat | None = None
    no_repeat_ngram_size: _Tokens | None = None
    encoder_no_repeat_ngram_size: _Tokens | None = None
    renormalize_logits: bool | None = None
    remove_invalid_values: bool | None = None
    bos_token_id: _Id | None = None
    pad_token_id: _Id | None = None
    eos_token_id: _Id | list[_Id] | None = None
    forced_bos_token_id: _Id | None = None
    forced_eos_token_id: _Id | list[_Id] | None = None
    suppress_tokens: list[_Id] | None = None
    begin_suppress_tokens: list[_Id] | None = None
    bad_words_ids: list[list[_Id]] | None = None
    exponential_decay_length_penalty: tuple[_Tokens, _Positive] | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None
    output_attentions: bool | None = None
    output_hidden_states: bool | None = None
    return_dict_in_generate: bool | None = None


def read_generation(path: Path) -> dict[str, Any]:
    """The options in a generation_config.json.

    Raises:
        ConfigError: it cannot be read, or an option has a value of another type, or one that transformers refuses.
    """
    from transformers import GenerationConfig

    try:
        values = typed_object(path, _Generation)
        GenerationConfig(**values).validate(strict=True)  # as it does before it saves them again
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error}); expected JSON; get it again.") from None
    except (ValueError, TypeError, AttributeError) as error:  # what GenerationConfig makes of foreign values
        reason = brief(error, 300)
        raise ConfigError(
            f"{path} {reason.rstrip('.')}; expected options of transformers' generate, as save_pretrained writes them."
        ) from None
    return values
