"""The soft prompt beside the text in place of before it, times a gate."""

from __future__ import annotations

from bridge_ds.injection.spec import FormSpec

__all__ = ["SPEC"]

SPEC = FormSpec(
    module="bridge_ds.injection.gated_prompt.module:GatedPrompt",
    summary="the soft prompt as the LLM itself reads it, beside the text and not before it",
    reads_prompt=True,
)
