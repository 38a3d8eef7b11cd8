"""One rank that loads models under ZeRO-3: load_sharded.py PART_BYTES KIND=FOLDER...; KIND is encoder or llm.

Prints a JSON object: MiB by which the process grew at most while loading the last model, and of each model how many
tensors equal their files.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import transformers  # noqa: F401
from transformers.integrations import HfDeepSpeedConfig

from bridge_ds.compat import streamed
from bridge_ds.config.load import load_config
from bridge_ds.config.schema import ModelConfig
from bridge_ds.config.zero import read_ds_config, shard_config
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.engine.distributed import init_distributed, shutdown
from bridge_ds.frozen import load
from bridge_ds.frozen.verify import verify_weights, weight_files
from bridge_ds.llm.frozen import load_llm
from bridge_ds.world import World


def resident_mib(what: str) -> float:
    """VmRSS or its peak, VmHWM, with mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


def main() -> None:
    size, models = int(sys.argv[1]), [word.split("=", 1) for word in sys.argv[2:]]
    streamed.parts.__defaults__ = (size,)
    if not size:  # as transformers does it
        load.streamed = nullcontext
    world = World.detect()
    init_distributed(world)
    keep_alive = HfDeepSpeedConfig(
        shard_config(
            load_config("testbed", ["train.micro_batch=1", "model.dtype=bfloat16"]), read_ds_config("zero3.json")
        )
    )
    compared = {}
    for kind, folder in models:
        Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew
        before = resident_mib("VmRSS")
        make = {"encoder": load_encoder, "llm": load_llm}[kind]
        model = make(ModelConfig(**{kind: folder, "dtype": "bfloat16"})).model
        grown = resident_mib("VmHWM") - before
        files = weight_files(folder)
        assert all(hasattr(parameter, "ds_id") for parameter in model.parameters())
        compared[folder] = verify_weights(kind, model, files, world.is_main, samples=10_000)
        expected = len(list(model.parameters()))
        assert compared[folder] >= expected - 1, f"{folder}: {compared[folder]} of {expected}"
    print(json.dumps({"grown": grown, "compared": list(compared.values())}), flush=True)
    del keep_alive


main()
shutdown()  # at the end of a process with an open group gloo may abort it
