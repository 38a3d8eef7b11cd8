"""MindMerger (arXiv 2405.17386): the `pytorch_model.bin` that its public code writes.

Read in github.com/CONE-MT/MindMerger (modeling_mindmerger.py, mindmerger_tools/utils.py, run_training.py,
input_features.py): the file holds {"model_state_dict": state of `Mapping`} and nothing else: `mlp.linear1` (D -> 2D),
ReLU, `mlp.linear2` (2D -> H), and `end_boundary` of shape 1 x 1 x H, which is appended after the mapped states of the
encoder's last layer. Its first releases called the module `Adapter` and its `mlp` `linear`. Both base models are
frozen. The LLM reads [BOS | soft | end_boundary | prompt], closed up to the left; the prompt is there in the second
stage, augmentation, whose checkpoint is the one that it evaluates.

The text around it (input_features.py, run_training.py, evaluation.py, mindmerger_tools/prompts.py; the later
mindmerger_tools/input_features.py has the same under another name):

- BOS is the LLM tokenizer's `bos_token_id`, always, whatever that tokenizer adds by itself.
- A target is tokenized alone, with no space before it; the tokenizer's `add_bos_token` is set to no and its
  `add_eos_token` to yes, so that Llama 2's closes it with the end token. Tokenizers that ignore these two settings
  (those of Llama 3 in transformers 4) add their own tokens: such a checkpoint needs data.target_end=false.
- A prompt is tokenized alone, unchanged, with both settings at no; its templates end with a colon or a full stop.
- Its evaluation generates up to `max_gen_len` tokens, greedily, up to an end token of the LLM's generation_config.json,
  and compares the stripped text with the label (`exact` here), or the last number.

For M2M-100 and NLLB it puts each text's own language token in front; so does ours where the language is known (a field
`language`, data.source_language, a benchmark's language).
"""

from __future__ import annotations

from collections.abc import Mapping

from bridge_ds.convert.layout import ConvertSource, SourceLayout, mapped
from bridge_ds.convert.stored import Stored

__all__ = ["MINDMERGER", "mlp"]


def mlp(prefix: str) -> dict[str, str]:
    """Our mlp's parameters -> those of MindMerger's `MLP` under `prefix`."""
    return {
        f"mapping.project.{ours}.{what}": f"{prefix}{theirs}.{what}"
        for ours, theirs in ((0, "linear1"), (2, "linear2"))
        for what in ("weight", "bias")
    }


_KINDS = {"Mapping": mlp("mlp."), "Adapter": mlp("linear.")}


def read(stored: Mapping[str, Stored]) -> SourceLayout:
    """The layout of a mapping's file.

    Raises:
        CheckpointError: it is not one.
    """
    kind = mapped(stored, MINDMERGER.title, _KINDS)
    settings = {"fusion.name": "last_layer", "mapping.kind": "mlp"}
    return SourceLayout(_KINDS[kind] | {"mapping.end": "end_boundary"}, settings)


MINDMERGER = ConvertSource(
    title="MindMerger (arXiv 2405.17386)",
    help="""\
Reads outputs/.../pytorch_model.bin as MindMerger's training writes it: the mapping alone, so --encoder and --llm must
be its mt_path and llm_path.

The LLM is shown the text, too (data.augment_prompt), as after the second stage. For the checkpoint of the first stage,
mapping: --set data.augment_prompt=false. The LLM is shown a sample's `prompt` if it has one (MindMerger puts
its own template around the question there), else its `source`: in training, in `bridge-ds generate --input`, and as
`llm_prompt` of a request to `bridge-ds serve`. Evaluation and the harness show it the source.

Targets and prompts are as there: no space before a target, an end token after it; the input always begins with BOS.""",
    read=read,
    settings={
        "data.augment_prompt": True,
        "data.bos": "always",
        "data.separator": "keep",
        "data.target_space": "none",
        "data.target_end": True,
        "data.max_source_tokens": 512,
        "data.max_prompt_tokens": 512,
        "data.max_target_tokens": 512,
    },
)
"""`max_seq_len` and `max_gen_len` of its second stage are 512."""
