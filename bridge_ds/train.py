"""Train a bridge: the program that each rank runs. Start it with deepspeed, torchrun, srun or plain python."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# A script's own folder comes first on sys.path, where its modules would hide installed packages of the same name.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent)] + [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]

from bridge_ds.entry import lost_peer, run_command  # noqa: E402
from bridge_ds.errors import Preempted  # noqa: E402
from bridge_ds.streams import leave_out_unwritable  # noqa: E402
from bridge_ds.training_options import parse_train  # noqa: E402
from bridge_ds.world import World  # noqa: E402

if TYPE_CHECKING:
    from bridge_ds.config.schema import Config
    from bridge_ds.engine.preempt import StopRequest


def main(argv: list[str] | None = None) -> int:
    """Resolve the config, build the model, train, evaluate; returns the exit status."""
    options = parse_train(argv)
    world = World.detect()
    from bridge_ds.config.effect import idle
    from bridge_ds.config.finetune import asked_config

    given = asked_config(options.recipe, options.overrides, options.finetune)
    first, notes = None, idle(given)
    if given.llm.finetune:
        from bridge_ds.first_stage import FirstStage

        first = FirstStage(given, options.recipe, options.overrides)
        notes.append(first.note())
        given = first.bridge() if first.is_done else given
    config, ds_values = resolved(given, world, notes)
    if options.dry_run:
        from bridge_ds.training_options import show_plan

        show_plan(config, ds_values, world)
        return 0

    leave_out_unwritable()
    from bridge_ds.engine.preempt import StopRequest

    # Before the slow imports: from here on a signal means "save and exit".
    stop = StopRequest().listen(config.run.stop_signals)
    if first and not first.is_done:
        check(config, ds_values, world)
        first.check_bridge()
        config, ds_values = resolved(first.config, world)
        first.start_again(train(config, ds_values, world, stop), stop, world)
    train(config, ds_values, world, stop)
    return 0


def resolved(given: Config, world: World, notes: Sequence[str] = ()) -> tuple[Config, dict[str, Any]]:
    """The config with what it leaves open for these ranks, and the content of its DeepSpeed file; prints the notes."""
    from bridge_ds.config.ds_file import without_effect
    from bridge_ds.config.names import with_full_paths
    from bridge_ds.config.zero import accumulation, read_ds_config, resolve_hpz, resolve_micro_batch

    config = resolve_micro_batch(replace(given, model=with_full_paths(given.model)), world.size)
    ds_values = resolve_hpz(read_ds_config(config.run.ds_config), world.size, world.local_size)
    accumulation(config, world.size)
    if world.is_main:
        for line in [*notes, *without_effect(ds_values)]:
            print(f"note: {line}", file=sys.stderr, flush=True)
    return config, ds_values


def check(config: Config, ds_values: dict[str, Any], world: World) -> None:
    """What DeepSpeed, the kernels or the compiler would refuse, before anything is loaded."""
    from bridge_ds.config.ds_models import check_kernels, check_with_deepspeed

    check_with_deepspeed(config, ds_values, world.size)
    check_kernels(config, ds_values)
    from bridge_ds.engine.compiled import check_compiler

    check_compiler(config.train.compile)


def train(config: Config, ds_values: dict[str, Any], world: World, stop: StopRequest) -> int:
    """One run; returns a port at which the ranks can meet again."""
    check(config, ds_values, world)
    from bridge_ds.run import Run

    run = Run(config, ds_values, world, stop)
    try:
        run.prepare()
        run.fit()
        if not config.model.has_bridge:
            from bridge_ds.hub.alone import save_alone

            save_alone(run.config, run.tokenizers, run.checkpoint, run.folder, world)
        run.evaluate()
        from bridge_ds.engine.distributed import next_port

        port = next_port(world)
    except Preempted:
        run.close("killed", together=True)
        raise
    except BaseException as error:
        run.close("killed" if isinstance(error, KeyboardInterrupt) or lost_peer(error) else "failed")
        raise
    run.close("finished")
    return port


if __name__ == "__main__":
    run_command(main)
