"""What a run has recorded of how it writes text, and runs from before there was a choice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge_ds.checkpoint.origin import Origin
from bridge_ds.config.changes import followed
from bridge_ds.config.load import load_config, to_dict
from bridge_ds.engine.preempt import StopRequest
from bridge_ds.run import Run
from bridge_ds.world import World
from tests import tiny

KEYS = ("bos", "separator", "target_space", "target_end")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An LLM whose tokenizer has a BOS that it does not put before a text."""
    root = tmp_path_factory.mktemp("recorded")
    encoder, llm = tiny.make_encoder("mt5", root / "encoder"), tiny.make_llm("llama", root / "llm")
    core = json.loads((llm / "tokenizer.json").read_text())
    (llm / "tokenizer.json").write_text(json.dumps(core | {"post_processor": None}))
    return [f"model.encoder={encoder}", f"model.llm={llm}"]


def started(folder: Path, settings: list[str], before: dict[str, Any] | None = None, resumes: bool = True) -> Run:
    """A run, as far as the tokenizers; `before` is the config of the checkpoint that it resumes, or begins with."""
    run = Run(load_config("testbed", [*settings, f"run.output={folder}"]), {}, World(), StopRequest())
    found: Any = SimpleNamespace(manifest={"config": before}) if before else None
    config = followed(run.config, before) if before else run.config
    run.origin = Origin(found if resumes else None, None if resumes else found, config, ())
    run._load_tokenizers()
    return run


def test_a_new_run_does_what_the_tokenizer_does_and_records_it(models: list[str], tmp_path: Path) -> None:
    run = started(tmp_path / "run", models)
    assert run.tokenizers.bos_id is None
    assert (run.config.data.bos, run.config.data.target_space) == ("never", "space")
    # Started again, by the same command or with the recorded config, it is the same.
    recorded = to_dict(run.config)
    assert started(tmp_path / "run", models, recorded).config == run.config
    # Beside a mixture nothing is written to RUN/shards.
    run.config = replace(run.config, data=replace(run.config.data, mixture=("a=1",)))
    assert run._with_shards() is run.config and not (tmp_path / "run").exists()
    # A stage that begins with its weights, too.
    assert started(tmp_path / "next", models, recorded, resumes=False).config.data.bos == "never"


@pytest.mark.parametrize("resumes", [True, False])
def test_what_goes_on_from_an_old_run_keeps_its_opening_token(models: list[str], tmp_path: Path, resumes: bool) -> None:
    old = to_dict(load_config("testbed", models))
    for key in KEYS:
        del old["data"][key]
    run = started(tmp_path / "run", models, old, resumes)
    assert run.config.data.bos == "unless_eos"
    assert run.tokenizers.bos_id == run.tokenizers.llm.bos_token_id is not None
    # What is said is done; whether that is refused is for who compares the two.
    assert started(tmp_path / "said", [*models, "data.bos=never"], old, resumes).tokenizers.bos_id is None


def test_an_export_from_before_the_settings_keeps_its_rule() -> None:
    from bridge_ds.hub.config import BridgeConfig, from_run, to_run

    old = to_run(BridgeConfig(encoder="a", llm="b")).data
    assert (old.bos, old.separator, old.target_space, old.target_end) == ("unless_eos", "", "auto", True)
    settings = ["data.bos=always", "data.target_space=none", "data.target_end=false", "data.separator=keep"]
    shared = from_run(load_config("testbed", settings), {})
    again = to_run(BridgeConfig.from_dict(json.loads(shared.to_json_string()))).data
    assert (again.bos, again.separator, again.target_space, again.target_end) == ("always", "keep", "none", False)
