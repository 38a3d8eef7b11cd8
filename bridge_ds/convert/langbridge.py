"""LangBridge (arXiv 2401.10695): state dicts of its public code's `LangBridgeModel`.

Read in github.com/kaistAI/LangBridge (langbridge/modeling_langbridge.py, langbridge/alignment_modules.py,
python_scripts/train_langbridge.py): everything is under `lb.`: the encoder (`enc`), the LLM without its
head (`lm`), the head (`lm_head`), the input embedding once more (`embeddings`), and the alignment, which maps each
state of the encoder's last layer and appends ONE learnt vector, `enc_eos`. The LLM reads [BOS | soft | eos | text].

- `linear`: D -> H. `ffn`: D -> 2D -> H with the exact GELU, `nn.Sequential` of 0, (1), 2.
- `latent`: a perceiver resampler with a fixed number of outputs: `latents`, `layers.*` (0 the attention, 1 the MLP),
  `out_proj`, and `norm`, which is over `enc_eos` too. Its heads are 64 wide, and its depth is 1.
- Its training adds eight tokens of white space to the encoder's tokenizer (its default, and "true for all our
  experiments"); their rows are among those that mT5's embedding has to spare. The checkpoint does not say so.
- The LLMs that were not instruction-tuned were trained with the encoder (`freeze_encoder=False`).

The text (python_scripts/train_langbridge.py, evaluation-harness/lm_eval/models/langbridge.py):

- A target is tokenized alone, with no space before it, with the special tokens that the LLM's tokenizer puts by
  itself: a BOS in front, which the model moves before the soft prompt, and no end token. (Its answers end because the
  LLM, which is frozen, has learnt to end them.) Its likelihoods have no end token either.
- To generate, BOS is the LLM tokenizer's `bos_token_id`, always. (Where that is not `bos_token_id` of the LLM's
  config.json, its BOS stays after the soft prompt; this is so for none of the LLMs that it supports.)
- The LLM is shown no text. The encoder reads its text unchanged: with the tokens for white space, a line end at the
  end of a text is a token.

In a padded batch of its code there is a gap between the soft tokens of the shorter rows and their text, which changes
the LLM's positions. Ours has none: each row is as it is there alone.
"""

from __future__ import annotations

import logging
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_ds.convert.layout import INPUT_EMBEDDINGS, ConvertSource, SourceLayout, mapped, under
from bridge_ds.convert.stored import Stored
from bridge_ds.errors import CheckpointError
from bridge_ds.typed import typed_object

__all__ = ["LANGBRIDGE"]

_log = logging.getLogger(__name__)

_END = {"mapping.end": "lb.alignment.enc_eos"}
_KINDS = {
    "linear": {
        "mapping.project.weight": "lb.alignment.linear.weight",
        "mapping.project.bias": "lb.alignment.linear.bias",
    },
    "mlp_gelu": {
        f"mapping.project.{layer}.{what}": f"lb.alignment.ffn.{layer}.{what}"
        for layer in (0, 2)
        for what in ("weight", "bias")
    },
}
_LATENT = "lb.alignment.latents"
_HEAD_WIDTH = 64
_IN_LAYER = {
    "norm_states": "0.norm_media", "norm_latents": "0.norm_latents", "query": "0.to_q", "key": "0.to_k",
    "value": "0.to_v", "out": "0.to_out", "linear1": "1.0", "linear2": "1.2",
}  # fmt: skip
_NO_BIAS = ("query", "key", "value", "out")


def read(stored: Mapping[str, Stored]) -> SourceLayout:
    """The layout of a LangBridgeModel.

    Raises:
        CheckpointError: it is not one, or its alignment `latent` has a width that is no number of heads.
    """
    llm = under(stored, "lb.lm.") | {key: f"lm_head.{name}" for key, name in under(stored, "lb.lm_head.").items()}
    llm |= {key: INPUT_EMBEDDINGS for key in under(stored, "lb.embeddings.")}
    if _LATENT in stored:
        bridge, settings = _latent(stored)
    else:
        kind = mapped(stored, LANGBRIDGE.title, _KINDS)
        bridge, settings = _KINDS[kind], {"mapping.kind": kind}
    settings["fusion.name"] = "last_layer"
    return SourceLayout(bridge | _END, settings, under(stored, "lb.enc."), llm)


