"""The languages: their words are distinct, stable under NFKC, and come in different orders."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest

from bridge_ds.testbed import ENGLISH, LANGUAGE_NAMES, LANGUAGES
from bridge_ds.testbed.languages import GRAMMARS, word_list
from bridge_ds.testbed.lexicon import LEXICON, conjugate, forms, plural
from bridge_ds.testbed.meaning import Clause, NounPhrase
from bridge_ds.testbed.render import render

CONSTRUCTED = [language for language in LANGUAGES if language != ENGLISH]
CLAUSE = Clause(
    NounPhrase("dog", adjective="red"),
    "see",
    NounPhrase("apple", plural=True),
    past=True,
    negated=True,
    place=NounPhrase("city"),
    time="today",
)


def test_every_language_has_a_name():
    assert LANGUAGES == ("en", "qaa", "qab", "qac", "qad", "qae")
    assert all("constructed" in LANGUAGE_NAMES[language] for language in CONSTRUCTED)


def test_lexicon_size():
    assert 300 <= len(LEXICON) <= 450


def test_no_word_belongs_to_two_concepts_or_two_languages():
    english = Counter(form for concept in LEXICON for form in set(forms(concept)))
    assert max(english.values()) == 1
    everywhere = Counter(word for language in LANGUAGES for word in word_list(language))
    assert [word for word, count in everywhere.items() if count > 1] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_are_stable_under_nfkc(language: str):
    assert all(unicodedata.normalize("NFKC", word) == word for word in word_list(language))


@pytest.mark.parametrize(
    ("language", "script"),
    [("qaa", "SINHALA"), ("qab", "TAMIL"), ("qac", "BENGALI"), ("qad", "MALAYALAM"), ("qae", "LATIN")],
)
def test_words_are_written_in_the_letters_promised(language: str, script: str):
    assert {unicodedata.name(letter).split()[0] for word in word_list(language) for letter in word} == {script}


@pytest.mark.parametrize("language", LANGUAGES)
def test_rendered_words_are_all_listed(language: str):
    assert {word.text for word in render(CLAUSE, language)} <= set(word_list(language))


@pytest.mark.parametrize("language", CONSTRUCTED)
def test_languages_share_slots_and_concepts_but_no_words(language: str):
    english = {word.slot: word for word in render(CLAUSE, ENGLISH) if word.slot}
    constructed = {word.slot: word for word in render(CLAUSE, language) if word.slot}
    assert {slot: word.concept for slot, word in english.items()} == {
        slot: word.concept for slot, word in constructed.items()
    }
    assert not {word.text for word in english.values()} & {word.text for word in constructed.values()}


def test_word_orders_differ():
    assert len({grammar.order for grammar in GRAMMARS.values()}) == len(GRAMMARS)
    orders = {tuple(word.slot for word in render(CLAUSE, language) if word.slot) for language in LANGUAGES}
    assert len(orders) == len(LANGUAGES)


def test_english_sentence():
    text = " ".join(word.text for word in render(CLAUSE, ENGLISH))
    assert text == "red dog did not see apples in city today"


@pytest.mark.parametrize(
    ("noun", "many"),
    [("dog", "dogs"), ("city", "cities"), ("toy", "toys"), ("match", "matches"), ("child", "children")],
)
def test_plural(noun: str, many: str):
    assert plural(noun) == many


def test_conjugation():
    assert conjugate("push") == ("pushes", "pushed")
    assert conjugate("ratify") == ("ratifies", "ratified")
    assert conjugate("carry") == ("carries", "carried")
    assert conjugate("see") == ("sees", "saw")
