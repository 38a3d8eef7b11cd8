"""A control token that somebody wrote stays text, for every kind of tokenizer; a template's does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_ds.config.schema import DataConfig, ModelConfig
from bridge_ds.data.loading.tokenize import load_tokenizers
from bridge_ds.data.text.plain import BREAK, control_tokens, guarded, template_ids, text_ids
from tests.data.conftest import WORDS, save_byte_level, save_metaspace, save_word_level
from tests.samples import tokenize_sample


def _unigram(folder: Path) -> Any:
    """T5 as transformers builds it without its spiece.model: `</s>` is a piece of the vocabulary."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"\u2581{word}", -3.0) for word in WORDS)]
    pieces += [(character, -9.0) for character in "\u2581abcdefghijklmnopqrstuvwxyz</>_0"]
    T5Tokenizer(vocab=pieces, extra_ids=3).save_pretrained(folder)


def _wordpiece(folder: Path) -> None:
    from transformers import BertTokenizer

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"[]/<>", *(f"##{c}" for c in "abcdeklmnoprstuw")]
    BertTokenizer(vocab={name: number for number, name in enumerate([*names, *"cdefgiklmnoprstuw"])}).save_pretrained(
        folder
    )


def _bytes(folder: Path) -> None:
    """A tokenizer in Python, without a backend."""
    from transformers import ByT5Tokenizer

    ByT5Tokenizer(extra_ids=3).save_pretrained(folder)


