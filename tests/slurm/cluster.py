"""A real Slurm on this host, and jobs on it that are watched, disturbed and always taken down."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "slurm_cluster.sh"
MISSING = [
    tool for tool in ("munged", "slurmctld", "slurmd") if not shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin")
]


class Cluster:
    """N nodes n0, n1, ... in a folder of their own."""

    def __init__(self, nodes: int, folder: Path, port: int) -> None:
        self.env = os.environ | {
            "SLURM_CLUSTER_DIR": str(folder),
            "SLURM_CLUSTER_PORT": str(port),
            "SLURM_CLUSTER_NODE_TIMEOUT": "6",
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        self.said = self._tool("up", str(nodes))

    def _tool(self, *words: str) -> str:
        run = subprocess.run([str(TOOL), *words], env=self.env, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def down(self) -> None:
        self._tool("down")

    def kill_node(self, name: str) -> None:
        """SIGKILL for a node's slurmd and all that it runs."""
        self._tool("kill", name)

    def start_node(self, name: str) -> None:
        self._tool("start", name)

    def call(self, *command: str) -> str:
        """One of Slurm's own commands."""
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60, check=True).stdout

    def wait_idle(self, nodes: int, timeout: float = 60) -> None:
        until(
            lambda: self.call("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").count("n") >= nodes, timeout
        )

    def submit(self, script: str, arguments: list[str], output: Path, env: dict[str, str], *options: str) -> Job:
        """sbatch from the checkout, with sizes and recipe in the environment as a user would set them."""
        output.parent.mkdir(parents=True, exist_ok=True)
        mine = {
            "PYTHON": sys.executable,
            "SBATCH_GPUS_PER_NODE": "1",
            "SBATCH_SIGNAL": "USR2@30",
            "OUTPUT": str(output),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        }
        log = output.with_suffix(".log")
        command = ["sbatch", "--parsable", f"--output={log}", *options, script, *arguments]
        run = subprocess.run(command, cwd=ROOT, env=self.env | mine | env, capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr
        return Job(self, run.stdout.strip(), output, log)


class Job:
    """One submitted job."""

    def __init__(self, cluster: Cluster, number: str, output: Path, log: Path) -> None:
        self.cluster, self.number, self.output, self.log = cluster, number, output, log

    def show(self) -> dict[str, str]:
        """scontrol's facts."""
        text = self.cluster.call("scontrol", "show", "job", "-o", self.number)
        return dict(part.split("=", 1) for part in text.split() if "=" in part)

    @property
    def state(self) -> str:
        return self.show()["JobState"]

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else "(no log)"

    @property
    def steps(self) -> int:
        """Lines of metrics.jsonl."""
        path = self.output / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    @property
    def starts(self) -> int:
        """Times that the trainer was started."""
        return len(re.findall(r"start \d+ of job", self.text))

    def wait_step(self, step: int, timeout: float = 120) -> None:
        """Until `step` is recorded by a trainer that runs now."""
        starts = self.starts

        def there() -> bool:
            assert self.state not in ("FAILED", "COMPLETED", "CANCELLED", "TIMEOUT"), self.text[-5000:]
            return self.steps >= step

        until(there, timeout, lambda: self.text[-5000:])
        assert self.starts >= starts

    def wait_start(self, number: int, timeout: float = 120) -> None:
        until(lambda: self.starts >= number, timeout, lambda: self.text[-5000:])

    def wait_further(self, start: int, by: int = 2) -> None:
        """Until start number `start` has recorded `by` steps."""
        self.wait_start(start)

        def trains() -> bool:
            # Said when the first batch is there: by then metrics.jsonl has lost the lines that are to be done again.
            return "one sample as the models see it" in self.text.split(f"start {start} of job")[1]

        until(trains, 120, lambda: self.text[-5000:])
        self.wait_step(self.steps + by)

    def wait_end(self, timeout: float = 240) -> str:
        """The final state."""
        final = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        until(lambda: self.state in final, timeout, lambda: self.text[-5000:])
        return self.state

    def ranks(self) -> dict[int, int]:
        """Rank -> pid of the trainers that run now, from their environments."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                values = (entry / "environ").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                mother = (Path("/proc") / str(parent) / "cmdline").read_bytes()
            except (OSError, ValueError, IndexError):
                continue
            # Data workers are forks with the same command line; only a rank's mother is no trainer.
            if b"bridge_ds.train" in words and b"bridge_ds.train" not in mother:
                env = dict(value.split(b"=", 1) for value in values if b"=" in value)
                if (
                    env.get(b"SLURM_JOB_ID") == self.number.encode()
                    and b"SLURM_PROCID" in env
                    and b"SLURM_STEP_ID" in env
                ):
                    found[int(env[b"SLURM_PROCID"])] = int(entry.name)
        return found

    def kill_rank(self, rank: int, number: int = signal.SIGKILL) -> None:
        os.kill(self.ranks()[rank], number)

    def cancel(self) -> None:
        subprocess.run(["scancel", self.number], env=self.cluster.env, capture_output=True, timeout=60)


def until(condition: Callable[[], bool], timeout: float, said: Callable[[], str] = str) -> None:
    """Wait for something; past `timeout` seconds the test fails with what `said` gives."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s\n{said()}"
        time.sleep(0.1)
