"""A probe for the terminal: a table, and what it means in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bridge_ds.probe.measure import LONG, NOTED, PARTLY, SENTENCES, WELL, LanguageProbe
from bridge_ds.probe.reader import FUSION, MAPPING
from bridge_ds.report.languages import find_language

__all__ = ["page", "ranked", "sentence"]

_REMEDIES = "docs/adapt.md"


def page(title: str, found: Sequence[LanguageProbe], count: int) -> str:
    """Title, table and sentences.

    Args:
        title: what was probed, on what.
        found: English first.
        count: sentences of each language.
    """
    # The widest a 95 % interval can be, at 50 %.
    margin = 100 * 1.96 * math.sqrt(0.25 / count)
    more = _after(found[0])
    head = (
        f"{'language':<16} {'code':<9} {'verdict':<7} {'best':>5} {'layer':>5} {'to en':>5} {'en to':>5} {'last':>5} "
        + "".join(f"{place:>8}" for place in more)
        + f" {'tok/word':>9} {'tok/en':>6} {'unknown':>8} {'lost':>5}"
    )
    return "\n".join(
        [
            title,
            f"Retrieval in %, among {count} sentences, 95 % interval at most +/- {margin:.1f}.",
            "best, last: both directions, at the best and last layer; to en, en to: one of them, at the best layer.",
            "tok/word, tok/en: tokens for a word, and for an English token. unknown: % of tokens. lost: % of letters.",
            *([f"The verdicts are meant for {SENTENCES} sentences."] if count != SENTENCES else []),
            *_repeated(found[0]),
            "",
            head,
            *(_row(each, more) for each in ranked(found)),
            "",
            *_words(found),
        ]
    )


def _repeated(english: LanguageProbe) -> list[str]:
    """A sentence finds itself, unless another one is the same: then no language can find it either."""
    if english.best == 1:
        return []
    return [
        f"{_name(english)}: only {100 * english.best:.0f} % of its sentences differ from all others for this encoder; "
        "the others are repeated, or differ in what the tokenizer loses; no language can find more; use others."
    ]


def ranked(found: Sequence[LanguageProbe]) -> list[LanguageProbe]:
    """English, then the best first; what is not read comes last."""
    english, *others = found
    return [english, *sorted(others, key=lambda each: (each.verdict == "unread", -each.best, -each.mean))]


def _row(of: LanguageProbe, more: Sequence[str]) -> str:
    at = of.retrieval[of.best_layer]
    words = "-" if of.tokens_per_word is None else f"{of.tokens_per_word:.2f}"
    return (
        f"{find_language(of.code).name[:16]:<16} {of.code[:9]:<9} {of.verdict:<7} {100 * of.best:>5.0f} "
        f"{of.best_layer:>5} {100 * at.to_english:>5.0f} {100 * at.from_english:>5.0f} {100 * of.last:>5.0f} "
        + "".join(f"{100 * of.retrieval[place].both:>8.0f}" for place in more)
        + f" {words:>9} {of.tokens_per_english_token:>6.2f}"
        + f" {100 * of.unknown_tokens:>8.1f} {100 * of.lost_letters:>5.1f}"
    )


def _words(found: Sequence[LanguageProbe]) -> list[str]:
    """The languages that are read well together, then a sentence for each other one."""
    others = ranked(found)[1:]
    well = [
        of for of in others if of.verdict == "well" and of.lost_letters < NOTED and of.tokens_per_english_token < LONG
    ]
    well = [of for of in well if all(of.retrieval[place].both >= WELL for place in _after(of))]
    lines = [f"Read well ({100 * WELL:.0f} % or more): {', '.join(_name(of) for of in well)}."] if well else []
    return lines + [sentence(of) for of in others if of not in well]


def sentence(of: LanguageProbe) -> str:
    """What was found for one language, and what to do."""
    name, verdict = _name(of), of.verdict
    unknown, lost = 100 * of.unknown_tokens, 100 * of.lost_letters
    shares = f"{unknown:.0f} % of its tokens are unknown, {lost:.0f} % of its letters are lost"
    if verdict == "unread":
        return (
            f"{name}: this encoder does not read it ({shares}); choose an encoder that knows its script, or teach this "
            f"one with some hundred translations (bridge-ds adapt); see {_REMEDIES}."
        )
    finds = f"{100 * of.best:.0f} % of its sentences find their translation (layer {of.best_layer})"
    text = {
        "well": f"{name}: read well: {finds}",
        "partly": f"{name}: read in part: {finds}; expect a part of the accuracy in English",
        "barely": f"{name}: barely read: {finds}, fewer than {100 * PARTLY:.0f} %; expect little of a bridge, and try "
        f"another encoder, or train this one (bridge-ds adapt); see {_REMEDIES}",
    }[verdict]
    if after := _after(of):
        text += "; " + ", ".join(f"after the {place} {100 * of.retrieval[place].both:.0f} %" for place in after)
    if of.lost_letters >= NOTED:
        text += f"; {shares}"
    if of.tokens_per_english_token >= LONG:
        text += f"; it takes {of.tokens_per_english_token:.1f} tokens for an English one"
    if of.truncated:
        text += f"; {100 * of.truncated:.0f} % of its sentences are truncated"
    return f"{text}."


def _after(of: LanguageProbe) -> list[str]:
    """Places after the encoder."""
    return [place for place in (FUSION, MAPPING) if place in of.retrieval]


def _name(of: LanguageProbe) -> str:
    name = find_language(of.code).name
    return name if name == of.code else f"{name} ({of.code})"
