"""The concepts of the testbed, with their English words: about 350 of them, and what the tasks know about them.

A concept is named by its English base form, and no English surface form belongs to two concepts, so a word's meaning
never depends on its sentence. Irregular forms are spelled out after the base form (``child/children``,
``sell/sells/sold``), everything else follows the regular rules of :func:`plural` and :func:`conjugate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

__all__ = [
    "ADJECTIVE_KINDS",
    "BUYERS",
    "CITIES",
    "FEELINGS",
    "LEXICON",
    "MILD_DEGREES",
    "NEWS_ADJECTIVES",
    "NEWS_VERBS",
    "NOUN_KINDS",
    "OBJECT_KINDS",
    "PRODUCTS",
    "PURCHASES",
    "QUALITIES",
    "SENTIMENTS",
    "STRONG_DEGREES",
    "SUBJECT_KINDS",
    "TIMES",
    "TOPICS",
    "VERB_KINDS",
    "Topic",
    "conjugate",
    "forms",
    "plural",
]


@dataclass(frozen=True, slots=True)
class Topic:
    """The words that identify a news topic."""

    agents: tuple[str, ...]
    things: tuple[str, ...]
    verbs: tuple[str, ...]


def _topic(agents: str, things: str, verbs: str) -> Topic:
    return Topic(_bases(agents), _bases(things), _bases(verbs))


_IRREGULAR: dict[str, tuple[str, ...]] = {}


def _bases(line: str) -> tuple[str, ...]:
    """Split a line of words, note the irregular forms, and return the base forms."""
    bases = []
    for entry in line.split():
        base, *others = entry.split("/")
        if others:
            _IRREGULAR[base] = tuple(others)
        bases.append(base)
    return tuple(bases)


# ---- news: five topics, the order of the labels of the task --------------------------------------------------------
TOPICS: dict[str, Topic] = {
    "Business": _topic(
        "company bank investor trader manager shareholder merchant exporter",
        "profit loan dividend currency contract factory invoice market warehouse brand",
        "acquire finance import audit insure",
    ),
    "Entertainment": _topic(
        "actor singer dancer comedian musician producer actress drummer",
        "film song concert album comedy drama festival melody theatre costume",
        "perform sing/sings/sang compose rehearse record",
    ),
    "Political": _topic(
        "minister president senator voter mayor diplomat parliament ambassador",
        "election law treaty policy constitution campaign cabinet referendum coalition ballot",
        "ratify veto/vetoes/vetoed govern amend abolish",
    ),
    "Sports": _topic(
        "player athlete coach goalkeeper runner wrestler captain batsman/batsmen",
        "match goal trophy tournament medal race penalty championship wicket stadium",
        "score win/wins/won kick defend tackle",
    ),
    "Science": _topic(
        "scientist researcher physicist chemist biologist astronomer engineer laboratory",
        "experiment molecule planet telescope virus theory atom gene satellite vaccine",
        "discover measure analyse observe calculate",
    ),
}
NEWS_VERBS = _bases("announce discuss describe support welcome criticise")
NEWS_ADJECTIVES = _bases("new famous local foreign national")
CITIES = _bases("city village capital country province town island valley")
TIMES = _bases("yesterday today recently again now")

# ---- inference: general words with the special ones that fall under them --------------------------------------------
NOUN_KINDS: dict[str, tuple[str, ...]] = {
    "animal": _bases("dog cat horse cow bird rabbit"),
    "person": _bases("doctor teacher farmer child/children soldier nurse"),
    "vehicle": _bases("car bus train bicycle truck boat"),
    "fruit": _bases("apple orange banana mango grape lemon"),
    "tool": _bases("hammer knife/knives drill spade needle axe"),
    "garment": _bases("shirt coat hat dress skirt sock"),
    "instrument": _bases("piano guitar violin flute trumpet harp"),
    "flower": _bases("rose lily lotus tulip daisy jasmine"),
}
SUBJECT_KINDS = _bases("animal person")
OBJECT_KINDS = _bases("vehicle fruit tool garment instrument flower")
VERB_KINDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_bases("get/gets/got"), _bases("buy/buys/bought borrow steal/steals/stole rent collect")),
    "move": _bases("push pull lift carry throw/throws/threw"),
    "damage": _bases("break/breaks/broke burn tear/tears/tore scratch crush"),
    "clean": _bases("wash wipe sweep/sweeps/swept polish rinse"),
    **dict.fromkeys(_bases("make/makes/made"), _bases("build/builds/built draw/draws/drew carve assemble paint")),
    "notice": _bases("see/sees/saw hear/hears/heard smell touch taste"),
}
ADJECTIVE_KINDS: dict[str, tuple[str, ...]] = {
    "coloured": _bases("red green blue yellow white black"),
    "metallic": _bases("copper silver golden steel brass"),
    "european": _bases("french german italian spanish greek"),
    "asian": _bases("indian chinese japanese korean thai"),
}

# ---- reviews: what is judged, by whom, and words by their strength from -2 to +2 ------------------------------------
PRODUCTS = _bases(
    "phone camera laptop watch headphone printer kettle blanket pillow backpack toaster charger keyboard "
    "lamp umbrella mattress"
)
QUALITIES = _bases("battery screen price sound design package service delivery colour handle")
BUYERS = _bases("customer buyer user visitor")
PURCHASES = _bases("buy purchase order receive")
STRONG_DEGREES = _bases("very extremely")
MILD_DEGREES = _bases("fairly rather")
SENTIMENTS: dict[int, tuple[str, ...]] = {
    -2: _bases("terrible awful horrible dreadful disgusting worthless"),
    -1: _bases("bad disappointing faulty flimsy unpleasant inferior"),
    0: _bases("average ordinary acceptable mediocre adequate usual"),
    1: _bases("good nice useful pleasant reliable decent"),
    2: _bases("excellent wonderful fantastic superb perfect amazing"),
}
FEELINGS: dict[int, tuple[str, ...]] = {
    -2: _bases("hate detest"),
    -1: _bases("dislike regret/regrets/regretted"),
    0: _bases("test use"),
    1: _bases("like enjoy"),
    2: _bases("love adore"),
}


def plural(noun: str) -> str:
    """The English plural of a noun."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun][0]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def conjugate(verb: str) -> tuple[str, str]:
    """The third person singular and the past of an English verb."""
    if verb in _IRREGULAR:
        third, past = _IRREGULAR[verb]
        return third, past
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies", verb[:-1] + "ied"
    third = verb + ("es" if verb.endswith(("s", "x", "ch", "sh")) else "s")
    return third, verb + ("d" if verb.endswith("e") else "ed")


