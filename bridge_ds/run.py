"""One training run from start to end: connects all stages, in the order in which they start."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bridge_ds.adapt.english import check_english
from bridge_ds.adapt.model import tokenizers_of
from bridge_ds.checkpoint.bases import restore
from bridge_ds.checkpoint.hook import CheckpointHook
from bridge_ds.checkpoint.layout import step_folder
from bridge_ds.checkpoint.load import CONTINUED, load_optimizer, refuse_other_run
from bridge_ds.checkpoint.origin import Origin, find_origin
from bridge_ds.checkpoint.save import set_aside
from bridge_ds.compat.torch import set_timeout
from bridge_ds.config.changes import refuse_unlike
from bridge_ds.config.load import to_dict
from bridge_ds.config.names import made_at_start
from bridge_ds.config.schema import Config
from bridge_ds.config.zero import read_ds_config, stage
from bridge_ds.data.loading.batch import StepBatches
from bridge_ds.data.loading.corpus import Corpus, open_corpus
from bridge_ds.data.loading.loader import make_loader
from bridge_ds.data.loading.plan import order_of
from bridge_ds.data.loading.tokenize import check_vocabulary
from bridge_ds.data.shards.index import INDEX_NAME
from bridge_ds.data.text.convention import settled
from bridge_ds.disk import real
from bridge_ds.engine.cpu import slow_dtype
from bridge_ds.engine.distributed import (
    INIT_TIMEOUT,
    agree,
    any_rank,
    barrier,
    device_of,
    everyones,
    init_distributed,
    on_all,
    on_main,
    shutdown,
)
from bridge_ds.engine.fitted import begin_mapping
from bridge_ds.engine.gpu import settle_numbers
from bridge_ds.engine.hooks import HookList
from bridge_ds.engine.kept import RunStates
from bridge_ds.engine.loop import fit
from bridge_ds.engine.preempt import StopRequest
from bridge_ds.engine.setup import as_recorded_now, base_identities, build_model, gathering, initialize
from bridge_ds.engine.trainable import trainable_table
from bridge_ds.engine.validate import make_validation
from bridge_ds.engine.watchdog import Watchdog
from bridge_ds.errors import ConfigError, DataError, Preempted
from bridge_ds.fusion import FUSIONS
from bridge_ds.fusion.kernels import choose_backend, why_no_triton
from bridge_ds.llm.packing import packing_of
from bridge_ds.llm.positions import notes_on_bases
from bridge_ds.start import RunFolder, versions
from bridge_ds.track.trackers import check_trackers, feeds
from bridge_ds.world import World

__all__ = ["Run"]

_log = logging.getLogger(__name__)


class Run:
    """State that the stages share. Every method is called on every rank."""

    def __init__(self, config: Config, ds_values: dict[str, Any], world: World, stop: StopRequest) -> None:
        self.config, self.ds_values, self.world, self.stop = config, ds_values, world, stop
        self.run_folder = RunFolder(config.run.output)
        self.folder = self.run_folder.path
        self.hooks = HookList()
        self.watchdog = Watchdog(self.folder / "heartbeat", world, config.run.hang_seconds)
        self.began, self.done = time.perf_counter(), 0
        self.bad_samples: dict[str, int] = {}

    def prepare(self) -> None:
        """Load data, models, checkpoint and engine; write the run folder only when nothing can refuse the start."""
        # TF32 only beside bfloat16: it is more precise than that, but less than float32.
        settle_numbers(self.config.run.deterministic, self.config.train.tf32 and self.config.model.dtype == "bfloat16")
        init_distributed(self.world, self.config.data.workers)
        refuse_unlike(everyones((self.config, self.ds_values), self.world))
        self.device = device_of(self.world)
        on_main(lambda: check_trackers(self.config), self.world)
        on_main(lambda: check_english(self.config), self.world)
        on_all(self._check_evaluation, self.world)
        self.fusion_backend = on_all(self._choose_backend, self.world)
        self._leave_if_asked()
        if self.device.type == "cpu" and (slow := slow_dtype(self.config.model.dtype)):
            _log.info(f"note: {slow}")
        on_main(self.run_folder.check, self.world)
        self.origin: Origin = on_main(lambda: find_origin(self.config, self.folder), self.world)
        checkpoint, start = self.origin.checkpoint, self.origin.start
        self.done = checkpoint.step if checkpoint else 0
        on_all(self._load_tokenizers, self.world)
        self._leave_if_asked()
        config = self._with_shards()
        self._leave_if_asked()
        corpus = self._open_corpus(config)
        self.state = {**order_of(config), **corpus.recorded}
        if checkpoint:
            refuse_other_run(checkpoint, self.state)  # base models are compared after loading
        self.unvalidated = checkpoint.state.get("unvalidated") if checkpoint else None
        self.bad_samples = checkpoint.state.get("bad_samples", {}) if checkpoint else {}
        packing = on_all(lambda: packing_of(self.config, self.device.type), self.world)
        make = partial(make_loader, config, self.world, self.tokenizers, self.done, corpus=corpus, packing=packing)
        loader = on_all(lambda: make(pin_memory=self.device.type == "cuda"), self.world)
        # Workers start here: they prepare the first steps while the models load, and must be forked before NCCL
        # connects, see init_distributed.
        self.batches = iter(loader)
        self._leave_if_asked()
        self.validation = make_validation(config, self.world, self.tokenizers, corpus, packing)
        self.states = RunStates(config, self.tokenizers, corpus, self.world, self.device)
        model = build_model(config, self.tokenizers.bos_id, self.ds_values, self.world, self.states.complete)
        self.states.begin(model.encoder, loader, self.validation)
        self._leave_if_asked()
        for part in model.bases:
            sizes = getattr(model, part).vocab_size, f"model.{part}"
            on_all(partial(check_vocabulary, getattr(self.tokenizers, part), *sizes), self.world)
        recorded = found.manifest["base"] if (found := checkpoint or start) else None
        base = on_main(lambda: base_identities(self.config, model, self.tokenizers, recorded), self.world)
        self._leave_if_asked()
        restore(model, checkpoint, start, base, self.config.model)
        self.base = on_main(lambda: as_recorded_now(base, self.config, model, self.tokenizers), self.world)
        table = trainable_table(model)
        self.engine = initialize(model, self.config, self.ds_values, self.world)
        begun: list[str] = []
        if checkpoint:
            load_optimizer(checkpoint, self.engine)
        elif not start:
            begun = begin_mapping(self.engine, self.config, self.tokenizers, loader, self.states, self.world)
        self._leave_if_asked()
        self.watchdog.start(on_main(lambda: self.run_folder.accept(self.config), self.world))
        self._add_hooks()
        self._log_start(table, begun)

    def fit(self) -> None:
        """Train the remaining steps."""
        if self.done >= self.config.train.steps:
            _log.info(f"nothing to train: step {self.done} of {self.config.train.steps} is already done.")
        _log.info(f"start-up took {time.perf_counter() - self.began:.1f} s")
        fit(
            self.engine,
            self._shown(self.batches),
            self.config,
            self.world,
            self.device,
            self.hooks,
            self.done,
            bad_samples=self.bad_samples,
            stop=self.stop,
            watchdog=self.watchdog,
            validation=self.validation,
            unvalidated=self.unvalidated,
        )
        self.done = max(self.done, self.config.train.steps)
        self.watchdog.arm(False)  # what follows may take long without progress
        set_timeout(INIT_TIMEOUT.total_seconds())

    def _shown(self, batches: Iterator[StepBatches]) -> Iterator[StepBatches]:
        for batch in self.states.attached(batches):
            if batch.example:
                _log.info("one sample as the models see it:\n  " + batch.example.replace("\n", "\n  "))
            yield batch

    @property
    def checkpoint(self) -> Path:
        """Folder of the newest checkpoint, once the run is trained."""
        return step_folder(self.folder / "checkpoints", self.done)

    def evaluate(self) -> None:
        """Score the recipe's tasks in all their languages, the LLM alone and the bridge."""
        if not self.config.evaluation.tasks:
            return
        from bridge_ds.evaluation.scoring import score_run

        self.engine.eval()
        results = score_run(
            self.engine.module,
            self.tokenizers,
            self.config,
            self.world,
            self.device,
            partial(self._leave_if_asked, f"while scoring, after step {self.config.train.steps}"),
            run=self.folder,
            checkpoint=self.checkpoint.name,
            base=self.base,
        )
        if self.world.is_main:
            from bridge_ds.evaluation.score import write_evaluation
            from bridge_ds.evaluation.table import table
            from bridge_ds.report.choose import after_scoring, measured_if_chosen

            write_evaluation(self.folder / "evaluation.json", results, self.checkpoint.name)
            print(table(results), flush=True)
            after_scoring(self.folder, results, measured_if_chosen(self.config, self.checkpoint, self.base))
        self.hooks.on_evaluation(results)

    def _leave_if_asked(self, when: str = "during the start; nothing was written") -> None:
        """Between two stages, a collective. Raises Preempted on every rank."""
        if any_rank(bool(self.stop)):
            raise Preempted(f"preempted {when}")

    def close(self, status: str, together: bool = False) -> None:
        """Call on_end of the hooks; destroy the process group after success only. `together`: on every rank."""
        if self.world.is_main:
            self.run_folder.undo()
        self.watchdog.mark("end")
        self.watchdog.arm(False)
        self.hooks.on_end(status)
        if together:
            # Launchers end all ranks when the first exits with an error; rank 0 may still be sending to the trackers.
            barrier(self.world)
        if status == "finished":
            _log.info(f"done in {time.perf_counter() - self.began:.0f} s; the run is in {self.config.run.output}")
            shutdown()

    def _check_evaluation(self) -> None:
        if self.config.evaluation.tasks:
            from bridge_ds.evaluation.store import check_evaluation

            check_evaluation(self.config)

    def _choose_backend(self) -> str:
        """The fusion's backend, chosen before the slow parts of the start; empty if it has none."""
        if not self.config.model.has_bridge or "backend" not in FUSIONS[self.config.fusion.name].options:
            return ""
        try:
            backend = choose_backend(self.config.fusion.backend, self.device.type)
        except ValueError as error:
            raise ConfigError(f"{error}.") from None
        if (self.config.fusion.backend, self.device.type, backend) == ("auto", "cuda", "torch"):
            return f"torch, as triton {why_no_triton()}"
        return backend

    def _load_tokenizers(self) -> None:
        """Load the tokenizers, and resolve settings of the LLM's text (BOS, spaces): as in the run that is resumed,
        else as the tokenizer does."""
        self.config = self.origin.config
        self.tokenizers = tokenizers_of(self.config)
        if not (resumes := self.origin.checkpoint is not None):
            self.config = replace(self.config, data=settled(self.config.data, self.tokenizers))
        if self.done < self.config.train.steps:  # else nothing is trained, and scoring truncates
            for note in on_all(lambda: notes_on_bases(self.config, self.tokenizers, resumes), self.world):
                _log.info(f"note: {note}")

    def _with_shards(self) -> Config:
        """The config with the name of shards that a start makes replaced by their folder."""
        if not made_at_start(self.config.data):
            return self.config
        folder = on_main(partial(self.run_folder.made_shards, self.config), self.world)
        return replace(self.config, data=replace(self.config.data, shards=str(folder)))

    def _open_corpus(self, config: Config) -> Corpus:
        corpus: Corpus = on_all(lambda: open_corpus(config.data, config.run.seed, self.world), self.world)
        expected = agree(corpus.recorded, self.world)

        def compare() -> None:
            if corpus.recorded != expected:
                raise DataError(
                    f"rank {self.world.rank} reads another {INDEX_NAME} of {config.data.shards} or another dictionary "
                    "than rank 0; expected the same on every node: copy them again, and change none during a start."
                )

        on_all(compare, self.world)
        return corpus

    def _add_hooks(self) -> None:
        """Order matters: metrics.jsonl first, then what may fail, the checkpoint after its own step's line."""
        hooks = self.hooks.hooks
        if self.world.is_main:
            from bridge_ds.track.console import Console
            from bridge_ds.track.metrics_file import MetricsLog
            from bridge_ds.track.plots import PlotHook

            # What was trained further from an older checkpoint is another training, although the steps are the same.
            again_after = self.done if self.origin.anew else None
            if again_after is not None:
                for line in set_aside(real(self.folder / "checkpoints"), self.done):
                    _log.info(line)
            facts = {"ranks": self.world.size, "device": self.device.type, "ZeRO stage": stage(self.ds_values)}
            facts |= gathering(self.engine, self.ds_values)
            facts |= {"fusion backend": self.fusion_backend} if self.fusion_backend else {}
            hooks += [
                MetricsLog(self.folder / "metrics.jsonl"),
                Console(self.config.run.output, facts, self.config.track.every),
                PlotHook(self.folder),
                *feeds(self.folder, self.config, facts | self.origin.facts(), again_after=again_after),
            ]
        hooks.append(
            CheckpointHook(
                self.engine,
                real(self.folder / "checkpoints"),
                self.config.checkpoint,
                state=self.state,
                manifest={
                    "base": self.base,
                    "config": to_dict(self.config),
                    "deepspeed": read_ds_config(self.config.run.ds_config),
                    "changes": self.origin.record(),
                    CONTINUED: self.origin.continued(),
                    "versions": versions(),
                },
                world=self.world,
                hooks=self.hooks,
                mark=self.watchdog.mark,
                origin=self.origin,
            )
        )

    def _log_start(self, table: str, begun: list[str]) -> None:
        for line in (table, *self.origin.lines(), *begun):
            _log.info(line)
