#!/usr/bin/env python3
"""Forms of the bridge where the LLM knows one of the languages already, on the testbed: what is gained, what is lost?

examples:
  python tools/bench/study_forms.py                         (runs/forms, 5 seeds, 45 runs: half an hour on two cores)
  python tools/bench/study_forms.py --seeds 3 --jobs 2
  python tools/bench/study_forms.py --quick --output runs/quick     (a few steps: whether it works, not what it finds)
  python tools/bench/study_forms.py --report-only           (train nothing; report the runs that are there)

The testbed's LLM is taught its tasks in the constructed language `qaa` beside English first (bridge-ds finetune, all
weights, OUTPUT/knows), so that it answers in both; the other four it cannot read. Then bridges on English alone:

  soft         the soft prompt, as in the recipe
  text         and the text, which the LLM reads after it (data.augment_prompt)
  gate         the text, and the soft prompt beside it times gates (injection.form=gated_prompt)
  layers       the text, and encoder states to every layer (injection.form=every_layer, no soft prompt)
  layers-only  encoder states to every layer, neither text nor soft prompt
  layalign     encoder states to every layer, soft prompt and text
  half-NAME    as gate, layers and text, but the LLM is shown the text of half of the samples (data.augment_share)

Runs that are finished and scored are not repeated. OUTPUT/languages.csv has a row a run and task: accuracy in English,
in `qaa`, and as the mean of the other four.
"""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bridge_ds.data.packing.write import pack_rows
from bridge_ds.entry import run_command
from bridge_ds.testbed import ENGLISH_ROWS, TASKS
from bridge_ds.testbed.languages import ENGLISH
from bridge_ds.testbed.tasks import meanings
from tools.bench.language_rows import write_rows
from tools.bench.study import Arm
from tools.bench.study_testbed import make_shards, study, study_parser

KNOWN = "qaa"
HALF = "data.augment_share=0.5"
TEXT, LAYERS = "data.augment_prompt=true", "injection.form=every_layer"
QUICK_ROWS = 96


def arms(output: Path) -> list[Arm]:
    """All arms, on the LLM that knows the language."""
    llm, alone = f"model.llm={output / 'knows' / 'llm'}", "injection.soft_prompt=false"
    return [
        Arm("soft", "soft", (llm,)),
        Arm("text", "text", (llm, TEXT)),
        Arm("gate", "gate", (llm, TEXT, "injection.form=gated_prompt")),
        Arm("layers", "layers", (llm, TEXT, LAYERS, alone)),
        Arm("layers-only", "layers-only", (llm, LAYERS, alone)),
        Arm("layalign", "layalign", (llm, TEXT, LAYERS)),
        Arm("half-text", "half-text", (llm, TEXT, HALF)),
        Arm("half-gate", "half-gate", (llm, TEXT, HALF, "injection.form=gated_prompt")),
        Arm("half-layers", "half-layers", (llm, TEXT, HALF, LAYERS, alone)),
    ]


def teach(output: Path, rows: int, steps: int) -> None:
    """The LLM that knows the language; what is there is kept."""
    make_shards(output, rows)
    both, run = output / "both", output / "knows"
    if not (both / "index.json").is_file():
        each = rows // (2 * len(TASKS))
        found = [
            {"source": row.source, "target": row.target}
            for task in TASKS
            for language in (ENGLISH, KNOWN)
            for row in (meaning.in_language(language) for meaning in islice(meanings(task, "train", 7), each))
        ]
        pack_rows(found, both)
    if (run / "llm" / "config.json").is_file():
        return
    values = {
        "run.output": run, "data.shards": both, "llm.trainable": "true", "llm.lr_scale": 1, "train.lr": 1e-3,
        "train.steps": steps, "train.validate_every": 0, "data.validation_percent": 0, "evaluation.tasks": "[]",
        "track.uri": "none",
    }  # fmt: skip
    given = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    subprocess.run([sys.executable, "-m", "bridge_ds", "finetune", "--recipe", "testbed", *given], check=True)


def main(argv: list[str] | None = None) -> int:
    """Train and score what is missing, then report everything."""
    options = study_parser(__doc__ or "", "runs/forms").parse_args(argv)
    rows, steps = (QUICK_ROWS, 2) if options.quick else (ENGLISH_ROWS, 1500)
    output = options.output.resolve()
    every = arms(output)
    status = study(options, every, lambda output: teach(output, rows, steps), "--baseline", "soft")
    print(write_rows(output, every, KNOWN))
    return status


if __name__ == "__main__":
    run_command(main)
