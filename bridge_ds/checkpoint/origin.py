"""The checkpoint that a start continues from or begins with, and every setting that differs from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_ds.checkpoint.best import find_folder
from bridge_ds.checkpoint.layout import MANIFEST
from bridge_ds.checkpoint.load import CONTINUED, Checkpoint, find, find_start, goes_on_from_best
from bridge_ds.config.build import from_dict
from bridge_ds.config.changes import (
    Change,
    changes,
    completed,
    file_changes,
    followed,
    refuse_changed,
    refuse_other_bridge,
)
from bridge_ds.config.schema import Config
from bridge_ds.config.zero import read_ds_config
from bridge_ds.errors import CheckpointError, ConfigError

__all__ = ["Origin", "config_in", "find_origin"]


@dataclass(frozen=True)
class Origin:
    """What a start has found."""

    checkpoint: Checkpoint | None
    """The run's own, to continue from."""
    start: Checkpoint | None
    """Another run's, to begin with, if there is no own one."""
    config: Config
    """Of this start; what `auto` resolves to is taken from the checkpoint."""
    changes: tuple[Change, ...]
    """Settings that differ from those of either."""
    anew: bool = False
    """Whether the checkpoint is the folder that run.resume names, and not what an earlier start of the same command has
    left."""
    named: Path | None = None
    """What run.resume names, if it names a folder."""

    def lines(self) -> list[str]:
        """For the user."""
        if self.start:
            lines = [f"beginning with the weights of {self.start.folder}"]
            return lines + [f"  there {change.key} was {change.old!r}, here {change.new!r}" for change in self.changes]
        if not self.checkpoint:
            return []
        step = self.checkpoint.step
        lines = [f"continuing from {self.checkpoint.folder} (step {step}, {self.checkpoint.state['consumed']} samples)"]
        return lines + [f"  changed after step {step}: {change}" for change in self.changes]

    def facts(self) -> dict[str, str]:
        """For the tracker: `changed.KEY` -> `old -> new`."""
        return {f"changed.{change.key}": f"{change.old} -> {change.new}" for change in self.changes}

    def continued(self) -> str:
        """For the manifest, see :data:`bridge_ds.checkpoint.load.CONTINUED`; empty = no folder was named."""
        found = self.checkpoint.manifest if self.checkpoint else {}
        return str(found.get("sha256", "") if self.anew else found.get(CONTINUED, ""))

    def record(self) -> list[dict[str, Any]]:
        """For the manifest: all changes since the run began, each with the step after which it holds."""
        earlier = self.checkpoint.manifest.get("changes", []) if self.checkpoint else []
        step = self.checkpoint.step if self.checkpoint else 0
        return [*earlier, *({"after_step": step, "key": c.key, "old": c.old, "new": c.new} for c in self.changes)]


def find_origin(config: Config, folder: Path) -> Origin:
    """The checkpoint that `run.resume` or `run.start_from` names, its settings compared with those of this start.

    Args:
        config: of this start.
        folder: the run folder.

    Raises:
        CheckpointError: there is none and one was asked for, or with these settings the weights that are there would
            compute something else than they were trained for.
    """
    found = find(config.run.resume, folder / "checkpoints")
    if found:
        trained = config_in(found)
        _refuse_other_kind(trained, config, found.folder, "run.output")
        config = followed(config, found.manifest["config"])
        differing = changes(trained, config)
        refuse_changed(differing, config.run.allow_changes, found.folder, config.train.steps - found.step)
        if "deepspeed" in found.manifest and trained.run.ds_config == config.run.ds_config:
            differing += file_changes(found.manifest["deepspeed"], read_ds_config(config.run.ds_config))
        named = None if config.run.resume in ("auto", "must") else _named(config.run.resume)
        anew = named is not None and named.samefile(found.folder)
        anew = anew and not goes_on_from_best(found, config.run.resume)
        return Origin(found, None, config, tuple(differing), anew, named)
    start = find_start(config.run.start_from)
    if start is None:
        return Origin(None, None, config, ())
    trained = config_in(start)
    _refuse_other_kind(trained, config, start.folder, "run.start_from")
    config = followed(config, start.manifest["config"])
    return Origin(None, start, config, tuple(refuse_other_bridge(trained, config, start.folder)))


def _named(resume: str) -> Path | None:
    """The folder that run.resume names; None = it has been removed since an earlier start went on from it."""
    try:
        folder = find_folder(Path(resume))
    except CheckpointError:
        return None
    return folder if folder.exists() else None


def _refuse_other_kind(trained: Config, config: Config, where: Path, key: str) -> None:
    found, wanted = _kind(trained), _kind(config)
    if found != wanted:
        raise CheckpointError(f"{where} is of a training of {found}; this is one of {wanted}; set another {key}.")


def _kind(config: Config) -> str:
    if config.model.has_bridge:
        return "a bridge (bridge-ds train)"
    return "the LLM alone (bridge-ds finetune)" if config.model.has_llm else "the encoder alone (bridge-ds adapt)"


def config_in(checkpoint: Checkpoint) -> Config:
    """The config that a checkpoint was written with.

    Raises:
        CheckpointError: there is none, or it has a key that this version does not know, or a value that it cannot use.
    """
    if "config" not in checkpoint.manifest:
        raise CheckpointError(
            f"{checkpoint.folder / MANIFEST} has no config; expected that of the training; use another checkpoint."
        )
    try:
        return from_dict(completed(checkpoint.manifest["config"]))
    except ConfigError as error:
        if "sha256" not in checkpoint.manifest:  # from before manifests held their own hash
            raise CheckpointError(
                f"{checkpoint.folder} was written by another version of bridge_ds, or its manifest is damaged "
                f"({error}); it holds no hash of itself to decide which; use the version that wrote it, or move the "
                "folder away to continue from the checkpoint before it."
            ) from None
        raise CheckpointError(
            f"{checkpoint.folder} was written by another version of bridge_ds ({error}); use the version that wrote it."
        ) from None
