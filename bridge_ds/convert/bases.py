"""The frozen models inside a checkpoint: compared with the named ones and, if they differ, written as folders."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bridge_ds.convert.layout import INPUT_EMBEDDINGS
from bridge_ds.convert.stored import Stored
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.data.text.spiece import PROBES, find_spiece
from bridge_ds.errors import CheckpointError
from bridge_ds.frozen.tokenizer import load_tokenizer

__all__ = ["Base", "match", "refuse_other_tokens", "write_tokenizer", "write_weights"]

_UNREAD = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|position_ids|token_type_ids|attn\.(masked_)?bias|embed_positions\.weights)$"
    r"|^pooler\."
)
"""Buffers that older releases of transformers stored and all of them compute; and a pooler, which is not used here."""


@dataclass(frozen=True)
class Base:
    """One frozen model as the checkpoint holds it, compared with the one that was named."""

    pairs: Mapping[str, str]
    """The checkpoint's key -> the weight in the named model."""
    unread: Sequence[str]
    """Keys without a weight, since they are computed or never read."""
    differing: Sequence[str]
    """Keys whose values are not those of the named model, in the dtype of either."""


def match(what: str, name: str, model: Any, keys: Mapping[str, str], stored: Mapping[str, Stored]) -> Base:
    """Match the checkpoint's keys with a model's weights, and compare.

    Args:
        what: `encoder` or `llm`, the command's option for it.
        name: hub id or folder of the model.
        model: the loaded model.
        keys: the checkpoint's key -> the weight's name, as far as the source knows it.
        stored: the checkpoint.

    Raises:
        CheckpointError: a key that the model does not have, one of another shape, or a weight that has no key although
            others have.
    """
    state = model.state_dict()
    pairs = {key: found for key, theirs in keys.items() if (found := _find(model, state, theirs))}
    unread = [key for key in keys if key not in pairs]
    for key in unread:
        if not _UNREAD.search(keys[key]):
            raise CheckpointError(
                f"the checkpoint has {key} of shape {stored[key].shape}; the model {name!r} has no such weight; give "
                f"the one that the checkpoint was trained with (--{what})."
            )
    for key, ours in pairs.items():
        if stored[key].shape != tuple(state[ours].shape):
            raise CheckpointError(
                f"{key} has shape {stored[key].shape}; {ours} of the model {name!r} has {tuple(state[ours].shape)}; "
                f"give the one that the checkpoint was trained with (--{what})."
            )
    there = {state[ours].data_ptr() for ours in pairs.values()}
    for ours, tensor in state.items() if pairs else ():
        if tensor.data_ptr() not in there:  # tied weights need one key only
            raise CheckpointError(
                f"the checkpoint holds {len(pairs)} weights of the {what}, such as {min(pairs)}, and lacks {ours} of "
                f"shape {tuple(tensor.shape)}; expected all of them or none; copy the complete checkpoint."
            )
    return Base(pairs, unread, [key for key, ours in pairs.items() if not _equal(stored[key].read(), state[ours])])


def _equal(theirs: torch.Tensor, ours: torch.Tensor) -> bool:
    """The same numbers, perhaps rounded to the other's dtype (a frozen model that was saved in it)."""
    return torch.equal(theirs.to(ours.dtype), ours) or torch.equal(ours.to(theirs.dtype), theirs)


def _find(model: Any, state: Mapping[str, torch.Tensor], name: str) -> str | None:
    """The weight of that name; the peers hold a model with or without a head or an enclosing module."""
    if name == INPUT_EMBEDDINGS:
        table = model.get_input_embeddings().weight
        return next(ours for ours, tensor in state.items() if tensor.data_ptr() == table.data_ptr())
    around = (f"{prefix}{name}" for prefix in ("", "encoder.", f"{model.base_model_prefix}."))
    return next((ours for ours in around if ours in state), None)


def write_weights(model: Any, base: Base, stored: Mapping[str, Stored], folder: Path) -> None:
    """Save the model as a Hugging Face folder of safetensors, with the checkpoint's weights where it holds some.

    These keep the dtype that most of them have in the checkpoint. `model` is changed.

    Raises:
        CheckpointError: two keys of one weight have different values.
    """
    if base.differing:
        dtypes = Counter(stored[key].read().dtype for key in base.pairs)
        model.to(dtypes.most_common(1)[0][0])
        state = model.state_dict()
        with torch.no_grad():
            for key, ours in base.pairs.items():
                state[ours].copy_(stored[key].read())
        for key, ours in base.pairs.items():
            if not torch.equal(stored[key].read().to(state[ours].dtype), state[ours]):
                raise CheckpointError(f"{key} differs from another key of the same weight, {ours}; expected equality.")
    model.save_pretrained(folder)


def write_tokenizer(name: str, revision: str | None, added: Sequence[str], folder: Path, trust: bool) -> None:
    """Save a model's tokenizer, with special tokens added, next to the weights in `folder`."""
    from transformers import AddedToken

    tokenizer = load_tokenizer(f"model.{folder.name}", name, revision, trust)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in added], special_tokens=True)
    tokenizer.save_pretrained(folder)
    spiece = find_spiece(name, revision)
    if spiece:
        # transformers 5 does not save it, and without it characters would be lost (see data/text/spiece.py).
        shutil.copy(spiece, folder / spiece.name)


def refuse_other_tokens(before: Tokenizers, after: Tokenizers, added: Sequence[str]) -> None:
    """Check that the written tokenizers do the same as those they were made from.

    Raises:
        CheckpointError: another id, or another decision about special tokens.
    """
    texts = [text for text in PROBES.values() if not any(token in text for token in added)]
    for what, one, other in (
        ("encoder", before.sources(texts), after.sources(texts)),
        ("llm", before.prompts(texts), after.prompts(texts)),
        ("llm", before.labels(texts), after.labels(texts)),
        ("llm", [before.bos_id, before.pad_id], [after.bos_id, after.pad_id]),
    ):
        if one != other:
            raise CheckpointError(
                f"the tokenizer of the {what} gives other ids after it was saved; expected the same; save its folder "
                f"yourself (with its spiece.model) and name that with --{what}."
            )
