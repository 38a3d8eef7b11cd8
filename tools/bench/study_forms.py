#!/usr/bin/env python3
"""Forms of the bridge where the LLM knows one of the languages already: what is gained, what is lost?

examples:
  python tools/bench/study_forms.py                         (runs/forms, 5 seeds, 60 runs: an hour on two cores)
  python tools/bench/study_forms.py --seeds 3 --arms layers-only replay-text
  python tools/bench/study_forms.py --data sib200 --seeds 3 --jobs 2      (real models, runs/forms_sib200)
  python tools/bench/study_forms.py --data sib200 --encoder DIR/e5 --llm DIR/smol --source DIR/sib200      (no network)
  python tools/bench/study_forms.py --quick --output runs/quick     (a few steps: whether it works, not what it finds)
  python tools/bench/study_forms.py --report-only           (train nothing; report the runs that are there)

On the testbed the LLM is taught the constructed language `qaa` first (bridge-ds finetune, all weights, OUTPUT/knows):
to translate it into English, and its tasks in both, so that it answers in both; the other four it cannot read. On
SIB-200 multilingual-e5-small and SmolLM2-135M-Instruct, which is taught the task in English first (the recipe's stage
0, OUTPUT/stage0, or --taught) and knows French; the other languages are Amharic, Hausa, Sinhala, Swahili and Tamil.
Then bridges on English alone:

  soft         the soft prompt, as in the recipe
  text         and the text, which the LLM reads after it (data.augment_prompt)
  gate         the text, and the soft prompt beside it times gates (injection.form=gated_prompt)
  layers       the text, and encoder states to every layer (injection.form=every_layer, no soft prompt)
  layers-only  encoder states to every layer, neither text nor soft prompt
  layalign     encoder states to every layer, soft prompt and text
  cipher-NAME  as text, gate and layers, but the text that the LLM reads in training is in cipher (data.augment_cipher);
               in scoring it reads the text as it is
  replay-NAME  as cipher-NAME, and a quarter of the samples is replayed (data.replay): the text as it is, and as the
               target what the LLM alone says

Runs that are finished and scored are not repeated. OUTPUT/languages.csv has a row a run and task: accuracy in English,
in the language that the LLM knows, and as the mean of the others. `NAME, by language` is `soft` or `layers-only` where
the LLM alone answers in the languages in which it is significantly better: each half of the samples as the other half
decides.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
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
from tools.bench.study_real import RECIPE, pack_english
from tools.bench.study_testbed import add_arms, chosen_arms, make_shards, seeds_of, study, study_parser

KNOWN, KNOWN_REAL = "qaa", "fr"
LANGUAGES = ("en", KNOWN_REAL, "am", "ha", "si", "sw", "ta")
"""Of SIB-200."""
OUTPUT = Path("runs/forms")
BASELINE = "soft"
TEXT, LAYERS = "data.augment_prompt=true", "injection.form=every_layer"
CIPHER = (TEXT, "data.augment_cipher=1")
SHOWN = {"cipher": CIPHER, "replay": (*CIPHER, "data.replay=0.25")}
"""What the LLM is shown of the text, by the first part of an arm's name."""
BY_LANGUAGE = (BASELINE, "layers-only")
"""Arms in which the LLM reads no text, so that they may harm what it knows."""
QUICK_ROWS = 96
STEPS = 10_000
"""In which the LLM learns the language."""
ENGLISH_OF = "In English:"
"""Ends the prompt of a sentence that is to be translated."""


def arms(llm: Path, real: bool = False) -> list[Arm]:
    """All arms, on the LLM in that folder, which knows the language; of `sib200` if `real`."""
    alone = "injection.soft_prompt=false"
    # SmolLM2's tokenizer writes no BOS, and an answer must follow something. Gates begin at 0, without the fit that
    # a soft prompt begins with: after the recipe's 80 steps the English loss is above that of the labels' frequencies.
    opened = ("data.bos=always", "train.steps=800") * real
    forms: dict[str, tuple[str, ...]] = {
        "text": (), "gate": ("injection.form=gated_prompt",), "layers": (LAYERS, alone),
    }  # fmt: skip
    settings = {BASELINE: (), "layers-only": (LAYERS, alone, *opened), "layalign": (TEXT, LAYERS)}
    settings |= {name: (TEXT, *form) for name, form in forms.items()}
    settings |= {f"{how}-{name}": (*SHOWN[how], *form) for how in SHOWN for name, form in forms.items()}
    return [Arm(name, name, (f"model.llm={llm}", *of)) for name, of in settings.items()]


