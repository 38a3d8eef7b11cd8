#!/usr/bin/env python3
"""An encoder that cannot read a language, trained for it (`bridge-ds adapt`): what does each remedy bring the bridge?

examples:
  python tools/bench/study_adapt.py                       (testbed: one more constructed language, 3 seeds, half an hour
                                                           on two cores)
  python tools/bench/study_adapt.py --jobs 2 --seeds 5
  python tools/bench/study_adapt.py --data sib200 --encoder models/e5 --llm taught/llm --source data/sib200
      (five real languages; without --llm the recipe teaches SmolLM2 once for each run)
  python tools/bench/study_adapt.py --quick --output runs/quick     (a few steps: whether it works, not what it finds)
  python tools/bench/study_adapt.py --report-only         (train nothing; report the runs that are there)

Four encoders, each with a bridge of its own, from the same English samples and with the same settings:

  before   as it is
  text     trained on unlabeled text of the language (--text)
  pairs    on translated sentences (--parallel)
  both     on both

New pieces are added to the vocabulary first (--extend-vocabulary), since the letters are unknown to the tokenizer.
`pairs` and `both` train their rows alone (--new-rows-only), and the text of `both` is what pieces are learned from;
`both` then trains all weights on the pairs, at a low learning rate.

testbed  the language is `qaf`, constructed, in Tifinagh letters: 6,000 sentences of text, 500 pairs, all of the train
         split. It is scored on the three tasks, with English and the five constructed languages that the encoder knows.
sib200   the languages are Tibetan, Quechua, N'Ko, Santali and Tamasheq (Tifinagh), together in one encoder: the 701
         sentences of the train split in each, as text and as pairs. Scored on the test split, which no step has seen.
         Pieces are learned from the same sentences in all arms, so that `both` is `pairs`, and then all weights.

Settings were chosen on neither: for the testbed on a seventh constructed language, for sib200 on Central Atlas
Tamazight (docs/adapt.md). Each encoder is also probed (retrieval of English, letters lost). Finished runs are not
repeated. What a run says is in OUTPUT/RUN.log, a row a run in OUTPUT/results.csv, the report in OUTPUT/report.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bridge_ds.cli import Parser, positive
from bridge_ds.disk import write_text
from bridge_ds.entry import run_command
from bridge_ds.testbed import LANGUAGES, TASKS, UNSEEN
from bridge_ds.testbed.tasks import Meaning, meanings, source_words
from tools.bench.adapt_rows import row, table
from tools.bench.study import Arm, Job, Processes, Runs, free_port, run_jobs
from tools.bench.study_real import pack_english, split_rows
from tools.bench.study_testbed import make_shards
from tools.bench.testbed_rows import write

BEFORE = "before"
REMEDIES = ("text", "pairs", "both")
TEXTS, PAIRS, PROBED = 6000, 500, 100
"""Sentences of the testbed's new language."""
REAL = ("bo", "qu", "nqo_Nkoo", "sat_Olck", "taq_Tfng")
OTHERS = ("si", "ta", "sw")
"""Languages of SIB-200 that the encoder knows: do they lose anything?"""


