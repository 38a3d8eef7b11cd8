"""Settings of a run and of the checkpoint that it resumes: what may change, and what a record from before means.

A setting that was added later has a default for new runs. Runs from before it may have done something else, which is
what a record without the key means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bridge_ds.config.build import flatten, from_dict, to_dict
from bridge_ds.config.schema import KINDS, Config, DataConfig
from bridge_ds.config.schema.fields import FUNCTION, NEITHER
from bridge_ds.errors import CheckpointError, LaunchError

__all__ = [
    "BEFORE", "Change", "changes", "completed", "file_changes", "followed", "refuse_changed", "refuse_other_bridge",
    "refuse_unlike", "with_places",
]  # fmt: skip

_BRIDGE = ("fusion.", "mapping.", "injection.")
"""Sections that define the bridge, whichever run begins with its weights."""
BEFORE: dict[str, dict[str, Any]] = {"data": {"bos": "unless_eos"}}
"""Section -> key -> what runs did before the key existed, where that is not the key's default."""
_OF_NODE = ("data.shards", "data.stage_dir", "data.cache_dir", "data.states_cache")
"""Settings that may have another value on each node: copies of the same files, or files of its own."""
_OPEN = ("bos", "target_space")
"""Keys of `data` whose default, auto, means the recorded value where a run continues from a record."""


@dataclass(frozen=True)
class Change:
    """One setting with another value than before."""

    key: str
    """As a user types it."""
    old: Any
    new: Any

    @property
    def in_function(self) -> bool:
        """Whether the bridge computes or reads something else with it."""
        return KINDS.get(self.key) == FUNCTION

    def __str__(self) -> str:
        return f"{self.key} {self.old!r} -> {self.new!r}"


def changes(old: Config, new: Config) -> list[Change]:
    """Settings of all kinds but NEITHER that differ, in the schema's order."""
    return [change for change in _differing(old, new) if KINDS[change.key] != NEITHER]


def _differing(old: Config, new: Config) -> list[Change]:
    before, after = flatten(old), flatten(new)
    return [Change(key, before[key], after[key]) for key in after if before[key] != after[key]]


def file_changes(old: Any, new: Any, where: str = "run.ds_config") -> list[Change]:
    """What differs between two contents of the DeepSpeed file, as `run.ds_config.KEY`; an absent key is None."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [Change(where, old, new)]
    return [change for key in {**old, **new} for change in file_changes(old.get(key), new.get(key), f"{where}.{key}")]


def refuse_unlike(ranks: Sequence[tuple[Config, Any]]) -> None:
    """Refuse a job whose ranks were started with different settings: they would wait for each other forever.

    Args:
        ranks: of each rank its config and the content of its DeepSpeed file.

    Raises:
        LaunchError: one has another value than rank 0. With llm.finetune, a rank that does not see the LLM that is
            taught has another model.llm.
    """
    (first, its_file), *others = ranks
    for rank, (config, file) in enumerate(others, 1):
        for change in (*_differing(first, config), *file_changes(its_file, file)):
            if change.key not in _OF_NODE and not _same_mixture(change):
                raise LaunchError(
                    f"rank {rank} was started with {change.key} {change.new!r}, rank 0 with {change.old!r}; expected "
                    "the same on all ranks; give all of them the same command, and keep recipe, DeepSpeed file and "
                    "run.output where all nodes see them."
                )


def _same_mixture(change: Change) -> bool:
    """Whether only the folders of data.mixture differ, which may be copies; what they hold is compared later."""
    if change.key != "data.mixture":
        return False
    old, new = ([entry.rpartition("=")[2] for entry in value] for value in (change.old, change.new))
    return old == new


def refuse_changed(found: Sequence[Change], allowed: Sequence[str], where: object, left: int) -> None:
    """Refuse to resume where the bridge would compute something else than it was trained for.

    Args:
        found: what differs.
        allowed: run.allow_changes.
        where: the checkpoint.
        left: steps that are still to be trained; below 0 where the run was shortened.

    Raises:
        CheckpointError: a setting of the kind FUNCTION differs and is not allowed to; or it is allowed, but no step is
            left to train, so that no checkpoint would record it.
    """
    of_function = [change for change in found if change.in_function]
    refused = [change for change in of_function if change.key not in allowed]
    if refused:
        first = refused[0]
        others = f" (and {', '.join(str(change) for change in refused[1:])})" if refused[1:] else ""
        names = ",".join(change.key for change in of_function)
        raise CheckpointError(
            f"{where} was trained with {first.key} {first.old!r}; this start has {first.new!r}{others}, with which the "
            "same weights compute something else; restore that value, choose another run.output, or accept it with "
            f"--set run.allow_changes={names}."
        )
    if of_function and left <= 0:
        raise CheckpointError(
            f"{where} is the last step, so no checkpoint would hold {of_function[0]}; expected the value of the "
            "training; restore it, or raise train.steps."
        )


def refuse_other_bridge(old: Config, new: Config, where: object) -> list[Change]:
    """Refuse to begin with another run's weights (`run.start_from`) where its bridge is built differently.

    Returns:
        Other changes of the kind FUNCTION, to be reported: the next stage may read longer texts, or the prompt too.

    Raises:
        CheckpointError: fusion or mapping compute something else, or the scale of LoRA's updates differs.
    """
    found = [change for change in changes(old, new) if change.in_function]
    both_lora = old.lora.rank > 0 and new.lora.rank > 0
    other = [c for c in found if c.key.startswith(_BRIDGE) or (c.key.startswith("lora.") and both_lora)]
    refused = [change for change in other if change.key not in new.run.allow_changes]
    if refused:
        first = refused[0]
        raise CheckpointError(
            f"run.start_from leads to {where}, which was trained with {first.key} {first.old!r}; this run has "
            f"{first.new!r}, with which the same weights compute something else; set it as there, or accept it "
            f"with --set run.allow_changes={','.join(change.key for change in other)}."
        )
    return found


def with_places(trained: Config, now: Config) -> Config:
    """The config to use a checkpoint with: its own, with the paths and the scoring (kind NEITHER) of the last start.

    Args:
        trained: the one in the checkpoint's manifest.
        now: the one in the run's config.yaml.
    """
    values: dict[str, Any] = to_dict(trained)
    last = to_dict(now)
    for key, kind in KINDS.items():
        if kind == NEITHER:
            part, name = key.split(".")
            values[part][name] = last[part][name]
    values["tasks"] = last["tasks"]
    return from_dict(values)


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of a recorded config, with those of :data:`BEFORE` where a key is absent."""
    found = dict(values)
    for part, before in BEFORE.items():
        there = {} if found.get(part) is None else found[part]
        found[part] = {**before, **there} if isinstance(there, Mapping) else there
    return found


def followed(config: Config, recorded: Mapping[str, Any]) -> Config:
    """The config of a run that continues from a checkpoint, or begins with its weights: `auto` is what was recorded.

    Args:
        config: of the run that starts.
        recorded: nested values of the config in the checkpoint's manifest.
    """
    theirs = completed(recorded)["data"]
    open_ = [key for key in _OPEN if getattr(config.data, key) == "auto"]
    defaults = DataConfig()
    return replace(config, data=replace(config.data, **{key: theirs.get(key, getattr(defaults, key)) for key in open_}))
