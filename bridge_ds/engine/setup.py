"""From config to a DeepSpeed engine: the base models sharded as they load, the bridge in float32, one optimizer."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from bridge_ds.adapt.model import build_encoder_alone
from bridge_ds.bridge import BridgeModel, LLMAlone, build_bridge
from bridge_ds.compat.deepspeed import import_deepspeed, reuse_hpz_group
from bridge_ds.config.names import resolve
from bridge_ds.config.schema import Config
from bridge_ds.config.zero import engine_config, fill_sizes, hpz_size, shard_config, stage
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.encoder.absent import AbsentEncoder
from bridge_ds.encoder.base import Encoder
from bridge_ds.encoder.frozen import FrozenEncoder, load_encoder
from bridge_ds.engine.compiled import CompiledLayers
from bridge_ds.engine.cpu import LARGEST, keep_freed_memory, set_threads
from bridge_ds.engine.distributed import agree, on_all, whole_shape
from bridge_ds.engine.layers import largest_layer, layer_weights, layers_of
from bridge_ds.errors import LaunchError
from bridge_ds.frozen.gather import LayerGather
from bridge_ds.frozen.identity import as_first_recorded, is_weak, model_identity, published_config, tokenizer_identity
from bridge_ds.frozen.verify import verify_weights, weight_files
from bridge_ds.llm.frozen import load_llm
from bridge_ds.llm.lora import add_lora
from bridge_ds.world import World

__all__ = [
    "END_IDS",
    "as_recorded_now",
    "base_identities",
    "build_model",
    "gathering",
    "initialize",
    "make_optimizer",
    "quiet_transformers",
]

END_IDS = "llm_end_ids"
"""Beside the hashes of the base models: the ids that end an answer, for they come from the LLM's generation_config.json
too, of which nothing else is used."""
_WHAT = {"encoder": "encoder", "llm": "LLM"}


def build_model(
    config: Config,
    bos: int | None,
    ds_values: dict[str, Any] | None = None,
    world: World | None = None,
    read_states: bool = False,
) -> BridgeModel:
    """Load both base models and make the bridge between them, and what else is trained.

    Args:
        config: the run.
        bos: id of the LLM's opening token, or none.
        ds_values: the DeepSpeed file; under stage 3 each rank then keeps only its shard while the models load.
            None = whole models on the CPU.
        world: needed with `ds_values`.
        read_states: all states of the encoder are kept (`data.states_cache`): do not load it.

    Raises:
        ConfigError: a model is missing, incomplete or of the wrong kind, or its weights differ from its file.
    """
    world = world or World()
    quiet_transformers(world)
    if ds_values is not None and stage(ds_values) == 3:
        _prepare_hpz(hpz_size(ds_values), world)
    if config.model.has_llm:
        model = _with_llm(config, bos, ds_values, read_states)
    else:
        model = build_encoder_alone(config, partial(_sharding, config, ds_values))
    for key, part, name, revision in _bases(config, model) if ds_values is not None else ():
        if read_states and key == "encoder":
            continue
        files = weight_files(name, revision) if world.is_main else []
        files = agree(files, world)  # type: ignore[assignment]
        on_all(partial(verify_weights, _WHAT[key], part, files, world.is_main), world)
    add_lora(model.llm if config.model.has_llm else model.encoder, config.lora, config.run.seed)
    if ds_values is not None and not torch.cuda.is_available():
        bases = [getattr(model, part) for part in model.bases]
        set_threads(world.local_size, config.data.workers, layer_weights(*bases))
        keep_freed_memory(LARGEST)
    return model


def _with_llm(config: Config, bos: int | None, ds_values: dict[str, Any] | None, read_states: bool) -> BridgeModel:
    """The bridge between two base models, or the LLM alone."""
    encoder: Encoder | None = None
    if read_states:
        encoder = AbsentEncoder(config.model)
    elif config.model.has_encoder:
        keep_alive = _sharding(config, ds_values, "float32" if config.encoder.trainable else config.model.dtype)
        encoder = load_encoder(config.model, config.encoder)
    keep_alive = _sharding(config, ds_values, "float32" if config.llm.trainable else config.model.dtype)
    llm = load_llm(config.model, config.llm)
    model = build_bridge(config, encoder, llm, bos) if encoder else LLMAlone(llm, bos)
    model.keep_alive = keep_alive  # type: ignore[assignment]
    return model


def _bases(config: Config, model: BridgeModel) -> Iterator[tuple[str, Any, str, str | None]]:
    """Each base model: its attribute, the transformers model, where it is, and its revision."""
    of = config.model
    for key in model.bases:
        yield key, getattr(model, key).model, resolve(getattr(of, key)), getattr(of, f"{key}_revision")


def _prepare_hpz(size: int, world: World) -> None:
    """Check that all ranks have the same hpZ groups, each in its node; let DeepSpeed make them for two models."""
    expected = agree(size, world)

    def check() -> None:
        if size != expected:
            raise LaunchError(
                f"zero_hpz_partition_size is {size} on rank {world.rank} and {expected} on rank 0; expected as many "
                'ranks on every node; start the job so, or write a number in place of "node".'
            )
        if size > 1:
            if world.rank % world.local_size != world.local_rank:
                raise LaunchError(
                    f"rank {world.rank} is number {world.local_rank} of the {world.local_size} on its node; expected "
                    "the ranks of a node to follow one another, for zero_hpz_partition_size groups them so; start with "
                    "srun --distribution=block, or use zero3.json."
                )
            reuse_hpz_group()

    on_all(check, world)


def _sharding(config: Config, ds_values: dict[str, Any] | None, dtype: str) -> Any:
    """While it lives, and under stage 3 alone, `from_pretrained` keeps this rank's shards only, in `dtype`.

    transformers holds it by a weak reference; dropped, every rank would silently load whole models.
    """
    if ds_values is None or stage(ds_values) != 3:
        return None
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(shard_config(config, ds_values, dtype))


def initialize(model: BridgeModel, config: Config, ds_values: dict[str, Any], world: World) -> Any:
    """The DeepSpeed engine around `model`; fails unless exactly what the config names is trained, in float32."""
    deepspeed = import_deepspeed()
    wrong = [name for name, p in model.named_parameters() if p.requires_grad != model.is_trained(name)]
    assert not wrong, f"trained and frozen are mixed up: {wrong[:5]}"
    wrong = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float32]
    assert not wrong, f"trained, but not in float32: {wrong[:5]}"
    if stage(ds_values) == 3 and "llm" in model.bases and not model.llm.trained:
        _gather_by_layer(model.llm)
    optimizer = make_optimizer(model, config)
    with _encoder_apart(model, ds_values):
        ds_values = fill_sizes(ds_values, largest_layer(model.encoder, model.llm))
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=engine_config(config, ds_values, world.size),
            dist_init_required=False,
        )
    if config.train.compile == "frozen":
        CompiledLayers(model)
    engine.train()
    return engine


@contextmanager
def _encoder_apart(model: BridgeModel, ds_values: dict[str, Any]) -> Iterator[None]:
    """Keep DeepSpeed's hooks out of a frozen encoder under stage 3: its layers are gathered by LayerGather.

    The order of modules that DeepSpeed records and prefetches by is then that of bridge and LLM, whether or not the
    encoder runs in a micro-batch; and none of its parameters is among those that stay gathered for being small.
    """
    encoder = model.encoder
    if stage(ds_values) != 3 or not isinstance(encoder, FrozenEncoder):
        yield
        return
    model.encoder = torch.nn.Identity()  # type: ignore[assignment]
    try:
        yield
    finally:
        model.encoder = encoder
    # A file that allows no prefetching at all wants no more than one layer whole at a time.
    ahead = ds_values["zero_optimization"].get("stage3_prefetch_bucket_size", 1) > 0
    encoder.by_layer = LayerGather(encoder.model, ahead)


def _gather_by_layer(part: torch.nn.Module) -> None:
    """Let ZeRO-3 gather and release a frozen model's layers as wholes.

    Its hooks on every module inside a layer (about 12 of them) cost more than the layer itself in small models, and
    make many small gathers in large ones. Each rank then holds one whole layer more than its share at a time.

    Not for a model in which anything is trained: DeepSpeed 0.19.8 reduces the gradients of such a layer in a hook on
    the gradients of its inputs. Where no input has one (the first layer over frozen embeddings) torch calls it before
    the parameters have theirs, and zeros are reduced instead.
    """
    from deepspeed.utils import set_z3_leaf_module

    for layer in layers_of(part):
        set_z3_leaf_module(layer, True)


def gathering(engine: Any, ds_values: dict[str, Any]) -> dict[str, str]:
    """What the engine gathers, and from where, for the run's record; empty under stage 2."""
    if stage(ds_values) != 3:
        return {}
    ahead, live = engine.zero_prefetch_bucket_size(), engine.zero_max_live_parameters()
    facts = {
        "ZeRO-3 gathers": f"{ahead:,} elements ahead, up to {live:,}, kept over {engine.zero_max_reuse_distance():,}"
    }
    if "zero_hpz_partition_size" in ds_values["zero_optimization"]:
        ranks = engine.zero_hpz_partition_size()
        facts["hpZ"] = f"a second copy of the shards in each {ranks} ranks"
        if ranks == 1:
            facts["hpZ"] = "off: a second copy of the shards serves nothing on these nodes"
    return facts


