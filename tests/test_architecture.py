"""The house: which folder may import which, how long files are, that names agree where they are written twice."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bridge_ds"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the ground up. A file may import its own folder and lower layers.
LAYERS = [
    {"__init__", "errors", "hosts", "objectives", "products", "reading", "shipped", "streams"},
    {"disk", "fusion", "mapping", "typed", "world"},
    {"injection"},
    {"log", "compat", "metrics", "partial"},
    {"entry"},
    {"config"},
    {"testbed"},
    {"frozen"},
    {"data"},
    {"encoder"},
    {"llm", "plan", "states"},
    {"bridge"},
    {"adapt"},
    {"engine", "tasks"},
    {"checkpoint", "track", "start"},
    {"inference"},
    {"evaluation"},
    {"report"},
    {"cli", "run", "harness", "doctor", "probe", "convert", "hub"},
    {"first_stage", "generate", "training_options"},
    {"train"},
    {"checks", "serve"},
    {"commands"},
    {"__main__"},
]
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
# Folders that must work without these packages (kernels are tested on machines that have torch alone).
FREE_OF = {
    "fusion": {"transformers", "deepspeed", "datasets", "webdataset", "mlflow"},
    "mapping": {"transformers", "deepspeed"},
    "llm/splice": {"transformers", "deepspeed"},
    "llm/loss": {"transformers", "deepspeed"},
    "data/sampling/order": {"transformers", "deepspeed", "torch"},
}
# The command lines of folders stand above everything they start.
ENTRY_POINTS = {"evaluation/__main__.py", "report/__main__.py", "harness/__main__.py"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    here = part(path)
    if str(path.relative_to(PACKAGE)) in ENTRY_POINTS:
        return
    for name in imports(path):
        if name.startswith("bridge_ds."):
            there = name.split(".")[1]
            if there != here:
                assert RANKS[there] < RANKS[here], f"{path.name} imports {name}"
    for place, forbidden in FREE_OF.items():
        if str(path.relative_to(PACKAGE)).startswith(place):
            assert not {name.split(".")[0] for name in imports(path)} & forbidden


KNOWN_CIRCLES: set[frozenset[str]] = set()
"""Circles that are still there, each as the set of its files; to be emptied, never to grow."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    """Modules of the package that a file imports, inside functions too; imports for type checkers alone do not run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inside = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {inside[name] if inside[name] in modules else node.module for name in inside}
    return found & modules


