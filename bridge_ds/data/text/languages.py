"""Encoders that take the language of a text as a tag among its ids: NLLB, M2M-100, mBART.

Their tokenizers hold one source language at a time (`src_lang`), English at first, and put its tag before or after
every text, so that a Sinhala text would be read as English. Here the ids around a text are read from the tokenizer
once for each of its languages, and the tokenizer itself is never switched again.

Languages are named by the encoder's own tags (sin_Sinh, si, si_LK) or by ISO 639-1 and 639-3 codes, with or without a
script or region.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge_ds.data.text.plain import frame, text_ids
from bridge_ds.errors import ConfigError, DataError, LaunchError
from bridge_ds.world import World

__all__ = ["HANT", "SHARD_LANGUAGE", "SourceLanguages", "code_parts", "find_languages", "source_ids"]

_log = logging.getLogger(__name__)
SHARD_LANGUAGE = "__shard_language__"
"""Field of a sample that holds the language that the index gives for its shard."""
_SAME = """
    af afr, ak aka, am amh, ar ara arb, as asm, ay aym ayr, az aze azj, ba bak, be bel, bg bul, bm bam, bn ben, bo bod,
    br bre, bs bos, ca cat, cs ces, cy cym, da dan, de deu, dz dzo, ee ewe, el ell, en eng, eo epo, es spa, et est ekk,
    eu eus, fa fas pes, ff ful fuv, fi fin, fj fij, fo fao, fr fra, fy fry, ga gle, gd gla, gl glg, gn grn gug, gu guj,
    ha hau, he heb iw, hi hin, hr hrv, ht hat, hu hun, hy hye, id ind, ig ibo, is isl, it ita, ja jpn, jv jav jw,
    ka kat, kg kon, ki kik, kk kaz, km khm, kn kan, ko kor, ks kas, ku kur kmr, ky kir, lb ltz, lg lug, li lim, ln lin,
    lo lao, lt lit, lv lav lvs, mg mlg plt, mi mri, mk mkd, ml mal, mn mon khk, mr mar, ms msa zsm, mt mlt, my mya,
    nb nob no nor, ne nep npi, nl nld, nn nno, ns nso, ny nya, oc oci, om orm gaz, or ori ory, pa pan, pl pol,
    ps pus pbt, pt por, qu que quy, rn run, ro ron, ru rus, rw kin, sa san, sc srd, sd snd, sg sag, si sin, sk slk,
    sl slv, sm smo, sn sna, so som, sq sqi als, sr srp, ss ssw, st sot, su sun, sv swe, sw swa swh, ta tam, te tel,
    tg tgk, th tha, ti tir, tk tuk, tl tgl fil, tn tsn, tr tur, ts tso, tt tat, tw twi, ug uig, uk ukr, ur urd,
    uz uzb uzn, vi vie, wo wol, xh xho, yi yid ydd, yo yor, zh zho cmn, zu zul