def base_identities(
    config: Config,
    model: BridgeModel,
    tokenizers: Tokenizers,
    like: Mapping[str, str] | None = None,
    hub: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, str]:
    """Hashes of both base models and tokenizers, and the ids that end an answer: what a bridge belongs to.

    Args:
        config: the run.
        model: loaded.
        tokenizers: both.
        like: what a checkpoint recorded. An older hash that still holds, and that of a tokenizer which does the
            same, is given as it was recorded.
        hub: see :func:`bridge_ds.frozen.verify.weight_files`.
    """
    like = like or {}
    found = {}
    for key, part, name, revision in _bases(config, model):
        config_json, before = published_config(name, revision, hub), like.get(key, "")
        first = as_first_recorded(part.config, config.model.dtype) if before else ""
        found[key] = model_identity(config_json, name, revision, hub, like=before, first=first)
        both = f"{key}_tokenizer"
        found[both] = tokenizer_identity(getattr(tokenizers, key), name, revision, hub, like.get(both, ""))
    if "llm" in model.bases and (not like or END_IDS in like):  # older checkpoints did not record them
        ends = model.llm.end_ids(tokenizers.eos_id)
        found[END_IDS] = ",".join(map(str, sorted(ends)))
    return found


def as_recorded_now(
    found: Mapping[str, str], config: Config, model: BridgeModel, tokenizers: Tokenizers
) -> dict[str, str]:
    """Identities for a new checkpoint: `found` (of :func:`base_identities`), or new ones where some are older."""
    whole = ("llm" not in model.bases or END_IDS in found) and not any(
        is_weak(each) for key, each in found.items() if key != END_IDS
    )
    return dict(found) if whole else base_identities(config, model, tokenizers)


