"""Pieces for a script that an encoder's tokenizer does not have: learned from text, added behind the old ones.

A piece is added only if it holds a letter that the tokenizer loses, so that every text without such letters is
tokenized as before, and old ids keep their rows bit for bit. New rows begin as UNKs Everywhere has it (arXiv
2012.15562): the old table is factored, X = W F, and a new row is a new w times the same F. They mean nothing until they
are trained.

Dimensions: V rows of the old table, N new ones, D encoder width, K rank of the factors.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bridge_ds.adapt.head import find_head
from bridge_ds.config.names import resolve
from bridge_ds.config.schema import ModelConfig
from bridge_ds.data.text.plain import text_ids
from bridge_ds.data.text.spiece import find_spiece
from bridge_ds.encoder.frozen import encoder_base
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.frozen.identity import tokenizer_files
from bridge_ds.frozen.load import load_complete
from bridge_ds.frozen.tokenizer import load_tokenizer
from bridge_ds.frozen.verify import model_file

__all__ = ["Added", "extend_vocabulary", "new_letters", "new_rows"]

_RANK = 100
"""K, as in the paper."""
_TOKENIZER = "tokenizer.json"
_LONGEST = 65_535
"""Bytes of a line from which pieces are learned: SentencePiece counts the signs of a word in 16 bits. By default it
leaves out lines above 4,192 bytes, which a paragraph of some scripts has."""


class Added(NamedTuple):
    """Pieces that an encoder has got."""

    first: int
    """Id of the first of them."""
    pieces: int
    """How many."""
    deviation: float
    """Standard deviation of the numbers of its old token embeddings."""


def extend_vocabulary(model: ModelConfig, lines: Sequence[str], count: int, folder: Path) -> Added:
    """Write `model.encoder` with more pieces into a folder: its weights, with their head or decoder, and its tokenizer.

    Args:
        model: which encoder.
        lines: text of the language.
        count: most pieces that are added.
        folder: to write; exists.

    Returns:
        what was added.

    Raises:
        ConfigError: the tokenizer is of another kind than SentencePiece's unigram model, or `count` is less than the
            letters that it lacks.
        DataError: the text has no letter that the tokenizer lacks.
    """
    name, revision = model.encoder, model.encoder_revision
    tokenizer = load_tokenizer("model.encoder", name, revision, model.trust_remote_code)
    letters = new_letters(tokenizer, lines)
    if not letters:
        raise DataError(
            "--extend-vocabulary: every letter of the text is in the vocabulary of the encoder already; expected a "
            "script that its tokenizer lacks; leave the option out."
        )
    if len(letters) > count:
        raise ConfigError(
            f"--extend-vocabulary is {count}, and the text has {len(letters)} letters that the tokenizer lacks; "
            "expected as many pieces at least; raise it."
        )
    old = tokenizer.get_vocab()
    pieces = _learn(lines, letters, count, set(old))
    first = max(old.values()) + 1
    for file, path in tokenizer_files(tokenizer, resolve(name), revision).items():
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / file)
    _write_tokenizer(model, pieces, first, folder)
    whole: Any = load_complete(find_head(model).base or encoder_base(model), dtype="auto")
    deviation = float(whole.get_input_embeddings().weight[:first].float().std())
    _extend_tables(whole, first, len(pieces))
    whole.save_pretrained(folder)
    found = load_tokenizer("model.encoder", str(folder)).get_vocab()
    wanted = old | {piece: first + number for number, (piece, _) in enumerate(pieces)}
    if found != wanted:
        wrong = next(piece for piece in wanted | found if wanted.get(piece) != found.get(piece))
        raise ConfigError(
            f"the tokenizer of model.encoder {name!r} cannot be extended: {wrong!r} has the id {found.get(wrong)} "
            f"afterwards; expected {wanted.get(wrong)}; choose another encoder."
        )
    return Added(first, len(pieces), deviation)


def new_letters(tokenizer: Any, lines: Sequence[str]) -> frozenset[str]:
    """Letters, marks and digits of a text that the tokenizer turns into its unknown token."""
    letters = sorted({each for line in lines for each in unicodedata.normalize("NFKC", line)})
    letters = [each for each in letters if unicodedata.category(each)[0] in "LMN"]
    unknown = tokenizer.unk_token_id
    rows = text_ids(tokenizer, letters, special=False) if letters and unknown is not None else []
    return frozenset(letter for letter, ids in zip(letters, rows, strict=False) if unknown in ids)


def new_rows(table_VD: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """[N, D] float32: rows that lie where the old ones do, drawn by their factors (module docstring)."""
    table = table_VD.float()
    rank = min(_RANK, table.shape[1])
    _, vectors_DD = torch.linalg.eigh(table.T @ table)  # in ascending order
    factors_KD = vectors_DD[:, -rank:].T
    old_VK = table @ factors_KD.T
    draw = torch.Generator().manual_seed(seed)
    new_NK = old_VK.mean(0) + old_VK.std(0) * torch.randn(count, rank, generator=draw)
    return new_NK @ factors_KD


def _learn(lines: Sequence[str], letters: frozenset[str], count: int, old: set[str]) -> list[tuple[str, float]]:
    """New pieces and their scores, the most frequent first; each letter alone is among them.

    They are merges of byte-pair encoding: the trainer of unigram models keeps little but letters of a short text. Their
    scores are log-probabilities by rank (Zipf's law), so that a longer piece wins over its parts.
    """
    import sentencepiece

    made = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=made,
            model_type="bpe",
            vocab_size=2 * count + len({each for line in lines for each in line}) + 3,
            hard_vocab_limit=False,
            character_coverage=1.0,
            max_sentence_length=_LONGEST,
            minloglevel=2,
            num_threads=1,
        )
    except RuntimeError as error:
        raise DataError(
            f"--extend-vocabulary: no pieces can be learned from the text ({str(error).splitlines()[0]}); expected "
            "some hundred lines of it; give more."
        ) from None
    of = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    merged = (of.id_to_piece(number) for number in range(of.get_piece_size()))
    found = [piece for piece in merged if len(piece) > 1 and letters & set(piece) and piece not in old]
    pieces = [*found[: count - len(letters)], *sorted(letters)]
    total = math.log(sum(1 / rank for rank in range(1, len(pieces) + 1)))
    return [(piece, -math.log(rank) - total) for rank, piece in enumerate(pieces, 1)]


def _write_tokenizer(model: ModelConfig, pieces: Sequence[tuple[str, float]], first: int, folder: Path) -> None:
    """Append pieces to tokenizer.json and spiece.model, whichever there are: a run reads texts by the latter."""
    name, revision = resolve(model.encoder), model.encoder_revision
    fast, spiece = model_file(name, _TOKENIZER, revision), find_spiece(model.encoder, revision)
    done = 0
    if fast:
        content = json.loads(fast.read_text(encoding="utf-8"))
        of = content["model"]
        if of.get("type") == "Unigram" and len(of["vocab"]) == first:
            lowest = min(score for _, score in of["vocab"])  # that of an unknown letter follows from it
            of["vocab"] += [[piece, max(score, lowest)] for piece, score in pieces]
            (folder / _TOKENIZER).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
            done += 1
    if spiece:
        from sentencepiece import sentencepiece_model_pb2

        messages: Any = sentencepiece_model_pb2
        proto = messages.ModelProto.FromString(spiece.read_bytes())
        if len(proto.pieces) == first:
            lowest = min(piece.score for piece in proto.pieces)
            for piece, score in pieces:
                proto.pieces.add(piece=piece, score=max(score, lowest))
            (folder / spiece.name).write_bytes(proto.SerializeToString())
            done += 1
    if done < max(1, bool(fast) + bool(spiece)):
        raise ConfigError(
            f"the tokenizer of model.encoder {model.encoder!r} cannot be extended; expected SentencePiece's unigram "
            "model, with no tokens behind its pieces (XLM-R, multilingual-e5, mT5); choose such an encoder."
        )


@torch.no_grad()
def _extend_tables(model: Any, first: int, count: int) -> None:
    """Give the model's tables rows for the ids from `first` on; rows that it has to spare are used."""
    old = model.get_input_embeddings().num_embeddings
    if first + count > old:
        model.resize_token_embeddings(first + count, mean_resizing=False)
    head = model.get_output_embeddings()
    tables = [model.get_input_embeddings().weight, *([] if head is None else [head.weight])]
    for table in {id(each): each for each in tables}.values():
        table[first : first + count] = new_rows(table[:first], count).to(table.dtype)