def _latent(stored: Mapping[str, Stored]) -> tuple[dict[str, str], dict[str, Any]]:
    """Keys and settings of a resampler; a missing key means the default of LangBridge's own code."""
    prefix = "lb.alignment.layers."
    depth = len({key.removeprefix(prefix).partition(".")[0] for key in stored if key.startswith(prefix)}) or 1
    names = {
        f"layers.{layer}.{ours}.{what}": f"layers.{layer}.{theirs}.{what}"
        for layer in range(depth)
        for ours, theirs in _IN_LAYER.items()
        for what in (("weight",) if ours in _NO_BIAS else ("weight", "bias"))
    }
    names |= {"latents": "latents", "out.weight": "out_proj.weight"}
    bridge = {f"mapping.project.{ours}": f"lb.alignment.{theirs}" for ours, theirs in names.items()}
    bridge |= {f"mapping.norm.{what}": f"lb.alignment.norm.{what}" for what in ("weight", "bias")}

    def rows(key: str, default: int) -> int:
        return stored[key].shape[0] if key in stored and stored[key].shape else default

    latents, width = (*stored[_LATENT].shape, 1, 1)[:2]
    inner, hidden = rows(f"{prefix}0.0.to_q.weight", 512), rows(f"{prefix}0.1.0.weight", 4 * width)
    if not (inner and hidden and width) or inner % _HEAD_WIDTH or hidden % width:
        raise CheckpointError(
            f"{prefix}0 has queries {inner} wide and {hidden} hidden units at an encoder width of {width}; expected "
            f"heads {_HEAD_WIDTH} wide, and hidden units a multiple of the width, as LangBridge makes them."
        )
    sizes = {"latents": latents, "depth": depth, "heads": inner // _HEAD_WIDTH, "head_width": _HEAD_WIDTH}
    sizes["feedforward"] = hidden // width
    return bridge, {"mapping.kind": "latent"} | {f"mapping.{key}": value for key, value in sizes.items()}


def bases(checkpoint: Path) -> tuple[str | None, str | None]:
    """`enc` and `lm` of the config.json beside the weights, where there is one."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    path = folder / "config.json"
    if not path.is_file():
        return None, None
    try:
        found = typed_object(path, _Named)
    except (OSError, ValueError) as error:
        _log.warning(f"{path} {error}; it is not asked for the names of encoder and LLM.")
        return None, None
    return found.get("enc") or None, found.get("lm") or None


@dataclass(frozen=True)
class _Named:
    """config.json: what of it is used."""

    enc: str | None = None
    lm: str | None = None


LANGBRIDGE = ConvertSource(
    title="LangBridge (arXiv 2401.10695)",
    help="""\
Reads what LangBridge's save_pretrained wrote: a folder with pytorch_model.bin or model.safetensors (in parts, too), or
one such file. Alignments `linear`, `ffn` and `latent`.

Encoder and LLM default to those that config.json beside the weights names. Where the checkpoint holds an encoder that
differs from --encoder, because it was trained, that one is written to OUTPUT/encoder and used; the same for the LLM.

LangBridge adds eight tokens of white space to the encoder's tokenizer before it trains, so a tokenizer with these is
written to OUTPUT/encoder, with the encoder. If yours was trained with add_new_lines_to_enc=False: --no-added-tokens.

Targets are as there: no space before them and no end token after them; the input always begins with BOS. If the answers
that yours was trained on hold the text of an end token: --set data.target_end=true.

For a model trained on unlabelled text: --set data.objective=prefix_lm.""",
    read=read,
    settings={
        "data.bos": "always",
        "data.target_space": "none",
        "data.target_end": False,
        "data.max_source_tokens": 1024,
    },
    # In the order in which python_scripts/train_langbridge.py adds them, for it decides their ids.
    added_tokens=(*string.whitespace[1:], "  ", "   ", "    "),
    bases=bases,
)
"""Its encoder reads up to 1,024 tokens (`max_length_enc` of its training scripts)."""