@dataclass(frozen=True)
class Study:
    """Data, models and settings."""

    new: tuple[str, ...]
    """Codes of the languages that the encoder is trained for."""
    known: tuple[str, ...]
    """Codes of those that it knows, English first."""
    encoder: str
    pieces: int
    """Most that are added to the vocabulary."""
    adapt: dict[str, tuple[str, ...]]
    """Remedy -> settings."""
    bridge: tuple[str, ...]
    """Settings of the bridge's runs."""
    recipe: tuple[str, ...]
    rows: tuple[str, ...] = ()
    """Remedies that train the new rows alone (--new-rows-only)."""
    afterwards: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Remedy -> settings of one more run on the pairs, from the encoder that the first has written."""
    begins: dict[str, str] = field(default_factory=dict)
    """Remedy -> another one, whose run is its first, for they are the same."""

    def remedies(self, files: Path, name: str) -> list[str]:
        """Options of `bridge-ds adapt`."""
        text, pairs = ["--text", str(files / "new.txt")], ["--parallel", str(files / "pairs.tsv")]
        only = ["--new-rows-only"] if name in self.rows else []
        return {"text": text, "pairs": pairs, "both": text + pairs}[name] + only


def main(argv: list[str] | None = None) -> int:
    """Train, score and probe what is missing, then report everything."""
    options = parse(argv)
    output, files = options.output.resolve(), options.output.resolve() / "data"
    study = testbed(output) if options.data == "testbed" else sib200(options, output)
    processes = Processes(max(1, len(os.sched_getaffinity(0)) // options.jobs))
    quick = ("train.steps=2", "train.global_batch=8", "evaluation.limit=8") if options.quick else ()
    arms = [
        Arm(name, name, (f"model.encoder={encoder(output, study, name, '{seed}')}",)) for name in (BEFORE, *REMEDIES)
    ]
    codes = f"evaluation.languages=[{','.join((*study.known, *study.new))}]"
    runs = Runs(
        output, arms, range(options.seeds or (1 if options.quick else 3)), processes, study.recipe,
        (*study.bridge, codes, *quick, *options.overrides),
    )  # fmt: skip
    failed: list[str] = []
    if not options.report_only:
        files.mkdir(parents=True, exist_ok=True)
        (make_testbed if options.data == "testbed" else partial(make_sib200, options.source))(study, files)
        make_shards(output) if options.data == "testbed" else pack_english(options.source, output)
        failed = run_jobs(list(jobs(runs, study, files, quick)), options.jobs).failed
    for sentence in failed:
        print(f"error: {sentence}", file=sys.stderr)
    return report(runs, study) or bool(failed)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--data",
        choices=("testbed", "sib200"),
        default="testbed",
        help="languages, models and tasks (default: testbed)",
    )
    add("--output", type=Path, help="folder of all runs (default: runs/adapt_testbed, runs/adapt_sib200)")
    add("--encoder", default="intfloat/multilingual-e5-small", help="of sib200: hub id or folder")
    add("--llm", default="", help="of sib200: folder of an LLM that has learned the task")
    add("--source", default="Davlan/sib200", help="of sib200: hub id or folder of the data")
    add("--seeds", type=positive(int), help="number of seeds, from 0 (default: 3; with --quick 1)")
    add("--jobs", type=positive(int, most=256), default=1, help="runs at the same time (default: 1)")
    add("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="to the bridges' runs")
    add("--quick", action="store_true", help="a few steps a run, to see whether everything works")
    add("--report-only", action="store_true", help="train nothing")
    options = parser.parse_args(argv)
    options.output = options.output or Path(f"runs/adapt_{options.data}")
    return options


def testbed(output: Path) -> Study:
    """One constructed language."""
    short, slow, rows = "data.max_source_tokens=48", "train.lr=1e-4", ("train.lr=3e-2", "train.steps=1000")
    whole = ("lora.rank=0", "encoder.trainable=true", "adapt.token_weight=10", "adapt.english_share=0.5")
    return Study(
        (UNSEEN,), LANGUAGES, "testbed/encoder", 1000,
        {
            "text": (short, slow, "train.steps=900", "train.global_batch=32"),
            "pairs": (short, *rows),
            "both": (short, *rows),
        },
        (f"data.shards={output / 'shards'}",), ("--recipe", "testbed"), rows=("pairs", "both"),
        afterwards={"both": (short, *whole, "train.lr=2e-4", "train.steps=300")},
    )  # fmt: skip


def sib200(options: argparse.Namespace, output: Path) -> Study:
    """Five languages of SIB-200."""
    # A step of all weights costs as much as 100 sentences: few and large ones, an epoch of the text.
    large = ("train.micro_batch=64", "train.global_batch=64")
    common = ("data.max_source_tokens=128",)
    whole = ("lora.rank=0", "encoder.trainable=true", "adapt.token_weight=10", "adapt.english_share=0.5")
    rows = (*common, "train.micro_batch=16", "train.global_batch=16", "train.lr=1e-2", "train.steps=600")
    base, source = (os.path.abspath(of) if os.path.isdir(of) else of for of in (options.encoder, options.source))
    options.source = source
    llm = (f"model.llm={Path(options.llm).resolve()}", "llm.finetune=false") if options.llm else ()
    return Study(
        REAL, ("en", *OTHERS), base, 4000,
        {
            "text": (*common, *large, "train.steps=55"),
            "pairs": rows,
        },
        (f"data.shards={output / 'shards'}", f"evaluation.data.sib200.source={source}", *llm),
        ("--recipe", "sib200_small"), rows=("pairs",),
        afterwards={"both": (*common, *large, *whole, "train.lr=5e-5", "train.steps=50")}, begins={"both": "pairs"},
    )  # fmt: skip


def jobs(runs: Runs, study: Study, files: Path, quick: Sequence[str]) -> Iterator[Job]:
    """An encoder, its probe and its bridge for each arm and seed."""
    first = runs.folder(runs.arms[0], runs.seeds[0]).name
    for arm, seed in runs:
        name, encoders = runs.folder(arm, seed).name, tuple[str, ...]()
        if arm.name != BEFORE or seed == runs.seeds[0]:
            needs = (f"{study.begins[arm.name]}-{seed}-encoder",) if arm.name in study.begins else ()
            yield Job(f"{name}-encoder", partial(train_encoder, runs, study, files, arm.name, seed, quick), needs)
            encoders = (f"{name}-encoder",)
        own = replace(
            runs, arms=[replace(a, settings=tuple(s.format(seed=seed) for s in a.settings)) for a in runs.arms]
        )
        arm = next(each for each in own.arms if each.name == arm.name)
        yield own.job(arm, seed, encoders + ((first,) if name != first else ()))


def encoder(output: Path, study: Study, name: str, seed: object) -> str:
    """The encoder of an arm."""
    return study.encoder if name == BEFORE else str(output / f"{name}-{seed}-encoder" / "encoder")


def train_encoder(runs: Runs, study: Study, files: Path, name: str, seed: int, quick: Sequence[str]) -> None:
    """`bridge-ds adapt`, unless that is done, and the probe.

    Raises:
        TrainingError: as :meth:`Processes.run`.
    """
    folder = runs.output / f"{name}-{seed}-encoder"
    log, found = folder.with_suffix(".log"), encoder(runs.output, study, name, seed)
    if name != BEFORE and not (folder / "encoder" / "config.json").is_file():
        common = f"run.seed={seed}", "track.uri=none", *(each for each in quick if not each.startswith("evaluation"))
        if name in study.begins:
            first = runs.output / f"{study.begins[name]}-{seed}-encoder"
        else:
            first = folder / "rows" if name in study.afterwards else folder
            adapt(runs, log, [*study.remedies(files, name), "--extend-vocabulary", str(study.pieces)],
                  f"run.output={first}", f"model.encoder={study.encoder}", *study.adapt[name], *common)  # fmt: skip
        if first != folder:
            adapt(runs, log, ["--parallel", str(files / "pairs.tsv")], f"run.output={folder}",
                  f"model.encoder={first / 'encoder'}", *study.afterwards[name], *common)  # fmt: skip
    if not (folder / "probe" / "probe.json").is_file():
        options = ["--encoder", found, "--data", str(files / "parallel"), "--output", str(folder / "probe")]
        runs.processes.run(["-m", "bridge_ds", "probe", *options], log)


def adapt(runs: Runs, log: Path, options: Sequence[str], *settings: str) -> None:
    """`bridge-ds adapt`; raises TrainingError."""
    words = [*(word for each in settings for word in ("--set", each)), "--", "--master_port", str(free_port())]
    runs.processes.run(["-m", "bridge_ds", "adapt", *options, *words], log)


def make_testbed(study: Study, files: Path) -> None:
    """Text and pairs of the train split, and parallel sentences of the test split to probe with."""
    streams = [meanings(task, "train", 1) for task in TASKS]
    train = [next(streams[number % len(TASKS)]) for number in range(TEXTS + PAIRS)]
    write_lines(files / "new.txt", [sentence(each, UNSEEN) for each in train[PAIRS:]])
    write_pairs(files / "pairs.tsv", [(sentence(each, UNSEEN), sentence(each, "en")) for each in train[:PAIRS]])
    streams = [meanings(task, "test", 1) for task in TASKS]
    test = [next(streams[number % len(TASKS)]) for number in range(PROBED)]
    for code in (*study.known, *study.new):
        write_lines(files / "parallel" / f"{code}.txt", [sentence(each, code) for each in test])


def sentence(meaning: Meaning, language: str) -> str:
    """What a sample says, without the words of the prompt."""
    return " ".join(w.text for w in source_words(meaning, language) if not str(w.slot).startswith("template"))


def make_sib200(source: str, study: Study, files: Path) -> None:
    """The sentences of the train split in all new languages, as text and with their translations, and those of the
    validation split to probe with."""

    def texts(code: str, split: str) -> dict[str, str]:
        return {str(row["index_id"]): str(row["text"]) for row in split_rows(source, code, split)}

    english = texts("en", "train")
    found = {code: texts(code, "train") for code in study.new}
    write_lines(files / "new.txt", [text for each in found.values() for text in each.values()])
    write_pairs(files / "pairs.tsv", [(each[key], english[key]) for each in found.values() for key in each])
    probed = {code: texts(code, "validation") for code in (*study.known, *study.new)}
    keys = sorted(set.intersection(*(set(each) for each in probed.values())), key=int)
    for code, each in probed.items():
        write_lines(files / "parallel" / f"{code}.txt", [each[key] for key in keys])


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """One text on each line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(" ".join(line.split()) for line in lines) + "\n")


def write_pairs(path: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """A table of translations."""
    write_lines(path, [])
    lines = ["source\ttarget", *("\t".join(" ".join(text.split()) for text in pair) for pair in pairs)]
    write_text(path, "\n".join(lines) + "\n")


def report(runs: Runs, study: Study) -> int:
    """Rows, table and report of the seeds that all arms have; the exit status."""
    whole = runs.whole_seeds()
    if not whole:
        print(f"error: {runs.output} holds no seed that all arms were scored with; train some.", file=sys.stderr)
        return 2
    codes = study.known, study.new
    found = [row(runs.folder(runs.arms[0], whole[0]), *codes, "LLM alone", whole[0], "llm")]
    found += [row(runs.folder(arm, seed), *codes, arm.name, seed) for arm in runs.arms for seed in whole]
    write(runs.output / "results.csv", found)
    print(table(found, *codes))
    return runs.report("report", "--baseline", BEFORE)


if __name__ == "__main__":
    run_command(main)
