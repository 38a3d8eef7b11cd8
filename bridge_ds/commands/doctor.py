"""Why does this bridge answer badly? Measure a finished run on its own training samples, and list what to try.

examples:
  bridge-ds doctor runs/mine
  bridge-ds doctor runs/mine --samples 256 --json > doctor.json

One process, both models in memory; --device-map auto splits them over the GPUs.
Exit status 0: healthy. 1: something is wrong; the worst comes first.
2: it cannot be examined (no run, no checkpoint, models or shards missing); one sentence gives the reason.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bridge_ds.cli import Parser, add_placing, positive


def main(argv: list[str] | None = None) -> int:
    """Examine, print, and return the exit status."""
    parser = Parser(prog="bridge-ds doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder (run.output of the training run)")
    parser.add_argument(
        "--samples",
        type=positive(int, least=2, most=1_000_000),
        default=64,
        help="training samples to look at, 2 or more, as sources are swapped between them (default: 64)",
    )
    parser.add_argument("--device", help="torch device, the same as --device-map DEVICE")
    add_placing(parser, "the GPU if there is one, else the CPU")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the page")
    options = parser.parse_args(argv)
    return _examine(options)


def _examine(options: argparse.Namespace) -> int:
    from bridge_ds.doctor.diagnose import diagnose
    from bridge_ds.doctor.example import look
    from bridge_ds.doctor.load import load_run
    from bridge_ds.doctor.measure import examine
    from bridge_ds.doctor.text import page
    from bridge_ds.engine.distributed import device_of
    from bridge_ds.errors import ConfigError
    from bridge_ds.track.metrics_file import plain
    from bridge_ds.world import World

    if options.device and options.device_map:
        raise ConfigError("both --device and --device-map are given; expected one of them.")
    device_map = options.device or options.device_map
    loaded = load_run(options.run, device_of(World()) if device_map is None else device_map, options.max_memory)
    measured, rows = examine(loaded, options.samples)
    findings = diagnose(measured)
    example = None if measured.outside_vocabulary or measured.not_finite else look(loaded, rows[0])
    wrong = any(finding.wrong for finding in findings)
    if options.json:
        content = {
            "run": str(options.run),
            "checkpoint": loaded.checkpoint.folder.name,
            "healthy": not wrong,
            "findings": [
                {"code": f.code, "wrong": f.wrong, "what": f.what, "advice": f.advice} for f in findings
            ],
            "measurements": measured.as_json(),
            "example": example.as_json() if example else None,
        }  # fmt: skip
        print(json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(page(f"{options.run} at {loaded.checkpoint.folder.name}", measured, findings, example))
    return int(wrong)
