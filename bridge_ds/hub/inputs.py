"""Tensors that forward and generate take, as the batch that the bridge takes; and options that need token ids.

Dimensions: B batch, S encoder tokens, K LLM tokens on one side of the soft prompt, T target tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.errors import DataError
from bridge_ds.llm.splice import IGNORE

__all__ = ["batch_of", "refuse_token_options", "right_padded"]

_NEED_TOKENS = {
    "assistant_model": "the assistant would not see the soft prompt",
    "prompt_lookup_num_tokens": "there are no prompt tokens to look up",
    "assistant_early_exit": "it begins from token ids, and a soft prompt has none",
    "prefill_chunk_size": "transformers splits token ids into chunks, and a soft prompt has none",
    "token_healing": "there are no prompt tokens to change",
}


def refuse_token_options(config: Any, options: Mapping[str, Any]) -> None:
    """Refuse options of transformers' generate that read the prompt as token ids.

    Args:
        config: the GenerationConfig in use.
        options: arguments given beside it.

    Raises:
        DataError: one of them is set.
    """
    for name, why in _NEED_TOKENS.items():
        if options.get(name) or getattr(config, name, None):
            raise DataError(f"{name} is set, which cannot work with a soft prompt ({why}); leave it out.")
    if options.get("cache_implementation", config.cache_implementation) == "paged":
        raise DataError("cache_implementation='paged' takes token ids, not a soft prompt; choose another.")
    guidance = options.get("guidance_scale", config.guidance_scale)
    if guidance not in (None, 1) and options.get("negative_prompt_ids") is None:
        raise DataError(
            "guidance_scale needs negative_prompt_ids here, since the soft prompt has no last token to begin from; "
            "give LLM ids such as that of BOS."
        )


def batch_of(
    of: Tokenizers,
    device: torch.device,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    prefix_ids: torch.Tensor | None = None,
    prefix_mask: torch.Tensor | None = None,
    suffix_ids: torch.Tensor | None = None,
    suffix_mask: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
) -> Batch:
    """The arguments of :meth:`bridge_ds.hub.model.BridgeForCausalLM.prefix` as a batch on `device`.

    Args:
        of: both tokenizers.
        device: of the result.
        input_ids: [B, S]; the others as there.
    """
    none = input_ids.new_zeros(len(input_ids), 0)
    # Encoders count positions from the left; for some of them padding there would be text.
    source = right_padded(*_on(device, input_ids, attention_mask), of.encoder_pad_id)
    suffix = _on(device, none if suffix_ids is None else suffix_ids, suffix_mask)
    prefix = _opening(of, source[1], suffix[1]) if prefix_ids is None else _on(device, prefix_ids, prefix_mask)
    labels = none if labels is None else labels
    real = labels != IGNORE
    target = _on(device, labels.masked_fill(~real, of.pad_id), real.long())
    return Batch(*source, *suffix, *target, *prefix)


def _opening(of: Tokenizers, source_mask: torch.Tensor, suffix_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, 1] ids and mask in place of a prefix: BOS, or else EOS in rows in which the LLM would read nothing at all."""
    empty_B = ~(source_mask.bool().any(1) | suffix_mask.bool().any(1))
    mask_B = empty_B if of.bos_id is None else torch.ones_like(empty_B)
    ids = torch.full_like(mask_B, of.eos_id if of.bos_id is None else of.bos_id, dtype=torch.int64)
    return ids[:, None], mask_B[:, None].long()


def right_padded(ids_BS: torch.Tensor, mask_BS: torch.Tensor, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Real tokens first, in their order, without holes; columns of padding alone are removed, but for one.

    Args:
        ids_BS: token ids.
        mask_BS: 1 on real tokens; zeros may be anywhere.
        pad_id: written on padding, whatever was there: some encoders know padding by its id.
    """
    order_BS = torch.argsort(mask_BS.bool().to(torch.int8), dim=1, descending=True, stable=True)
    length = int(mask_BS.bool().sum(1).max()) if mask_BS.numel() else 0
    order_BS = order_BS[:, : max(length, min(1, ids_BS.shape[1]))]
    mask_BS = mask_BS.bool().gather(1, order_BS)
    return ids_BS.gather(1, order_BS).masked_fill(~mask_BS, pad_id), mask_BS.long()


def _on(device: torch.device, ids: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask on the device; without a mask all are real."""
    return ids.to(device), torch.ones_like(ids, device=device) if mask is None else mask.to(device)
