"""A sharded encoder whose layers this project gathers: the whole model's states, one gather of each parameter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import launch, tiny

pytestmark = pytest.mark.slow
PROGRAM = str(Path(__file__).parents[1] / "programs" / "encode_sharded.py")


def others() -> dict[str, Callable[[], Any]]:
    """Encoders that AutoModel loads: one that reads a weight outside of its module, one of layers that share theirs."""
    import transformers as tf

    common = {"vocab_size": 256, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
              "intermediate_size": 32, "max_position_embeddings": 80, "pad_token_id": 0}  # fmt: skip
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm"}
    return {
        "deberta": lambda: tf.DebertaV2Model(tf.DebertaV2Config(**common, **relative, conv_kernel_size=3)),
        "albert": lambda: tf.AlbertModel(tf.AlbertConfig(**common, embedding_size=16)),
    }


def test_states_are_those_of_the_whole_model_and_each_parameter_is_gathered_once(
    zygote: launch.Zygote, tmp_path: Path
) -> None:
    """Two ranks; 1, 2 and 4 inputs of unequal shapes, one more on the second; prefetched, and offloaded without."""
    folders = {kind: tiny.make_encoder(kind, tmp_path / kind) for kind in ("mt5", "xlm-roberta", "m2m_100")}
    for kind, make in others().items():
        torch.manual_seed(3)
        folders[kind] = tmp_path / kind
        make().save_pretrained(folders[kind])
    job = zygote.start([*map(str, folders.values())], 2, tmp_path / "logs", program=PROGRAM)
    outcome = launch.succeed(job.wait())
    for rank, output in enumerate(outcome.outputs):
        reports = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        assert len(reports) == 2 * len(folders)
        for seen in reports:
            kind = Path(seen["of"]).name
            assert len(seen["equal"]) == (7 + 3 * rank) * 3 and all(seen["equal"]), (kind, seen["file"])
            # Layers that share their weights are known for such once a run has shown the order.
            for counts in seen["gathers"][kind == "albert" :]:
                assert set(counts) == {1}, (kind, seen["file"])
            # DeBERTa's table of positions stays from where it is read to the end.
            loose = 2 * 512 * 24 if kind == "deberta" else 0
            assert seen["units"][-1] <= seen["most"] <= sum(seen["units"][-1 - seen["ahead"] :]) + loose
            assert seen["most"] < seen["total"]
