"""README and docs/ stay true: names, keys, options and links are checked, and commands that need nothing are run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
BLOCK = re.compile(r"(?:<!-- (?P<mark>[a-z]+): (?P<name>.+?) -->\n)?```bash\n(?P<code>.+?)\n```", re.DOTALL)
BLOCKS = [(name, block) for name, text in TEXTS.items() for block in BLOCK.finditer(text)]


def lines(code: str) -> list[str]:
    """The commands of a block, without comments, continued lines joined."""
    found = [line.split("   #")[0].strip() for line in code.replace("\\\n", " ").splitlines()]
    return [line for line in found if line and not line.startswith("#")]


def program(line: str) -> tuple[list[str], list[str]]:
    """What starts the line's own command here, and its arguments; nothing for the programs of others."""
    parts = [part for part in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", part)]
    if parts[:1] == ["torchrun"]:
        parts = parts[parts.index("-m") - 1 :]
        parts[0] = "python"
    if parts[:1] == ["bridge-ds"]:
        two = parts[1] in ("pack", "slurm", "track", "convert") and parts[2][:1].isalpha() and ":" not in parts[2]
        count = 3 if two else 2
        return [sys.executable, "-m", "bridge_ds", *parts[1:count]], parts[count:]
    if parts[:2] == ["python", "-m"] and parts[2].startswith("bridge_ds"):
        return [sys.executable, *parts[1:3]], parts[3:]
    if parts[:2] == ["deepspeed", "bridge_ds/train.py"]:
        return [sys.executable, "bridge_ds/train.py"], parts[2:]
    return [], []


@cache
def usage(command: tuple[str, ...]) -> str:
    done = subprocess.run(
        [*command, "--help"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=60, check=True
    )
    return done.stdout


def test_every_command_is_run_or_says_what_it_needs() -> None:
    assert len(BLOCKS) > 12
    for page, block in BLOCKS:
        assert block["mark"] in ("command", "run", "needs"), f"{page}: {block['code'].splitlines()[0]}"


def test_commands_have_the_options_that_the_pages_give_them() -> None:
    count = 0
    for page, block in BLOCKS:
        for line in lines(block["code"]):
            command, arguments = program(line)
            if not command or "harness" in command[-1]:  # lm_eval's own options
                continue
            text = usage(tuple(command))
            for option in (part for part in arguments if part.startswith("--")):
                assert re.search(rf"(?<![\w-]){option}\b", text), f"{page}: {line}: {option}"
                count += 1
    assert count > 30


@pytest.mark.parametrize("page", TEXTS)
def test_files_keys_and_recipes_exist(page: str) -> None:
    from bridge_ds.config.load import flatten, load_config

    text = TEXTS[page]
    for name in re.findall(r"(?<![\w/.])((?:bridge_ds|tools|slurm|ds_configs|tests)/[\w/.-]*\w)", text):
        assert (ROOT / name).exists() or "NAME" in name, name
    if page == "architecture.md":  # names there are relative to the package
        for name in re.findall(r"`([a-z_]+/[\w/.]*)`", text):
            assert any((folder / name).exists() for folder in (ROOT, ROOT / "bridge_ds")) or "NAME" in name, name
    keys = set(flatten(load_config("testbed")))
    sections = "|".join(sorted({key.partition(".")[0] for key in keys}))
    files = r"(?!(?:py|yaml|json|jsonl|safetensors)\b)"
    for key in re.findall(rf"(?:--set |`)((?:{sections})\.{files}\w+)(?:=|`)", text):
        assert key in keys, key
    for recipe in re.findall(r"`(testbed|xnli_\w+|mt5xl_\w+|mindmerger_\w+)`|--recipe (?!NAME)(\w+)", text):
        assert (ROOT / "bridge_ds" / "config" / "recipes" / f"{''.join(recipe)}.yaml").is_file(), recipe


def test_a_new_fusion_is_told_of_every_operation() -> None:
    from bridge_ds.fusion import kernels

    told = set(re.findall(r"`(fuse_by_\w+)`", TEXTS["how_to_add.md"]))
    assert told == {name for name in kernels.__all__ if name.startswith("fuse_by_")}


def test_readme_is_a_front_page() -> None:
    assert TEXTS["README.md"].count("\n") <= 150
    for link in re.findall(r"\]\((docs/[\w.]+)\)", TEXTS["README.md"]):
        assert (ROOT / link).is_file(), link


def test_mkdocs_finds_no_broken_link(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "slurm" / "index.html").read_text(encoding="utf-8")
    assert "slurm copy" in page and not re.findall(r"""(?:src|<link[^>]+href)=["']https?:""", page)


def test_the_recipe_of_the_new_language_resolves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge_ds.config.load import load_config
    from bridge_ds.tasks import tasks_of
    from bridge_ds.tasks.shards import train_rows

    (recipe,) = re.findall(r"```yaml\n(# quy.yaml\n.+?)```", TEXTS["new_language.md"], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "topics" / "train").mkdir(parents=True)
    for name in ("en", "quy", "train/en"):
        (tmp_path / "topics" / f"{name}.csv").write_text("text,topic\nA team won.,sports\nA law passed.,politics\n")
    Path("quy.yaml").write_text(recipe, encoding="utf-8")
    config = load_config("./quy.yaml")
    (task,) = tasks_of(config)
    assert (config.model.encoder, config.data.shards, task.languages) == (
        "runs/quy/encoder",
        "task:topics",
        ("en", "quy"),
    )
    assert [(example.source, example.label) for example in task.examples("quy", 0)] == [
        ("Sentence: A team won. Topic:", 3), ("Sentence: A law passed. Topic:", 2)
    ]  # fmt: skip
    rows, _ = train_rows(task)
    assert [row["target"] for row in rows] == ["sports", "politics"]


def prepare(name: str, folder: Path) -> None:
    """Files that a block reads, beside `runs/mine`."""
    if name == "data":
        rows = [{"question": f"How many are {n} and {n}?", "answer": str(2 * n)} for n in range(40)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "train.jsonl").write_text(text, encoding="utf-8")
    if name == "own task":
        (yaml,) = re.findall(r"```yaml\n(# my_news.yaml\n.+?)```", TEXTS["evaluation.md"], re.DOTALL)
        (folder / "my_news.yaml").write_text(yaml, encoding="utf-8")
        (folder / "news" / "train").mkdir(parents=True)
        for place in ("en", "si", "ta", "train/en"):
            (folder / "news" / f"{place}.csv").write_text("headline,topic\nA team won,1\nA law passed,2\n")
    if name == "inference":
        rows = [{"source": "News Sentence: a text Category:"}] * 3
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "questions.jsonl").write_text(text, encoding="utf-8")


RUN = [(page, block["name"], block["code"]) for page, block in BLOCKS if block["mark"] == "run"]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "name", "code"), RUN, ids=[name for _, name, _ in RUN])
def test_commands_run_as_they_stand(page: str, name: str, code: str, trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(trained_run)
    prepare(name, tmp_path)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for line in lines(code):
        command, arguments = program(line)
        done = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=env, input="a typed text\n",
            capture_output=True, text=True, encoding="utf-8", timeout=300,
        )  # fmt: skip
        assert done.returncode in ((0, 1) if "doctor" in line else (0,)), f"{page}: {line}\n{done.stderr[-3000:]}"
        assert done.stdout.strip() or done.stderr.strip(), line
    if name == "inference":
        answers = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(answers) == 3 and all(json.loads(answer)["answer"] for answer in answers)
