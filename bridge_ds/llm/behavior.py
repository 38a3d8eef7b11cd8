"""What may be done with an LLM, as seen on a tiny copy of its class (:mod:`bridge_ds.llm.support`)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Behavior"]


@dataclass(frozen=True)
class Behavior:
    """What may be done with the cache of an LLM; what may not is computed anew, which is slower and exact."""

    steps: bool = True
    """It can be continued by one token at a time, after a left-padded prefix."""
    step_mask: bool = True
    """The mask of all positions is given then; False = none is (state-space models, whose state holds no padding)."""
    reuse: bool = True
    """It can be continued by several tokens, for each row several times."""
    beside: bool = False
    """And by all of a row's continuations at once (:mod:`bridge_ds.llm.beside`)."""
    spare: int | None = None
    """It has a table of positions, which ends so many after `max_position_embeddings`; None = it has none."""
    remark: str = ""
    """For the user: what this costs; empty = nothing."""
    packs: bool = False
    """Rows that are joined end to end are computed as each alone."""
    eager: bool = False
    """It computes attention as transformers' eager code, which keeps the scores for backward (soft caps: Gemma 2)."""
    shifts: bool = False
    """Its positions are relative: all of them shifted by a number, below 0 too, give the same."""
    trims: bool = False
    """Then its last layer may be computed at the wanted positions only (:mod:`bridge_ds.llm.trim`)."""
