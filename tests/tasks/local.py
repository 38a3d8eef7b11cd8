"""Local files with the exact columns of the benchmarks, in the layouts that copies of the hub have; several scripts."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = {
    "en": "rain fell on the old bridge and a dog sat down by the river",
    "de": "der Regen fällt auf die alte Brücke am Fluss und alles ist nass",
    "th": "ฝน ตก บน สะพาน เก่า และ สุนัข นั่ง ริม แม่น้ำ",
    "ar": "سقط المطر على الجسر القديم وجلس كلب قرب النهر",
    "ta": "மழை பழைய பாலத்தில் பெய்தது ஒரு நாய் ஆற்றின் அருகே அமர்ந்தது",
    "bn": "পুরানো সেতুতে বৃষ্টি পড়ল একটি কুকুর নদীর ধারে বসল",
    "si": "පැරණි පාලම මත වැසි වැටුණා බල්ලෙක් ගඟ අසල වාඩි වුණා",
    "ja": "古い 橋 に 雨 が 降り 犬 が 川 の そば に 座った",
}
NEWS = ("Business", "Entertainment", "Political", "Sports", "Science")


def text(draw: random.Random, language: str, most: int = 8) -> str:
    return " ".join(draw.choices(WORDS[language].split(), k=draw.randint(2, most)))


def pairs(language: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of XNLI and IndicXNLI."""
    draw = random.Random(f"{language} {seed}")
    return [
        {"premise": text(draw, language), "hypothesis": text(draw, language, 4), "label": draw.randrange(3)}
        for _ in range(count)
    ]


def parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    import pyarrow
    from pyarrow import parquet as format

    path.parent.mkdir(parents=True, exist_ok=True)
    format.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def xnli(folder: Path, count: int = 12, train: int = 60) -> Path:
    """As `facebook/xnli`: parquet in a folder for each language."""
    for language in ("en", "de", "th", "ar"):
        parquet(folder / language / "test-00000-of-00001.parquet", pairs(language, count))
    parquet(folder / "en" / "train-00000-of-00001.parquet", pairs("en", train, seed=1))
    return folder


def indicxnli(folder: Path, count: int = 10) -> Path:
    """As the hub's `refs/convert/parquet`."""
    for language in ("bn", "ta"):
        parquet(folder / language / "test" / "0000.parquet", pairs(language, count))
    return folder


def sinhala_news(folder: Path, count: int = 11) -> Path:
    """One configuration, a split for each language, labels by name."""
    for split, language in (("train", "en"), ("test", "en"), ("test", "si")):
        draw = random.Random(split + language)
        rows = [{"sentence": text(draw, language), "label": draw.choice(NEWS)} for _ in range(count)]
        parquet(folder / "data" / f"{split}_{language}-00000-of-00001.parquet", rows)
    return folder


def amazon_reviews(folder: Path, count: int = 9) -> Path:
    """JSON lines in a folder for each language."""
    for split, language in (("train", "en"), ("test", "en"), ("test", "ja")):
        draw = random.Random(split + language)
        rows = [
            {"id": f"{language}_{n}", "text": f"{text(draw, language)}\n\n{text(draw, language)}", "label": n % 5,
             "label_text": str(n % 5)} for n in range(count)
        ]  # fmt: skip
        jsonl(folder / language / f"{split}.jsonl", rows)
    return folder


def all_four(folder: Path) -> dict[str, Path]:
    """Task -> its folder."""
    makers = {
        "xnli": xnli, "indicxnli": indicxnli, "sinhala_news": sinhala_news, "amazon_reviews": amazon_reviews
    }  # fmt: skip
    return {name: make(folder / name) for name, make in makers.items()}  # type: ignore[operator]
