"""One rank of a sharded bridge whose gates are 0: gate_sharded.py DS_FILE KEY=VALUE...

Prints a JSON line: whether the logits of both sides of padding, the loss and what is written by greedy decoding are
those of the LLM alone in every bit (`equal`), whether its parameters are sharded, and the same with open gates.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from bridge_ds.compat.deepspeed import set_parameters
from bridge_ds.config.load import load_config
from bridge_ds.config.zero import read_ds_config
from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.loading.tokenize import load_tokenizers
from bridge_ds.engine.distributed import init_distributed, shutdown
from bridge_ds.engine.setup import build_model, initialize
from bridge_ds.inference.generator import Generator
from bridge_ds.world import World
from tests.injection.test_forms import batches


def equal(model: Any, tokenizers: Any, batch: Batch, alone: Batch) -> list[bool]:
    found = []
    with torch.no_grad():
        for side in ("left", "right"):
            logits = []
            for each in (model.spliced(batch, side), model.spliced(alone, side)):
                places = each.mask_BX.flatten().nonzero().squeeze(1)
                inputs = {"injected": each.injected, "attention_mask": each.mask_BX, "use_cache": False}
                logits.append(model.llm.logits_at(each.embeds_BXH, places, **inputs)[0])
            found.append(torch.equal(*logits))
        found.append(torch.equal(model(batch), model(alone)))
        generator = Generator(model, tokenizers)
        options = {"max_new_tokens": 4, "min_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
        written = [
            torch.stack(generator.generate(model.prefix(each), None, **options).logits) for each in (batch, alone)
        ]
        found.append(torch.equal(*written))
    return found


def main() -> None:
    file, *settings = sys.argv[1:]
    world = World.detect()
    init_distributed(world)
    config, ds_values = load_config("testbed", settings), read_ds_config(file)
    tokenizers = load_tokenizers(config.model, data=config.data)
    model = build_model(config, tokenizers.bos_id, ds_values, world)
    engine = initialize(model, config, ds_values, world)
    engine.eval()
    batch, _, alone = batches(tokenizers)
    gates: Any = model.injection.gates  # type: ignore[union-attr]
    closed = equal(model, tokenizers, batch, alone)
    set_parameters(engine, {gates: torch.full(gates.ds_shape, 0.5)})
    sharded = [p.ds_status.name == "NOT_AVAILABLE" for p in model.llm.parameters()]
    print(json.dumps({"equal": closed, "open": equal(model, tokenizers, batch, alone), "sharded": any(sharded)}))


main()
shutdown()  # at the end of a process with an open group gloo may abort it