def teach(output: Path, rows: int, steps: int) -> None:
    """The LLM that knows the language; what is there is kept."""
    make_shards(output, rows)
    both, run = output / "both", output / "knows"
    if not (both / "index.json").is_file():
        each = rows // len(TASKS)
        found = []
        for task in TASKS:
            for meaning in islice(meanings(task, "train", 7), each):
                english, own = meaning.in_language(ENGLISH), meaning.in_language(KNOWN)
                found += [{"source": row.source, "target": row.target} for row in (english, own)]
                # Labels alone say too little of what a word means.
                found.append({"source": f"{own.source} {ENGLISH_OF}", "target": english.source})
        pack_rows(found, both)
    if (run / "llm" / "config.json").is_file():
        return
    values = {
        "run.output": run, "data.shards": both, "llm.trainable": "true", "llm.lr_scale": 1, "train.lr": 1e-3,
        "train.steps": steps, "train.validate_every": 0, "data.validation_percent": 0, "evaluation.tasks": "[]",
        "track.uri": "none", "data.max_target_tokens": 64,
    }  # fmt: skip
    finetune("testbed", [f"{key}={value}" for key, value in values.items()])


def finetune(recipe: str, values: Sequence[str]) -> None:
    """`bridge-ds finetune` with these settings over those of the recipe."""
    given = [part for value in values for part in ("--set", value)]
    subprocess.run([sys.executable, "-m", "bridge_ds", "finetune", "--recipe", recipe, *given], check=True)


def main(argv: list[str] | None = None) -> int:
    """Train and score what is missing, then report everything."""
    parser = study_parser(__doc__ or "", str(OUTPUT))
    add_arms(parser, BASELINE)
    add = parser.add_argument
    add("--data", choices=("testbed", "sib200"), default="testbed", help="languages and models (default: testbed)")
    add("--encoder", default="intfloat/multilingual-e5-small", help="of sib200: hub id or folder")
    add("--llm", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="of sib200: hub id or folder")
    add("--taught", type=Path, help="of sib200: folder of an LLM that has learned the task, in place of stage 0")
    add("--source", default="Davlan/sib200", help="of sib200: hub id or folder of the data")
    options = parser.parse_args(argv)
    if options.data != "testbed" and options.output == OUTPUT:  # neither study is to find the other's shards
        options.output = OUTPUT.with_name(f"{OUTPUT.name}_{options.data}")
    output = options.output = options.output.resolve()
    if options.data == "testbed":
        known, llm = KNOWN, output / "knows" / "llm"
        rows, steps = (QUICK_ROWS, 2) if options.quick else (ENGLISH_ROWS, STEPS)
        make_data = partial(teach, rows=rows, steps=steps)
    else:
        known, llm = KNOWN_REAL, (options.taught or output / "stage0" / "llm").resolve()
        encoder, base, source = (
            os.path.abspath(of) if os.path.isdir(of) else of for of in (options.encoder, options.llm, options.source)
        )
        real = (f"model.encoder={encoder}", f"evaluation.data.sib200.source={source}", "llm.finetune=false",
                f"evaluation.languages=[{','.join(LANGUAGES)}]")  # fmt: skip
        options.overrides, options.recipe = [*real, *options.overrides], RECIPE
        make_data = partial(make_real, source=source, base=base, taught=llm, quick=options.quick)
    some = chosen_arms(options, arms(llm, options.data == "sib200"), BASELINE)
    status = study(options, some, make_data, "--baseline", BASELINE)
    print(write_rows(output, some, seeds_of(options), known, BY_LANGUAGE))
    return status


def make_real(output: Path, source: str, base: str, taught: Path, quick: bool) -> None:
    """The English shards, and the taught LLM unless it is there, by the recipe's own settings for it."""
    shards = pack_english(source, output)
    if output in taught.parents and not (taught / "config.json").is_file():
        values = (f"run.output={taught.parent}", f"model.llm={base}", f"data.shards={shards}", "evaluation.tasks=[]",
                  "track.uri=none")  # fmt: skip
        finetune(RECIPE, (*values, *(["train.steps=2"] if quick else [])))


if __name__ == "__main__":
    run_command(main)
