"""Encoder ids exactly as SentencePiece gives them, and what a tokenizer loses in which script.

transformers 5 rebuilds T5's and mT5's tokenizer without byte fallback: a character outside the vocabulary, which
SentencePiece encodes as bytes, becomes `<unk>` and is lost. Its normalizer also differs on some clusters of marks, and
it takes `</s>` inside a text for the end token. Where the model's own `spiece.model` is available it is used instead.
Tokens that somebody has added to the model's own (LangBridge adds white space) are still found in texts, but for
control tokens (:mod:`bridge_ds.data.text.plain`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bridge_ds.config.names import resolve
from bridge_ds.data.text.plain import BREAK, control_tokens, frame
from bridge_ds.errors import ConfigError, brief
from bridge_ds.frozen.foreign import refuse_foreign

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PROBES", "SentencePieceTokenizer", "find_spiece", "with_spiece"]

PROBES: Mapping[str, str] = {
    "am": "ድመቷ ምንጣፉ ላይ ተቀመጠች።", "ar": "جلست القطة على الحصيرة.", "bn": "বিড়ালটি মাদুরে বসেছিল।",
    "bo": "ཞི་མི་གདན་ཐོག་ལ་བསྡད།", "el": "Η γάτα κάθισε στο χαλί.", "en": "The cat sat on the mat, naïve ﬁancé.",
    "gu": "બિલાડી સાદડી પર બેઠી.", "he": "החתול ישב על השטיח.", "hi": "बिल्ली चटाई पर बैठी।", "hy": "Կատուն նստեց գորգին։",
    "ja": "猫がマットの上に座った。", "jv": "ꦏꦸꦕꦶꦁ", "ka": "კატა ხალიჩაზე იჯდა.", "km": "ឆ្មាអង្គុយលើកន្ទេល។",
    "kn": "ಬೆಕ್ಕು ಚಾಪೆಯ ಮೇಲೆ ಕುಳಿತಿತು.",
    "ko": "고양이가 매트 위에 앉았다.", "lo": "ແມວນັ່ງເທິງເສື່ອ", "ml": "പൂച്ച പായയിൽ ഇരുന്നു.", "my": "ကြောင်သည် ဖျာပေါ်တွင် ထိုင်သည်။",
    "or": "ବିଲେଇ ମସିଣା ଉପରେ ବସିଲା।", "pa": "ਬਿੱਲੀ ਚਟਾਈ ਉੱਤੇ ਬੈਠੀ।", "ru": "Кошка сидела на коврике.", "si": "පූසා පැදුර මත වාඩි වුණා.",
    "ta": "பூனை பாயில் அமர்ந்தது.", "te": "పిల్లి చాప మీద కూర్చుంది.", "th": "แมวนั่งบนเสื่อ", "ti": "እታ ድሙ ኣብ ልዕሊ ምንጻፍ ኮፍ በለት።",
    "ur": "بلی چٹائی پر بیٹھ گئی۔", "vi": "Con mèo ngồi trên tấm thảm.", "yo": "Ológbò náà jókòó sórí ẹní.",
    "zh": "猫坐在垫子上。", "emoji": "🐈 on 𝕞𝕒𝕥 ½  x", "mixed": "the 猫 cat </s> ꦏ",
}  # fmt: skip
"""A sentence of each language, for every script in which the benchmarks are written and some more."""


class SentencePieceTokenizer:
    """The parts of a Hugging Face tokenizer that this project uses, its ids those of SentencePiece. May be pickled."""

    reads_text = True
    """No text holds a control token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
        """Args:
        tokenizer: of the same model; decides what comes before and after a text, and the special ids.
        path: the model's spiece.model.
        """
        import sentencepiece

        self._spiece = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.tokenizer = tokenizer
        self.pieces_sha256 = hashlib.sha256(self._spiece.serialized_model_proto()).hexdigest()
        self._vocabulary = tokenizer.get_vocab()
        self._names = {number: token for token, number in self._vocabulary.items()}
        self._before, self._after = frame(tokenizer)
        size = self._spiece.get_piece_size()
        control = control_tokens(tokenizer)
        added = [name for name, number in self._vocabulary.items() if number >= size and name not in control]
        # The longest first, as Hugging Face tokenizers match them.
        self._added = "|".join(re.escape(name) for name in sorted(added, key=len, reverse=True))
        names = [*control, *(f"<extra_id_{number}>" for number in range(100))]
        # mT5's own model holds the sentinels as pieces.
        pieces = {self._vocabulary.get(mark + name, size) for name in names for mark in ("", "\u2581")}
        self._control = frozenset(i for i in pieces if i < size and not self._never_in_texts(i))
        self._broken = re.compile(f"(.)(?={'|'.join(re.escape(name[1:]) for name in names if name[1:])})")
        self.pad_token_id = tokenizer.pad_token_id
        self.eos_token_id = tokenizer.eos_token_id
        self.bos_token_id = tokenizer.bos_token_id
        self.unk_token_id = tokenizer.unk_token_id
        self.all_special_ids = list(tokenizer.all_special_ids)

    def __len__(self) -> int:
        return len(self._vocabulary)

    def __call__(
        self, texts: Sequence[str], add_special_tokens: bool = True, verbose: bool = True
    ) -> dict[str, list[list[int]]]:
        """{"input_ids": ids of each text}."""
        rows = [self._split(text) for text in texts] if self._added else self._spiece.encode(list(texts))
        if self._control:
            rows = [
                row if self._control.isdisjoint(row) else self._in_parts(text)
                for row, text in zip(rows, texts, strict=True)
            ]
        if add_special_tokens:
            rows = [[*self._before, *row, *self._after] for row in rows]
        return {"input_ids": rows}

    def _never_in_texts(self, piece: int) -> bool:
        of = self._spiece
        return bool(of.is_control(piece) or of.is_unknown(piece) or of.is_unused(piece))

    def _split(self, text: str) -> list[int]:
        """Ids of a text that may hold added tokens; between these, SentencePiece encodes it."""
        ids: list[int] = []
        for position, part in enumerate(re.split(f"({self._added})", text)):
            ids += [self._vocabulary[part]] if position % 2 else self._spiece.encode(part)
        return ids

    def _in_parts(self, text: str) -> list[int]:
        """Ids of a text that holds a control token which is a piece of the model: the token is encoded in two parts."""
        encode = self._split if self._added else self._spiece.encode
        parts = self._broken.sub(f"\\1{BREAK}", text).split(BREAK)
        return [number for part in parts for number in encode(part)]

    def placed(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Ids of each text without special tokens, and the characters [start, end) that each stands for (of one that is
        written in bytes, none or the whole of it); no ids where added or control tokens are in the text."""
        rows = self(texts, add_special_tokens=False)["input_ids"]
        found = []
        for text, ids in zip(texts, rows, strict=True):
            plain = self._spiece.encode(text, out_type="offset_mapping")
            found.append((ids, plain["offsets"]) if plain["ids"] == ids else ([], []))
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text again, without special tokens."""
        size = self._spiece.get_piece_size()
        return str(self._spiece.decode([number for number in map(int, ids) if number < size]))

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The name of each id."""
        return [self._names[number] for number in ids]

    def get_vocab(self) -> dict[str, int]:
        """{name: id}, as the Hugging Face tokenizer gives it."""
        return self._vocabulary

    def agrees(self) -> bool:
        """Whether both have the same ids for all pieces (not so for families with shifted ids, such as XLM-R)."""
        pieces = (self._spiece.id_to_piece(number) for number in range(self._spiece.get_piece_size()))
        return all(self._vocabulary.get(piece) == number for number, piece in enumerate(pieces))


def with_spiece(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    revision: str | None,
    hub: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """The tokenizer on top of its `spiece.model`, where the model has one that belongs to it; else as it is.

    Args:
        tokenizer: loaded.
        name: the model it was loaded from.
        revision: hub revision.
        hub: where it was loaded from (cache_dir, token).

    Raises:
        ConfigError: its `spiece.model` is damaged.
    """
    path = find_spiece(name, revision, hub)
    if path is None:
        return tokenizer
    refuse_foreign("the tokenizer of model.encoder", path)
    try:
        exact = SentencePieceTokenizer(tokenizer, path)
    except (RuntimeError, OSError) as error:  # of the SentencePiece library
        reason = brief(error, 160)
        raise ConfigError(
            f"the tokenizer of model.encoder: {path} cannot be read ({reason}); expected a model of SentencePiece; "
            "download it again, or remove it to use tokenizer.json alone."
        ) from None
    return exact if exact.agrees() else tokenizer


def find_spiece(name: str, revision: str | None, hub: Mapping[str, Any] = MappingProxyType({})) -> Path | None:
    """The `spiece.model` of a folder or of a hub model that is in the cache."""
    from bridge_ds.frozen.verify import cached_file

    return cached_file(resolve(name), "spiece.model", revision, hub)
