"""Find the checkpoint to continue from, check that it is complete and of this run, and restore its tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bridge_ds.checkpoint import layout
from bridge_ds.checkpoint.best import BEST, find_folder
from bridge_ds.checkpoint.finite import fault_in_files
from bridge_ds.checkpoint.state import MOMENTS, restore_moments, trained
from bridge_ds.compat.deepspeed import whole
from bridge_ds.engine.distributed import whole_shape
from bridge_ds.errors import CheckpointError, brief

__all__ = [
    "CONTINUED", "Checkpoint", "find", "find_start", "goes_on_from_best", "load_bridge", "load_optimizer", "newest",
    "put_trained", "refuse_other_run", "trained_tensors",
]  # fmt: skip

_log = logging.getLogger(__name__)

_KINDS = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool}
"""dtypes of trained parameters (the first) and of buffers, as safetensors names them."""
CONTINUED = "continued"
"""Key of the manifest: sha256 of the manifest of the folder that run.resume named, from which the run has gone on."""
_RESTORE = "restore the file, or move the checkpoint away to continue from the one before it"


@dataclass(frozen=True)
class Checkpoint:
    """A folder that has been checked."""

    folder: Path
    """`step-00001000`."""
    state: dict[str, Any]
    """state.json."""
    manifest: dict[str, Any]
    """manifest.json."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.state["step"])

    @classmethod
    def read(cls, folder: Path, finite: bool = True) -> Checkpoint:
        """Raises CheckpointError unless the folder is complete and, with `finite`, all its numbers are finite."""
        manifest, state = layout.check(folder), layout.read_state(folder)
        if finite and (fault := _numbers_wrong(folder)):
            raise CheckpointError(f"{folder} {fault}; expected an older one.")
        return cls(folder, state, manifest)


def find(resume: str, root: Path) -> Checkpoint | None:
    """What `run.resume` asks for.

    Args:
        resume: `auto`, `must`, `never`, or the path of one step folder; a newer checkpoint in `root` that continues
            that folder is what an earlier start of the same command has left.
        root: the run's checkpoints folder.

    Raises:
        CheckpointError: a checkpoint was asked for and none is valid, or `never` meets a folder that has some.
    """
    if resume == "never":
        if layout.folders(root):
            raise CheckpointError(
                f"{root} holds checkpoints; run.resume=never expects none; choose another run.output."
            )
        return None
    if resume not in ("auto", "must"):
        own = newest(root) if layout.folders(root) else None
        continued = own.manifest.get(CONTINUED) if own else ""
        if own and goes_on_from_best(own, resume):
            return own
        if own and continued and _asked_for(own) == resume and not Path(resume).exists():
            return own  # likewise, and what it went on from has been removed
        asked = Checkpoint.read(find_folder(Path(resume)))
        if own and own.step > asked.step and continued and continued == asked.manifest.get("sha256"):
            return own  # an earlier start of the same command went on from there
        return asked
    found = newest(root)
    if found is None and (resume == "must" or layout.folders(root)):
        raise CheckpointError(f"no valid checkpoint in {root}; expected one to resume; fix or empty that folder.")
    return found


def goes_on_from_best(found: Checkpoint, resume: str) -> bool:
    """Whether an earlier start of the same command wrote a checkpoint, with run.resume=RUN/checkpoints/best: which that
    is may have changed since."""
    return Path(resume).name == BEST and _asked_for(found) == resume


def _asked_for(found: Checkpoint) -> Any:
    """`run.resume` of the start that wrote a checkpoint."""
    return found.manifest.get("config", {}).get("run", {}).get("resume")


def newest(root: Path, warn: Callable[[str], None] = _log.warning, finite: bool = True) -> Checkpoint | None:
    """The newest valid checkpoint; broken ones are skipped with a warning.

    Args:
        root: the run's checkpoints folder.
        warn: called with the warnings instead of the logger.
        finite: see :meth:`Checkpoint.read`.
    """
    for _, folder in layout.folders(root):
        try:
            return Checkpoint.read(folder, finite)
        except CheckpointError as error:
            warn(f"checkpoint skipped: {error}")
    return None


def _numbers_wrong(folder: Path) -> str:
    """What of a checkpoint's tensors is not finite, for a message after its name; empty if nothing is."""
    from safetensors import SafetensorError

    try:
        fault = fault_in_files(layout.trained_files(folder)) or fault_in_files(
            [folder / layout.OPTIMIZER], squares=False
        )
        return f"is of a step that was not finite: {fault}" if fault else ""
    except (OSError, SafetensorError) as error:
        return f"has tensors that cannot be read ({brief(error)})"


def find_start(start_from: str) -> Checkpoint | None:
    """What `run.start_from` names: a step folder, or the newest valid checkpoint of a run folder; None if empty.

    Raises:
        CheckpointError: there is none.
    """
    if not start_from:
        return None
    folder = find_folder(Path(start_from))
    if (folder / layout.MANIFEST).is_file():
        return Checkpoint.read(folder)
    found = newest(folder / "checkpoints")
    if found is None:
        raise CheckpointError(
            f"run.start_from is {start_from}, which holds no valid checkpoint; expected a run folder or a step folder; "
            "train that run first."
        )
    return found


