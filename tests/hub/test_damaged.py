"""An exported folder whose files others changed: one sentence that names file and key, before a model is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from bridge_ds import BridgeForCausalLM, BridgeProcessor
from bridge_ds.errors import BridgeError, ConfigError
from bridge_ds.hub.config import to_run
from bridge_ds.hub.source import open_source


@pytest.fixture(scope="module")
def shared(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "bridge"
    BridgeForCausalLM.from_pretrained(runs["llama"]).save_pretrained(folder)
    return folder


def changed(shared: Path, folder: Path, name: str, **values: Any) -> Path:
    """A copy with other values in a JSON file, and no hash of it."""
    copy = shutil.copytree(shared, folder, dirs_exist_ok=True)
    there = json.loads((copy / name).read_text())
    there.pop("settings_sha256", None)
    (copy / name).write_text(json.dumps(there | values))
    return copy


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"encoder": 5}, "has encoder 5; expected a valid string"),
        ({"llm": ["a"]}, r"has llm \['a'\]; expected a valid string"),
        ({"base": {"llm": 1}}, r"has base\.llm 1; expected a valid string"),
        ({"files": 3}, "has files 3"),
        ({"architectures": "x"}, "has architectures 'x'"),
        ({"augment_prompt": "no"}, "has augment_prompt 'no'; expected a valid boolean"),
        ({"max_source_tokens": float("inf")}, "has max_source_tokens inf; expected a valid integer"),
        ({"fusion": []}, r"has fusion \[\]; expected an object"),
        ({"fusion": {"name": 7}}, r"fusion\.name is 7"),
        ({"target_prefix": "a"}, "has the key target_prefix, which this version does not know"),
        ({"model_type": "llama"}, "is of type 'llama'; expected a bridge"),
    ],
)
def test_a_setting_of_another_type(shared: Path, tmp_path: Path, values: dict[str, Any], words: str) -> None:
    folder = changed(shared, tmp_path / "copy", "config.json", **values)
    with pytest.raises(ConfigError, match=words):
        BridgeForCausalLM.from_pretrained(folder)
    with pytest.raises(ConfigError, match=words):
        BridgeProcessor.from_pretrained(folder)
    if words.startswith("has"):
        with pytest.raises(ConfigError, match=words):
            AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_new_tokens": "many"}, "has max_new_tokens 'many'; expected a valid integer"),
        ({"max_new_tokens": 10**30}, "has max_new_tokens 1000"),
        ({"temperature": float("inf")}, "has temperature inf; expected a finite number"),
        ({"eos_token_id": {"a": 1}}, "has eos_token_id"),
        ({"num_beams": 10**9}, "has num_beams 1000000000; expected a number less than or equal to 1024"),
        ({"early_stopping": 3}, "has early_stopping"),
        ({"cache_implementation": "none"}, "cache_implementation"),
        ({"temperature": 0.5}, "`do_sample` is not set"),  # it could not be saved again
    ],
)
def test_an_option_of_generate_of_another_type(
    shared: Path, tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    folder = changed(shared, tmp_path / "copy", "generation_config.json", **values)
    with pytest.raises(ConfigError, match=rf"generation_config\.json .*{words}"):
        open_source(str(folder))
    with pytest.raises(ConfigError, match=words):
        BridgeProcessor.from_pretrained(folder)


def test_what_means_nothing_for_a_bridge_is_left_out_and_no_code_runs(shared: Path, tmp_path: Path) -> None:
    """num_labels would make a table of that many names, auto_map would run the file."""
    folder = changed(
        shared, tmp_path / "copy", "config.json", num_labels=10**12, id2label=5, dtype=5, transformers_version=[],
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}, trust_remote_code=True,
    )  # fmt: skip
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError, match="has the key trust_remote_code"):
        open_source(str(folder))
    config = json.loads((folder / "config.json").read_text())
    del config["trust_remote_code"]
    (folder / "config.json").write_text(json.dumps(config))
    assert to_run(open_source(str(folder)).config).model.trust_remote_code is False
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "bridge_ds"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["[" * 9000, '{"a": 1, "a": 2}', "[]", "\x00\x00", "", '{"a": \\ud83d}', "9" * 9000])
def test_no_json(shared: Path, tmp_path: Path, text: str) -> None:
    for name in ("config.json", "generation_config.json"):
        folder = shutil.copytree(shared, tmp_path / name)
        (folder / name).write_text(text)
        with pytest.raises(BridgeError, match=name):
            open_source(str(folder))


def test_a_card_that_is_no_text_hinders_only_who_reads_it(shared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shared, tmp_path / "copy")
    (folder / "README.md").write_bytes(b"\xff\xfe\x00")
    source = open_source(str(folder))
    with pytest.raises(ConfigError, match=r"README\.md is UTF-16"):
        source.card(source.config)
