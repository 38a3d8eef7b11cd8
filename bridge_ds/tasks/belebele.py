"""Belebele: which of four answers a passage gives, the same 900 questions in 122 language variants (arXiv 2308.16884).

`facebook/belebele`, JSON lines on its default branch, one configuration a variant, test split only. Columns: link,
question_number, flores_passage, question, mc_answer1 to mc_answer4, correct_answer_num (1 to 4). The prompt lists the
answers with letters, and the log-probabilities of the letters are compared, as MindMerger does for X-CSQA (arXiv
2405.17386) and lm-evaluation-harness for Belebele; so the task has labels, the same four for every sample.
"""

from __future__ import annotations

import hashlib

from bridge_ds.tasks.rows import Record
from bridge_ds.tasks.table import TableTask

__all__ = ["TASKS", "Belebele"]

_VARIANTS = """
    en:eng_Latn acm_Arab af:afr_Latn sq:als_Latn am:amh_Ethi apc_Arab ar:arb_Arab arb_Latn ars_Arab ary_Arab
    arz_Arab as:asm_Beng az:azj_Latn bm:bam_Latn bn:ben_Beng ben_Latn bo:bod_Tibt bg:bul_Cyrl ca:cat_Latn ceb_Latn
    cs:ces_Latn ckb_Arab da:dan_Latn de:deu_Latn el:ell_Grek et:est_Latn eu:eus_Latn fi:fin_Latn fr:fra_Latn
    ff:fuv_Latn om:gaz_Latn gn:grn_Latn gu:guj_Gujr ht:hat_Latn ha:hau_Latn he:heb_Hebr hi:hin_Deva hin_Latn
    hr:hrv_Latn hu:hun_Latn hy:hye_Armn ig:ibo_Latn ilo_Latn id:ind_Latn is:isl_Latn it:ita_Latn jv:jav_Latn
    ja:jpn_Jpan kac_Latn kn:kan_Knda ka:kat_Geor kk:kaz_Cyrl kea_Latn mn:khk_Cyrl km:khm_Khmr rw:kin_Latn
    ky:kir_Cyrl ko:kor_Hang lo:lao_Laoo ln:lin_Latn lt:lit_Latn lg:lug_Latn luo_Latn lv:lvs_Latn ml:mal_Mlym
    mr:mar_Deva mk:mkd_Cyrl mt:mlt_Latn mi:mri_Latn my:mya_Mymr nl:nld_Latn nb:nob_Latn ne:npi_Deva npi_Latn
    nso_Latn ny:nya_Latn or:ory_Orya pa:pan_Guru ps:pbt_Arab fa:pes_Arab mg:plt_Latn pl:pol_Latn pt:por_Latn
    ro:ron_Latn ru:rus_Cyrl shn_Mymr sin_Latn si:sin_Sinh sk:slk_Latn sl:slv_Latn sn:sna_Latn sd:snd_Arab
    so:som_Latn st:sot_Latn es:spa_Latn sr:srp_Cyrl ss:ssw_Latn su:sun_Latn sv:swe_Latn sw:swh_Latn ta:tam_Taml
    te:tel_Telu tg:tgk_Cyrl tl:tgl_Latn th:tha_Thai ti:tir_Ethi tn:tsn_Latn ts:tso_Latn tr:tur_Latn uk:ukr_Cyrl
    ur:urd_Arab urd_Latn uz:uzn_Latn vi:vie_Latn war_Latn wo:wol_Latn xh:xho_Latn yo:yor_Latn zh:zho_Hans zho_Hant
    ms:zsm_Latn zu:zul_Latn
"""
"""The hub's configurations, with a two-letter code where a variant is the usual one of its language."""
_CONFIGS = {pair.split(":")[0]: pair.split(":")[-1] for pair in _VARIANTS.split()}


class Belebele(TableTask):
    """Two-letter codes (si) where a variant is the usual one of its language, else the hub's own (sin_Latn)."""

    name = "belebele"
    hub = "facebook/belebele"
    labels = ("A", "B", "C", "D")
    codes = tuple(_CONFIGS)
    prompt = "Passage: {passage}\nQuestion: {question}\nA. {answer1}\nB. {answer2}\nC. {answer3}\nD. {answer4}\nAnswer:"
    columns = {  # noqa: RUF012
        "passage": "flores_passage", "question": "question", "answer1": "mc_answer1", "answer2": "mc_answer2",
        "answer3": "mc_answer3", "answer4": "mc_answer4", "label": "correct_answer_num", "link": "link",
        "number": "question_number",
    }  # fmt: skip
    has_train = False

    def config_of(self, language: str) -> str | None:
        """`sin_Sinh` for `si`."""
        return _CONFIGS.get(language, language)

    def key_of(self, row: Record, number: int, language: str) -> str:
        """By the passage's address and the question's number: the order of the rows differs between languages."""
        if not (row.has("link") and row.has("number")):
            return super().key_of(row, number, language)
        address = hashlib.sha256(str(row.value("link")).encode()).hexdigest()[:10]
        return f"{self.name}-{address}-{row.value('number')}"

    def label_of(self, row: Record) -> int:
        """Counted from 1 in the data."""
        return row.label("label", self.labels, first=1)


TASKS = (Belebele(),)
