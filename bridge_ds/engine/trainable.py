"""What a run trains, as a table for the user."""

from __future__ import annotations

import math

from bridge_ds.adapt.rows import NewRowsEncoder
from bridge_ds.bridge import BridgeModel
from bridge_ds.engine.distributed import whole_shape
from bridge_ds.llm.updated import Updated

__all__ = ["trainable_table"]


def trainable_table(model: BridgeModel) -> str:
    """Names, shapes, dtypes and counts of what is trained (one line for all of a base model), and counts of what is
    frozen. Call before initialize."""
    lines = [f"{'trained parameter':<46} {'shape':<16} {'dtype':<9} {'count':>12}"]
    rest = {"encoder": "encoder, trained"}
    if "llm" in model.bases:
        rest["llm"] = "LoRA on the LLM" if model.llm.original else "LLM, trained"
    elif isinstance(model.encoder, Updated):
        rest["encoder"] = "LoRA on the encoder"
    elif isinstance(model.encoder, NewRowsEncoder):
        rest["encoder"] = "new rows of the encoder"
    counts = {part: [0, 0] for part in model.bases}
    total = 0
    for name, parameter in model.named_parameters():
        shape, part = whole_shape(parameter), name.partition(".")[0]
        count = math.prod(shape)
        if part in rest:
            counts[part][parameter.requires_grad] += count
        elif parameter.requires_grad:
            dtype = str(parameter.dtype).removeprefix("torch.")
            lines.append(f"{name:<46} {'x'.join(map(str, shape)) or '-':<16} {dtype:<9} {count:>12,}")
        total += count * parameter.requires_grad
    lines += [f"{rest[part] + ', float32':<73} {trained:>12,}" for part, (_, trained) in counts.items() if trained]
    lines.append(f"{'all trained':<73} {total:>12,}")
    lines += [f"{part + ', frozen':<73} {frozen:>12,}" for part, (frozen, _) in counts.items()]
    return "\n".join(lines)
