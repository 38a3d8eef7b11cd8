"""Languages by their codes: name, resource class, whether the script separates words by spaces.

Classes are those of Joshi et al. 2020 (arXiv 2004.09095; the authors' list `lang2tax.txt`): from 0, hardly any data, to
5, as much as English. Where the list has a language under two names (Sinhala: `sinhala` 0, `sinhalese` 1) the higher
one is taken. The three groups of classes are those of Üstün et al. 2024 (arXiv 2402.07827). English, which bridges are
trained on, and the constructed languages of the testbed are groups of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge_ds.testbed.languages import ENGLISH, LANGUAGE_NAMES

__all__ = ["GROUPS", "Language", "find_language"]

GROUPS: dict[str, str] = {
    "English": "English, which the bridges were trained on",
    "high": "high-resource (classes 4 and 5)",
    "middle": "middle-resource (class 3)",
    "low": "low-resource (classes 0 to 2)",
    "constructed": "constructed languages of the testbed",
    "unknown": "languages of unknown class",
}
"""Name of a group -> description, in the order of reports."""

# ISO 639-1 code (or -), ISO 639-3 codes (variants that the list does not distinguish), English name.
# None: the class was not looked up.
_CLASSES: dict[int | None, str] = {
    5: """en eng English; es spa Spanish; de deu German; ja jpn Japanese; fr fra French; ar ara,arb Arabic;
        zh zho,cmn Chinese""",
    4: """pt por Portuguese; it ita Italian; nl nld Dutch; ru rus Russian; pl pol Polish; sv swe Swedish;
        tr tur Turkish; vi vie Vietnamese; hi hin Hindi; ko kor Korean; fa fas,pes Persian; cs ces Czech;
        hu hun Hungarian; fi fin Finnish; hr hrv Croatian; sr srp Serbian; ca cat Catalan; eu eus Basque""",
    3: """id ind Indonesian; uk ukr Ukrainian; - ceb Cebuano; af afr Afrikaans; he heb Hebrew; bn ben Bengali;
        ta tam Tamil; th tha Thai; ur urd Urdu; bg bul Bulgarian; ro ron Romanian; el ell Greek; da dan Danish;
        sk slk Slovak; sl slv Slovenian; et est Estonian; lv lav,lvs Latvian; lt lit Lithuanian;
        ms msa,zsm Malay; tl tgl Tagalog; uz uzb,uzn Uzbek; kk kaz Kazakh; ka kat Georgian; be bel Belarusian;
        gl glg Galician; bs bos Bosnian; la lat Latin; - arz Egyptian Arabic""",
    2: """sw swa,swh Swahili; mr mar Marathi; pa pan Punjabi; zu zul Zulu; xh xho Xhosa; yo yor Yoruba;
        ha hau Hausa; am amh Amharic; ti tir Tigrinya; wo wol Wolof; tn tsn Tswana; lo lao Lao; mt mlt Maltese;
        ga gle Irish; is isl Icelandic; ht hat Haitian Creole; sa san Sanskrit; - kok Konkani""",
    1: """si sin Sinhala; te tel Telugu; as asm Assamese; gu guj Gujarati; kn kan Kannada; ml mal Malayalam;
        or ori,ory Odia; ne nep,npi Nepali; my mya Burmese; km khm Khmer; sq sqi,als Albanian; hy hye Armenian;
        mk mkd Macedonian; az aze,azj Azerbaijani; cy cym Welsh; ig ibo Igbo; so som Somali;
        rw kin Kinyarwanda; sn sna Shona; ny nya Chichewa; st sot Sesotho; ts tso Tsonga; ss ssw Swati;
        - nso Northern Sotho; lg lug Luganda; ln lin Lingala; mg mlg,plt Malagasy; bm bam Bambara;
        om orm,gaz Oromo; ps pus,pbt Pashto; ckb ckb Sorani Kurdish; tg tgk Tajik; tk tuk Turkmen;
        ky kir Kyrgyz; mn mon,khk Mongolian; bo bod Tibetan; sd snd Sindhi; jv jav Javanese; su sun Sundanese;
        - ilo Ilocano; - war Waray; mi mri Maori; gn grn Guarani; qu que,quy Quechua; ay aym Aymara;
        eo epo Esperanto; nb nob Norwegian Bokmål; nn nno Norwegian Nynorsk; lb ltz Luxembourgish;
        gd gla Scottish Gaelic; yi yid Yiddish; ug uig Uyghur; tt tat Tatar""",
    None: """- sat Santali; - nqo N'Ko; - taq Tamasheq; - tzm Central Atlas Tamazight""",
}
_WITHOUT_SPACES = (
    "zh", "zho", "cmn", "yue", "ja", "jpn", "th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bo", "bod", "dz",
    "dzo",
)  # fmt: skip


@dataclass(frozen=True)
class Language:
    """One language of a benchmark."""

    code: str
    """As the benchmark writes it."""
    name: str
    """In English; the code where the language is unknown."""
    group: str
    """One of :data:`GROUPS`."""
    resource_class: int | None
    """0 to 5; none where it is unknown."""
    has_spaces: bool
    """Whether words can be counted by the spaces between them."""


def find_language(code: str) -> Language:
    """By ISO 639-1 or 639-3 code, with or without a script or region: `si`, `sin_Sinh`, `pt-BR`. Never raises."""
    base = code.replace("-", "_").split("_")[0].lower()
    if base in LANGUAGE_NAMES and base != ENGLISH:
        return Language(code, LANGUAGE_NAMES[base], "constructed", None, True)
    name, resource_class = _TABLE.get(base, (code, None))
    group = "unknown" if resource_class is None else "low" if resource_class < 3 else "high"
    if resource_class == 3:
        group = "middle"
    return Language(code, name, "English" if name == "English" else group, resource_class, base not in _WITHOUT_SPACES)


def _read_table() -> dict[str, tuple[str, int | None]]:
    found: dict[str, tuple[str, int | None]] = {}
    for resource_class, lines in _CLASSES.items():
        for entry in lines.split(";"):
            short, long, name = entry.split(None, 2)
            for code in (short, *long.split(",")):
                found[code] = (" ".join(name.split()), resource_class)
    del found["-"]
    return found


_TABLE = _read_table()