"""
"""Codes of one language: ISO 639-1, 639-3, and those of the variety that FLORES and NLLB have of it."""
_FIRST = {code: codes.split()[0] for codes in _SAME.split(",") for code in codes.split()}
_REMEMBERED = 1000
"""Most names of languages whose tag is kept."""
HANT = ("hant", "tw", "hk", "mo")
"""Traditional Chinese: its script, and the regions that write it."""
_TAG = re.compile(r"(?:__)?[a-z]{2,3}(?:_[A-Z][A-Za-z]{1,3})?(?:__)?")


@dataclass(frozen=True)
class SourceLanguages:
    """What an encoder's tokenizer puts around a text, by language."""

    default: str
    """The tokenizer's default."""
    frames: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Its own name of a language -> ids before and after a text."""
    _found: dict[str, str | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def find(self, language: str) -> str | None:
        """The tokenizer's own name of a language; None = it has no such language."""
        # Threads of a server share it: what one has stored another may have cleared.
        found = self._found.get(language, "")
        if found == "":
            if len(self._found) >= _REMEMBERED:  # a server is asked for any text
                self._found.clear()
            found = self._found[language] = self._find(language)
        return found

    def _find(self, language: str) -> str | None:
        parts = code_parts(language)
        same = [name for name in self.frames if code_parts(name)[0] == parts[0]]
        exact = [name for name in self.frames if code_parts(name) == parts]
        if len(same) > 1 and not exact:  # several scripts
            script = "hant" if set(parts) & set(HANT) else "hans"
            exact = [name for name in same if script in code_parts(name)]
        return next(iter(exact or same), None)

    def tag(self, language: object) -> str:
        """The same; for an empty language the default, with a warning (once).

        Raises:
            DataError: not a text, or a language that the tokenizer does not have.
        """
        if not language:
            self._warn("the language of a text is not known")
            return self.default
        found = self.find(language) if isinstance(language, str) else None
        if found is None:
            own = {code_parts(name)[0] for name in self.frames}
            names = [*self.frames, *(code for code, first in _FIRST.items() if first in own)]
            near = difflib.get_close_matches(str(language), names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "choose one of them."
            raise DataError(
                f"the language {language!r} is none of the encoder's; expected one of its {len(self.frames)} tags, "
                f"such as {self.default}, or an ISO 639 code; {hint}"
            )
        return found

    def tag_or_default(self, language: str) -> str:
        """For a benchmark's own codes: the default, with a warning (once), where the encoder lacks the language."""
        found = self.find(language)
        if found is None:
            self._warn(f"the encoder has no tag for the language {language!r}")
        return found or self.default

    def check(self, setting: str, language: str) -> None:
        """Raises ConfigError where a setting names a language that the tokenizer does not have."""
        try:
            if language:
                self.tag(language)
        except DataError as error:
            raise ConfigError(f"{setting}: {error}") from None

    def _warn(self, what: str) -> None:
        if (what, self.default) not in _said and _is_first():
            _log.warning(
                "%s, and this encoder needs a tag of it with each text: %s is used; name it (a field `language`, "
                "data.source_language, --language).",
                what, self.default,
            )  # fmt: skip
        _said.add((what, self.default))


_said: set[tuple[str, str]] = set()


def find_languages(tokenizer: Any) -> SourceLanguages | None:
    """The source languages of a tokenizer; None if it has no tags for them.

    It is switched to each language in turn, and back.
    """
    default = getattr(tokenizer, "src_lang", None)
    codes: Sequence[str] = list(getattr(tokenizer, "lang_code_to_id", {}))
    if not isinstance(default, str):
        return None
    codes = codes or [name for name in tokenizer.get_added_vocab() if _TAG.fullmatch(name)]
    frames = {}
    try:
        for code in [*codes, default]:
            tokenizer.src_lang = code
            before, after = frame(tokenizer)
            frames[code] = tuple(before), tuple(after)
    finally:
        tokenizer.src_lang = default
    return SourceLanguages(default, frames) if len(set(frames.values())) > 1 else None


def source_ids(
    tokenizer: Any, found: SourceLanguages | None, texts: Sequence[str], languages: Sequence[object] | None = None
) -> list[list[int]]:
    """Encoder ids of source texts, the tokenizer's own special tokens included, not truncated.

    Args:
        tokenizer: of the encoder.
        found: its source languages, of :func:`find_languages`.
        texts: the source texts.
        languages: of each, for an encoder with language tags; empty = unknown. None = the tokenizer's default.

    Raises:
        DataError: a language that the encoder does not have.
    """
    if found is None or languages is None:
        return text_ids(tokenizer, texts, special=True)
    frames = [found.frames[found.tag(language)] for language in languages]
    bare = text_ids(tokenizer, texts, special=False)
    return [[*before, *ids, *after] for ids, (before, after) in zip(bare, frames, strict=True)]


def code_parts(language: str) -> tuple[str, ...]:
    """Language, script and region in lower case, the language by its first code: `sin_Sinh` -> `("si", "sinh")`."""
    first, *rest = language.strip("_").replace("-", "_").lower().split("_")
    return (_FIRST.get(first, first), *rest)


def _is_first() -> bool:
    """Whether this process is the one of its job that warns of what all of them find."""
    from torch.utils.data import get_worker_info

    worker = get_worker_info()
    try:
        return World.detect().is_main and (worker is None or worker.id == 0)
    except LaunchError:
        return True
