"""A server with choice.json: the language of a request decides who answers it, and a header says who did."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bridge_ds.checkpoint.layout import trained_files
from bridge_ds.entry import exit_status
from bridge_ds.generate.pipeline import GenerateOptions, Pipeline
from bridge_ds.inference.choice import LLM, Measured, write_choice
from bridge_ds.inference.load import open_run
from bridge_ds.serve.__main__ import KEY, _load, _parse, main
from bridge_ds.serve.backends import LocalBackend, ServedModel
from tests.choices import MEASURED, table
from tests.serve.served import served

HEADER = "x-bridge-answered-by"


def test_the_language_of_a_request_decides(answerer: Pipeline) -> None:
    choice = table(si="llm", ta="bridge")

    def offline(text: object, way: str, **style: object) -> str:
        alone = Pipeline(answerer.model, answerer.processor, GenerateOptions(**style))  # type: ignore[arg-type]
        alone.choice = choice
        return alone.write([alone.row(text, "si" if way == LLM else "ta")], way=way)[0]

    texts = ["the cat sat on the mat", "a dog"]
    assert all(offline(text, "llm") != offline(text, "bridge") for text in texts)
    chat = [{"role": "user", "content": texts[0]}]
    with served(answerer, backend=LocalBackend(ServedModel(answerer.model, choice))) as (client, _):
        asked = [
            (code, way) for code, way in (("sin_Sinh", "llm"), ("ta", "bridge"), ("de", "bridge"), (None, "bridge"))
        ] * 2
        with ThreadPoolExecutor(len(asked)) as pool:  # in the same queue, in batches of one way
            answers = list(pool.map(lambda one: client.complete(texts, language=one[0]), asked))
        for (_, way), (status, headers, body) in zip(asked, answers, strict=True):
            assert (status, headers[HEADER]) == (200, way), body
            assert [choice["text"] for choice in body["choices"]] == [offline(text, way) for text in texts]
        request = {"model": "tiny", "stream": True, "prompt": texts[0], "language": "si"}
        connection, answer = client.open("POST", "/v1/completions", request)
        with contextlib.closing(connection):
            assert answer.headers[HEADER] == "llm" and answer.read().endswith(b"[DONE]\n\n")
        assert client.chat(chat, language="si")[1][HEADER] == "bridge", "the table is not of chats"
    choice = table(MEASURED | {"chat_template": True}, si="llm")
    with served(answerer, backend=LocalBackend(ServedModel(answerer.model, choice))) as (client, _):
        _, headers, body = client.chat(chat, language="si")
        assert headers[HEADER] == "llm"
        assert body["choices"][0]["message"]["content"] == offline(chat, "llm", chat=True)
    with served(answerer) as (client, _):
        assert HEADER not in client.complete(texts, language="si")[1]


def test_the_command_reads_the_table_of_its_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY, raising=False)
    copy = shutil.copytree(run, tmp_path / "run")
    assert exit_status(lambda: main(["--run", str(copy), "--port", "0", "--choose"])) == 2
    assert f"--choose follows choice.json, and {copy} has none" in capsys.readouterr().err
    config, checkpoint = open_run(copy)
    files, base = trained_files(checkpoint.folder), checkpoint.manifest["base"]
    valid = dataclasses.replace(table(si="llm"), measured=Measured.of(checkpoint.folder.name, files, base, config.data))
    write_choice(copy, valid)
    assert _load(_parse(["--run", str(copy), "--choose"]), "").model.choice == valid
    assert "the bridge answers every chat" in capsys.readouterr().err