def _gather() -> dict[str, str]:
    """Every concept with its part of speech: noun, verb, adjective or adverb."""
    topics = TOPICS.values()
    nouns = [noun for topic in topics for noun in topic.agents + topic.things]
    nouns += [noun for kind, members in NOUN_KINDS.items() for noun in (kind, *members)]
    nouns += [*CITIES, *PRODUCTS, *QUALITIES, *BUYERS]
    verbs = [verb for topic in topics for verb in topic.verbs] + [*NEWS_VERBS, *PURCHASES]
    verbs += [verb for kind, members in VERB_KINDS.items() for verb in (kind, *members)]
    verbs += [verb for group in FEELINGS.values() for verb in group]
    adjectives = [*NEWS_ADJECTIVES, *(word for group in SENTIMENTS.values() for word in group)]
    adjectives += [adjective for kind, members in ADJECTIVE_KINDS.items() for adjective in (kind, *members)]
    adverbs = [*TIMES, *STRONG_DEGREES, *MILD_DEGREES, "not"]
    return {
        word: part
        for part, words in (("noun", nouns), ("verb", verbs), ("adjective", adjectives), ("adverb", adverbs))
        for word in words
    }


LEXICON: dict[str, str] = _gather()
"""Concept (its English base form) to part of speech."""


@cache
def forms(concept: str) -> tuple[str, ...]:
    """All English surface forms of a concept, the base form first."""
    part = LEXICON[concept]
    if part == "noun":
        return concept, plural(concept)
    return (concept, *conjugate(concept)) if part == "verb" else (concept,)