def make_optimizer(model: BridgeModel, config: Config) -> torch.optim.AdamW:
    """AdamW over what is trained: weight decay on matrices only, `lr_scale` in each group for the loop to apply.

    No group is empty: DeepSpeed fails on such (OpenRLHF#1225).
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay, scale = _rates(name, config)
            decay = decay if len(whole_shape(parameter)) >= 2 else 0.0
            groups.setdefault((decay, scale), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": of, "weight_decay": decay, "lr_scale": scale} for (decay, scale), of in groups.items()],
        lr=config.train.lr,
        betas=config.train.betas,
        eps=config.train.eps,
        fused=True,  # one pass over a partition instead of a dozen
    )


def _rates(name: str, config: Config) -> tuple[float, float]:
    """Weight decay of a matrix of that name, and its learning rate as a multiple of train.lr."""
    part, train = name.partition(".")[0], config.train
    if part == "encoder":
        if not config.model.has_llm:  # there is nothing else that train.lr could be meant for
            return train.weight_decay, config.lora.lr_scale if config.lora.rank else 1.0
        return config.encoder.weight_decay, config.encoder.lr_scale
    if part == "llm":
        whole = config.llm.trainable
        return (config.llm.weight_decay, config.llm.lr_scale) if whole else (train.weight_decay, config.lora.lr_scale)
    scales = {"fusion": config.fusion.lr_scale, "injection": config.injection.lr_scale}
    return train.weight_decay, scales.get(part, 1.0)


def quiet_transformers(world: World | None = None) -> None:
    """Errors only, and progress bars on rank 0's terminal alone."""
    world = world or World()
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    if not (world.is_main and sys.stderr.isatty()):
        hf_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