def circles(edges: dict[str, set[str]]) -> set[frozenset[str]]:
    """Strongly connected components of more than one node, or of one that imports itself (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = set()

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(edges[node]):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            component = frozenset(stack[stack.index(node) :])
            del stack[stack.index(node) :]
            if len(component) > 1 or node in edges[node]:
                found.add(component)

    for node in sorted(edges):
        if node not in order:
            visit(node)
    return found


def test_every_import_of_ours_exists() -> None:
    """Imports inside functions too: nothing else reads them before the function runs."""
    for path in [*FILES, *(ROOT / "tools").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for name in imports(path):
            file = ROOT.joinpath(*name.split("."))
            if name.split(".")[0] in ("bridge_ds", "tests"):
                assert file.is_dir() or file.with_suffix(".py").is_file(), f"{path}: {name}"


def test_no_files_import_each_other_in_a_circle() -> None:
    """Neither when they are imported nor later, inside a function."""
    modules = {module_of(path) for path in FILES}
    edges = {module_of(path): imported_modules(path, modules) for path in FILES}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == {frozenset("bc"), frozenset("d")}
    found = circles(edges)
    new = found - KNOWN_CIRCLES
    assert not new, [sorted(each) for each in new]
    assert not KNOWN_CIRCLES - found, "a circle is gone; take it out of KNOWN_CIRCLES"


def test_the_folders_of_data_import_one_way() -> None:
    modules = {module_of(path) for path in FILES}
    order = ["sampling", "text", "shards", "packing", "loading"]
    assert set(order) == {path.parent.name for path in (PACKAGE / "data").glob("*/__init__.py")}
    for rank, folder in enumerate(order):
        for path in (PACKAGE / "data" / folder).glob("*.py"):
            for name in imported_modules(path, modules):
                assert not any(name.startswith(f"bridge_ds.data.{above}") for above in order[rank + 1 :]), (path, name)


def test_checkpoint_and_track_do_not_know_each_other() -> None:
    for one, other in (("checkpoint", "track"), ("track", "checkpoint"), ("engine", "track")):
        for path in (PACKAGE / one).rglob("*.py"):
            assert not any(name.startswith(f"bridge_ds.{other}") for name in imports(path)), path


def test_fusion_runs_with_torch_alone() -> None:
    code = (
        "import sys, bridge_ds.fusion, bridge_ds.mapping\n"
        "print([m for m in ('transformers', 'deepspeed', 'triton', 'torch._dynamo') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "tools").rglob("*.py"))], ids=lambda p: p.name)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 320
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 75, node.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_things_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.name != "__init__.py" or tree.body:
        assert ast.get_docstring(tree), path
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_no_module_hides_a_package_that_something_imports() -> None:
    names = {path.stem for path in PACKAGE.glob("*.py")} | {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert not names & {"evaluate", "datasets", "tokenizers", "mlflow", "torch", "transformers", "types", "queue"}


def test_no_two_classes_have_one_name() -> None:
    found: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert not {name: files for name, files in found.items() if len(files) > 1}


def test_names_written_twice_agree() -> None:
    from bridge_ds.config.schema import metadata
    from bridge_ds.frozen.load import DTYPES
    from bridge_ds.objectives import OBJECTIVES

    assert set(get_args(metadata(("model", "dtype"))[0])) == set(DTYPES)
    assert set(get_args(metadata(("data", "objective"))[0])) == set(OBJECTIVES)


def test_every_field_of_the_schema_has_its_sentence() -> None:
    files = list((PACKAGE / "config" / "schema").glob("*.py"))
    assert len(files) > 1
    for node in (node for file in files for node in ast.parse(file.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.ClassDef):
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign):
                    assert isinstance(after, ast.Expr), f"{node.name}.{field.target.id} has no docstring"  # type: ignore[union-attr]


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "tools").rglob("*.py"))], ids=lambda p: p.name)
def test_text_is_utf8_by_name_and_every_command_begins_so(path: Path) -> None:
    """No text file, pipe or child is read in the machine's locale."""
    text = path.read_text(encoding="utf-8")
    for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        values = [arg.value for arg in [*call.args, *given.values()] if isinstance(arg, ast.Constant)]
        text_mode = any(isinstance(value, str) and re.fullmatch(r"[rwaxt+]{1,3}", value) for value in values)
        is_open = name in ("open", "fdopen", "NamedTemporaryFile") and (text_mode or not (call.args or given))
        is_open = is_open or (isinstance(call.func, ast.Name) and name == "open" and len(call.args) == 1)
        of_path = name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute)
        if is_open or of_path or ("text" in given and name in ("run", "Popen")):
            assert "encoding" in given, f"{path.name}:{call.lineno} names no encoding"
    if '\nif __name__ == "__main__":' in text:
        assert text.endswith("\n    run_command(main)\n")


def test_no_machine_stands_in_the_project() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".json", ".toml", ".sh"} and path.is_file():
            text = path.read_text(encoding="utf-8")
            for word in ("/wo" + "rk/", "/ro" + "ot/", "/o" + "pt/"):
                assert word not in text, f"{name} names {word}"


def test_shipped_ds_configs_are_read_by_deepspeed() -> None:
    """Every shipped file parses in this version of DeepSpeed (removed keys are refused there)."""
    from bridge_ds.compat.deepspeed import import_deepspeed
    from bridge_ds.config.schema import Config
    from bridge_ds.config.zero import engine_config, fill_sizes, read_ds_config, resolve_hpz

    deepspeed = import_deepspeed()
    for path in sorted((ROOT / "ds_configs").glob("*.json")):
        values = fill_sizes(resolve_hpz(read_ds_config(path.name), 4, 2), 1000)
        deepspeed.DeepSpeedConfig(json.loads(json.dumps(engine_config(Config(), values, 1))))
