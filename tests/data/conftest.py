"""Tiny shards and tokenizers, made in the test session; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge_ds.config.schema import Config, DataConfig, ModelConfig, RunConfig, TrainConfig
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.world import World

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "b",
    "saw",
    "two",
    "red",
    "birds",
    "fly",
    "over",
    "one",
    "old",
    "house",
]


def task_rows(count: int) -> list[dict[str, Any]]:
    """Samples of very different lengths; the row number is readable in the source."""
    return [
        {"source": f"n{row} " + " ".join(WORDS[(row + i) % len(WORDS)] for i in range(1 + row * 7 % 40)),
         "target": " ".join(WORDS[(row * 3 + i) % len(WORDS)] for i in range(1 + row % 4))}
        for row in range(count)
    ]  # fmt: skip


def save_word_level(folder: Path, vocabulary: list[str]) -> Path:
    """A word-level tokenizer with an end token, appended to every text as T5 does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "</s>", "<unk>", *vocabulary]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def save_byte_level(folder: Path, *, eos: str | None = "<end>", bos: bool = False) -> Path:
    """A byte-level BPE tokenizer such as GPT-2's; with `bos` it begins every text with <start>, as Llama 3 does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<end>", "<start>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    core.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<start> $A", special_tokens=[("<start>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, bos_token="<start>" if bos else None).save_pretrained(
        folder
    )
    return folder


def save_metaspace(folder: Path) -> Path:
    """A tokenizer that puts the space in front itself, as SentencePiece does with its dummy prefix."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"], show_progress=False)
    core.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_word_level(tmp_path_factory.mktemp("encoder"), WORDS + [f"n{i}" for i in range(60)])


@pytest.fixture(scope="session")
def llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_level(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="session")
def tokenizers(encoder_folder: Path, llm_folder: Path):
    from bridge_ds.data.loading.tokenize import load_tokenizers

    return load_tokenizers(ModelConfig(encoder=str(encoder_folder), llm=str(llm_folder)))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 task samples in shards of 16."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    pack_rows(task_rows(50), folder, samples_per_shard=16)
    return folder


@pytest.fixture
def own_shards(tmp_path: Path) -> Path:
    """Shards that a test may damage."""
    folder = tmp_path / "shards"
    pack_rows(task_rows(50), folder, samples_per_shard=16)
    return folder


def step_numbers(config: Config, step: int) -> np.ndarray:
    """Sample numbers of a step's global batch, in order."""
    from bridge_ds.data.loading.corpus import open_corpus
    from bridge_ds.data.loading.plan import StepPlan

    return StepPlan(config, open_corpus(config.data, config.run.seed, World())).rows(step).numbers


def make_config(
    folder: Path | str, *, steps: int = 6, global_batch: int = 16, micro_batch: int = 2, **data: Any
) -> Config:
    """A config with only what the data needs."""
    return Config(
        run=RunConfig(seed=5),
        data=DataConfig(shards=str(folder), **{"workers": 0, "prefetch": 2, **data}),
        train=TrainConfig(steps=steps, global_batch=global_batch, micro_batch=micro_batch),
    )
