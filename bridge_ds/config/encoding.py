"""How many micro-batches a frozen encoder reads together: what a run and its plan agree on. No torch.

Letters: L encoder layers, D encoder width.
"""

from __future__ import annotations

__all__ = ["encoded_together"]


def encoded_together(gib: float, tokens: int, layers: int, width: int, bytes_each: int) -> int:
    """Micro-batches whose encoder states take no more than a limit; at least 1.

    Each of these is a number of the config or of the model, so the answer is the same on every rank. It has to be: it
    decides how often layers are gathered.

    Args:
        gib: `train.encode_once_gib`.
        tokens: most encoder tokens of a micro-batch, padding included.
        layers: L; the embeddings are a state more.
        width: D.
        bytes_each: of a number in the states.
    """
    return max(1, int(gib * 2**30 // ((layers + 1) * tokens * width * bytes_each)))
