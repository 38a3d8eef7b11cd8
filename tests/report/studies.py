"""Prediction files of runs that never were: several tasks, scripts, fusions and seeds, with known accuracies."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bridge_ds.evaluation.predictions import Prediction, Scored, ScoredTask

FUSIONS = {"last_layer": 0.55, "global_softmax": 0.62, "transformer_softmax": 0.75}
"""Fusion -> share of right answers that the generator aims at."""
WORDS = {
    "en": "the river is high and nobody crosses it",
    "sw": "mto umejaa na hakuna anayevuka",
    "ar": "النهر مرتفع ولا أحد يعبره اليوم",
    "ur": "دریا چڑھا ہوا ہے اور کوئی پار نہیں کرتا",
    "th": "แม่น้ำสูงและไม่มีใครข้าม",
    "si": "ගඟ පිරී ඇත කිසිවෙක් එතෙර නොවේ",
    "qaa": "කගජ ටඩත දනප බමය රලව",
    "qab": "கஙச ஞடண தநப மயர லவழ",
    "xx": "blip blop blup",
}
LABELS = {
    "xnli": ("Entailment", "Neutral", "Contradiction"),
    "testbed_news": ("sport", "weather"),
    "sib200": ("travel", "health"),
}
TASKS = {
    "xnli": ("en", "ar", "ur", "th", "sw", "xx"),
    "testbed_news": ("en", "qaa"),
    "belebele": ("eng_Latn", "sin_Sinh"),
    "mgsm": ("en", "th"),
}
KINDS = {"xnli": "labels", "testbed_news": "labels", "sib200": "labels", "belebele": "choices", "mgsm": "number"}
EVIL = "<script>document.title='bad'</script><img src=x onerror=alert(1)> | **bold** `code` & \" ' ‮"


def write_run(
    folder: Path,
    fusion: str,
    seed: int,
    samples: int = 40,
    tasks: dict[str, Sequence[str]] | None = None,
    rate: float | None = None,
    layers: int = 6,
) -> Path:
    """One run folder with the predictions of the bridge and of the LLM alone."""
    tasks = tasks or TASKS
    for system, name in (("bridge", fusion), ("llm", "LLM alone")):
        target = folder / "evaluation" / system
        scored = {}
        for task, languages in tasks.items():
            labels = LABELS.get(task, ())
            chance = {"labels": 1 / max(1, len(labels)), "choices": 0.25, "number": 0.0}[KINDS[task]]
            weights = {}
            for language in languages:
                share = chance if system == "llm" else (FUSIONS[fusion] if rate is None else rate)
                rows = [_prediction(task, language, n, name, seed * (system != "llm"), share) for n in range(samples)]
                path = target / task / f"{language}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(row.line() + "\n" for row in rows), encoding="utf-8")
                if system == "bridge":
                    weights[language] = _weights(fusion, language, seed, layers)
            counts = {language: samples for language in languages}
            same = dict.fromkeys(languages, "0" * 64)
            scored[task] = ScoredTask(KINDS[task], labels, chance, counts, weights, identities=same)
        checkpoint = "step-00000750" if system == "bridge" else ""
        index = Scored(system, name, seed, checkpoint, scored)
        (target / "index.json").write_text(json.dumps(dataclasses.asdict(index)), encoding="utf-8")
    return folder


def write_study(root: Path, seeds: Sequence[int] = (0, 1, 2), **options: object) -> list[Path]:
    """Runs of all fusions and seeds."""
    return [
        write_run(root / f"{fusion}-{seed}", fusion, seed, **options)  # type: ignore[arg-type]
        for fusion in FUSIONS
        for seed in seeds
    ]


def rewrite(folder: Path, task: str, language: str, change: object, system: str = "bridge") -> None:
    """Change every prediction of a file by a function of it (None drops it)."""
    path = folder / "evaluation" / system / task / f"{language}.jsonl"
    rows = [change(Prediction.parse(line)) for line in path.read_text(encoding="utf-8").splitlines()]  # type: ignore[operator]
    path.write_text("".join(row.line() + "\n" for row in rows if row), encoding="utf-8")


def edit_index(folder: Path, system: str, **values: object) -> None:
    """Replace entries of index.json."""
    path = folder / "evaluation" / system / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _prediction(task: str, language: str, n: int, name: str, seed: int, share: float) -> Prediction:
    asked = np.random.default_rng(zlib.crc32(f"{task} {n}".encode()))
    own = np.random.default_rng(zlib.crc32(f"{task} {language} {n} {name} {seed}".encode()))
    words = WORDS.get({"eng_Latn": "en", "sin_Sinh": "si"}.get(language, language), WORDS["xx"]).split()
    source = " ".join(asked.choice(words, size=3 + int(asked.integers(24))))
    source = f"{EVIL} {source}" if n == 0 else source
    count = 4 if KINDS[task] == "choices" else len(LABELS.get(task, ()))
    label = int(asked.integers(count)) if count else -1
    # A sample is easy or hard for all alike; each system and seed has luck of its own.
    right = 0.5 * asked.random() + 0.5 * own.random() < share
    common = {
        "key": f"{task}-{n}",
        "source": source,
        "exact_match": bool(right and own.random() < 0.8),
        "source_tokens": 1 + len(source) // 3,
        "unknown": int(language == "xx"),
    }
    if not count:
        answer = str(10 + n)
        text = answer if right else str(7 * n)
        return Prediction(label=-1, answer=answer, text=text, **common | {"exact_match": bool(right)})  # type: ignore[arg-type]
    place = label if right else (label + 1 + int(own.integers(count - 1))) % count
    scores = -4 - 3 * own.random(count)
    scores[place] = -1 - own.random()
    choices = tuple(f"{words[k % len(words)]} {k}" for k in range(count)) if KINDS[task] == "choices" else ()
    answer = choices[label] if choices else LABELS[task][label]
    values = {"scores": tuple(map(float, scores)), "tokens": tuple(2 + k for k in range(count))}
    row = Prediction(label=label, answer=answer, choices=choices, **values, **common)  # type: ignore[arg-type]
    return replace(row, null=tuple(float(x) for x in -2 - own.random(count)))


def _weights(fusion: str, language: str, seed: int, layers: int) -> list[float]:
    if language == "xx":
        return [float("nan")] * layers
    if fusion == "last_layer":
        return [0.0] * (layers - 1) + [1.0]
    salt = f"{fusion} {seed}" if fusion == "global_softmax" else f"{fusion} {language}"
    found = np.random.default_rng(zlib.crc32(salt.encode())).dirichlet(np.full(layers, 2.0))
    return [float(weight) for weight in found]
