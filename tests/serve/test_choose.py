"""A server with choice.json: the language of a request decides who answers it, and a header says who did."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

from bridge_ds.generate.pipeline import GenerateOptions, Pipeline
from bridge_ds.inference.choice import LLM
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
