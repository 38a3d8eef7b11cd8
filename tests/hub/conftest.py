"""Runs of every kind of LLM, made once; see tests/made.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny
from tests.made import make_run

CHAT = (
    "{{ bos_token or '' }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""A chat template of the common kind."""


@pytest.fixture(scope="package")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of an mT5, a BERT (absolute positions), and of an LLM of each kind; the Llama has a chat template."""
    root = tmp_path_factory.mktemp("bases")
    made = {kind: tiny.make_llm(kind, root / kind) for kind in tiny.LLMS}
    (made["llama"] / "chat_template.jinja").write_text(CHAT)
    return made | {kind: tiny.make_encoder(kind, root / kind) for kind in ("mt5", "bert")}


@pytest.fixture(scope="package")
def runs(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder for each LLM, `bert` with that encoder; to be read only."""
    root = tmp_path_factory.mktemp("runs")
    common = ["data.max_source_tokens=70", "data.max_target_tokens=10"]
    made = {
        kind: make_run(root / kind, [*common, f"model.encoder={bases['mt5']}", f"model.llm={bases[kind]}"])
        for kind in tiny.LLMS
    }
    bert = [*common, f"model.encoder={bases['bert']}", f"model.llm={bases['gpt2']}", "data.augment_prompt=true"]
    return made | {"bert": make_run(root / "bert", bert)}
