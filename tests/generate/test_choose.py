"""choice.json from an evaluation to answers: followed by language, refused when stale, carried by an export."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bridge_ds import BridgeForCausalLM
from bridge_ds.entry import exit_status
from bridge_ds.evaluation.__main__ import main as evaluate
from bridge_ds.generate.__main__ import main
from bridge_ds.hub.export import export
from bridge_ds.inference.choice import CHOICE, read_choice, write_choice
from tests import tiny
from tests.choices import compared
from tests.hub.conftest import CHAT
from tests.made import make_run

TEXT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    made = {"encoder": tiny.make_encoder("mt5", root / "mt5"), "llm": tiny.make_llm("llama", root / "llama")}
    (made["llm"] / "chat_template.jinja").write_text(CHAT)
    return made


@pytest.fixture(scope="module")
def run(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with updates of the LLM, which the LLM alone must not have; scored, and si given to the LLM."""
    settings = [f"model.{part}={folder}" for part, folder in bases.items()]
    run = make_run(tmp_path_factory.mktemp("choose") / "run", [*settings, "lora.rank=2", "data.max_target_tokens=8"])
    arguments = ["--run", str(run), "--tasks", "testbed_news", "--languages", "en,qaa", "--limit", "6"]
    assert evaluate([*arguments, "--choose"]) == 0
    table = read_choice(run / CHOICE)
    assert {code: of.samples for code, of in table.languages.items()} == {"en": 6, "qaa": 6}
    assert table.measured.checkpoint == "step-00000001" and set(table.measured.weights) == {
        "bridge.safetensors", "lora.safetensors",
    }  # fmt: skip
    verdicts = {"si": compared("llm"), "ta": compared("undecided")}
    write_choice(run, dataclasses.replace(table, languages=table.languages | verdicts))
    return run


def answered(capsys: pytest.CaptureFixture[str], run: Path, *more: str) -> tuple[str, str]:
    """The printed answer to TEXT, and what is said beside it."""
    capsys.readouterr()
    assert main(["--run", str(run), "--prompt", TEXT, *more]) == 0
    out, err = capsys.readouterr()
    return out.removesuffix("\n"), err


def llm_alone(folder: Path) -> str:
    """What transformers' own generate makes of the text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(TEXT, add_special_tokens=False)]])
    written = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(written, skip_special_tokens=True).removeprefix(" ")


def test_the_named_language_decides_who_answers(
    run: Path, bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bridge, _ = answered(capsys, run)
    alone, said = answered(capsys, run, "--choose", "--language", "sin_Sinh")
    assert alone == llm_alone(bases["llm"]) != bridge
    assert "note: the LLM alone answers in 'sin_Sinh': 20.0 % by the bridge, 60.0 % by the LLM alone on 30" in said
    for more in (["--choose"], ["--language", "si"]):
        assert answered(capsys, run, *more)[0] == bridge, more
    rows = [{"source": TEXT, "language": code} for code in ("si", "ta", "sin", "")] + [
        {"source": "a dog"},
        {"source": ""},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def lines(name: str, *more: str) -> list[dict[str, Any]]:
        arguments = ["--run", str(run), "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / name)]
        assert main([*arguments, "--batch", "3", *more]) == 0
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    found = lines("out.jsonl", "--choose")
    assert [row["answered_by"] for row in found] == ["llm", "bridge", "llm", "bridge", "bridge", "bridge"]
    assert [row["answer"] for row in found[:4]] == [alone, bridge, alone, bridge]
    assert [row["answered_by"] for row in lines("all.jsonl", "--choose", "--language", "si")][3:] == ["llm"] * 3
    plain = lines("plain.jsonl")
    assert all("answered_by" not in row for row in plain) and {row["answer"] for row in plain[:4]} == {bridge}
    again = ["--run", str(run), "--input", str(tmp_path / "out.jsonl"), "--output", str(tmp_path / "x"), "--choose"]
    (tmp_path / "out.jsonl").write_text('{"source": "a", "answered_by": "me"}\n')
    assert exit_status(lambda: main(again)) == 2
    assert "line 1 has an 'answered_by' already" in capsys.readouterr().err


def test_an_export_carries_the_table(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(str(run), tmp_path / "exported")
    asked = ("--choose", "--language", "si")
    assert answered(capsys, tmp_path / "exported", *asked)[0] == answered(capsys, run, *asked)[0]
    export(str(run), tmp_path / "merged", merge=True)  # its LLM is no longer the LLM alone
    assert (tmp_path / "exported" / CHOICE).is_file() and not (tmp_path / "merged" / CHOICE).exists()


def test_a_table_of_something_else_is_not_followed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    table = read_choice(run / CHOICE)
    measured = table.measured

    def fails(told: str, *more: str, **changed: Any) -> None:
        write_choice(run, dataclasses.replace(table, measured=dataclasses.replace(measured, **changed)))
        capsys.readouterr()
        status = exit_status(lambda: main(["--run", str(run), "--prompt", TEXT, "--language", "si", "--choose", *more]))
        err = capsys.readouterr().err
        assert status == 2 and told in err and "Traceback" not in err, err

    try:
        other = measured.weights | {"lora.safetensors": "0"}
        fails(
            "was measured with step-00000300, and step-00000001 is what was loaded; expected the same; write it",
            checkpoint="step-00000300", weights=other,
        )  # fmt: skip
        fails("step-00000001, and other weights of that step is", weights=other)
        fails("was measured with another llm than what was loaded", base=measured.base | {"llm": "0"})
        settings = measured.settings | {"max_source_tokens": 7}
        fails("was measured with data.max_source_tokens 7, and the bridge is used with", settings=settings)
        BridgeForCausalLM.from_pretrained(run).save_pretrained(tmp_path / "shared")
        assert "choice.json is left out: " in caplog.text and not (tmp_path / "shared" / CHOICE).exists()
        fails("choice.json was measured without the chat template", "--chat")
        (run / CHOICE).unlink()
        assert exit_status(lambda: main(["--run", str(run), "--prompt", TEXT, "--choose"])) == 2
        assert f"--choose follows choice.json, and {run} has none" in capsys.readouterr().err
        assert exit_status(lambda: evaluate(["--run", str(run), "--tasks", "testbed_news", "--choose", "--set",
                                             "llm.trainable=true", "--set", "lora.rank=0"])) == 2  # fmt: skip
        assert "evaluation.choose is true and llm.trainable is true" in capsys.readouterr().err
    finally:
        write_choice(run, table)
