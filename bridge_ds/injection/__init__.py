"""How the encoder reaches the LLM besides the soft prompt in its input: attention of its layers to vectors beside the
text, times a gate that begins at 0. A new form is one folder here and its line in FORMS. Imports no torch."""

from __future__ import annotations

from importlib import import_module

from bridge_ds.injection.spec import FormSpec

__all__ = ["FORMS", "NO_FORM", "FormSpec"]

NO_FORM = "none"
"""The value of `injection.form` for a bridge that has the soft prompt alone."""

FORMS: dict[str, FormSpec] = {
    name: import_module(f"{__name__}.{name}").SPEC
    for name in (
        "every_layer",
        "gated_prompt",
    )
}
"""Values of `injection.form`, beside NO_FORM."""
