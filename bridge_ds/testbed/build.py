"""Train the testbed's two models from scratch: ``python -m bridge_ds.testbed.build``.

Writes ``encoder/``, ``llm/`` and ``record.json`` (how they were made, and what was measured) to the output folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

from bridge_ds.entry import run_command

from . import ENCODER_PATH
from .tasks import TASKS

__all__ = ["main"]

STEPS = {"encoder": 1500, "llm": 1000}
SEEDS = {"encoder": 0, "llm": 0}
CHECKED = 300
"""Test prompts per task and language on which the finished models are measured."""


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, build, and return the exit status."""
    return _build(_parse(arguments))


def _build(options: argparse.Namespace) -> int:
    record_path = options.output / "record.json"
    record: dict[str, Any] = json.loads(record_path.read_text(encoding="utf-8")) if record_path.is_file() else {}
    for part, build in (("encoder", _build_encoder), ("llm", _build_llm)):
        if options.only in (None, part):
            record[part] = build(options.output / part, options.steps or STEPS[part], SEEDS[part])
            record_path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            print(json.dumps(record[part], indent=2))
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bridge_ds.testbed.build", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--output",
        type=Path,
        default=ENCODER_PATH.parent,
        help="folder to write to (default: that of the shipped models)",
    )
    parser.add_argument("--only", choices=tuple(STEPS), help="make one of the two models (default: both)")
    parser.add_argument(
        "--steps",
        type=int,
        help=f"optimizer steps (default: {STEPS['encoder']} for the encoder, {STEPS['llm']} for the language model)",
    )
    return parser.parse_args(arguments)


def _build_encoder(folder: Path, steps: int, seed: int) -> dict[str, Any]:
    from .measure import alignment_by_layer
    from .pretrain_encoder import pretrain_encoder
    from .tokenization import make_encoder_tokenizer

    tokenizer = make_encoder_tokenizer(folder)
    started = time.monotonic()
    model, losses = pretrain_encoder(tokenizer, steps, seed)
    model = _save_rounded(model, folder)
    return _record(model, folder, steps, seed, time.monotonic() - started, losses) | {
        "by_layer": alignment_by_layer(model, tokenizer)
    }


def _build_llm(folder: Path, steps: int, seed: int) -> dict[str, Any]:
    from .languages import ENGLISH
    from .measure import label_accuracy
    from .pretrain_llm import pretrain_llm
    from .tokenization import make_llm_tokenizer

    tokenizer = make_llm_tokenizer(folder)
    started = time.monotonic()
    model, losses = pretrain_llm(tokenizer, steps, seed)
    model = _save_rounded(model, folder)
    seconds = time.monotonic() - started
    return _record(model, folder, steps, seed, seconds, losses) | {
        "english_accuracy": {task: round(label_accuracy(model, tokenizer, task, ENGLISH, CHECKED), 4) for task in TASKS}
    }


def _save_rounded(model: Any, folder: Path) -> Any:
    """Save the model in bfloat16; return it in float32, rounded as in the files."""
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)
    return type(model).from_pretrained(folder, dtype=torch.float32).eval()


def _record(
    model: Any, folder: Path, steps: int, seed: int, seconds: float, losses: list[dict[str, float]]
) -> dict[str, Any]:
    import sentencepiece
    import tokenizers
    import torch
    import transformers

    return {
        "steps": steps,
        "seed": seed,
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "sentencepiece": sentencepiece.__version__,
        },
        "losses": losses,
    }


if __name__ == "__main__":
    run_command(main)
