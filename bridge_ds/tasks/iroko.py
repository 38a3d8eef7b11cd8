"""AfriXNLI and AfriMGSM, of IrokoBench: XNLI and MGSM in 16 and 17 languages of Africa (arXiv 2406.03368).

`masakhane/afrixnli` (columns premise, hypothesis, label; 600 pairs) and `masakhane/afrimgsm` (question, answer_number;
250 problems), translated by people, parallel; one configuration a language (`swa`), English and French beside them;
Vai is in AfriMGSM alone. Prompts are those of `xnli` and `mgsm` here, on whose English data a bridge is trained.
"""

from __future__ import annotations

from bridge_ds.tasks.maths import Mgsm
from bridge_ds.tasks.xnli import Xnli

__all__ = ["TASKS", "AfriMgsm", "AfriXnli"]

_CONFIGS = {
    "en": "eng", "am": "amh", "ee": "ewe", "fr": "fra", "ha": "hau", "ig": "ibo", "rw": "kin", "ln": "lin",
    "lg": "lug", "om": "orm", "sn": "sna", "st": "sot", "sw": "swa", "tw": "twi", "vai": "vai", "wo": "wol",
    "xh": "xho", "yo": "yor", "zu": "zul",
}  # fmt: skip


class AfriXnli(Xnli):
    """Train on task:xnli, which has the same prompt."""

    name = "afrixnli"
    hub = "masakhane/afrixnli"
    configs = {code: config for code, config in _CONFIGS.items() if code != "vai"}  # noqa: RUF012
    codes = tuple(configs)
    has_train = False


class AfriMgsm(Mgsm):
    """Read and answered as mgsm."""

    name = "afrimgsm"
    hub = "masakhane/afrimgsm"
    revision = None
    codes = tuple(_CONFIGS)
    configs = _CONFIGS


TASKS = (AfriXnli(), AfriMgsm())
