"""Pieces for a new script: old texts, ids and rows stay as they were, and the new language is read letter by letter."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForMaskedLM

from bridge_ds.adapt.vocabulary import _learn, _write_tokenizer, extend_vocabulary, new_letters, new_rows
from bridge_ds.config.names import resolve
from bridge_ds.config.schema import ModelConfig
from bridge_ds.data.loading.tokenize import load_tokenizers
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.testbed import LANGUAGES, TASKS, UNSEEN, examples

TEXT = [each.source for task in TASKS for each in examples(task, UNSEEN, "train", 60)]


def model(name: str | Path) -> ModelConfig:
    return ModelConfig(encoder=str(name), llm="none", dtype="float32")


def unknown(tokenizers: Any, texts: list[str]) -> float:
    """Share of the words' tokens that are unknown, the English words of the prompts left out."""
    words = [word for text in texts for word in text.split() if not word.isascii()]
    ids = [
        each for row in tokenizers.sources(words) for each in row[:-1] if each != tokenizers.encoder.get_vocab()["▁"]
    ]
    return fmean(each == tokenizers.encoder.unk_token_id for each in ids)


def test_the_testbeds_encoder_learns_to_spell_an_unseen_script(tmp_path: Path) -> None:
    old = model("testbed/encoder")
    before = load_tokenizers(old)
    assert unknown(before, TEXT) > 0.9
    first, count, deviation = extend_vocabulary(old, TEXT, 200, tmp_path)
    assert count == 200
    after = load_tokenizers(model(tmp_path))
    assert unknown(after, TEXT) == 0 and max(map(len, after.sources(["ⵙⵟⵓⵎⵉ"]))) <= 4
    assert len(after.encoder) == len(before.encoder) + count
    texts = [each.source for language in LANGUAGES for each in examples("reviews", language, "test", 5)]
    assert after.sources([*texts, "? unknown ☃ signs"]) == before.sources([*texts, "? unknown ☃ signs"])
    one, two = (load_encoder(of).model.get_input_embeddings().weight for of in (old, model(tmp_path)))
    assert two.shape[0] == len(after.encoder) and torch.equal(two[: len(one)], one)
    assert first == len(one) and deviation == pytest.approx(float(one.float().std()), rel=1e-3)
    new = two[len(one) :]
    assert 0.5 < float(new.std() / one.std()) < 2 and len({tuple(row.tolist()) for row in new}) == count
    with pytest.raises(DataError, match="every letter of the text is in the vocabulary of the encoder already"):
        extend_vocabulary(old, texts, 300, tmp_path)
    with pytest.raises(ConfigError, match=r"--extend-vocabulary is 5, and the text has 20 letters .* raise it"):
        extend_vocabulary(old, TEXT, 5, tmp_path)
    assert "ⴱ" in new_letters(before.encoder, TEXT) and "a" not in new_letters(before.encoder, TEXT)


def test_a_head_for_masked_tokens_grows_with_the_embeddings(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0 - number / 10) for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz.,:")]
    raw = Tokenizer(models.Unigram([*pieces, ("<mask>", 0.0)], unk_id=3))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    folder, extended = tmp_path / "base", tmp_path / "extended"
    PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    own = XLMRobertaForMaskedLM(XLMRobertaConfig(vocab_size=len(raw.get_vocab()) + 3, pad_token_id=1, **sizes))
    own.save_pretrained(folder)
    extended.mkdir()
    count = extend_vocabulary(model(folder), TEXT, 60, extended).pieces
    found = AutoModelForMaskedLM.from_pretrained(extended)
    table, rows = found.get_input_embeddings().weight, len(raw.get_vocab())
    assert len(table) == rows + count and torch.equal(table[:rows], own.get_input_embeddings().weight[:rows])
    assert found.get_output_embeddings().weight is table and len(found.lm_head.bias) == len(table)
    (folder / "spiece.model").write_bytes((Path(resolve("testbed/encoder")) / "spiece.model").read_bytes())
    with pytest.raises(ConfigError, match="cannot be extended"):  # a run would read texts by the old spiece.model
        _write_tokenizer(model(folder), [("ⴱ", -1.0)], rows, extended)
    (folder / "spiece.model").unlink()
    with pytest.raises(ConfigError, match="cannot be extended; expected SentencePiece's unigram model"):
        _write_tokenizer(model(folder), [("ⴱ", -1.0)], rows - 1, extended)  # as if there were tokens behind the pieces


def test_new_rows_lie_in_the_space_of_the_old_ones() -> None:
    torch.manual_seed(0)
    basis = torch.randn(4, 32)
    table = torch.randn(50, 4) @ basis + 0.001 * torch.randn(50, 32)
    found = new_rows(table, 20)
    left = found - found @ torch.linalg.pinv(basis) @ basis
    assert float(left.norm() / found.norm()) < 0.01 and torch.equal(found, new_rows(table, 20))


def test_paragraphs_give_pieces_too() -> None:
    lines = ["ⴱⴳⴷ " * 1500] * 3
    assert any(len(piece) > 2 for piece, _ in _learn(lines, frozenset("ⴱⴳⴷ"), 30, set()))
