"""Lengths that a model has no positions for are found before step 1, with the value that fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from bridge_ds.config.schema import Config, DataConfig, InjectionConfig, MappingConfig, ModelConfig, TrainConfig
from bridge_ds.data.loading.tokenize import Tokenizers, load_tokenizers
from bridge_ds.errors import ConfigError
from bridge_ds.llm.positions import check_positions, encoder_table, notes_on_bases, positions_taken
from bridge_ds.mapping import MAPPINGS
from tests import tiny

LENGTHS = {"max_source_tokens": 40, "max_prompt_tokens": 60, "max_target_tokens": 20}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("positions")
    made = {kind: tiny.make_encoder(kind, root / kind) for kind in ("mt5", "bert", "xlm-roberta", "m2m_100")}
    return made | {kind: tiny.make_llm(kind, root / kind) for kind in ("gpt2", "llama")}


def prepared(folders: dict[str, Path], encoder: str, llm: str, **data: Any) -> tuple[Config, Any, Any, Tokenizers]:
    model = ModelConfig(encoder=str(folders[encoder]), llm=str(folders[llm]), dtype="float32")
    config = Config(model=model, data=DataConfig(**(LENGTHS | data)))
    configs = [AutoConfig.from_pretrained(folders[name]) for name in (encoder, llm)]
    return config, *configs, load_tokenizers(model, data=config.data)


def test_a_table_of_the_llm_is_a_limit_and_rotary_positions_are_a_note(folders: dict[str, Path]) -> None:
    # gpt2 here: 128 positions, no BOS; 40 + end vector + 20 without the prompt, 60 more with it.
    assert check_positions(*prepared(folders, "mt5", "gpt2")) == []
    assert check_positions(*prepared(folders, "mt5", "gpt2", augment_prompt=True)) == []
    longer = prepared(folders, "mt5", "gpt2", augment_prompt=True, max_prompt_tokens=68)
    assert positions_taken(longer[0], longer[3]) == 129
    with pytest.raises(ConfigError, match=r"129 positions .*prompt 68, target 20.* a table of 128; .*_tokens=67\.$"):
        check_positions(*longer)
    fits = "data.max_source_tokens=40 data.max_prompt_tokens=67"
    with pytest.raises(ConfigError, match=fits):
        check_positions(*longer)
    allowed = r"run.allow_changes=data.max_source_tokens,data.max_prompt_tokens\.$"  # a checkpoint records them
    with pytest.raises(ConfigError, match=f"{fits} {allowed}"):
        check_positions(*longer, resumes=True)
    assert check_positions(*prepared(folders, "mt5", "gpt2", augment_prompt=True, max_prompt_tokens=67)) == []
    taught = {"objective": "self_teaching", "max_source_tokens": 9}
    assert check_positions(*prepared(folders, "mt5", "gpt2", max_prompt_tokens=108, **taught)) == []
    with pytest.raises(
        ConfigError, match=r"table of 128 positions, which leave 108 to .*set data.max_prompt_tokens=108\.$"
    ):
        check_positions(*prepared(folders, "mt5", "gpt2", max_prompt_tokens=109, **taught))
    (note,) = check_positions(*prepared(folders, "mt5", "llama", augment_prompt=True, max_prompt_tokens=68))
    assert "may take 130 positions, and the LLM was made for 128" in note  # its BOS too


def test_what_an_llm_without_a_plain_cache_costs_is_a_note_at_the_start(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    config, _, _, tokenizers = prepared(folders, "mt5", "gpt2")
    assert notes_on_bases(config, tokenizers) == []
    CONFIG_MAPPING["mamba"]().save_pretrained(tmp_path)
    mamba = replace(config, model=replace(config.model, llm=str(tmp_path)))
    note, padded = notes_on_bases(mamba, tokenizers)
    assert padded == (
        "of the LLM: its class does not compute joined rows as each alone, so that they are padded (train.packing)."
    )
    assert notes_on_bases(replace(mamba, train=TrainConfig(packing=False)), tokenizers) == [note]
    assert note == (
        "of the LLM: its cache cannot be shared by choices: evaluation runs the whole prompt anew for each choice."
    )


def test_a_soft_prompt_of_fixed_length_counts_with_that_length(folders: dict[str, Path]) -> None:
    config, *others = prepared(folders, "mt5", "gpt2", max_source_tokens=512)
    with pytest.raises(ConfigError, match=r"set data.max_source_tokens=107\."):
        check_positions(config, *others)  # type: ignore[arg-type]
    kind = next(name for name, spec in MAPPINGS.items() if spec.resamples)
    fixed = replace(config, mapping=MappingConfig(kind=kind, latents=16))  # type: ignore[arg-type]
    assert positions_taken(fixed, others[2]) == 16 + 1 + 20
    assert check_positions(fixed, *others) == []  # type: ignore[arg-type]


def test_a_soft_prompt_beside_the_text_counts_by_itself(folders: dict[str, Path]) -> None:
    config, *others = prepared(folders, "mt5", "gpt2", max_source_tokens=100)
    beside = replace(config, injection=InjectionConfig(form="gated_prompt"))
    assert positions_taken(beside, others[2]) == positions_taken(config, others[2]) - 101  # type: ignore[arg-type]
    assert check_positions(beside, *others) == []  # type: ignore[arg-type]
    longer = replace(beside, data=replace(beside.data, max_source_tokens=128))
    with pytest.raises(ConfigError, match=r"reads the soft prompt by itself.*129 positions.*max_source_tokens=127\."):
        check_positions(longer, *others)  # type: ignore[arg-type]
    alone = replace(longer, injection=InjectionConfig(form="every_layer", soft_prompt=False))
    assert check_positions(alone, *others) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "table"), [("bert", 80), ("xlm-roberta", 79), ("mt5", 0), ("m2m_100", 0)])
def test_an_encoder_reads_as_many_tokens_as_its_table_has(folders: dict[str, Path], kind: str, table: int) -> None:
    given = prepared(folders, kind, "llama", max_source_tokens=table or 200, max_target_tokens=2)
    assert encoder_table(given[0], given[1]) == table
    check_positions(*given)
    if not table:
        return
    model = AutoModel.from_pretrained(folders[kind])
    model(input_ids=torch.full((1, table), 9))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, table + 1), 9))
    words = rf"data.max_source_tokens is {table + 1}.*set data.max_source_tokens={table}\."
    with pytest.raises(ConfigError, match=words):
        check_positions(*prepared(folders, kind, "llama", max_source_tokens=table + 1))
