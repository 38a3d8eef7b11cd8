"""The shipped models: they load the ordinary way, read their languages whole, and can do what the testbed rests on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MT5EncoderModel

from bridge_ds.testbed import ENCODER_PATH, ENGLISH, LABELS, LANGUAGES, LLM_PATH, TASKS, examples
from bridge_ds.testbed.build import main as build
from bridge_ds.testbed.measure import alignment_by_layer, label_accuracy

LIMIT_BYTES = 12_000_000


@pytest.fixture(scope="module")
def encoder_tokenizer():
    return AutoTokenizer.from_pretrained(ENCODER_PATH)


@pytest.fixture(scope="module")
def llm_tokenizer():
    return AutoTokenizer.from_pretrained(LLM_PATH)


@pytest.fixture(scope="module")
def llm():
    return AutoModelForCausalLM.from_pretrained(LLM_PATH, dtype=torch.float32).eval()


def test_size_on_disk():
    files = [file for file in ENCODER_PATH.parent.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < LIMIT_BYTES


def test_record_lies_beside_the_weights():
    record = json.loads((ENCODER_PATH.parent / "record.json").read_text(encoding="utf-8"))
    assert record["llm"]["english_accuracy"].keys() == set(TASKS)
    assert len(record["encoder"]["by_layer"]["retrieval"]) == 7


@pytest.mark.parametrize("language", LANGUAGES)
def test_encoder_tokenizer_equals_sentencepiece(encoder_tokenizer, language: str):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(ENCODER_PATH / "spiece.model"))
    for task in TASKS:
        for example in examples(task, language, "test", 60):
            ids = encoder_tokenizer(example.source).input_ids
            assert ids == [*pieces.encode(example.source), encoder_tokenizer.eos_token_id]
            assert encoder_tokenizer.unk_token_id not in ids
            assert len(ids) == len(example.source.split()) + 1 <= 32


def test_encoder_tokenizer_agrees_on_unknown_text(encoder_tokenizer):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(ENCODER_PATH / "spiece.model"))
    for text in ("the 猫 cat", "Foo bar, zyx!", "ⅷ ﬁne"):
        assert encoder_tokenizer(text).input_ids[:-1] == pieces.encode(text)


def test_llm_tokenizer_reads_labels_alike_alone_and_after_a_prompt(llm_tokenizer):
    for task in TASKS:
        prompt = examples(task, ENGLISH, "test", 1)[0].source
        for label in LABELS[task]:
            apart = [llm_tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, label)]
            assert llm_tokenizer(f"{prompt} {label}", add_special_tokens=False).input_ids == apart[0] + apart[1]


@pytest.mark.parametrize("language", LANGUAGES)
def test_llm_tokenizer_loses_nothing(llm_tokenizer, language: str):
    text = examples("news", language, "test", 1)[0].source
    assert llm_tokenizer.decode(llm_tokenizer(text, add_special_tokens=False).input_ids) == text


def test_encoder_aligns_best_before_its_last_layer(encoder_tokenizer):
    model = MT5EncoderModel.from_pretrained(ENCODER_PATH, dtype=torch.float32).eval()
    retrieval = alignment_by_layer(model, encoder_tokenizer, count=20)["retrieval"]
    assert max(retrieval[3:6]) > 0.8
    assert retrieval[-1] < max(retrieval)


@pytest.mark.parametrize(("task", "least"), [("inference", 0.85), ("news", 0.95), ("reviews", 0.95)])
def test_llm_solves_the_task_in_english(llm, llm_tokenizer, task: str, least: float):
    assert label_accuracy(llm, llm_tokenizer, task, ENGLISH, 150) >= least


@pytest.mark.parametrize("task", TASKS)
def test_llm_alone_is_near_chance_in_a_language_it_never_saw(llm, llm_tokenizer, task: str):
    assert abs(label_accuracy(llm, llm_tokenizer, task, "qae", 60) - 1 / len(LABELS[task])) < 0.1


@pytest.mark.slow
def test_build_runs_for_a_few_steps(tmp_path: Path):
    assert build(["--output", str(tmp_path), "--steps", "3"]) == 0
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert record["encoder"]["steps"] == record["llm"]["steps"] == 3
    for folder, shipped in ((tmp_path / "encoder", ENCODER_PATH), (tmp_path / "llm", LLM_PATH)):
        assert {file.name for file in folder.iterdir()} == {file.name for file in shipped.iterdir()}
        assert (folder / "tokenizer.json").read_bytes() == (shipped / "tokenizer.json").read_bytes()
