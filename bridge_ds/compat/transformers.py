"""transformers: masks that need no look at the device, activation checkpointing in evaluation mode, what the cache is
called, and attention whose backward is fast on CPUs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any

import torch

__all__ = [
    "BESIDE",
    "CACHE_NAMES",
    "attend_in_float32",
    "cache_of",
    "call_beside_attention",
    "enable_recomputing",
    "generate_from_embeds",
    "given_cache",
    "masks_known",
    "not_recomputed",
    "plain_attention",
    "quiet",
    "record_layers_only",
    "set_recomputing",
    "unsharded",
]

CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""Names of the cache, in forward() and in what it returns: transformers 5.24 renames the later ones, which it warns of
and gives up in 5.40, to the first."""

BESIDE = "bridge_ds_beside"
"""Attribute of an attention module: what is called beside its attention, see :func:`call_beside_attention`."""

_PADDED: ContextVar[bool | None] = ContextVar("padded", default=None)
_PACKED: ContextVar[bool] = ContextVar("packed", default=False)


@contextmanager
def masks_known(padded: bool, packed: bool = False) -> Iterator[None]:
    """While open, transformers does not look into masks and positions of the models that run; the caller knows them.

    transformers (5.17 to 5.24 at least) asks the device in every forward pass of a model: whether a padding mask masks
    anything (`_ignore_bidirectional_mask_sdpa`), and, where no mask is given, whether the position ids restart within a
    row (`find_packed_sequence_indices`). On a GPU the host waits for each answer. Here the first is answered by
    `padded`, the second by `packed`. The masks that come out are the same. A ready 4-D mask would spare both looks, but
    models with local attention (ModernBERT, Gemma) take it for all layers.

    It can go when tests/test_host_waits.py passes without it.

    Args:
        padded: whether the mask that the model gets masks anything.
        packed: whether its position ids restart within a row, as those of rows that are joined end to end.
    """
    _install()
    tokens = _PADDED.set(padded), _PACKED.set(packed)
    try:
        yield
    finally:
        _PADDED.reset(tokens[0])
        _PACKED.reset(tokens[1])


@cache
def attend_in_float32() -> None:
    """Let transformers' sdpa attention of bfloat16 tensors on a CPU run in float32 where a gradient is wanted.

    The backward of torch's attention on CPUs (2.13 at least) takes 4 to 6 times as long in bfloat16 as in float32, with
    the casts: a quarter of a step of a 135 M LLM. The forward takes as long; without a gradient nothing changes.
    """
    from transformers import AttentionInterface

    sdpa: Any = AttentionInterface()["sdpa"]
    if hasattr(sdpa, "__wrapped__"):
        return  # it was asked for before

    @wraps(sdpa)
    def attend(module: Any, query: Any, key: Any, value: Any, *args: Any, **options: Any) -> Any:
        taken = (query, key, value, *args)
        wanted = torch.is_grad_enabled() and any(part.requires_grad for part in taken[:3])
        if not wanted or query.device.type != "cpu" or query.dtype != torch.bfloat16:
            return sdpa(module, *taken, **options)
        # Masks and position biases too: torch wants one dtype.
        options = {name: _in_float32(part) for name, part in options.items()}
        # Autocast (of a trained LLM or encoder) would cast all of them back.
        plain: Any = torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()
        with plain:
            output, weights = sdpa(module, *map(_in_float32, taken), **options)
        return output.to(query.dtype), weights

    AttentionInterface.register("sdpa", attend)


@cache
def call_beside_attention() -> None:
    """Let an attention module that has something in its attribute BESIDE call that after its attention, with itself,
    query, key, value and scaling as the interface gets them; what it returns, if anything, is added to the result
    [B, X, heads, width].

    For every attention of transformers' interface (5.24). Eager attention is no entry there: classes pass that of their
    own file as what is called in its absence.
    """
    from transformers import AttentionInterface

    plain_attention()  # as it is now
    known = AttentionInterface()
    for name in known.valid_keys():
        if not name.startswith("paged"):
            AttentionInterface.register(name, _with_beside(known[name]))
    AttentionInterface.register("eager", _with_beside(_own_eager))


def _own_eager(module: Any, *args: Any, **options: Any) -> Any:
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **options)


def _with_beside(attention: Any) -> Any:
    @wraps(attention)
    def attend(module: Any, query: Any, key: Any, value: Any, *args: Any, **options: Any) -> Any:
        output, weights = attention(module, query, key, value, *args, **options)
        beside = vars(module).get(BESIDE)
        scaling = options.get("scaling", getattr(module, "scaling", None))
        more = None if beside is None else beside(module, query, key, value, scaling)
        return (output if more is None else output + more), weights

    return attend


@cache
def plain_attention() -> Any:
    """transformers' sdpa attention as it is before :func:`call_beside_attention`."""
    from transformers import AttentionInterface

    attend_in_float32()
    return AttentionInterface()["sdpa"]


