"""LayAlign (arXiv 2502.11405): the `pytorch_model.bin` that its public code writes, the whole model.

Read in github.com/davidguzmanr/LayAlign (LayAlign.py, layer_wise_aligner.py, finetune.py and its own copy of peft,
tuners/layalign_prompt/layer.py). The LLM reads [BOS | soft | end_boundary | prompt] as MindMerger's, from whose code it
comes, with the encoder's last layer through MindMerger's mapping. Beside that:

- `encoder_aligner.projector`: fc1, a linear layer over the n encoder layers that are read, to 2 K rows, of each layer
  of the LLM its key's before its value's; ReLU; fc2 from D to H; with structure `MLP` ReLU and fc3 from H to H.
- In each of K layers of the LLM (`self_attn.adaption_gate`, one number): its own k_proj and v_proj on these vectors,
  its query with rotary positions, a softmax in float32 times the gate, its o_proj.

Which encoder layers are read stands in finetune.py and not in the checkpoint: 0 (the embeddings) to 23 of mT5-XL's
24 + 1, so the first n here; the weights of the others are 0. Its attention sees the padding of an encoder's batch, ours
does not: rows agree as they do alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from bridge_ds.convert.layout import INPUT_EMBEDDINGS, ConvertSource, SourceLayout, under
from bridge_ds.convert.mindmerger import MINDMERGER, mlp
from bridge_ds.convert.stored import Stored
from bridge_ds.errors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["LAYALIGN"]

_PROJECTOR = "encoder_aligner.projector."
_LLM = "model_llm.model."
_GATE = re.compile(r"model_llm\.model\.model\.layers\.(\d+)\.self_attn\.adaption_gate")
_ENCODER_LAYER = re.compile(r"encoder_mt\.(?:block|layers|encoder\.layer)\.(\d+)\.")
_GATES, _LAYERS = "the gates of all layers", "the weights of all encoder layers"
"""Names of the tensors that are made of the checkpoint's."""


def read(stored: Mapping[str, Stored]) -> SourceLayout:
    """The layout of a LayAlign.

    Raises:
        CheckpointError: it is not one.
    """
    gates = {int(found[1]): key for key in stored if (found := _GATE.fullmatch(key))}
    layers = {int(found[1]) for key in stored if (found := _ENCODER_LAYER.match(key))}
    weight = stored.get(f"{_PROJECTOR}fc1.weight")
    if not gates or not layers or weight is None or len(weight.shape) != 2:
        raise CheckpointError(
            f"the checkpoint has {len(stored)} keys, such as {min(stored)}; expected a whole {LAYALIGN.title}: "
            f"{_PROJECTOR}fc1.weight, encoder_mt.block.0... and model_llm...self_attn.adaption_gate; give its own file."
        )
    states = len(layers) + 1
    if weight.shape != (2 * len(gates), weight.shape[1]) or weight.shape[1] > states:
        raise CheckpointError(
            f"{_PROJECTOR}fc1.weight has shape {weight.shape}, and there are {len(gates)} gates and {states} encoder "
            f"states; expected {2 * len(gates)} rows and at most {states} columns; copy the complete checkpoint."
        )
    for key in gates.values():
        if math.prod(stored[key].shape) != 1:
            raise CheckpointError(
                f"{key} has shape {stored[key].shape}; expected one number, the gate of a whole layer; copy the "
                "complete checkpoint, or ask for support of its kind."
            )
    numbers = sorted(gates)
    ordered = [stored[gates[number]] for number in numbers]
    made = {
        _GATES: Stored(weight.file, (len(numbers),), partial(_joined, [each.read for each in ordered])),
        _LAYERS: Stored(weight.file, (2 * len(numbers), states), partial(_padded, weight, states)),
    }
    bridge = mlp("mapping.mlp.") | {"mapping.end": "mapping.end_boundary"}
    bridge |= {"injection.gates": _GATES, "injection.layers_weight": _LAYERS}
    bridge |= {"injection.layers_bias": f"{_PROJECTOR}fc1.bias"}
    has_second = f"{_PROJECTOR}fc3.weight" in stored
    for ours, theirs in [("project", "fc2"), *([("second", "fc3")] if has_second else [])]:
        bridge |= {f"injection.{ours}_{what}": f"{_PROJECTOR}{theirs}.{what}" for what in ("weight", "bias")}
    settings = {
        "fusion.name": "last_layer", "fusion.include_embeddings": True, "mapping.kind": "mlp",
        "injection.form": "every_layer", "injection.soft_prompt": True, "injection.mlp": has_second,
        "injection.llm_layers": tuple(numbers),
    }  # fmt: skip
    used = {*gates.values(), f"{_PROJECTOR}fc1.weight"}
    llm = {
        key: name.replace(".self_attn.model.", ".self_attn.")
        for key, name in under(stored, _LLM).items()
        if key not in used
    }
    llm |= {key: INPUT_EMBEDDINGS for key in under(stored, "llm_embedding_layer.")}
    return SourceLayout(bridge, settings, under(stored, "encoder_mt."), llm, made, frozenset(used))


def _joined(reads: Sequence[Callable[[], torch.Tensor]]) -> torch.Tensor:
    import torch

    return torch.cat([read().reshape(1) for read in reads])


def _padded(weight: Stored, states: int) -> torch.Tensor:
    import torch

    return torch.nn.functional.pad(weight.read(), (0, states - weight.shape[1]))


LAYALIGN = ConvertSource(
    title="LayAlign (arXiv 2502.11405)",
    help="""\
Reads outputs/.../pytorch_model.bin as LayAlign's training writes it: the whole model, of which the parts between the
base models are kept (injection.form=every_layer beside the soft prompt). --encoder and --llm are its mt_path and
llm_path.

The LLM is shown the text, too (data.augment_prompt), as after its second stage; for one of the first stage:
--set data.augment_prompt=false. The text around it is MindMerger's, from whose code it comes.""",
    read=read,
    settings=MINDMERGER.settings,
)
