"""Of preflight: both base models and their tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bridge_ds.checks.subject import Subject
from bridge_ds.config.schema import Config

__all__ = ["encoder_loads", "llm_loads", "tokenizers_match"]


def encoder_loads(subject: Subject) -> str:
    """The encoder's files are whole and fit its config; its forward pass runs, without numbers; settings fit its
    sizes."""
    from bridge_ds.adapt.model import UpdatedEncoder, refuse_other_layers
    from bridge_ds.encoder.absent import AbsentEncoder
    from bridge_ds.encoder.families import family_of
    from bridge_ds.encoder.frozen import encoder_base
    from bridge_ds.fusion import refuse_other_heads

    config, of = subject.config, subject.config.model
    if not of.has_encoder:
        return "none: the LLM alone is trained"
    done, found = _loads(subject, "encoder", encoder_base), subject.bases["encoder"]
    sizes = AbsentEncoder(of)
    if config.has_soft_prompt:
        refuse_other_heads(config.fusion.name, config.fusion.heads, sizes.width)
    if not of.has_llm:
        refuse_other_layers(config.adapt, sizes.blocks)
        family, options = family_of(of.encoder, found), {"trust_remote_code": of.trust_remote_code}
        done += _remark(_refuse_other_updates(config, lambda: UpdatedEncoder(family.skeleton(found, **options))))
    return done


def llm_loads(subject: Subject) -> str:
    """The LLM's likewise; it takes a soft prompt, and has the layers that settings name."""
    import torch

    from bridge_ds.llm import frozen, support
    from bridge_ds.llm.attention import AttentionLayers, refuse_other_layers
    from bridge_ds.llm.tiny_copy import llm_class, tiny_copy

    if not (of := subject.config.model).has_llm:
        return "none: the encoder alone is trained"
    done = _loads(subject, "llm", frozen.llm_base)
    done += _remark(support.check_llm(of.llm, subject.bases["llm"], of.trust_remote_code))
    kind, text = llm_class(subject.bases["llm"], of.llm, of.trust_remote_code)
    with torch.device("meta"):
        done += _remark(_refuse_other_updates(subject.config, lambda: frozen.FrozenLLM(kind(text))))
    if (spec := subject.config.injection.spec) is not None:
        AttentionLayers(tiny_copy(kind, text), projects=spec.projects)
        if layers := int(getattr(text, "num_hidden_layers", 0) or 0):  # of which the copy has fewer
            refuse_other_layers(subject.config.injection.llm_layers, layers, kind.__name__)
    return done


def _refuse_other_updates(config: Config, skeleton: Callable[[], Any]) -> str:
    """Raises ConfigError where lora.targets or lora.bias fits nothing of a model. `skeleton` makes it without weights;
    where it cannot, returns that."""
    from bridge_ds.llm.lora import add_lora

    if not (config.lora.targets or config.lora.bias != "none"):
        return ""  # all linear layers, which every model has
    try:
        model = skeleton()
    except Exception as error:  # of code that looks at numbers, of which there are none
        return f"lora.targets not compared ({type(error).__name__})"
    add_lora(model, config.lora, 0)
    return ""


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