def refuse_other_run(checkpoint: Checkpoint, expected: dict[str, Any]) -> None:
    """Refuse a checkpoint that is not of this run; see also :mod:`bridge_ds.checkpoint.bases`.

    Args:
        expected: values that must equal those in state.json (seed, global batch, hash of the shard index).

    Raises:
        CheckpointError: one of them differs.
    """
    for name, wanted in expected.items():
        if (found := checkpoint.state.get(name)) != wanted:
            raise CheckpointError(
                f"{checkpoint.folder} was written with {name} {found!r}; this run has {wanted!r}; "
                "restore that value or choose another run.output."
            )


def load_bridge(checkpoint: Checkpoint, model: torch.nn.Module, begin: bool = False) -> None:
    """Copy the masters into a model that DeepSpeed has not taken yet; with sharded parameters a collective.

    Args:
        begin: a new run begins with them (`run.start_from`): trained tensors of a base model that the checkpoint does
            not hold stay as they are.

    Raises:
        CheckpointError: names or shapes differ.
    """
    put_trained(layout.trained_files(checkpoint.folder), model, "set {} as in its config.yaml", begin)


def put_trained(paths: Sequence[Path], model: torch.nn.Module, remedy: str, begin: bool = False) -> None:
    """:func:`load_bridge` from its files.

    Args:
        paths: `bridge.safetensors` first, then those of a trained encoder, LLM or LoRA.
        model: receives the tensors.
        remedy: what to do where a file does not fit, for the message; `{}` becomes the parts of the config.
        begin: see :func:`load_bridge`.

    Raises:
        CheckpointError: a file cannot be read, or names or shapes differ.
    """
    targets = trained_tensors(model)
    with _opened(paths) as files:
        held: dict[str, Any] = {}
        for path, file in zip(paths, files, strict=True):
            for name in list(file.keys()):
                if name in held:
                    raise _unlike(paths, name, f"differ in {name} ({path.name} holds it too); expected it once", remedy)
                held[name] = file
        kept = {name for name in targets if begin and name not in held and name.startswith(("encoder.", "llm."))}
        for name in sorted(set(held) ^ set(targets) - kept):
            where = "the file lacks it" if name in targets else "the model has none of that name"
            raise _unlike(paths, name, f"differ in {name} ({where}); expected the same parameters", remedy)
        for name, file in sorted(held.items()):
            if what := _differs(file.get_slice(name), whole_shape(targets[name]), targets[name].dtype):
                raise _unlike(paths, name, f"differ in {name}; {what}", remedy)
        for name, file in sorted(held.items()):
            _fill(targets[name], file, name)


def _differs(found: Any, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """In what a tensor of a file, not read yet, is not as expected, for a message; empty if in nothing."""
    there = tuple(found.get_shape())
    if there != shape:
        return f"shape {there} in the file, expected {shape}"
    kind = found.get_dtype()
    return "" if _KINDS.get(kind) == dtype else f"dtype {kind} in the file, expected {dtype}"


def _unlike(paths: Sequence[Path], name: str, what: str, remedy: str) -> CheckpointError:
    """The message about one tensor; names its file and the parts of the config that make it."""
    part, file = name.partition(".")[0], layout.files_of([name])[name]
    keys = {"encoder": "encoder", "llm": "lora" if file == layout.LORA else "llm"}.get(part, "fusion and mapping")
    path = paths[0].parent / file
    return CheckpointError(f"{path} and the model {what}; {remedy.format(keys)}.")


def _fill(target: torch.Tensor, file: Any, name: str) -> None:
    """Copy a tensor of a file into a parameter or buffer, into a sharded one from rank 0."""
    with whole([target], written=True), torch.no_grad():
        if not hasattr(target, "ds_id") or torch.distributed.get_rank() == 0:
            target.copy_(file.get_tensor(name))


@contextmanager
def _opened(paths: Sequence[Path]) -> Iterator[list[Any]]:
    """Safetensors files; tensors are read one at a time."""
    from safetensors import SafetensorError, safe_open

    with ExitStack() as stack:
        files = []
        for path in paths:
            try:
                files.append(stack.enter_context(safe_open(path, framework="pt")))
            except (OSError, SafetensorError) as error:
                reason = brief(error)
                raise CheckpointError(
                    f"{path} cannot be read ({reason}); expected safetensors; get the file again."
                ) from None
        yield files


def trained_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What the files hold: trained parameters, and the buffers of fusion and mapping, by name."""
    buffers = {name: b for name, b in model.named_buffers() if name.startswith(("fusion.", "mapping."))}
    return dict(trained(model)) | buffers


def load_optimizer(checkpoint: Checkpoint, engine: Any) -> None:
    """Restore AdamW's state in the engine (a collective).

    Raises:
        CheckpointError: the file cannot be read, or holds other names, shapes or dtypes than this state.
    """
    path = checkpoint.folder / layout.OPTIMIZER
    shapes = {f"{moment}/{name}": whole_shape(p) for name, p in trained(engine.module) for moment in MOMENTS}
    with _opened([path]) as (moments,):
        held = set(moments.keys())
        for name in sorted(held ^ set(shapes)):
            where = "the file lacks it" if name in shapes else "nothing of that name is trained"
            raise CheckpointError(f"{path}: {name} ({where}); expected the state of what is trained; {_RESTORE}.")
        for name, shape in sorted(shapes.items()):
            if what := _differs(moments.get_slice(name), shape, torch.float32):
                raise CheckpointError(f"{path}: {name} has {what}; {_RESTORE}.")
        if "optimizer_step" not in checkpoint.state:
            raise CheckpointError(f"{checkpoint.folder / layout.STATE} has no optimizer_step; {_RESTORE}.")
        restore_moments(engine, moments.get_tensor, int(checkpoint.state["optimizer_step"]))
