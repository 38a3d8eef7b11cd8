"""The second half of a report: layers, tokens, lengths, confusions, scores, examples, and how all was computed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from bridge_ds.report.blocks import Block, Cell, Folded, Items, Picture, Section, TableBlock, Text
from bridge_ds.report.write import count, language_cell, percent, signed

__all__ = ["last_sections"]

_LONGEST = 600
"""Most characters of a source that are shown."""


def last_sections(results: dict[str, Any]) -> list[Section]:
    """From the layers to the methods."""
    sections = [_layers(results), _tokens(results), _lengths(results), _confusion(results), _scores(results)]
    return [*sections, _examples(results), _methods(results)]


def _known(results: dict[str, Any]) -> dict[str, Any]:
    return {code: known for task in results["tasks"].values() for code, known in task["languages"].items()}


def _layers(results: dict[str, Any]) -> Section:
    known = _known(results)
    blocks: list[Block] = [
        Text(
            "How much of the fused state comes from each encoder layer, 1 being the first: means over the sources' "
            "tokens, the tasks and the seeds. The deepest colour is a row's heaviest layer. Unlike English: the "
            "share of weight that lies on other layers than it does for English."
        )
    ]
    for system, found in results["layers"].items():
        layers = len(next(iter(found["languages"].values())))
        numbers = [Cell(str(layer)) for layer in range(1, layers + 1)]
        if found["constant"]:
            weights = np.mean(list(found["languages"].values()), axis=0)
            caption = f"{system}: weight of each encoder layer in %, the same in every language."
            blocks.append(TableBlock(caption, ["layer", *numbers], [["every language", *_heat(weights)]], compact=True))
            continue
        rows = [
            [language_cell(code, known[code]), _distance(found["languages"], code, known), *_heat(np.array(weights))]
            for code, weights in found["languages"].items()
        ]
        caption = f"{system}: weight of each encoder layer in %, by language."
        columns: list[Cell | str] = ["language", "unlike English", *numbers]
        picture = Picture(f"layers-{results['slugs'][system]}.png", f"Heat map of {system}'s layer weights")
        blocks += [TableBlock(caption, columns, rows, compact=True), picture]
        said = [_layer_sentence(code, known[code], weights) for code, weights in found["languages"].items()]
        blocks.append(Folded(f"{system}: the heaviest layers in words", [Items(said)]))
    if not results["layers"]:
        blocks = [Text("No run wrote down its layer weights.")]
    return Section("layers", "Layers by language", blocks)


def _heat(weights: np.ndarray) -> list[Cell]:
    top = max(float(weights.max()), 1e-9)
    return [Cell(f"{100 * weight:.0f}", heat=float(weight) / top) for weight in weights]


def _distance(languages: dict[str, list[float]], code: str, known: dict[str, Any]) -> Cell:
    english = next((weights for key, weights in languages.items() if known[key]["group"] == "English"), None)
    if english is None:
        return Cell("–")
    return Cell(f"{50 * float(np.abs(np.subtract(languages[code], english)).sum()):.1f} %")


def _layer_sentence(code: str, known: dict[str, Any], weights: list[float]) -> str:
    best = sorted(range(len(weights)), key=lambda place: -weights[place])[:3]
    named = ", ".join(f"{place + 1} ({100 * weights[place]:.0f} %)" for place in best)
    return f"{known['name']} ({code}): most weight on {'layer' if len(best) == 1 else 'layers'} {named}."


def _tokens(results: dict[str, Any]) -> Section:
    blocks: list[Block] = [
        Text(
            "How finely the encoder's tokenizer cuts a language: more tokens a word mean longer, costlier and "
            "usually worse input. An unknown token is text that the encoder never sees. The closing token of a "
            "source is counted."
        )
    ]
    for task, found in results["tasks"].items():
        rows = [
            [
                language_cell(code, known),
                known["group"],
                "–" if known["class"] is None else str(known["class"]),
                _number(known["per_word"]),
                _number(known["per_character"]),
                "–" if known["unknown"] is None else f"{100 * known['unknown']:.2f}",
            ]
            for code, known in found["languages"].items()
        ]
        columns = ["language", "group", "class", "tokens a word", "tokens a character", "unknown, %"]
        blocks.append(TableBlock(f"{task}: encoder tokens of the sources, by language.", columns, rows))
    return Section(
        "tokens", "Tokens by language", [*blocks, Picture("tokens.png", "Encoder tokens a word, by language")]
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _lengths(results: dict[str, Any]) -> Section:
    blocks: list[Block] = []
    names = ("shortest quarter", "second", "third", "longest quarter")
    for task, found in results["tasks"].items():
        bins = found["lengths"]["bins"]
        if not bins[0]["samples"]:
            blocks.append(Text(f"{task}: its sources are too much alike in length to be parted."))
            continue
        unit = found["lengths"]["unit"]
        heads = [Cell(name, f"{part['from']} to {part['to']} {unit}") for name, part in zip(names, bins, strict=True)]
        rows: list[list[Cell | str]] = [
            [Cell(system), *(percent(share) for share in found["lengths"]["accuracy"][system]), _trend(found, system)]
            for system in results["systems"]
        ]
        counts = ", ".join(str(part["samples"]) for part in bins)
        caption = (
            f"{task}: accuracy in % by length of the source; quarters within each language, averaged over languages "
            f"({counts} samples)."
        )
        blocks.append(TableBlock(caption, ["system", *heads, "longest less shortest"], rows))
    return Section(
        "lengths", "Length of the source", [*blocks, Picture("lengths.png", "Accuracy by length of the source")]
    )


def _trend(found: dict[str, Any], system: str) -> str:
    shares = found["lengths"]["accuracy"][system]
    return signed(shares[-1] - shares[0])


def _confusion(results: dict[str, Any]) -> Section:
    blocks: list[Block] = []
    for task, found in results["tasks"].items():
        if not found["confusion"]:
            blocks.append(Text(f"{task}: its samples have choices of their own, so no label is confused with another."))
            continue
        others = [code for code, known in found["languages"].items() if known["group"] != "English"] or list(
            found["languages"]
        )
        where = "all languages but English" if len(others) < len(found["languages"]) else "all languages"
        for system in results["systems"]:
            matrix = np.sum([found["confusion"][system][code] for code in others], axis=0)
            blocks.append(_matrix(f"{task}, {system}: {where}", found["labels"], matrix))
        each = [
            _matrix(
                f"{task}, {system}: {known['name']} ({code})",
                found["labels"],
                np.array(found["confusion"][system][code]),
            )
            for system in results["systems"][-2:]
            for code, known in found["languages"].items()
        ]
        blocks.append(Folded(f"{task}: by language, {' and '.join(results['systems'][-2:])}", each))
    head = Text(
        "Rows: the right label. Columns: the label given, in % of the row. All seeds; none = a score was no number."
    )
    return Section("confusion", "What is confused with what", [head, *blocks])


def _matrix(caption: str, labels: list[str], matrix: np.ndarray) -> TableBlock:
    has_none = bool(matrix[:, -1].any())
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1e-9)
    shares = shares if has_none else shares[:, :-1]
    rows = [
        [Cell(label), *(Cell(f"{100 * share:.0f}", heat=float(share)) for share in row)]
        for label, row in zip(labels, shares, strict=True)
    ]
    return TableBlock(caption, ["", *labels, *(["none"] if has_none else [])], rows, compact=True)


def _scores(results: dict[str, Any]) -> Section:
    names = {"sum": "sum", "mean": "mean a token", "calibrated": "calibrated by a null source"}
    blocks: list[Block] = [
        Text(
            "The log-probability of a choice may be taken as it is (sum), by token, or less that after a null "
            "source. Where these choose differently, the result depends on a convention."
        )
    ]
    for task, found in results["tasks"].items():
        if not found["agreement"]:
            blocks.append(Text(f"{task}: nothing is chosen by scores."))
            continue
        first = next(iter(found["agreement"].values()))
        ways = [way for way in first["accuracy"] if all(way in f["accuracy"] for f in found["agreement"].values())]
        pairs = [pair for pair in first["same"] if all(pair in f["same"] for f in found["agreement"].values())]
        rows = [
            [
                Cell(system),
                *(percent(f["accuracy"][way]) for way in ways),
                *(percent(f["same"][pair]) for pair in pairs),
            ]
            for system, f in found["agreement"].items()
        ]
        heads = [f"accuracy, {names[way]}" for way in ways] + [
            f"same choice, {pair.replace(', ', ' and ')}" for pair in pairs
        ]
        blocks.append(TableBlock(f"{task}: mean over languages and seeds, in %.", ["system", *heads], rows))
    return Section("scores", "Ways to read the scores", blocks)


def _examples(results: dict[str, Any]) -> Section:
    blocks: list[Block] = []
    baseline = results["baseline"]
    for system in results["rivals"]:
        for task, found in results["tasks"].items():
            both = (
                ("lost", f"{task}: {baseline} is right and {system} is not"),
                ("won", f"{task}: {system} is right and {baseline} is not"),
            )
            tables: list[Block] = [
                _example_table(results, caption, found["examples"][system][key], system, found["languages"])
                for key, caption in both
                if found["examples"][system][key]
            ]
            told = tables or [Text("They are right and wrong on the same samples.")]
            blocks.append(Folded(f"{system} and {baseline} on {task}", told))
    head = Text(
        "Where a system and the baseline differ most: in most seeds first, then by the widest gap between their "
        "scores; each language once before any twice. Chosen to be telling, so no share can be read from them."
    )
    return Section("examples", "Examples side by side", [head, *(blocks or [Text("There is nothing to compare.")])])


def _example_table(
    results: dict[str, Any], caption: str, examples: list[dict[str, Any]], system: str, languages: dict[str, Any]
) -> TableBlock:
    rows = [
        [
            Cell(languages[example["language"]]["name"], f"{example['language']}, {example['key']}"),
            Cell(_shortened(example["source"]), is_data=True),
            Cell(example["right"], is_data=True),
            Cell(_answers(example["baseline"]), is_data=True),
            Cell(_answers(example["system"]), is_data=True),
        ]
        for example in examples
    ]
    return TableBlock(
        caption, ["language", *(_text_head(h) for h in ("source", "right", results["baseline"], system))], rows
    )


def _text_head(text: str) -> Cell:
    return Cell(text, is_data=True)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _answers(texts: list[str]) -> str:
    # One answer a seed; the same ones are counted together. The two signs keep the count beside an answer that is
    # written from right to left (Unicode's first strong isolate and its end).
    counted = Counter(f"\u2068{_shortened(text)}\u2069" if text else "(nothing)" for text in texts)
    return "; ".join(f"{text} ({n} of {len(texts)})" if len(texts) > 1 else text for text, n in counted.most_common())


def _methods(results: dict[str, Any]) -> Section:
    seeds, families = len(results["seeds"]), results["families"]
    items = [
        f"Intervals are {100 * results['level']:.0f} % percentile intervals of {results['draws']} bootstrap draws. "
        "What is resampled: the samples of a task, with replacement. The same draw goes to all systems, all seeds "
        "and all languages that ask the same samples, so differences and averages are those of paired samples.",
        "Languages and tasks are not resampled: an average speaks of these languages only.",
        "Where all answers are right (or all wrong, or two systems are right on the same samples) resampling shows no "
        "spread; the interval is then the exact one for an event not seen once (Clopper and Pearson 1934).",
        "McNemar's test is the exact binomial one, two-sided, for two checkpoints of the same seed on the same "
        "samples.",
        "Holm's correction (1979) is made over all tests of a kind in this report: "
        f"{count(families['checkpoints'], 'test')} of checkpoints, {count(families['methods'], 'test')} of methods, "
        "and those of averages, each a family of its own. It holds whatever depends on what.",
    ]
    if seeds > 1:
        items[1:1] = [
            f"Seeds ({seeds}) are not resampled and never count as more samples: to each draw an error of the mean "
            "over seeds is added, from Student's t with one degree of freedom less than there are seeds. For "
            "differences these are differences of the same seed. Resampling so few seeds would give intervals that "
            "are too narrow.",
            "The test of methods takes the mean difference against both errors, that of the samples and that of the "
            "seeds; it fits the intervals.",
        ]
    else:
        items.insert(
            1, "With one seed nothing is known of what training again would change, and nothing is added for it."
        )
    blocks: list[Block] = [Items(items)]
    blocks.append(Text(f"All numbers are in report.json beside this page (bridge_ds {results['version']})."))
    return Section("methods", "How this was computed", blocks)
