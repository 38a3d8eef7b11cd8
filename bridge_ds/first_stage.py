"""The first stage of a run with llm.finetune: teach the LLM the task in English, then start again for the bridge.

Both stages are whole runs in folders of their own, one after the other in the same processes: each process replaces
itself (exec) when the first run is finished. Nothing of its engine, device memory or process group is left then, and
signals still reach the process that the launcher knows.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bridge_ds.config.changes import Change, changes
from bridge_ds.config.finetune import first_config
from bridge_ds.config.load import load_run_config
from bridge_ds.config.names import made_at_start, with_full_paths
from bridge_ds.config.schema import Config
from bridge_ds.errors import CheckpointError, LaunchError
from bridge_ds.track.mlflow import tracking_uri

if TYPE_CHECKING:
    from bridge_ds.engine.preempt import StopRequest
    from bridge_ds.world import World

__all__ = ["FirstStage"]

_AFTER = "BRIDGE_DS_AFTER_FINETUNE"
"""Environment variable: this process has just done the first stage of the run in this folder."""
_VISIBLE = 120.0
"""Most seconds until a folder that another node has written is seen here."""


class FirstStage:
    """Of one run."""

    def __init__(self, config: Config, recipe: str, overrides: Sequence[str]) -> None:
        """Args:
        config: of the run, with llm.finetune.
        recipe: that it was made from; likewise `overrides`.
        overrides: see `recipe`.

        Raises:
            ConfigError: llm.finetune_settings cannot be used.
        """
        self.given = config
        first, run = first_config(recipe, overrides, config), Path(config.run.output)
        uri = config.track.uri
        if not (uri or os.environ.get("MLFLOW_TRACKING_URI")):
            uri = tracking_uri(config.track, run) or ""  # one database for both, beside RUN
        name = f"{config.track.name or run.absolute().name}, finetune"
        self.config = replace(first, track=replace(first.track, uri=uri, name=name))
        self.folder = Path(self.config.run.output).absolute()
        self.llm = self.folder / "llm"

    @functools.cached_property
    def is_done(self) -> bool:
        """Whether the LLM is there, as it was when this was first asked.

        Raises:
            CheckpointError: it was taught with other settings.
            LaunchError: this process has just taught it, and does not see it.
        """
        until = time.monotonic() + _VISIBLE * (os.environ.get(_AFTER) == str(self.folder))
        while not (self.llm / "config.json").is_file():
            if time.monotonic() >= until:
                if os.environ.get(_AFTER) == str(self.folder):
                    raise LaunchError(
                        f"{self.llm} is not seen by this rank {_VISIBLE:.0f} s after rank 0 has written it; expected "
                        "a run.output that all nodes share; choose one."
                    )
                return False
            time.sleep(0.5)
        if found := self._changes(load_run_config(self.folder)):
            change = found[0]
            raise CheckpointError(
                f"{self.llm} was taught with {change.key} {change.old!r}; this start has {change.new!r}; expected "
                f"the same; restore that value, choose another run.output, or remove {self.folder}."
            )
        return True

    def _changes(self, taught: Config) -> list[Change]:
        """What makes another LLM than the one that is there."""
        # Those of then too: one that is left out now has the recipe's value.
        given = (*self.given.llm.finetune_settings, *taught.llm.finetune_settings)
        named = {text.partition("=")[0].strip() for text in given}
        found = [change for change in changes(taught, self.config) if change.key in named]
        # Neither is read any more, so that nothing later would notice.
        before, now = taught.model.llm, with_full_paths(self.config.model).llm
        found += [Change("model.llm", before, now)] * (before != now)
        # A folder may have another place in each job (stage_in of slurm/env.sh).
        if made_at_start(taught.data) or made_at_start(self.config.data):
            before, now = taught.data.shards, self.config.data.shards
            found += [Change("data.shards", before, now)] * (before != now)
        return found

    def note(self) -> str:
        """What comes first, or came, for the user."""
        if self.is_done:
            return f"the LLM of this run is {self.llm}, which was taught the task first (llm.finetune)."
        with_ = " with " * bool(self.given.llm.finetune_settings) + ", ".join(self.given.llm.finetune_settings)
        return f"the LLM is taught the task first, in {self.folder}{with_} (llm.finetune); the bridge comes then."

    def bridge(self) -> Config:
        """The run's config once the LLM is taught: an ordinary run on that LLM. For run.resume=must that LLM is what
        the start continues from, until there is a checkpoint of the bridge."""
        given = self.given
        return replace(
            given,
            run=replace(given.run, resume=self._resume_bridge),
            model=replace(given.model, llm=str(self.llm), llm_revision=None),
            llm=replace(given.llm, finetune=False, finetune_settings=()),
        )

    def check(self, ranks: int, on_node: int) -> str:
        """Both run folders and the settings of this stage, before the job, without loading a model.

        Args:
            ranks: of the job.
            on_node: of these on each node.

        Returns:
            :meth:`note`.

        Raises:
            CheckpointError: the run has checkpoints of its bridge, or this stage of another training.
            ConfigError: DeepSpeed refuses the settings.
            LaunchError: the batch sizes do not fit the ranks.
        """
        from bridge_ds.checkpoint.origin import find_origin
        from bridge_ds.config.ds_models import check_with_deepspeed
        from bridge_ds.config.zero import accumulation, read_ds_config, resolve_hpz, resolve_micro_batch

        self._refuse_a_bridge()
        config = resolve_micro_batch(self.config, ranks)
        accumulation(config, ranks)
        check_with_deepspeed(config, resolve_hpz(read_ds_config(config.run.ds_config), ranks, on_node), ranks)
        find_origin(config, self.folder)
        return self.note()

    def check_bridge(self) -> None:
        """Refuse now what the bridge's start would refuse after the hours of this stage.

        Raises:
            CheckpointError: the run has checkpoints of its bridge.
            ConfigError: a base model, its positions or what is to be scored cannot be used.
            DataError: evaluation.llm_from was not scored.
        """
        from bridge_ds.data.loading.tokenize import load_tokenizers
        from bridge_ds.evaluation.store import check_evaluation
        from bridge_ds.llm.positions import notes_on_bases

        self._refuse_a_bridge()
        check_evaluation(self.given)
        notes_on_bases(self.given, load_tokenizers(self.given.model, data=self.given.data))

    @property
    def _resume_bridge(self) -> str:
        """`run.resume` for the bridge, of which there need not be a checkpoint: what `must` demands, or a path names,
        may be one of this stage, as its own start sees to."""
        resume = self.given.run.resume
        of_this = Path(resume).absolute().is_relative_to(self.folder / "checkpoints")
        return "auto" if resume == "must" or of_this else resume

    def _refuse_a_bridge(self) -> None:
        from bridge_ds.checkpoint.load import find

        run = self.given.run
        if found := find(self._resume_bridge, Path(run.output) / "checkpoints"):
            raise CheckpointError(
                f"{found.folder} is of a bridge, and its LLM is not in {self.llm}; expected no checkpoint before the "
                "LLM is taught (llm.finetune); choose another run.output, or set llm.finetune=false."
            )

    def start_again(self, port: int, stop: StopRequest, world: World) -> NoReturn:
        """Replace this process by the same command, which then trains the bridge.

        Args:
            port: the same on all ranks, and not the one at which they met before: the store there may still answer.
            stop: a signal that it has noted, or that comes until the new process listens, is noted by that.
            world: of this process.
        """
        for worker in multiprocessing.active_children():  # they end with their parent, which stays
            worker.terminate()
            worker.join()
        # torchrun's agent keeps a store with the keys of the first group; rank 0 opens another one.
        again = {_AFTER: str(self.folder), "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        # The number of its GPU by now (init_distributed), which is 0 on each rank that sees one alone.
        again["LOCAL_RANK"] = str(world.local_rank)
        sys.stdout.flush()
        sys.stderr.flush()
        stop.pass_on()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **again})
