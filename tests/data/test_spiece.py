"""Encoder ids equal SentencePiece's own on every script, byte fallback included."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_ds.config.schema import ModelConfig
from bridge_ds.data.loading.tokenize import Tokenizers, load_tokenizers
from bridge_ds.data.text.spiece import PROBES, SentencePieceTokenizer


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as mT5 has it: trained on a few scripts, the others left to byte fallback."""
    import sentencepiece
    from transformers import T5Tokenizer

    folder = tmp_path_factory.mktemp("t5")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join([PROBES[name] for name in ("en", "si", "ta", "ru")] * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "spiece"), vocab_size=420, byte_fallback=True,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    T5Tokenizer.from_pretrained(str(folder), extra_ids=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def spiece(t5_folder: Path):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(t5_folder / "spiece.model"))


def unk_shares(tokenizer: Any, texts: Mapping[str, str] = PROBES) -> dict[str, float]:
    """Share of a text's tokens that are `<unk>` (0 to 1), by language."""
    rows = tokenizer(list(texts.values()), add_special_tokens=False, verbose=False)["input_ids"]
    lost = tokenizer.unk_token_id
    return {name: sum(i == lost for i in row) / max(1, len(row)) for name, row in zip(texts, rows, strict=True)}


@pytest.fixture(scope="module")
def exact(t5_folder: Path, llm_folder: Path) -> Tokenizers:
    return load_tokenizers(ModelConfig(encoder=str(t5_folder), llm=str(llm_folder)))


def test_every_script_as_sentencepiece_and_nothing_lost(t5_folder: Path, exact: Tokenizers, spiece) -> None:
    from transformers import AutoTokenizer

    assert isinstance(exact.encoder, SentencePieceTokenizer)
    automatic = AutoTokenizer.from_pretrained(t5_folder)
    assert unk_shares(exact.encoder) == dict.fromkeys(PROBES, 0.0)
    # The reason for all this: what transformers makes of the same files.
    lost = unk_shares(automatic)
    assert lost["am"] > 0.3
    assert lost["ru"] == 0
    for text in PROBES.values():
        assert exact.source_ids(text) == [*spiece.encode(text), automatic.eos_token_id]
    assert exact.encoder.decode(exact.source_ids("the 猫 cat")) == "the 猫 cat"
    assert exact.encoder.get_vocab() == automatic.get_vocab()
    assert pickle.loads(pickle.dumps(exact)).source_ids("the 猫 cat") == exact.source_ids("the 猫 cat")


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("".join(PROBES.values()) + "\t\n\u00a0\u200b\u0301①</s>"), max_size=40))
def test_any_text_as_sentencepiece(exact: Tokenizers, spiece, text: str) -> None:
    assert exact.source_ids(text)[:-1] == spiece.encode(text)


def test_added_tokens_are_found_as_hugging_face_finds_them(
    t5_folder: Path, llm_folder: Path, tmp_path: Path, spiece
) -> None:
    """LangBridge's tokenizer is mT5's with white space added; the model file knows nothing of that."""
    from transformers import AutoTokenizer

    from bridge_ds.convert import SOURCES
    from bridge_ds.convert.bases import write_tokenizer

    write_tokenizer(str(t5_folder), None, SOURCES["langbridge"].added_tokens, tmp_path, False)
    assert (tmp_path / "spiece.model").read_bytes() == (t5_folder / "spiece.model").read_bytes()
    found = load_tokenizers(ModelConfig(encoder=str(tmp_path), llm=str(llm_folder)))
    assert isinstance(found.encoder, SentencePieceTokenizer)
    automatic = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["The cat\nsat  on\t\tthe mat", " The \n  cat     sat\r\n", "\n\n", " on ", "the mat", ""]
    assert found.sources(texts) == automatic(texts)["input_ids"]
    first = spiece.get_piece_size()
    assert found.source_ids("\n  \t")[:-1] == [first + 1, first + 5, first]
    # Outside them nothing changes: bytes where the pieces end, and T5's sentinels are text.
    for text in ("the 猫 cat", "<extra_id_0> a", PROBES["am"]):
        assert found.source_ids(text)[:-1] == spiece.encode(text)


def test_without_the_model_file_the_tokenizer_is_left_alone(tokenizers) -> None:
    assert not isinstance(tokenizers.encoder, SentencePieceTokenizer)
    shares = unk_shares(tokenizers.encoder, {"known": "the cat", "unknown": "猫"})
    assert shares == {"known": 0.0, "unknown": 1.0}


def test_the_testbed_is_the_same_with_either() -> None:
    from transformers import AutoTokenizer

    from bridge_ds.config.names import resolve
    from bridge_ds.testbed import english_rows

    found = load_tokenizers(ModelConfig())
    assert isinstance(found.encoder, SentencePieceTokenizer)
    texts = [str(row["source"]) for row in english_rows(200)]
    assert found.sources(texts) == AutoTokenizer.from_pretrained(resolve("testbed/encoder"))(texts)["input_ids"]
