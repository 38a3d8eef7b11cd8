"""What LoRA adds to a known model: updates of its linear layers, and trained biases."""

from __future__ import annotations

from collections.abc import Sequence

from bridge_ds.plan.shapes import Shape

__all__ = ["lora_layers", "lora_parameters"]

_PARTS = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "out_proj": "o", "gate_proj": "gate", "up_proj": "up",
    "down_proj": "down", "fc1": "up", "fc2": "down",
}  # fmt: skip
"""Names that `lora.targets` may have -> parts of :attr:`Shape.linear`."""


def lora_layers(shape: Shape, targets: Sequence[str] = ()) -> list[tuple[int, int]]:
    """Inputs and outputs of one layer's linear layers that LoRA updates: those that `lora.targets` names. All where it
    is empty, or has a name that is not known here (such as `c_attn`, three in one), so that no plan is too small."""
    parts = {_PARTS.get(name.rpartition(".")[2], "") for name in targets}
    return [size for part, size in shape.linear.items() if not parts or "" in parts or part in parts]


def lora_parameters(shape: Shape, rank: int, bias: str = "none", targets: Sequence[str] = ()) -> int:
    """Trained parameters of LoRA's updates: rank x (inputs + outputs) of each linear layer that it updates; and of the
    biases that are trained with them (`lora.bias`; those of all linear layers, whatever `targets` names)."""
    updates = rank * sum(map(sum, lora_layers(shape, targets)))
    biases = 0 if bias == "none" or not rank else shape.layers * sum(shape.biases)
    if bias == "all" and rank and shape.norm_biases:
        biases += (2 * shape.layers + 1) * shape.width
    return shape.layers * updates + biases
