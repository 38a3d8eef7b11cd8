"""What works around torch, transformers or DeepSpeed: for which versions, why, and which test says when it can go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any

__all__ = ["masks_known"]

_PADDED: ContextVar[bool | None] = ContextVar("padded", default=None)


@contextmanager
def masks_known(padded: bool) -> Iterator[None]:
    """While open, transformers does not look into masks and positions of the models that run; the caller knows them.

    transformers (5.17 to 5.24 at least) asks the device in every forward pass of a model: whether a padding mask masks
    anything (`_ignore_bidirectional_mask_sdpa`), and, where no mask is given, whether the position ids restart within a
    row (`find_packed_sequence_indices`). On a GPU the host waits for each answer. Here the first is answered by
    `padded`, the second by no: the rows of this project are never packed. The masks that come out are the same. A
    ready 4-D mask would spare the first look too, but models with local attention (ModernBERT) take it for all layers.

    It can go when tests/test_host_waits.py passes without it.

    Args:
        padded: whether the mask that the model gets masks anything.
    """
    _install()
    token = _PADDED.set(padded)
    try:
        yield
    finally:
        _PADDED.reset(token)


@cache
def _install() -> None:
    """Wrap both functions, once; outside of :func:`masks_known` they do what they did. One that a later version has no
    more is left out: then nothing is known here to be waited for."""
    from transformers import masking_utils

    ignore = getattr(masking_utils, "_ignore_bidirectional_mask_sdpa", None)
    packed = getattr(masking_utils, "find_packed_sequence_indices", None)

    def ignore_known(padding_mask: Any, *args: Any, **options: Any) -> Any:
        padded = _PADDED.get()
        if padded is None or padding_mask is None:
            return ignore(padding_mask, *args, **options)  # type: ignore[misc]
        return False if padded else ignore(None, *args, **options)  # type: ignore[misc]

    def packed_known(position_ids: Any, *args: Any, **options: Any) -> Any:
        return packed(position_ids, *args, **options) if _PADDED.get() is None else None  # type: ignore[misc]

    if ignore:
        masking_utils._ignore_bidirectional_mask_sdpa = wraps(ignore)(ignore_known)
    if packed:
        masking_utils.find_packed_sequence_indices = wraps(packed)(packed_known)