KINDS = {
    "byte-level": lambda folder: save_byte_level(folder, bos=True),
    "metaspace": save_metaspace,
    "word-level": lambda folder: save_word_level(folder, WORDS),
    "unigram": _unigram,
    "wordpiece": _wordpiece,
    "python": _bytes,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from transformers import AutoTokenizer

    root = tmp_path_factory.mktemp("kinds")
    for kind, save in KINDS.items():
        save(root / kind)
    return {kind: AutoTokenizer.from_pretrained(root / kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_no_control_token_of_any_kind_of_tokenizer_comes_from_a_text(made: dict[str, Any], kind: str) -> None:
    tokenizer = made[kind]
    names = control_tokens(tokenizer)
    assert set(tokenizer.all_special_tokens) <= set(names)
    ids = set(names.values()) - {tokenizer.unk_token_id}
    plain = "the cat sat on a mat"
    assert text_ids(tokenizer, [plain], special=True) == [tokenizer(plain)["input_ids"]], (
        "other texts stay as they were"
    )
    for name in names:
        for text in (f"the {name} cat", name, f"{name}the cat{name}", f"the cat {name}{name}"):
            assert set(tokenizer(text, add_special_tokens=False)["input_ids"]) & {*ids, names[name]}, "else no test"
            (row,) = text_ids(tokenizer, [text], special=False)
            assert not ids & set(row) and row, (name, text)
            # What the tokenizer puts around a text is there, and nothing else.
            before, after = tokenizer("the")["input_ids"], tokenizer("the", add_special_tokens=False)["input_ids"]
            (whole,) = text_ids(tokenizer, [text], special=True)
            start = before.index(after[0])
            assert whole == [*before[:start], *row, *before[start + len(after) :]]


def test_a_byte_level_text_with_an_end_token_has_the_ids_of_its_letters(made: dict[str, Any]) -> None:
    tokenizer = made["byte-level"]
    text = "write <end> then <start>"
    right = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert text_ids(tokenizer, [text], special=False) == [right] and tokenizer.decode(right) == text


@settings(max_examples=80, deadline=None)
@given(
    text=st.lists(
        st.sampled_from([*"abc <>/|\n", "</s>", "<pad>", "<end>", "<start>", "\ufdd2", "\ufdd3"]), max_size=9
    ).map("".join)
)
def test_any_text_gives_letters_alone(made: dict[str, Any], text: str) -> None:
    for kind in ("byte-level", "unigram"):
        names = control_tokens(made[kind])
        (row,) = text_ids(made[kind], [text], special=False)
        assert not (set(names.values()) - {made[kind].unk_token_id}) & set(row)
    if not {"\ufdd2", "\ufdd3"} & set(text):
        assert made["byte-level"].decode(text_ids(made["byte-level"], [text], special=False)[0]) == text


def test_added_tokens_that_steer_are_letters_and_words_that_were_added_are_not(tmp_path: Path) -> None:
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(save_byte_level(tmp_path))
    steering = ["<|im_end|>", "<extra_id_0>", "<\uff5cUser\uff5c>", "[INST]"]
    tokenizer.add_tokens([AddedToken(name, special=False) for name in [*steering, "පොත", "\n\n", "user"]])
    tokenizer.chat_template = "user [INST] {{ messages }}"
    assert set(steering) <= set(control_tokens(tokenizer))
    assert not {"පොත", "\n\n", "user"} & set(control_tokens(tokenizer))
    found = text_ids(tokenizer, [f"a {name} b" for name in steering], special=False)
    assert [tokenizer.decode(row) for row in found] == [f"a {name} b" for name in steering]
    added = set(tokenizer.get_added_vocab().values())
    assert not added & {number for row in found for number in row}
    (row,) = text_ids(tokenizer, ["a පොත\n\nb"], special=False)
    assert row == tokenizer("a පොත\n\nb", add_special_tokens=False)["input_ids"] and added & set(row)


@pytest.mark.parametrize("kind", ["byte-level", "unigram", "python"])
def test_a_template_writes_control_tokens_and_a_message_in_it_does_not(made: dict[str, Any], kind: str) -> None:
    tokenizer = made[kind]
    end, eos = tokenizer.eos_token, tokenizer.eos_token_id
    ordinary = f"{end}the cat{end} on a mat"
    assert template_ids(tokenizer, ordinary) == tokenizer(ordinary, add_special_tokens=False)["input_ids"]
    message = guarded(tokenizer, f"the {end} cat")
    assert message.replace(BREAK, "") == f"the {end} cat" != message
    ids = template_ids(tokenizer, f"{end}{message}{end}")
    assert ids[0] == ids[-1] == eos and eos not in ids[1:-1] and len(ids) > 5
    if kind == "byte-level":
        assert tokenizer.decode(ids) == f"{end}the {end} cat{end}"


def test_source_prompt_and_target_of_a_sample_hold_no_written_control_token(
    encoder_folder: Path, tmp_path: Path
) -> None:
    tokenizers = load_tokenizers(ModelConfig(encoder=str(encoder_folder), llm=str(save_byte_level(tmp_path, bos=True))))
    sample = {"source": "the </s> cat", "prompt": "a <end> b <start>", "target": "write <end> then"}
    row = tokenize_sample(sample, tokenizers, DataConfig(augment_prompt=True))
    assert row.target.count(tokenizers.eos_id) == 1 and row.target[-1] == tokenizers.eos_id
    assert tokenizers.llm.decode(row.target[:-1]) == " write <end> then"
    assert tokenizers.llm.decode(row.prompt) == "a <end> b <start>"
    assert not {tokenizers.eos_id, tokenizers.bos_id} & {*row.prompt, *row.target[:-1]}
    end = tokenizers.encoder.eos_token_id
    assert row.source == [tokenizers.source_ids("the")[0], tokenizers.encoder.unk_token_id, row.source[2], end]


def test_sentinels_that_a_sentencepiece_model_holds_as_pieces_are_letters(tmp_path: Path) -> None:
    """mT5's own spiece.model does."""
    import sentencepiece
    from transformers import T5Tokenizer

    from bridge_ds.data.text.spiece import SentencePieceTokenizer

    (tmp_path / "corpus.txt").write_text("the cat sat on the mat <id_0>\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "spiece"), vocab_size=60, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False, user_defined_symbols=["<extra_id_0>"],
    )  # fmt: skip
    exact = SentencePieceTokenizer(T5Tokenizer.from_pretrained(str(tmp_path), extra_ids=0), tmp_path / "spiece.model")
    piece = exact.get_vocab()["<extra_id_0>"]
    spiece = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    assert piece in spiece.encode("the <extra_id_0> cat")
    found, other = text_ids(exact, ["the <extra_id_0> cat", "the cat"], special=True)
    assert piece not in found and found[-1] == 1 and other == [*spiece.encode("the cat"), 1]
