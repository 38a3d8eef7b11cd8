#!/usr/bin/env python3
"""Word mixing and self-teaching on the testbed: with and without each, paired over the same samples, and the report.

examples:
  python tools/bench/study_extras.py                            (runs/extras, 5 seeds, 35 runs: an hour on two cores)
  python tools/bench/study_extras.py --arms task mix_qaa own --seeds 3
  python tools/bench/study_extras.py --quick --output runs/quick    (a few steps: whether it works, not what it finds)
  python tools/bench/study_extras.py --report-only              (train nothing; report the runs that are there)

The same 24,000 English texts in all arms, and fusion and settings of the recipe testbed:

  task         with their labels, which is what the others are compared with
  mix_all      half of the words of the sources from the dictionary of all five languages
  mix_qaa      from that of one of them alone: does it help that one, and does it cost the others anything?
  task_kl      the labels, and self-teaching beside them (data.objective=task_and_self_teaching)
  own          no label: self-teaching at the tokens that the LLM itself answers (bridge-ds answers)
  first        no label, no answer: self-teaching at the first token of the answer alone
  own-mix_all  both

What is in a dictionary is no unseen language any more: mix_all is what a word list of each brings; with mix_qaa
the four others are unseen. Runs that are finished and scored are not repeated. OUTPUT/languages.csv has a row a run
and task: accuracy in English, in `qaa`, and as the mean of the other four; OUTPUT/differences.csv the paired tests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bridge_ds.commands.answers import main as answer
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.entry import run_command
from bridge_ds.testbed import ENGLISH_ROWS, english_rows
from bridge_ds.testbed.dictionary import main as write_dictionary
from tools.bench.language_rows import write_differences, write_rows
from tools.bench.study import Arm
from tools.bench.study_testbed import add_arms, chosen_arms, make_shards, seeds_of, study, study_parser

BASELINE = "task"
ONE = "qaa"
"""The language of the smaller dictionary."""
QUICK_ROWS = 96


def arms(output: Path) -> list[Arm]:
    """All arms; what they read lies below `output`."""
    mixes = {name: f"data.mix_words={output / f'words-{name}.tsv'}" for name in ("all", ONE)}
    taught, own = "data.objective=self_teaching", f"data.shards={output / 'own'}"
    return [
        Arm(BASELINE, "task"),
        Arm("mix_all", "mix_all", (mixes["all"],)),
        Arm("mix_qaa", "mix_qaa", (mixes[ONE],)),
        Arm("task_kl", "task_kl", ("data.objective=task_and_self_teaching",)),
        Arm("own", "own", (taught, own)),
        Arm("first", "first", (taught, f"data.shards={output / 'texts'}")),
        Arm("own-mix_all", "own-mix_all", (taught, own, mixes["all"])),
    ]


def make_data(output: Path, rows: int) -> None:
    """The texts with labels, with the LLM's own answers and alone, and the dictionaries; what is there is kept."""
    make_shards(output, rows)
    for name, languages in (("all", ()), (ONE, ("--language", ONE))):
        write_dictionary(["--output", str(output / f"words-{name}.tsv"), *languages])
    answered, texts = output / "answered.jsonl", output / "texts.jsonl"
    if not answered.is_file():
        lines = (json.dumps({"source": row["source"]}) + "\n" for row in english_rows(rows))
        texts.write_text("".join(lines), encoding="utf-8")
        answer(["--recipe", "testbed", "--input", str(texts), "--output", str(answered), "--batch", "256"])
    found = [json.loads(line) for line in answered.read_text(encoding="utf-8").splitlines()]
    made = {
        "own": ({"source": row["source"], "target": row["answer"]} for row in found),
        "texts": ({"text": row["source"]} for row in found),
    }
    for name, content in made.items():
        if not (output / name / "index.json").is_file():
            pack_rows(content, output / name)


def main(argv: list[str] | None = None) -> int:
    """Train and score what is missing, then report everything."""
    parser = study_parser(__doc__ or "", "runs/extras")
    add_arms(parser, BASELINE)
    options = parser.parse_args(argv)
    chosen = chosen_arms(options, arms(options.output.resolve()), BASELINE)
    rows = QUICK_ROWS if options.quick else ENGLISH_ROWS
    status = study(options, chosen, lambda output: make_data(output, rows), "--baseline", BASELINE)
    output = options.output.resolve()
    print(write_rows(output, chosen, seeds_of(options), ONE), write_differences(output), sep="\n\n")
    return status


if __name__ == "__main__":
    run_command(main)
