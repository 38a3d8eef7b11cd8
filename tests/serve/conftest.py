"""A small bridge whose LLM has a chat template, loaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge_ds.generate.pipeline import GenerateOptions, Pipeline
from bridge_ds.serve.app import Service
from tests import tiny
from tests.hub.conftest import CHAT
from tests.made import make_run
from tests.serve.served import Client, served


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serve")
    encoder, llm = tiny.make_encoder("mt5", root / "mt5"), tiny.make_llm("llama", root / "llama")
    (llm / "chat_template.jinja").write_text(CHAT)
    more = ["data.max_source_tokens=60", "data.max_target_tokens=10"]
    return make_run(root / "run", [f"model.encoder={encoder}", f"model.llm={llm}", *more])


@pytest.fixture(scope="package")
def answerer(run: Path) -> Pipeline:
    return Pipeline.load(
        str(run), GenerateOptions(), encoder=None, llm=None, trust_remote_code=False, allow_base_mismatch=False
    )


@pytest.fixture(scope="package")
def offline(answerer: Pipeline) -> Callable[..., str]:
    """The answer that python -m bridge_ds.generate gives to one text alone."""

    def answer(text: object, **style: object) -> str:
        alone = Pipeline(answerer.model, answerer.processor, GenerateOptions(**style))  # type: ignore[arg-type]
        return alone.write([alone.row(text)])[0]

    return answer


@pytest.fixture(scope="module")
def server(answerer: Pipeline) -> Iterator[tuple[Client, Service]]:
    with served(answerer) as found:
        yield found
