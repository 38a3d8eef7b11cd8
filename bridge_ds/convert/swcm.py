"""XLM-SWCM (arXiv 2502.10852): its encoder as an ordinary XLM-R folder of transformers, with a tokenizer.

Read in github.com/asd765973346/xlm-swcm (model.py, load_example.py, readme.md): one pickled state dict,
`xlm-swcm.bin`, bare or under `model_state_dict` or `state_dict`, its keys perhaps behind `module.` (its loader takes
each of these). The model is made of:

- `encoder.*`: XLMRobertaModel of transformers, with a pooler, which nothing reads.
- `embed_layer.*` and `decoder.embed_layer.*`: the same embeddings again, shared.
- `decoder.layers.*` and `decoder.last_linear.*`: a decoder of its own design, which is left out here.

The checkpoint has neither a config nor a tokenizer: its code takes both from a folder of hfl/cino-base-v2 (an XLM-R),
so they are taken from --encoder here. The published file itself (KEVVVV/xlm-swcm on the hub) has not been read: the
keys are those that the code above gives it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bridge_ds.convert.stored import Stored, read_checkpoint
from bridge_ds.errors import CheckpointError, ConfigError, brief

__all__ = ["SWCM_BASE", "SWCM_HELP", "SWCM_TITLE", "convert_swcm"]

SWCM_TITLE = "the encoder of XLM-SWCM (arXiv 2502.10852)"
SWCM_BASE = "hfl/cino-base-v2"
"""What XLM-SWCM was made from."""
SWCM_HELP = f"""\
Reads XLM-SWCM's checkpoint (xlm-swcm.bin, or the same as safetensors) and writes its encoder as an XLM-R folder of
transformers, a model.encoder for a bridge and for bridge-ds adapt. Its decoder is left out.

Config and tokenizer come from --encoder, {SWCM_BASE} by default, for the checkpoint has none."""
_ENCODER = "encoder."
_EMBEDDINGS = ("embed_layer.", "decoder.embed_layer.")
_DECODER = ("decoder.layers.", "decoder.last_linear.")
_WRAPPER = "module."
"""What DataParallel puts before each key."""


def convert_swcm(checkpoint: Path, output: Path, *, encoder: str = SWCM_BASE, write: bool = True) -> Iterator[str]:
    """Write the encoder of a checkpoint; yields what was found, line by line.

    Args:
        checkpoint: its file, or a folder that holds one under a usual name.
        output: folder to make.
        encoder: hub id or folder of the XLM-R that gives config and tokenizer.
        write: False = check only.

    Raises:
        CheckpointError: unreadable, of another project, a key missing, unexpected or of another shape.
        ConfigError: the named encoder is not there or of another type, or `output` cannot be written.
    """
    from bridge_ds.config.schema import ModelConfig
    from bridge_ds.convert.bases import match
    from bridge_ds.encoder.frozen import load_encoder

    stored, keys = _read(checkpoint)
    model: Any = load_encoder(ModelConfig(encoder=encoder, dtype="float32")).model
    if model.config.model_type != "xlm-roberta":
        raise ConfigError(
            f"--encoder {encoder!r} is of type {model.config.model_type!r}; expected the XLM-R that XLM-SWCM was made "
            f"from; leave it out for {SWCM_BASE}."
        )
    base = match("encoder", encoder, model, keys, stored)
    held = "all equal to" if not base.differing else f"{len(base.differing)} of them differ from"
    yield f"encoder: {len(base.pairs)} weights in the checkpoint, {held} {encoder}"
    yield f"left out: {len(stored) - len(keys)} tensors of the decoder, {len(base.unread)} that nothing reads"
    if write:
        _write(model, base, stored, encoder, output)


def _read(checkpoint: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors, and the encoder's among them: the checkpoint's key -> the name in an XLM-R."""
    found = {key.removeprefix(_WRAPPER): tensor for key, tensor in read_checkpoint(checkpoint).items()}
    keys = {key: key.removeprefix(_ENCODER) for key in found if key.startswith(_ENCODER)}
    if not keys:
        raise CheckpointError(
            f"the checkpoint has {len(found)} keys, such as {min(found)}, and none of an encoder; expected "
            f"{_ENCODER}embeddings.word_embeddings.weight and others; give the checkpoint of XLM-SWCM."
        )
    for prefix in _EMBEDDINGS:
        keys |= {key: f"embeddings.{key.removeprefix(prefix)}" for key in found if key.startswith(prefix)}
    odd = sorted(key for key in found if key not in keys and not key.startswith(_DECODER))
    if odd:
        raise CheckpointError(
            f"the checkpoint has {len(odd)} unexpected keys, such as {odd[0]} of shape {found[odd[0]].shape}; expected "
            "an encoder, its embeddings and a decoder, as XLM-SWCM has them; give that checkpoint."
        )
    return found, keys


def _write(model: Any, base: Any, stored: Mapping[str, Stored], encoder: str, output: Path) -> None:
    from safetensors import SafetensorError

    from bridge_ds.config.names import resolve
    from bridge_ds.convert.bases import write_weights
    from bridge_ds.disk import atomic_folder
    from bridge_ds.frozen.identity import tokenizer_files
    from bridge_ds.frozen.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("--encoder", encoder)
    try:
        with atomic_folder(output) as part:
            write_weights(model, base, stored, part)
            for name, path in tokenizer_files(tokenizer, resolve(encoder)).items():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, part / name)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{output} cannot be written ({brief(error)}); expected an empty place with room for the encoder; choose "
            "another OUTPUT."
        ) from error
