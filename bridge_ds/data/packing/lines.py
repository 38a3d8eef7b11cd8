"""Text files with a sentence on each line as rows: of one language, or of two whose lines are translations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bridge_ds.data.packing.formats import part_rows, plain_lines
from bridge_ds.data.packing.part import Part
from bridge_ds.data.packing.sources import file_parts
from bridge_ds.data.packing.triples import read_templates, triple_rows
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.data.shards.index import INDEX_NAME, load_index
from bridge_ds.data.text.words import is_word
from bridge_ds.disk import file_sha256
from bridge_ds.errors import DataError

__all__ = ["named_files", "pack_pairs", "pack_text", "pack_triples", "sources", "text_lines", "triple_lines"]


def pack_text(file: Path, folder: Path) -> None:
    """Pack unlabeled text, unless it is packed already: each line of plain text, or each row's `text` of other
    formats. Texts of one word are left out, as of no use to predict a word in.

    Args:
        file: .txt, jsonl, csv, tsv (also .gz, .zst) or parquet.
        folder: of the shards.

    Raises:
        DataError: it cannot be read, holds no text, or the folder holds the shards of another file.
    """
    _pack([file], (row for row in _text_rows(file) if not _is_short(row.get("text"))), folder)


def text_lines(file: Path) -> Iterator[str]:
    """The texts that :func:`pack_text` packs.

    Raises:
        DataError: as there.
    """
    found = (row.get("text") for row in _text_rows(file))
    return (text for text in found if isinstance(text, str) and not is_word(text))


def pack_pairs(files: Sequence[Path], folder: Path) -> None:
    """Pack sentences with their English translations, unless they are packed already.

    Args:
        files: two text files, line N of the second the English translation of line N of the first; or one jsonl, csv,
            tsv or parquet with `source` and `target`, the English sentence.
        folder: of the shards.

    Raises:
        DataError: as :func:`pack_text`, or the files have different numbers of lines.
    """
    _pack(files, _pair_rows(files), folder)


def pack_triples(file: Path, templates: Path | None, folder: Path) -> None:
    """Pack triples as sentences, unless they are packed already.

    Args:
        file: jsonl, csv, tsv or parquet with `head`, `relation` and `tail`.
        templates: the user's; None = ours.
        folder: of the shards.

    Raises:
        DataError: as :func:`pack_text`, or a triple cannot be put into words.
    """
    rows = triple_rows(file, read_templates(templates))
    _pack([file, *([templates] if templates else [])], rows, folder)


def triple_lines(file: Path, templates: Path | None) -> Iterator[str]:
    """The sentences of :func:`pack_triples`.

    Raises:
        DataError: as there.
    """
    return (row["text"] for row in triple_rows(file, read_templates(templates)))


def sources(files: Sequence[Path]) -> Iterator[str]:
    """The sentences of :func:`pack_pairs` that are no English.

    Raises:
        DataError: as there.
    """
    return (row["source"] for row in _pair_rows(files) if isinstance(row.get("source"), str))


def named_files(files: Sequence[Path]) -> str:
    """Their names, each with the beginning of its sha256.

    Raises:
        DataError: one cannot be read.
    """
    try:
        return ", ".join(f"{file.name} {file_sha256(file)[:16]}" for file in files)
    except OSError as error:
        raise DataError(
            f"{error.filename} cannot be read ({error.strerror}); expected a file; check the path."
        ) from None


def _pack(files: Sequence[Path], rows: Iterator[dict[str, Any]], folder: Path) -> None:
    source = named_files(files)
    if not (folder / INDEX_NAME).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        pack_rows(rows, folder, source=source)
        return
    packed = load_index(folder).shards[0].source
    if packed != source:
        raise DataError(
            f"{folder} holds the samples of {packed}, and this start has {source}; expected the same files; choose "
            f"another run.output, or remove {folder}."
        )


def _is_short(text: object) -> bool:
    """One word or none; what is no text is for the reader to refuse."""
    return isinstance(text, str) and is_word(text)


def _pair_rows(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    return _pairs(*files) if len(files) == 2 else _rows(files[0])


def _text_rows(file: Path) -> Iterator[dict[str, Any]]:
    part, *_ = file_parts([file])
    return ({"text": line} for line in _lines(file)) if part.kind == "text" else _rows(file)


def _lines(file: Path) -> Iterator[str]:
    return (line for _, line in plain_lines(Part("text", str(file))))


def _pairs(foreign: Path, english: Path) -> Iterator[dict[str, Any]]:
    counts = {foreign: 0, english: 0}
    for one, two in zip_longest(_lines(foreign), _lines(english)):
        counts[foreign] += one is not None
        counts[english] += two is not None
        if one and two and counts[foreign] == counts[english]:
            yield {"source": one, "target": two}
    if counts[foreign] != counts[english]:
        raise DataError(
            f"{foreign} has {counts[foreign]} lines and {english} {counts[english]}; expected line N of both to be the "
            "same sentence; leave an empty line where there is no translation."
        )


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for part in file_parts([file]):
        for where, row in part_rows(part):
            if not isinstance(row, dict):
                raise DataError(f"{where} is a {type(row).__name__}; expected named fields; correct it.")
            yield row
