"""Language codes of FLORES-200 (arXiv 2207.04672), which Belebele, SIB-200 and others share: `sin_Sinh`, or `si`."""

from __future__ import annotations

from collections.abc import Iterable

from bridge_ds.data.text.languages import HANT, code_parts

__all__ = ["by_code", "find_variety", "variety"]

_USUAL = """
    af:afr_Latn ak:aka_Latn am:amh_Ethi ar:arb_Arab as:asm_Beng ay:ayr_Latn az:azj_Latn ba:bak_Cyrl be:bel_Cyrl
    bg:bul_Cyrl bm:bam_Latn bn:ben_Beng bo:bod_Tibt bs:bos_Latn ca:cat_Latn cs:ces_Latn cy:cym_Latn da:dan_Latn
    de:deu_Latn dz:dzo_Tibt ee:ewe_Latn el:ell_Grek en:eng_Latn eo:epo_Latn es:spa_Latn et:est_Latn eu:eus_Latn
    fa:pes_Arab ff:fuv_Latn fi:fin_Latn fj:fij_Latn fo:fao_Latn fr:fra_Latn ga:gle_Latn gd:gla_Latn gl:glg_Latn
    gn:grn_Latn gu:guj_Gujr ha:hau_Latn he:heb_Hebr hi:hin_Deva hr:hrv_Latn ht:hat_Latn hu:hun_Latn hy:hye_Armn
    id:ind_Latn ig:ibo_Latn is:isl_Latn it:ita_Latn ja:jpn_Jpan jv:jav_Latn ka:kat_Geor ki:kik_Latn kk:kaz_Cyrl
    km:khm_Khmr kn:kan_Knda ko:kor_Hang ks:kas_Arab ku:kmr_Latn ky:kir_Cyrl lb:ltz_Latn lg:lug_Latn li:lim_Latn
    ln:lin_Latn lo:lao_Laoo lt:lit_Latn lv:lvs_Latn mg:plt_Latn mi:mri_Latn mk:mkd_Cyrl ml:mal_Mlym mn:khk_Cyrl
    mr:mar_Deva ms:zsm_Latn mt:mlt_Latn my:mya_Mymr nb:nob_Latn ne:npi_Deva nl:nld_Latn nn:nno_Latn ny:nya_Latn
    oc:oci_Latn om:gaz_Latn or:ory_Orya pa:pan_Guru pl:pol_Latn ps:pbt_Arab pt:por_Latn qu:quy_Latn rn:run_Latn
    ro:ron_Latn ru:rus_Cyrl rw:kin_Latn sa:san_Deva sc:srd_Latn sd:snd_Arab sg:sag_Latn si:sin_Sinh sk:slk_Latn
    sl:slv_Latn sm:smo_Latn sn:sna_Latn so:som_Latn sq:als_Latn sr:srp_Cyrl ss:ssw_Latn st:sot_Latn su:sun_Latn
    sv:swe_Latn sw:swh_Latn ta:tam_Taml te:tel_Telu tg:tgk_Cyrl th:tha_Thai ti:tir_Ethi tk:tuk_Latn tl:tgl_Latn
    tn:tsn_Latn tr:tur_Latn ts:tso_Latn tt:tat_Cyrl tw:twi_Latn ug:uig_Arab uk:ukr_Cyrl ur:urd_Arab uz:uzn_Latn
    vi:vie_Latn wo:wol_Latn xh:xho_Latn yi:ydd_Hebr yo:yor_Latn zh:zho_Hans zu:zul_Latn
"""
"""Two-letter code (ISO 639-1) -> the variant that is the usual one of its language."""
_TWO = {variant: two for two, variant in (pair.split(":") for pair in _USUAL.split())}
_SCRIPTS = {language: script for language, script in map(code_parts, _TWO)}
"""Language -> its usual script."""


def by_code(variants: Iterable[str]) -> dict[str, str]:
    """Language code -> variant, English first, then by variant: two letters where there are some, else the variant.

    >>> by_code(["sin_Latn", "sin_Sinh", "eng_Latn"])
    {'en': 'eng_Latn', 'sin_Latn': 'sin_Latn', 'si': 'sin_Sinh'}
    """
    ordered = sorted(variants, key=lambda variant: (variant != "eng_Latn", variant))
    return {_TWO.get(variant, variant): variant for variant in ordered}


def variety(code: str) -> tuple[str, str]:
    """Language and script by any code: `si`, `sin_Sinh` and `si-LK` are `("si", "sinh")`, `sin_Latn` is not.

    The script is empty where the code has none and no usual one is known.
    """
    language, *rest = code_parts(code)
    script = next((part for part in rest if len(part) == 4), "hant" if {*rest} & {*HANT} else "")
    return language, script or _SCRIPTS.get(language, "")


def find_variety(code: str, known: Iterable[str]) -> str | None:
    """The one of some codes that names the same language in the same script; None if none does, or several may."""
    names = list(known)
    if code in names:
        return code
    language, script = variety(code)
    same = {name: variety(name)[1] for name in names if variety(name)[0] == language and _more(name) == _more(code)}
    found = [name for name in same if same[name] == script] or [name for name in same if not (script and same[name])]
    if len(found) > 1:  # pt-BR and pt-PT
        found = [name for name in found if code_parts(name) == code_parts(code)]
    return found[0] if len(found) == 1 else None


def _more(code: str) -> set[str]:
    """Parts of a code that are neither a script nor a region: `romanized` of `hi-romanized`."""
    return {part for part in code_parts(code)[1:] if len(part) > 4 or (len(part) == 3 and part.isalpha())}
