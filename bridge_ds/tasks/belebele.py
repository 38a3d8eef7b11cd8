"""Belebele: which of four answers a passage gives, the same 900 questions in 122 language variants (arXiv 2308.16884).

`facebook/belebele`, JSON lines on its default branch, one configuration a variant, test split only. Columns: link,
question_number, flores_passage, question, mc_answer1 to mc_answer4, correct_answer_num (1 to 4). The prompt lists the
answers with letters, and the log-probabilities of the letters are compared, as MindMerger does for X-CSQA (arXiv
2405.17386) and lm-evaluation-harness for Belebele; so the task has labels, the same four for every sample.
"""

from __future__ import annotations

import hashlib

from bridge_ds.tasks.flores import by_code
from bridge_ds.tasks.record import Record
from bridge_ds.tasks.table import TableTask

__all__ = ["TASKS", "Belebele"]

_VARIANTS = """
    eng_Latn acm_Arab afr_Latn als_Latn amh_Ethi apc_Arab arb_Arab arb_Latn ars_Arab ary_Arab arz_Arab asm_Beng
    azj_Latn bam_Latn ben_Beng ben_Latn bod_Tibt bul_Cyrl cat_Latn ceb_Latn ces_Latn ckb_Arab dan_Latn deu_Latn
    ell_Grek est_Latn eus_Latn fin_Latn fra_Latn fuv_Latn gaz_Latn grn_Latn guj_Gujr hat_Latn hau_Latn heb_Hebr
    hin_Deva hin_Latn hrv_Latn hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn jpn_Jpan
    kac_Latn kan_Knda kat_Geor kaz_Cyrl kea_Latn khk_Cyrl khm_Khmr kin_Latn kir_Cyrl kor_Hang lao_Laoo lin_Latn
    lit_Latn lug_Latn luo_Latn lvs_Latn mal_Mlym mar_Deva mkd_Cyrl mlt_Latn mri_Latn mya_Mymr nld_Latn nob_Latn
    npi_Deva npi_Latn nso_Latn nya_Latn ory_Orya pan_Guru pbt_Arab pes_Arab plt_Latn pol_Latn por_Latn ron_Latn
    rus_Cyrl shn_Mymr sin_Latn sin_Sinh slk_Latn slv_Latn sna_Latn snd_Arab som_Latn sot_Latn spa_Latn srp_Cyrl
    ssw_Latn sun_Latn swe_Latn swh_Latn tam_Taml tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi tsn_Latn tso_Latn
    tur_Latn ukr_Cyrl urd_Arab urd_Latn uzn_Latn vie_Latn war_Latn wol_Latn xho_Latn yor_Latn zho_Hans zho_Hant
    zsm_Latn zul_Latn
"""
_CONFIGS = by_code(_VARIANTS.split())


class Belebele(TableTask):
    """Two-letter codes (si) where a variant is the usual one of its language, else the hub's own (sin_Latn)."""

    name = "belebele"
    hub = "facebook/belebele"
    labels = ("A", "B", "C", "D")
    codes = tuple(_CONFIGS)
    configs = _CONFIGS
    prompt = "Passage: {passage}\nQuestion: {question}\nA. {answer1}\nB. {answer2}\nC. {answer3}\nD. {answer4}\nAnswer:"
    columns = {  # noqa: RUF012
        "passage": "flores_passage", "question": "question", "answer1": "mc_answer1", "answer2": "mc_answer2",
        "answer3": "mc_answer3", "answer4": "mc_answer4", "label": "correct_answer_num", "link": "link",
        "number": "question_number",
    }  # fmt: skip
    has_train = False

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
