"""The paper's own code (arXiv 2508.09091): `pytorch_model.bin` of its `MPTModel`, frozen models included.

Read in github.com/ThemiraChathumina/MultiLingualImprove (experiments/model.py, experiments/utils.py, and
JSMEmbeddingModel.py, TransSMEmbeddingModel.py and ATEmbeddingModel.py of experiments/mlEmbModel/): accelerate saves the
whole model every epoch:

- `encoder_mt.embedding_model_base.`: the encoder half alone; `model_llm.`: the LLM; `llm_embedding_layer.`: its input
  embedding once more. All frozen.
- `encoder_mt.layer_weights_lb` and `encoder_mt.temp`: Global Softmax. `encoder_mt.layer_weights.`: the module
  `LayerWeights` of Transformer Softmax. `encoder_mt.aggregator.query`: the learnt query of its variant AT, our
  layer_attention. None of them: its baseline, the last layer.
- `mapping.mlp.fc.`: D -> H (or `linear1`, `linear2`: MindMerger's MLP, which is in the same file), and
  `mapping.end_boundary` of shape 1 x 1 x H.

The LLM reads [BOS | soft | end_boundary | prompt]. The text around it (experiments/read_data.py, trainer.py, eval.py
and utils.py, IDPDatasets/*.py):

- BOS is the LLM tokenizer's `bos_token_id`, always, whatever that tokenizer adds by itself.
- A target is tokenized alone, with no space before it and without special tokens; the text of the end token is
  appended to it (so that one truncated at `max_gen_len` has none; ours keeps it).
- A prompt is shown with `augmentation` only, tokenized alone, without special tokens. Its templates end with a colon
  and a space ("... Label: "), which is kept; the tasks here have none there, so `data.separator` adds it.
- Its evaluation generates up to `max_gen_len` tokens, greedily, up to an end token of the LLM's generation_config.json,
  and compares the stripped text with the label: `exact` here.
- With a system prompt (experiments/trainer.py) the prompt is the LLM's chat template around a system text and one fixed
  user text, after the soft prompt. Give it as each sample's `prompt`, with data.separator=keep. Evaluation and the
  harness show the LLM the source in its place.

Names of the fusions' parameters come from `paper_names` of our own.
Its other variants (queries, gates) have other keys, by which they are recognized and refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge_ds.convert.layout import INPUT_EMBEDDINGS, ConvertSource, SourceLayout, mapped, under
from bridge_ds.convert.mindmerger import mlp
from bridge_ds.convert.stored import Stored

__all__ = ["PAPER"]

_KINDS = {
    "linear": {"mapping.project.weight": "mapping.mlp.fc.weight", "mapping.project.bias": "mapping.mlp.fc.bias"},
    "mlp": mlp("mapping.mlp."),
}
_GLOBAL, _TRANSFORMER, _QUERY = "encoder_mt.", "encoder_mt.layer_weights.", "encoder_mt.aggregator."


def read(stored: Mapping[str, Stored]) -> SourceLayout:
    """The layout of an MPTModel.

    Raises:
        CheckpointError: it is not one.
    """
    kind = mapped(stored, PAPER.title, _KINDS)
    settings: dict[str, Any] = {"mapping.kind": kind, "fusion.name": "last_layer"}
    settings |= {"fusion.heads": 1, "fusion.state_norm": "none", "fusion.include_embeddings": False}
    bridge = _KINDS[kind] | {"mapping.end": "mapping.end_boundary"}
    if f"{_GLOBAL}layer_weights_lb" in stored:
        settings["fusion.name"] = "global_softmax"
        bridge |= _fusion("global_softmax", _GLOBAL)
    elif under(stored, _TRANSFORMER):
        settings["fusion.name"] = "transformer_softmax"
        names = _fusion("transformer_softmax", _TRANSFORMER)
        hidden = stored.get(names["fusion.linear1_bias"])
        if hidden and hidden.shape:
            settings["fusion.feedforward"] = hidden.shape[0]
        bridge |= names
    elif under(stored, _QUERY):
        settings["fusion.name"] = "layer_attention"
        bridge |= _fusion("layer_attention", _QUERY)
    llm = under(stored, "model_llm.") | {key: INPUT_EMBEDDINGS for key in under(stored, "llm_embedding_layer.")}
    return SourceLayout(bridge, settings, under(stored, "encoder_mt.embedding_model_base."), llm)


def _fusion(name: str, prefix: str) -> dict[str, str]:
    from bridge_ds.fusion import FUSIONS

    fusion: Any = FUSIONS[name](num_layers=1, width=1)
    return {f"fusion.{ours}": f"{prefix}{theirs}" for ours, theirs in fusion.paper_names().items()}


PAPER = ConvertSource(
    title="the paper's code (arXiv 2508.09091)",
    help="""\
Reads outputs/.../pytorch_model.bin as the paper's training writes it (the whole model, in parts, too): Global Softmax,
Transformer Softmax, its variant AT, or its baseline, whichever the keys say. --encoder and --llm are its mt_path and
llm_path.

If it was trained with augmentation=True, so that the LLM is shown a prompt too: --set data.augment_prompt=true.

Targets are as there: no space before them, an end token after them; the input always begins with BOS, and a prompt ends
with a space (if yours do not: --set data.separator=keep).""",
    read=read,
    settings={
        "data.bos": "always",
        "data.separator": " ",
        "data.target_space": "none",
        "data.target_end": True,
        "data.max_source_tokens": 500,
        "data.max_prompt_tokens": 500,
        "data.max_target_tokens": 500,
    },
)
"""`max_seq_len` and `max_gen_len` of its training are 500."""
