#!/usr/bin/env python3
"""The study on real models: a bridge from multilingual-e5-small to SmolLM2-135M-Instruct, SIB-200 in 36 languages.

examples:
  python tools/bench/study_real.py                                (everything: 5 seeds, 30 runs, from the hub)
  python tools/bench/study_real.py --encoder DIR/e5 --llm DIR/smol --data DIR/sib200        (without a network)
  python tools/bench/study_real.py --search                       (settings, by English validation data alone)
  python tools/bench/study_real.py --quick --output runs/quick    (two steps: whether it works, not what it finds)
  python tools/bench/study_real.py --jobs 8 --minutes 4 --archive study.tar.xz     (one GPU, which eight runs share)
  python tools/bench/study_real.py --jobs 2 --arms last_layer,transformer_softmax      (two cores; these arms alone)
  python tools/bench/study_real.py --report-only                  (train nothing; report the runs that are there)

First the LLM learns the task from the English samples as text (stage 0, `bridge-ds finetune`), once for all seeds: the
bridges of all arms and seeds meet the same LLM and differ in nothing else. Then every fusion is trained on that LLM,
and last_layer and transformer_softmax on the LLM as it is published. Each of the two LLMs alone answers once. All
settings are those of the recipe sib200_small, but the learning rate of last_layer.

Runs that are finished and scored are not repeated, so the same command continues after an interruption. What a run says
is in OUTPUT/RUN.log. The reports are in OUTPUT/report (on the taught LLM) and OUTPUT/report-raw, a row a run in
OUTPUT/results.csv. The search writes OUTPUT/search-LLM.json. What the figures can and cannot show is in
docs/study_real.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from bridge_ds.cli import Parser, positive
from bridge_ds.commands.pack import main as pack
from bridge_ds.config.schema import TaskDataConfig
from bridge_ds.disk import write_text
from bridge_ds.entry import run_command
from bridge_ds.evaluation.predictions import read_predictions
from bridge_ds.tasks.rows import rows
from bridge_ds.tasks.sib200 import Sib200
from tools.bench import real_rows
from tools.bench.study import Arm, Job, Outcome, Processes, Runs, archive, run_jobs
from tools.bench.testbed_rows import write

RECIPE = "sib200_small"
TAUGHT, RAW = "taught", "raw"
LANGUAGES = (
    "en,am,as,bn,bo,de,fr,gu,ha,hi,ig,kn,km,lo,ml,mr,my,ne,nqo_Nkoo,or,pa,qu,sat_Olck,si,so,sw,ta,taq_Tfng,te,th,"
    "tzm_Tfng,ur,vi,yo,zh,zu"
)
OWN = {"last_layer": ("train.lr=5e-4",)}
"""Settings of one fusion alone. With the recipe's learning rate of 1e-3 last_layer's loss rose to 5 to 11 nats at some
step in two of three seeds and had not recovered fully at the end."""
ARMS = tuple(
    Arm(name, name if llm == TAUGHT else f"{name}-{llm}", (f"fusion.name={name}", *OWN.get(name, ())), llm)
    for llm, names in (
        (TAUGHT, ("last_layer", "global_softmax", "transformer_softmax", "layer_attention")),
        (RAW, ("last_layer", "transformer_softmax")),
    )
    for name in names
)
FOLDERS = tuple(arm.folder for arm in ARMS)
QUICK = ("train.steps=2", "train.global_batch=4", "evaluation.limit=8")
SEARCH = {
    "recipe": (),
    "lr 3e-4": ("train.lr=3e-4",),
    "lr 3e-3": ("train.lr=3e-3",),
    "100 steps": ("train.steps=100",),
    "slow fusion": ("fusion.lr_scale=0.1",),
    "weight decay 0.1": ("train.weight_decay=0.1",),
    "weight decay 1": ("train.weight_decay=1",),
    "rms": ("fusion.state_norm=rms",),
    "lr 3e-3, slow fusion": ("train.lr=3e-3", "fusion.lr_scale=0.1"),
    "lr 3e-3, weight decay 1": ("train.lr=3e-3", "train.weight_decay=1"),
    "last_layer": ("fusion.name=last_layer",),
    "last_layer, lr 3e-4": ("fusion.name=last_layer", "train.lr=3e-4"),
    "last_layer, lr 3e-3": ("fusion.name=last_layer", "train.lr=3e-3"),
}
"""What the search changes of the recipe, one thing at a time; combine by --set, which holds for all."""


def main(argv: list[str] | None = None) -> int:
    """Train and score what is missing, then report everything; or search."""
    options = parse(argv)
    output = options.output.resolve()
    arms = [arm for arm in ARMS if arm.folder in options.arms]
    if options.report_only:
        return report(by_llm(Runs(output, arms, options.seeds)))
    bases = {name: getattr(options, name) for name in ("encoder", "llm", "data")}
    local = all(map(os.path.isdir, bases.values()))
    # Runs start in another folder.
    vars(options).update({name: os.path.abspath(of) if os.path.isdir(of) else of for name, of in bases.items()})
    shards = pack_english(options.data, output)
    processes = Processes(
        max(1, len(os.sched_getaffinity(0)) // options.jobs),
        (("HF_HUB_OFFLINE", "1"),) * local,  # nothing waits for a network
        time.monotonic() + 60 * options.minutes if options.minutes else math.inf,
    )
    given = [f"data.shards={shards}", "llm.finetune=false", *(QUICK if options.quick else ())]
    runs = Runs(
        output, arms, options.seeds, processes, ("--recipe", RECIPE),
        (
            f"model.encoder={options.encoder}", f"evaluation.data.sib200.source={options.data}",
            f"evaluation.languages=[{options.languages}]", *(["evaluation.batch=204"] * torch.cuda.is_available()),
            *given, *options.overrides,
        ),
    )  # fmt: skip
    taught = Path(options.taught).resolve() if options.taught else output / "stage0" / "llm"
    llms = {TAUGHT: str(taught), RAW: options.llm}
    stage0 = Job("stage0", lambda: teach(runs, options.llm, taught, [*given, *options.stage0]))
    if options.search:
        return search(runs, llms, options, stage0)
    groups = [
        replace(of, arms=[replace(arm, settings=(*arm.settings, f"model.llm={llms[arm.llm]}")) for arm in of.arms])
        for of in by_llm(runs)
    ]
    done = run_jobs([stage0, *jobs_of(groups)], options.jobs, processes.until)
    say(done)
    if options.archive:
        archive(groups, options.archive)
    return report(groups, pages=not options.archive) or bool(done.failed)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options; `seeds` as a range."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, default=Path("runs/study_real"), help="folder of all runs (default: runs/study_real)")
    add("--encoder", default="intfloat/multilingual-e5-small", help="hub id or folder")
    add("--llm", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="hub id or folder")
    add("--data", default="Davlan/sib200", help="hub id or folder of SIB-200")
    add("--taught", help="folder of an LLM that has learned the task already, in place of stage 0")
    add("--languages", help="comma-separated codes (default: 36; with --quick en,si)")
    add("--arms", help=f"comma-separated, of {', '.join(FOLDERS)} (default: all; with --quick the first and the third)")
    add("--seeds", type=positive(int), help="number of seeds, from 0 (default: 5; with --search 1, with --quick 2)")
    add("--jobs", type=positive(int, most=256), default=1, help="runs at the same time (default: 1)")
    add("--minutes", type=positive(float), help="end what still runs then (within 10 s), and report what is finished")
    add("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="to train.py")
    add("--stage0-set", dest="stage0", action="append", default=[], metavar="KEY=VALUE", help="to stage 0 alone")
    add("--search", choices=(RAW, TAUGHT), nargs="?", const=RAW, help="search settings, on which LLM (default: raw)")
    add("--quick", action="store_true", help="two steps and two arms, to see whether everything works")
    add(
        "--archive",
        type=Path,
        metavar="FILE",
        help="write what reports are made from as this .tar.xz instead of reports; unpacked, it is an --output for "
        "--report-only",
    )
    add("--report-only", action="store_true", help="train nothing")
    options = parser.parse_args(argv)
    default = "last_layer,transformer_softmax" if options.quick else ",".join(FOLDERS)
    options.arms = (options.arms or default).split(",")
    if unknown := [name for name in options.arms if name not in FOLDERS]:
        parser.error(f"--arms has {unknown[0]!r}; expected some of {', '.join(FOLDERS)}")
    options.seeds = range(options.seeds or (1 if options.search else 2 if options.quick else 5))
    options.languages = options.languages or ("en,si" if options.quick else LANGUAGES)
    return options


def by_llm(runs: Runs) -> list[Runs]:
    """The runs on each LLM."""
    groups = (replace(runs, arms=[arm for arm in runs.arms if arm.llm == llm]) for llm in (TAUGHT, RAW))
    return [group for group in groups if group.arms]


def jobs_of(groups: Sequence[Runs]) -> list[Job]:
    """All runs. The first on each LLM also lets the LLM alone answer, so the others wait for it; the first on the
    taught LLM waits for stage 0."""
    first = {of.arms[0].llm: (of.arms[0], of.seeds[0]) for of in groups}
    jobs = [of.job(*first[of.arms[0].llm], ("stage0",) * (of.arms[0].llm == TAUGHT)) for of in groups]
    for seed in groups[0].seeds:
        for of in groups:
            needs = (of.folder(*first[of.arms[0].llm]).name,)
            jobs += [of.job(arm, seed, needs) for arm in of.arms if (arm, seed) != first[arm.llm]]
    return jobs


def teach(runs: Runs, llm: str, taught: Path, settings: Sequence[str]) -> None:
    """Stage 0: the LLM alone learns the task; writes the folder `taught`, unless it is there.

    Raises:
        OutOfTime: as :meth:`Processes.run`; likewise TrainingError.
    """
    if not (taught / "config.json").is_file():
        runs.train(taught.parent, [f"model.llm={llm}", *settings, "evaluation.tasks=[]"], "--finetune")


def search(runs: Runs, llms: dict[str, str], options: argparse.Namespace, stage0: Job) -> int:
    """Train with each setting, and score on the English validation split and nothing else."""
    source = english_validation(options.data, runs.output / "english_validation")
    arms = [
        Arm(name, name.replace(" ", "_"), ("fusion.name=transformer_softmax", *changed))
        for name, changed in list(SEARCH.items())[: 2 if options.quick else None]
    ]
    own = (f"model.llm={llms[options.search]}", f"evaluation.data.sib200.source={source}", "evaluation.languages=[en]")
    runs = replace(runs, output=runs.output / f"search-{options.search}", arms=arms, settings=(*runs.settings, *own))
    before = [stage0] if options.search == TAUGHT else []
    jobs = [runs.job(arm, seed, tuple(job.name for job in before)) for arm, seed in runs]
    done = run_jobs([*before, *jobs], options.jobs, runs.processes.until)
    say(done)
    found = [scores(runs, arm) for arm in arms if any(runs.is_scored(arm, seed) for seed in runs.seeds)]
    found.sort(key=lambda each: (-each["acc"], each["loss"]))
    result = {"llm": llms[options.search], "split": "English validation", "given": options.overrides, "found": found}
    write_text(runs.output.with_suffix(".json"), json.dumps(result, indent=2) + "\n")
    for one in found:
        print(
            f"{one['name']:<20} acc {one['acc']:5.1f}  loss {one['loss']:.3f}  {one['seeds']} seeds  {one['settings']}"
        )
    return int(bool(done.failed))


def scores(runs: Runs, arm: Arm) -> dict[str, Any]:
    """Accuracy (%) and loss (nats: minus the log of the right label's share among the labels) of a setting on the
    English validation split, means over its seeds."""
    found = []
    for seed in runs.seeds:
        if runs.is_scored(arm, seed):
            found.append(list(read_predictions(runs.folder(arm, seed) / "evaluation" / "bridge", "sib200", "en")))
    losses = [math.log(sum(math.exp(score - p.scores[p.label]) for score in p.scores)) for made in found for p in made]
    right = [p.correct() for made in found for p in made]
    return {"name": arm.name, "settings": " ".join(arm.settings[1:]), "acc": 100 * mean(right), "loss": mean(losses),
            "seeds": len(found), "n": len(found[0])}  # fmt: skip


def pack_english(data: str, output: Path) -> Path:
    """OUTPUT/shards of the English train split, unless they are there."""
    shards = output / "shards"
    if not (shards / "index.json").is_file():
        pack(["task:sib200", "--output", str(shards), "--shuffle", "0", "--dataset", data])
    return shards


def split_rows(data: str, code: str, split: str) -> list[dict[str, Any]]:
    """A language's rows of SIB-200's `train` or `validation` split, which local files call dev."""
    task = Sib200(TaskDataConfig(source="" if data == Sib200.hub else data))
    named = "dev" if os.path.isdir(data) and split == "validation" else split
    return [row for _, row in rows(replace(task.row_source(code, named), hub_split=split))]


def english_validation(data: str, folder: Path) -> Path:
    """A folder with English alone, whose test split is the validation split of `data`."""
    samples = split_rows(data, "en", "validation")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "en.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples))
    return folder


def say(done: Outcome) -> None:
    """What failed and what is left, on stderr."""
    for sentence in done.failed:
        print(f"error: {sentence}", file=sys.stderr)
    if done.left:
        print(f"not done: {', '.join(done.left)}; the same command continues.", file=sys.stderr)


def report(groups: Sequence[Runs], pages: bool = True) -> int:
    """Rows and table of the seeds that all arms on an LLM have, and reports as `pages`; the exit status."""
    found, status = [], 0
    for runs in groups:
        whole, llm = runs.whole_seeds(), runs.arms[0].llm
        if whole:
            found.append(real_rows.row(runs.folder(runs.arms[0], whole[0]), llm, "LLM alone", "", "llm"))
            name = "report" if llm == TAUGHT else f"report-{llm}"
            status = max(status, runs.report(name) if pages else 0)
        found += [real_rows.row(runs.folder(arm, seed), llm, arm.name, seed) for arm in runs.arms for seed in whole]
    if not found:
        print(f"error: {groups[0].output} holds no seed that all arms were scored with; train some.", file=sys.stderr)
        return 2
    write(groups[0].output / "results.csv", found)
    print(real_rows.table(found))
    return status


if __name__ == "__main__":
    run_command(main)
