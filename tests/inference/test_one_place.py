"""Truncation, stop strings, and a checkpoint that becomes a model: each is decided in exactly one place."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "bridge_ds"
TREES = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}


def importers(module: str, *names: str) -> set[str]:
    """Files that import one of the names from a module."""
    return {
        file
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == module and {a.name for a in node.names} & set(names)
    }


def files_with(found: type[ast.AST], *, name: str) -> set[str]:
    """Files with a call, or a class with a base, of that last name; or a keyword argument of it."""
    files = set()
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, found):
                continue
            given = (
                [node.func] if isinstance(node, ast.Call) else node.bases if isinstance(node, ast.ClassDef) else [node]
            )
            if name in {getattr(each, key, None) for each in given for key in ("attr", "id", "arg")}:
                files.add(file)
    return files


def test_what_is_truncated_is_decided_in_one_file() -> None:
    rule, ids = "bridge_ds.data.text.truncate", "bridge_ds.data.text.prompting"
    cuts = {
        "data/loading/adapting.py",  # of the encoder alone, which reads no prompt
        "data/loading/tokenize.py",
        "data/text/prompting.py",
        "probe/reader.py",  # of sentences to measure
    }
    assert importers(rule, "fit", "truncated") == cuts
    assert importers(ids, "context_ids") == {"inference/prompt.py"}, "every prompt, of whatever use"
    assert files_with(ast.keyword, name="truncation") == set(), "no tokenizer truncates"
    assert files_with(ast.Call, name="around") == set()
    # The second one only puts the tokens of a choice behind what the first has made.
    assert importers("bridge_ds.llm.splice", "splice") == {"bridge.py", "inference/score.py"}


def test_what_ends_an_answer_is_decided_in_one_file() -> None:
    assert files_with(ast.ClassDef, name="StoppingCriteria") == {"inference/stops.py"}
    assert files_with(ast.ClassDef, name="TextStreamer") == set()
    assert importers("bridge_ds.inference.stops", "StopStrings", "stop_criterion") == {"inference/generator.py"}
    # Whoever else says how the LLM writes says it to BridgeForCausalLM, which asks the generator.
    assert files_with(ast.Call, name="end_ids") == {"engine/setup.py", "inference/generator.py"}
    assert files_with(ast.Call, name="decode_greedily") == {"inference/generator.py"}
    assert files_with(ast.Call, name="score_choices") == {"inference/generator.py"}


def test_a_checkpoint_becomes_a_model_in_one_function() -> None:
    # hub: into an LLM or an encoder that is written as a folder, and not run.
    written = {"hub/encoder.py", "hub/llm.py"}
    assert files_with(ast.Call, name="put_trained") == {"checkpoint/load.py", "inference/load.py", *written}
    assert files_with(ast.Call, name="load_bridge") == {"checkpoint/bases.py"}, "training that goes on, sharded"
    assert files_with(ast.Call, name="load_bases") == {"inference/load.py"}
