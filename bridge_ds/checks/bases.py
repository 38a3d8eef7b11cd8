"""Of preflight: both base models and their tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bridge_ds.checks.subject import Subject

__all__ = ["encoder_loads", "llm_loads", "tokenizers_match"]


def encoder_loads(subject: Subject) -> str:
    """The encoder's files are whole and fit its config; its forward pass runs, without numbers."""
    from bridge_ds.encoder.frozen import encoder_base

    there = subject.config.model.has_encoder
    return _loads(subject, "encoder", encoder_base) if there else "none: the LLM alone is trained"


def llm_loads(subject: Subject) -> str:
    """The LLM's likewise, and it takes a soft prompt."""
    from bridge_ds.llm import frozen, support
    from bridge_ds.llm.attention import AttentionLayers, refuse_other_layers
    from bridge_ds.llm.tiny_copy import llm_class, tiny_copy

    if not (of := subject.config.model).has_llm:
        return "none: the encoder alone is trained"
    done = _loads(subject, "llm", frozen.llm_base)
    done += _remark(support.check_llm(of.llm, subject.bases["llm"], of.trust_remote_code))
    if (spec := subject.config.injection.spec) is not None:
        kind, text = llm_class(subject.bases["llm"], of.llm, of.trust_remote_code)
        AttentionLayers(tiny_copy(kind, text), projects=spec.projects)
        if layers := int(getattr(text, "num_hidden_layers", 0) or 0):  # of which the copy has fewer
            refuse_other_layers(subject.config.injection.llm_layers, layers, kind.__name__)
    return done


def _loads(subject: Subject, what: str, base_of: Callable[..., Any]) -> str:
    from bridge_ds.engine.setup import quiet_transformers
    from bridge_ds.frozen.check import check_base

    quiet_transformers()
    base = base_of(subject.config.model)
    done = check_base(base, run=True)
    subject.bases[what] = base.config
    remarks = "".join(map(_remark, (done.remark, done.left_out)))
    return f"{done.bytes / 2**30:.2f} GiB in {done.files} file{'s'[: done.files != 1]}{remarks}"


def _remark(text: str) -> str:
    return f"; {text}" if text else ""


def tokenizers_match(subject: Subject) -> str:
    """Both tokenizers load and fit their models' embedding tables; there is a chat template if one is needed; texts of
    the configured lengths fit the models' positions."""
    from bridge_ds.adapt.model import tokenizers_of
    from bridge_ds.data.loading.tokenize import check_vocabulary
    from bridge_ds.llm.positions import check_positions

    tokenizers = tokenizers_of(subject.config)
    if tokenizers.languages:
        tokenizers.languages.check("data.source_language", subject.config.data.source_language)
    for what, tokenizer in (("encoder", tokenizers.encoder), ("llm", tokenizers.llm)):
        if rows := getattr(subject.bases.get(what), "vocab_size", None):
            check_vocabulary(tokenizer, rows, f"model.{what}")
    done = f"{len(tokenizers.encoder)} and {len(tokenizers.llm)} tokens"
    of, encoder, llm = subject.config, subject.bases.get("encoder"), subject.bases.get("llm")
    if len(subject.bases) == tokenizers.has_encoder + of.model.has_llm and (subject.step or 0) < of.train.steps:
        done += "".join(map(_remark, check_positions(of, encoder, llm, tokenizers, subject.step is not None)))
    return done
