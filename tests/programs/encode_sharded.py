"""One rank that encodes with sharded encoders: encode_sharded.py FOLDER...

Prints a JSON line for each encoder under each DeepSpeed file: whether the states of 1, 2 and 4 inputs (one more on each
further rank, as groups of rows of similar length make it), encoded together, equal those of the whole model in every
bit, also after an error; how often each parameter was gathered; and elements that were whole at once.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import transformers
from transformers.integrations import HfDeepSpeedConfig

from bridge_ds.config.load import load_config
from bridge_ds.config.schema import ModelConfig
from bridge_ds.config.zero import read_ds_config, shard_config
from bridge_ds.encoder.frozen import FrozenEncoder, load_encoder
from bridge_ds.engine.distributed import init_distributed, shutdown
from bridge_ds.frozen import gather
from bridge_ds.world import World

FILES = {"zero3.json": True, "zero3_offload.json": False}
"""And whether the next layer is gathered while one is at work."""


def watch(model: Any) -> dict[str, Any]:
    """Count gathers, and what is whole when one has begun."""
    seen: dict[str, Any] = {"gathers": Counter(), "most": 0}
    every = list(model.parameters())
    real = {parameter.ds_id: parameter.all_gather_coalesced for parameter in every}

    def counted(group: list[Any], **options: Any) -> Any:
        handle = real[group[0].ds_id](group, **options)
        seen["gathers"].update(parameter.ds_id for parameter in group)
        whole = sum(parameter.ds_numel for parameter in every if parameter.ds_status.name != "NOT_AVAILABLE")
        seen["most"] = max(seen["most"], whole)
        return handle

    for parameter in every:
        parameter.all_gather_coalesced = counted
    return seen


def inputs(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each of another shape; other ids on each rank."""
    torch.manual_seed(torch.distributed.get_rank())
    found = []
    for n in range(count):
        mask = torch.ones(1 + n, 5 + 3 * n, dtype=torch.int64)
        mask[0, 4:] = 0
        found.append((torch.randint(3, 250, mask.shape), mask))
    return found


def fail_inside(encoder: FrozenEncoder) -> bool:
    """Let a layer in the middle fail while the next one is on its way; whether the error came out."""

    def fail(*_: Any) -> None:
        raise KeyError("inside a layer")

    modules = [module for module, _ in gather._units(encoder.model)]
    handle = modules[len(modules) // 2].register_forward_pre_hook(fail)
    try:
        encoder.encode_all(inputs(2))
    except KeyError:
        return True
    finally:
        handle.remove()
    return False


def report(encoder: Any, whole: Any, ahead: bool) -> dict[str, Any]:
    assert isinstance(encoder, FrozenEncoder)
    every = list(encoder.parameters())
    assert all(hasattr(parameter, "ds_id") for parameter in every)
    units = sorted(sum(p.ds_numel for p in parameters) for _, parameters in gather._units(encoder.model))
    encoder.by_layer = gather.LayerGather(encoder.model, ahead)
    seen, equal, gathers = watch(encoder.model), [], []
    for count in (1, 2, 4):
        assert count != 2 or fail_inside(encoder)
        assert all(parameter.ds_status.name == "NOT_AVAILABLE" for parameter in every)
        seen["gathers"].clear()
        count += torch.distributed.get_rank()
        found = encoder.encode_all(inputs(count))
        gathers.append([seen["gathers"][parameter.ds_id] for parameter in every])
        for states, source in zip(found, inputs(count), strict=True):
            equal += [torch.equal(*pair) for pair in zip(states, whole(*source), strict=True)]
    total = sum(parameter.ds_numel for parameter in every)
    return {"equal": equal, "gathers": gathers, "most": seen["most"], "units": units, "total": total, "ahead": ahead}


def main() -> None:
    configs = {folder: ModelConfig(encoder=folder, dtype="bfloat16") for folder in sys.argv[1:]}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    init_distributed(World.detect())
    whole = {folder: load_encoder(config) for folder, config in configs.items()}
    recipe = load_config("testbed", ["train.micro_batch=1", "model.dtype=bfloat16"])
    for file, ahead in FILES.items():
        keep_alive = HfDeepSpeedConfig(shard_config(recipe, read_ds_config(file)))
        for folder, config in configs.items():
            print(json.dumps({"of": folder, "file": file} | report(load_encoder(config), whole[folder], ahead)))
        del keep_alive


main()
shutdown()  # at the end of a process with an open group gloo may abort it
