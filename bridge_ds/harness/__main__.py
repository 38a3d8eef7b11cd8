"""lm-evaluation-harness with the model `bridge_ds` known to it: `bridge-ds harness --model bridge_ds ...`.

All arguments are lm_eval's own. Releases of lm_eval that read the entry point group `lm_eval.models` (setup.py) find
the model by themselves; 0.4.13 does not.
"""

from __future__ import annotations

import sys

from bridge_ds.entry import run_command
from bridge_ds.errors import ConfigError

__all__ = ["main", "register"]

_HELP = """\
A bridge is the model `bridge_ds`: bridge-ds harness --model bridge_ds --model_args run=RUN --tasks TASKS. What follows
run=RUN in --model_args (bridge=false for the LLM alone, prompt, checkpoint, device_map, ...) is in docs/lm_eval.md. All
else is lm_eval's own help:
"""


def main(argv: list[str] | None = None) -> int:
    """Register, then run lm_eval's own command line."""
    register()
    from lm_eval.__main__ import cli_evaluate

    words = sys.argv[1:] if argv is None else argv
    if words in (["-h"], ["--help"]):
        print(_HELP, flush=True)
    sys.argv = ["lm_eval", *words]
    try:
        cli_evaluate()
    except ValueError as error:
        if not str(error).startswith("Tasks not found"):
            raise
        raise ConfigError(
            f"--tasks has names that lm_eval does not know ({str(error).partition(': ')[2]}); expected names that "
            "`bridge-ds harness ls tasks` lists."
        ) from None
    return 0


def register() -> None:
    """Make the name `bridge_ds` known to lm_eval in this process; nothing of the model is imported yet.

    Raises:
        ConfigError: lm_eval is not installed.
    """
    try:
        # Its own models first: it looks for them only while its registry is empty.
        import lm_eval.models  # noqa: F401
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise ConfigError(
            f"lm_eval cannot be imported ({error}); expected lm-evaluation-harness 0.4.13 or newer; "
            "pip install 'bridge_ds[harness]'."
        ) from None
    if "bridge_ds" not in model_registry:
        model_registry.register("bridge_ds", target="bridge_ds.harness.model:BridgeLM")


if __name__ == "__main__":
    run_command(main)