def _in_float32(part: Any) -> Any:
    return part.float() if isinstance(part, torch.Tensor) and part.is_floating_point() else part


def record_layers_only(model: Any) -> None:
    """Drop the hooks by which transformers (5.24 at least) records what is inside of a layer, attention weights: it
    puts them on all modules when hidden states are first asked for, and torch.compile cannot trace them.

    The hooks for hidden states stay. tests/engine/test_compiled.py fails when the others no longer keep a layer from
    being compiled.
    """
    try:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks
    except ImportError:  # a version without such hooks
        return
    modules = list(model.modules())
    if not any(getattr(module, "_output_capturing_hooks_installed", False) for module in modules):
        maybe_install_capturing_hooks(model)  # a second time it would add them again
    for module in modules:
        for handle, hook in list(module._forward_hooks.items()):
            ours = getattr(hook, "__module__", "") != maybe_install_capturing_hooks.__module__
            if not ours and inspect.getclosurevars(hook).nonlocals.get("key") != "hidden_states":
                del module._forward_hooks[handle]


def given_cache(model: Any, cache: object) -> dict[str, object]:
    """A cache as an argument of the model's forward, by the name that it has there."""
    taken = inspect.signature(model.forward).parameters
    return {next((name for name in CACHE_NAMES if name in taken), CACHE_NAMES[0]): cache}


def cache_of(output: Any) -> Any:
    """The cache in a model's output; None if it has none."""
    # Not getattr: the old names are properties, which warn.
    return next((vars(output)[name] for name in CACHE_NAMES if vars(output).get(name) is not None), None)


def generate_from_embeds(model: Any) -> None:
    """Let `generate` of this model take embeddings where its class only fails to name them.

    transformers (5.24 at least) refuses them unless `prepare_inputs_for_generation` has an argument of that name; in
    some classes (Gemma3ForConditionalGeneration, FalconH1ForCausalLM) it passes them on as one of `**kwargs`.
    """
    own = getattr(model, "prepare_inputs_for_generation", None)
    if own is None:
        return
    taken = inspect.signature(own).parameters
    if "inputs_embeds" in taken or not any(each.kind is each.VAR_KEYWORD for each in taken.values()):
        return

    # `kwargs` is the name by which transformers knows that forward's arguments may be given too.
    def prepare(input_ids: Any, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        return own(input_ids, inputs_embeds=inputs_embeds, **kwargs)

    model.prepare_inputs_for_generation = prepare


@contextmanager
def quiet() -> Iterator[None]:
    """While open, transformers logs nothing but errors: what is tried out on a model that nobody asked for would read
    as if it were about the user's."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def unsharded() -> Iterator[None]:
    """While open, `from_pretrained` does not shard, though an HfDeepSpeedConfig lives (transformers 5.17 to 5.24)."""
    from transformers.integrations import deepspeed as of

    held = getattr(of, "_hf_deepspeed_config_weak_ref", None)
    of.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        of._hf_deepspeed_config_weak_ref = held


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
        if _PADDED.get() is None:
            return packed(position_ids, *args, **options)  # type: ignore[misc]
        # As it is there, without the look at whether there is one sequence alone.
        return (position_ids.diff(dim=-1, prepend=position_ids[:, :1] - 1) != 1).cumsum(-1) if _PACKED.get() else None

    if ignore:
        masking_utils._ignore_bidirectional_mask_sdpa = wraps(ignore)(ignore_known)
    if packed:
        masking_utils.find_packed_sequence_indices = wraps(packed)(packed_known)


def enable_recomputing(model: Any, dropout: bool = False) -> None:
    """Recompute the model's layers in backward instead of keeping their activations.

    Args:
        dropout: whether the model's own dropout is to run. If not, what a layer drops in its own forward is set to
            nothing (M2M-100's and OPT's layers do, nn.Dropout inside them is not asked for): :func:`set_recomputing`
            puts layers in training mode, which would turn it on.
    """
    # The first name is the one of later transformers 5.x; both take non-reentrant checkpointing as the default.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    if dropout:
        return
    for layer in _layers(model):
        for name, value in vars(layer).items():
            if name.endswith("dropout") and isinstance(value, float):
                setattr(layer, name, 0.0)


@contextmanager
def not_recomputed(model: Any) -> Iterator[None]:
    """While open, layers keep their activations."""
    layers = [layer for layer in _layers(model) if getattr(layer, "gradient_checkpointing", False)]
    for layer in layers:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True


def set_recomputing(model: Any, on: bool) -> None:
    """Turn activation checkpointing on or off, in evaluation mode.

    transformers (5.24 at least) recomputes a layer only where `layer.training` is true (GradientCheckpointingLayer), so
    a model in eval mode silently loses checkpointing. The flag is set on those layers alone: the dropouts inside them
    are modules of their own and stay off. tests/test_compat.py fails when transformers no longer asks for it.
    """
    for layer in _layers(model):
        layer.training = on


def _layers(model: Any) -> list[Any]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
