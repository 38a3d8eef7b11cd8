"""What goes into a bridge, put in order; and the options of generate that cannot work with a soft prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bridge_ds.errors import DataError

__all__ = ["languages_of", "listed", "refuse_unseeing", "right_padded"]

_UNSEEING = {
    "assistant_model": "the assistant would not see the soft prompt",
    "prompt_lookup_num_tokens": "there are no prompt tokens to look up",
    "assistant_early_exit": "it begins from token ids, which a soft prompt has not",
    "prefill_chunk_size": "transformers cuts token ids into chunks, and a soft prompt has none",
    "token_healing": "there are no prompt tokens to mend",
}


def refuse_unseeing(config: Any, options: Mapping[str, Any]) -> None:
    """Refuse options of transformers' generate that read the prompt as token ids.

    Args:
        config: the GenerationConfig in force.
        options: what was given beside it.

    Raises:
        DataError: one of them is on.
    """
    for name, why in _UNSEEING.items():
        if options.get(name) or getattr(config, name, None):
            raise DataError(f"{name} is set, which cannot work here ({why}); leave it out.")
    if options.get("cache_implementation", config.cache_implementation) == "paged":
        raise DataError("cache_implementation='paged' takes token ids, not a soft prompt; choose another.")
    guidance = options.get("guidance_scale", config.guidance_scale)
    if guidance not in (None, 1) and options.get("negative_prompt_ids") is None:
        raise DataError(
            "guidance_scale needs negative_prompt_ids here, since the soft prompt has no last token to begin from; "
            "give LLM ids such as those of the opening token."
        )


def listed(what: str, value: Any, count: int | None = None) -> list[str]:
    """One text or several as a list.

    Args:
        what: for the message.
        value: the one or the other.
        count: how many are expected; none = any number.

    Raises:
        DataError: not a text, or another number.
    """
    texts = list(value) if isinstance(value, list | tuple) else [value]
    for wrong in (each for each in texts if not isinstance(each, str)):
        raise DataError(f"{what} holds {type(wrong).__name__}; expected a text or a list of texts.")
    if count is not None and len(texts) != count:
        raise DataError(f"there are {len(texts)} of {what} for {count} texts; expected as many.")
    return texts


def languages_of(language: str | Sequence[str] | None, count: int) -> list[str]:
    """A language for each of `count` texts: one for all of them, or one each; empty = not known.

    Raises:
        DataError: as :func:`listed`.
    """
    if language is None or isinstance(language, str):
        return [language or ""] * count
    return listed("language", language, count)


def right_padded(ids_BS: torch.Tensor, mask_BS: torch.Tensor, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Real tokens first, in their order, without holes; columns of padding alone are left out.

    Args:
        ids_BS: token ids.
        mask_BS: 1 on real tokens; zeros may stand anywhere.
        pad_id: put on padding, whatever stood there: some encoders know padding by its id.
    """
    order_BS = torch.argsort(mask_BS.bool().to(torch.int8), dim=1, descending=True, stable=True)
    length = int(mask_BS.bool().sum(1).max()) if mask_BS.numel() else 0
    order_BS = order_BS[:, : max(length, min(1, ids_BS.shape[1]))]
    mask_BS = mask_BS.bool().gather(1, order_BS)
    return ids_BS.gather(1, order_BS).masked_fill(~mask_BS, pad_id), mask_BS.long()
