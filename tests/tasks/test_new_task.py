"""A new benchmark is one file and one line, done here in a copy of the package."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import bridge_ds

NEW = '''"""A benchmark of two labels."""

from bridge_ds.tasks.table import TableTask


class Weather(TableTask):
    """Two languages."""

    name = "weather"
    hub = "somebody/weather"
    labels = ("rain", "sun")
    codes = ("en", "de")
    prompt = "Report: {text} Weather:"
    columns = {"text": "text", "label": "label"}


TASKS = (Weather(),)
'''
USE = """
import sys
from bridge_ds.config.load import load_config
from bridge_ds.evaluation.jobs import load_jobs
from bridge_ds.tasks import find_tasks
from bridge_ds.world import World
assert sys.argv[1] in find_tasks.__code__.co_filename
config = load_config("testbed", ["evaluation.tasks=[weather]", f"evaluation.data.weather.source={sys.argv[2]}"])
(task,) = find_tasks(config.evaluation.tasks, config.evaluation.data)
for job in load_jobs([task], config.evaluation.languages, 0, World()):
    for example in job.examples:
        print(job.language, example.key, example.source, example.target, example.label, task.chance, sep="|")
print([example.target for example in task.train()])
"""


def test_a_new_task_is_one_file_and_one_line(tmp_path: Path) -> None:
    copy = shutil.copytree(Path(bridge_ds.__file__).parent, tmp_path / "bridge_ds")
    (copy / "tasks" / "weather.py").write_text(NEW, encoding="utf-8")
    text = (copy / "tasks" / "__init__.py").read_text(encoding="utf-8")
    assert text.count('_FILES = ("testbed", ') == 1
    text = text.replace('_FILES = ("testbed", ', '_FILES = ("testbed", "weather", ')
    (copy / "tasks" / "__init__.py").write_text(text, encoding="utf-8")

    data = tmp_path / "data"
    for name, words, label in (("test/en", "wet", "rain"), ("test/de", "hell", "sun"), ("train/en", "bright", "sun")):
        path = data / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"text": "{words}", "label": "{label}"}}\n', encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path), str(data)],
        cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "en|weather-0|Report: wet Weather:|rain|0|0.5",
        "de|weather-0|Report: hell Weather:|sun|1|0.5",
        "['sun']",
    ]
