"""A report as HTML and as Markdown: one template of the content, two files of macros that render its parts."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from bridge_ds.disk import real, write_text
from bridge_ds.metrics import CHOICE_METRICS, METRICS
from bridge_ds.report.languages import GROUPS
from bridge_ds.report.statistics import ALPHA

__all__ = ["render", "write_report"]

Estimate = Mapping[str, Any]
"""`{"value", "low", "high"}`, shares from -1 to 1."""
Scale = tuple[float, float]
"""Left and right end of a chart, shares."""

_LONGEST = 600
"""Most characters of a source that are shown."""
_PAPER = re.compile(r"arXiv (\d{4}\.\d{4,5})")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def render(results: Mapping[str, Any], format: str) -> str:
    """The report as one text.

    Args:
        results: from :func:`~bridge_ds.report.results.study_results`.
        format: `html`, or `markdown` (GitHub's).
    """
    environment = Environment(
        loader=PackageLoader("bridge_ds.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_markdown if format == "markdown" else None,
    )
    environment.filters |= {function.__name__.strip("_"): function for function in _FILTERS}
    environment.globals |= {function.__name__.strip("_"): function for function in _FUNCTIONS}
    environment.globals["next_number"] = itertools.count(1).__next__
    text = environment.get_template("report.j2").render(results, format=format, **_derived(results))
    if format == "markdown":
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.strip() for line in text.splitlines()))
    return text.strip() + "\n"


def _markdown(value: Any) -> Any:
    """Instead of escaping for HTML. Line ends and runs of spaces would break the row of a table."""
    if isinstance(value, Markup):
        return value
    text = _SPECIAL.sub(r"\\\1", " ".join(str(value).split()))
    return Markup(text.replace("&", "&amp;").replace(r"\<", "&lt;"))


def _derived(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the template needs beside the keys of report.json."""
    tasks = results["tasks"]
    present = {group for found in tasks.values() for group in found["groups"]}
    return {
        "title": _title(results),
        "known": {code: known for found in tasks.values() for code, known in found["languages"].items()},
        "summary": [_summary(results, system, task) for system in results["rivals"] for task in tasks],
        "published": [row for entry in results["reported"] for row in _published(tasks, entry)],
        "has_group": present.__contains__,
        "groups": GROUPS,
        "metrics": METRICS,
        "choice_metrics": CHOICE_METRICS,
    }


def _title(results: Mapping[str, Any]) -> str:
    trained = {run["system"] for run in results["compared"] if run["checkpoint"]}
    names = [name for name in results["systems"] if name in trained]
    return f"Bridges compared: {', '.join(names)}" if len(names) < 4 else f"{len(names)} bridges compared"


def _summary(results: Mapping[str, Any], system: str, task: str) -> dict[str, Any]:
    test = results["averages"][system][task]
    verdicts = Counter(test["verdict"] for test in results["tests"][system][task].values())
    return {
        "system": system,
        "task": task,
        "difference": results["tasks"][task]["differences"][system][test["group"]],
        "p": test["holm"],
        **{verdict: verdicts[verdict] for verdict in ("better", "worse", "undecided")},
    }


def _published(tasks: Mapping[str, Any], entry: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """A published number of each system, with what was measured here on the same task and languages, if it was."""
    found: Mapping[str, Any] = tasks.get(entry["task"], {})
    for system, value in entry["values"].items():
        row = {"what": entry["what"], "system": system, "value": value, "measured": None}
        estimates = found.get("accuracy", {}).get(system, {}) | found.get("macro", {}).get(system, {})
        if entry["group"] in estimates:
            codes = found["groups"].get(entry["group"], [entry["group"]])
            exact = sum(found["exact_match"][system][code] for code in codes) / len(codes)
            row |= {"measured": estimates[entry["group"]], "exact_match": exact, "languages": len(codes)}
        yield row


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}"


def _signed(share: float) -> str:
    """A difference in percentage points with its sign."""
    text = f"{100 * share:+.1f}".replace("-", "\u2212")
    return text[1:] if text[1:] == "0.0" else text


def _bounds(estimate: Estimate) -> str:
    return f"{_percent(estimate['low'])} to {_percent(estimate['high'])}"


def _signed_bounds(estimate: Estimate) -> str:
    return f"{_signed(estimate['low'])} to {_signed(estimate['high'])}"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _known_or_dash(value: float | None, format: str) -> str:
    return "–" if value is None else format % value


def _plural(number: int, noun: str) -> str:
    """`1 test`, `5 tests`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _verdict_detail(test: Mapping[str, Any]) -> str:
    """The corrected p-value; with several seeds also in how many McNemar's test finds a difference."""
    deciding = test["method"] or test["seeds"][0]
    text = f"p {_p_value(deciding['holm'])}"
    if test["method"]:
        gaps = [seed["better"] - seed["worse"] for seed in test["seeds"] if seed["holm"] < ALPHA]
        text += f"; seeds +{sum(gap > 0 for gap in gaps)} \u2212{sum(gap < 0 for gap in gaps)}"
    return text


def _columns(names: Iterable[object], kind: str, prefix: str = "") -> list[tuple[str, str]]:
    """Heads of columns of one kind."""
    return [(f"{prefix}{name}", kind) for name in names]


def _pick(by_system: Mapping[str, Mapping[str, Estimate]], key: str) -> list[tuple[str, Estimate]]:
    return [(name, estimates[key]) for name, estimates in by_system.items()]


def _distinct(groups: Mapping[str, Sequence[str]]) -> list[tuple[str, Sequence[str]]]:
    """Groups of languages without those that hold the same languages as a group before."""
    first = {tuple(codes): group for group, codes in reversed(list(groups.items()))}
    return [(group, codes) for group, codes in groups.items() if first[tuple(codes)] == group]


def _groupby_system(runs: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    return [(name, list(group)) for name, group in itertools.groupby(runs, key=lambda run: run["system"])]


def _largest(weights: Sequence[float]) -> list[tuple[int, float]]:
    """The three largest weights with the numbers of their layers."""
    return sorted(enumerate(weights, 1), key=lambda item: -item[1])[:3]


def _row_shares(counts: Sequence[Sequence[float]]) -> list[list[float]]:
    """A confusion matrix in shares of its rows; without the last column where it is empty."""
    matrix = np.array(counts)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1e-9)
    return (shares if matrix[:, -1].any() else shares[:, :-1]).tolist()


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _counted(texts: Sequence[str]) -> str:
    """The answers of all seeds, equal ones counted together.

    Unicode's first strong isolate and its end keep the count beside an answer that is written from right to left.
    """
    counts = Counter(f"\u2068{_shortened(text)}\u2069" if text else "(nothing)" for text in texts)
    return "; ".join(f"{text} ({n} of {len(texts)})" if len(texts) > 1 else text for text, n in counts.most_common())


def _along(share: float, scale: Scale) -> str:
    """Position on a chart's scale as a percentage of its width."""
    low, high = scale
    return f"{100 * min(1.0, max(0.0, (share - low) / (high - low))):.2f}%"


def _squeeze(text: str) -> str:
    """Runs of white space as one space; markup stays markup."""
    return type(text)(" ".join(text.split()))


def _links(text: str) -> Markup:
    """Numbers of papers as links."""
    return Markup(_PAPER.sub(r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>', str(escape(_squeeze(text)))))


def _breakable(text: object) -> Markup:
    """Long names may be broken after an underscore."""
    return Markup(str(escape(text)).replace("_", "_<wbr>"))


def _scale_of(differences: Any, keys: Iterable[str]) -> Scale:
    """A scale around no difference that holds all differences and, unless these are too wide, their intervals."""
    estimates = [estimates[key] for estimates in differences for key in keys]
    widest = max((abs(100 * e["value"]) for e in estimates), default=0.0)
    ends = max((abs(100 * e[end]) for e in estimates for end in ("low", "high")), default=0.0)
    reach = max(min(ends, 2 * widest), widest, 1.0)
    reach = next(step for step in (2, 4, 6, 10, 20, 30, 40, 50, 60, 80, 100) if math.ceil(reach) <= step or step == 100)
    return -reach / 100, reach / 100


def _mean_weights(languages: Mapping[str, Sequence[float]]) -> list[float]:
    return np.mean(list(languages.values()), axis=0).tolist()


def _unlike_english(languages: Mapping[str, Sequence[float]], code: str, known: Mapping[str, Any]) -> str:
    english = next((weights for key, weights in languages.items() if known[key]["group"] == "English"), None)
    return "–" if english is None else f"{50 * float(np.abs(np.subtract(languages[code], english)).sum()):.1f} %"


def _without_english(languages: Mapping[str, Any]) -> list[str]:
    return [code for code, known in languages.items() if known["group"] != "English"] or list(languages)


def _total(matrices: Mapping[str, Any], codes: Iterable[str]) -> list[list[float]]:
    return np.sum([matrices[code] for code in codes], axis=0).tolist()


def _shared_keys(by_system: Mapping[str, Mapping[str, Any]], part: str) -> list[str]:
    first, *others = (found[part] for found in by_system.values())
    return [key for key in first if all(key in other for other in others)]


_FILTERS = (
    _percent, _signed, _bounds, _signed_bounds, _p_value, _known_or_dash, _plural, _verdict_detail, _columns, _pick,
    _distinct, _groupby_system, _largest, _row_shares, _shortened, _counted, _along, _squeeze, _links, _breakable,
)  # fmt: skip
_FUNCTIONS = (_scale_of, _mean_weights, _unlike_english, _without_english, _total, _shared_keys)


def write_report(folder: Path, results: Mapping[str, Any]) -> None:
    """Write report.json, report.md and report.html into a folder, each by temp + rename.

    Args:
        results: from :func:`bridge_ds.report.results.study_results`.
    """
    real(folder).mkdir(parents=True, exist_ok=True)
    texts = {
        "report.json": json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.md": render(results, "markdown"),
        "report.html": render(results, "html"),
    }
    for name, text in texts.items():
        # A source may hold an unpaired surrogate, which UTF-8 cannot encode.
        write_text(folder / name, text.encode("utf-8", "replace").decode("utf-8"))
