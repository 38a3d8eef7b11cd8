"""Train a bridge: the program that each rank runs. Start it with deepspeed, torchrun, srun or plain python."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

# A script's own folder comes first on sys.path, where its modules would hide installed packages of the same name.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent)] + [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]

from bridge_ds.cli import parse_train  # noqa: E402
from bridge_ds.entry import lost_peer, run_command  # noqa: E402
from bridge_ds.errors import Preempted  # noqa: E402
from bridge_ds.streams import leave_out_unwritable  # noqa: E402
from bridge_ds.world import World  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Resolve the config, build the model, train, evaluate; returns the exit status."""
    options = parse_train(argv)
    world = World.detect()
    from bridge_ds.config.ds_file import without_effect
    from bridge_ds.config.effect import idle
    from bridge_ds.config.finetune import finetune_config
    from bridge_ds.config.load import load_config
    from bridge_ds.config.names import with_full_paths
    from bridge_ds.config.zero import accumulation, read_ds_config, resolve_hpz, resolve_micro_batch

    given = (finetune_config if options.finetune else load_config)(options.recipe, options.overrides)
    config = resolve_micro_batch(replace(given, model=with_full_paths(given.model)), world.size)
    ds_values = resolve_hpz(read_ds_config(config.run.ds_config), world.size, world.local_size)
    accumulation(config, world.size)
    if world.is_main:
        for line in [*idle(given), *without_effect(ds_values)]:
            print(f"note: {line}", file=sys.stderr, flush=True)
    if options.dry_run:
        from bridge_ds.cli import show_plan

        show_plan(config, ds_values, world)
        return 0

    leave_out_unwritable()
    from bridge_ds.engine.preempt import StopRequest

    # Before the slow imports: from here on a signal means "save and exit".
    stop = StopRequest().listen(config.run.stop_signals)
    from bridge_ds.config.ds_models import check_kernels, check_with_deepspeed

    check_with_deepspeed(config, ds_values, world.size)
    check_kernels(config, ds_values)
    from bridge_ds.engine.compiled import check_compiler
    from bridge_ds.run import Run

    check_compiler(config.train.compile)
    run = Run(config, ds_values, world, stop)
    try:
        run.prepare()
        run.fit()
        if not config.model.has_encoder:
            from bridge_ds.hub.llm import save_llm

            save_llm(run.config, run.checkpoint, run.folder / "llm", world)
        run.evaluate()
    except Preempted:
        run.close("killed", together=True)
        raise
    except BaseException as error:
        run.close("killed" if isinstance(error, KeyboardInterrupt) or lost_peer(error) else "failed")
        raise
    run.close("finished")
    return 0


if __name__ == "__main__":
    run_command(main)
