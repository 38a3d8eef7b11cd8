"""What works around torch, transformers, DeepSpeed, MLflow: for which versions, why, which test says when it can go."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from importlib.metadata import version
from typing import Any

from bridge_ds.errors import LaunchError

__all__ = [
    "free_workspaces", "hpz_group_is_reused", "make_mlflow_tables", "masks_known", "mlflow_revision",
    "reuse_hpz_group", "spare_quoted_folders",
]  # fmt: skip

_CREATE = "groups._create_zero_param_parallel_group("
_LOOK_UP = "groups._get_zero_param_intra_parallel_group()"
_REFUSAL = "'ZeRO parameter intra parallel group is already initialized'"

_PADDED: ContextVar[bool | None] = ContextVar("padded", default=None)


def reuse_hpz_group() -> None:
    """Let a second model load under ZeRO-3 with `zero_hpz_partition_size` above 1.

    DeepSpeed 0.19.8: every `zero.Init` (one a `from_pretrained`) makes the groups of ranks that share a second copy of
    the shards, and the second one ends in `AssertionError: ZeRO parameter intra parallel group is already initialized`
    (deepspeedai/DeepSpeed#4901, #7066). Here the second one finds the first one's groups, as in PR #8361, which is
    open. A DeepSpeed that has it is left as it is; tests/config/test_zero.py fails then, and this can go.

    Raises:
        LaunchError: DeepSpeed's code is neither that of 0.19.8 nor that of the pull request.
    """
    from deepspeed.runtime.zero.partition_parameters import Init
    from deepspeed.utils import groups

    make = groups._create_zero_param_parallel_group
    if hasattr(make, "reuses"):
        return
    if hpz_group_is_reused(inspect.getsource(Init.__init__), inspect.getsource(make)):
        return

    def make_once(group_size: int) -> None:
        if groups._get_zero_param_intra_parallel_group() is None:
            make(group_size)
        there: Any = groups._get_zero_param_intra_parallel_group_world_size()
        assert there == group_size, f"groups of {there} ranks are there; {group_size} were asked for"

    make_once.reuses = True  # type: ignore[attr-defined]
    groups._create_zero_param_parallel_group = make_once


def hpz_group_is_reused(init: str, create: str) -> bool:
    """Whether DeepSpeed itself lets `zero.Init` be entered twice under hpZ, by its source text.

    Args:
        init: of `zero.Init.__init__`.
        create: of `groups._create_zero_param_parallel_group`.

    Raises:
        LaunchError: neither the known fault nor the known remedy is there.
    """
    made = init.find(_CREATE)
    if 0 <= init.find(_LOOK_UP) < made:
        return True  # it looks for groups before it makes some
    if made >= 0 and _REFUSAL in create and create.startswith("def _create_zero_param_parallel_group(group_size):"):
        return False
    raise LaunchError(
        f"deepspeed {version('deepspeed')} makes the groups of zero_hpz_partition_size in a way not known here; "
        "expected that of 0.19.8, whose fault is mended, or that of deepspeedai/DeepSpeed#8361; install deepspeed "
        "0.19.8, or use zero3.json."
    )


def free_workspaces() -> None:
    """Give the workspaces of cuBLAS back to torch's allocator; the next matrix product takes one again.

    torch (2.13 at least) has a handle of cuBLAS for each thread that multiplies while others live, and keeps a
    workspace for each pair of handle and stream (32 MiB on Hopper) after the thread has ended: neither is freed by
    itself (aten/src/ATen/cuda/CublasHandlePool.cpp). :func:`bridge_ds.frozen.lockstep.lockstep` has such threads. A
    workspace goes back to the stream that used it, so nothing is waited for.

    tests/frozen/test_lockstep.py says on a GPU when it can go.
    """
    import torch

    if torch.cuda.is_initialized() and hasattr(torch._C, "_cuda_clearCublasWorkspaces"):  # a build for CPUs has none
        torch._C._cuda_clearCublasWorkspaces()


@contextmanager
def masks_known(padded: bool) -> Iterator[None]:
    """While open, transformers does not look into masks and positions of the models that run; the caller knows them.

    transformers (5.17 to 5.24 at least) asks the device in every forward pass of a model: whether a padding mask masks
    anything (`_ignore_bidirectional_mask_sdpa`), and, where no mask is given, whether the position ids restart within a
    row (`find_packed_sequence_indices`). On a GPU the host waits for each answer. Here the first is answered by
    `padded`, the second by no: the rows of this project are never packed. The masks that come out are the same. A
    ready 4-D mask would spare the first look too, but models with local attention (ModernBERT) take it for all layers.

    It can go when tests/test_host_waits.py passes without it.

    Args:
        padded: whether the mask that the model gets masks anything.
    """
    _install()
    token = _PADDED.set(padded)
    try:
        yield
    finally:
        _PADDED.reset(token)


@cache
def _install() -> None:
    """Wrap both functions, once; outside of :func:`masks_known` they do what they did. One that a later version has no
    more is left out: then nothing is known here to be waited for."""
    from transformers import masking_utils

    ignore = getattr(masking_utils, "_ignore_bidirectional_mask_sdpa", None)
    packed = getattr(masking_utils, "find_packed_sequence_indices", None)

    def ignore_known(padding_mask: Any, *args: Any, **options: Any) -> Any:
        padded = _PADDED.get()
        if padded is None or padding_mask is None:
            return ignore(padding_mask, *args, **options)  # type: ignore[misc]
        return False if padded else ignore(None, *args, **options)  # type: ignore[misc]

    def packed_known(position_ids: Any, *args: Any, **options: Any) -> Any:
        return packed(position_ids, *args, **options) if _PADDED.get() is None else None  # type: ignore[misc]

    if ignore:
        masking_utils._ignore_bidirectional_mask_sdpa = wraps(ignore)(ignore_known)
    if packed:
        masking_utils.find_packed_sequence_indices = wraps(packed)(packed_known)


def make_mlflow_tables(uri: str) -> None:
    """Make all tables of MLflow in a sqlite file that nobody else knows yet.

    MLflow (3.17 at least) has no command for it: `mlflow db upgrade` wants a database that was used, and making a store
    works on the file under its own name, where a kill leaves half of it (mlflow/mlflow#23721). The file is not flushed
    to disk after each of some seventy migrations, which takes seven seconds: whoever calls does it at the end.

    It can go when MLflow makes a sqlite database in one transaction; the test that kills a plain client in
    tests/track/test_database.py finds no half-made file then.

    Args:
        uri: of a file in a folder that is there.
    """
    import sqlalchemy
    from mlflow.store.db import utils

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)

    def relax(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(engine, "connect", relax)
    try:
        utils._initialize_tables(engine)
        utils._verify_schema(engine)
    finally:
        engine.dispose()


@cache
def mlflow_revision() -> str:
    """The version of the tables that this MLflow (3.17 at least: a private name) works with."""
    from mlflow.store.db import utils

    return str(utils._get_latest_schema_revision())


def spare_quoted_folders() -> None:
    """Keep MLflow from making a folder called `a%3Fb` beside `a?b`.

    MLflow (3.17) makes the parent folder of a sqlite file by the letters of its URI, and SQLAlchemy opens the file that
    they stand for. The folder is there already when this project asks. tests/track/test_database.py says when it can
    go: it finds no such folder then.
    """
    from mlflow.store.db import utils

    make = getattr(utils, "_make_parent_dirs_if_sqlite", None)
    if make is None or hasattr(make, "spares"):
        return

    @wraps(make)
    def make_unquoted(db_uri: str) -> None:
        if not (db_uri.startswith("sqlite:") and "%" in db_uri):
            make(db_uri)

    make_unquoted.spares = True  # type: ignore[attr-defined]
    utils._make_parent_dirs_if_sqlite = make_unquoted
