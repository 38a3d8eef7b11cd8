"""XCOPA: which of two sentences is the cause, or the effect, of a third (arXiv 2005.00333); 500 test samples.

`cambridgeltl/xcopa`, parquet on its default branch, one configuration a language. Columns: premise, choice1, choice2,
question (cause | effect), label (0, 1), idx. As in LangBridge's evaluation (arXiv 2401.10695, the harness's task): the
prompt is the premise without its full stop and the language's word for "because" or "therefore", and the
log-probabilities of the choices as continuations are compared; choices begin with a lower-case letter.
"""

from __future__ import annotations

from bridge_ds.errors import ConfigError, DataError
from bridge_ds.tasks.base import Example
from bridge_ds.tasks.flores import find_variety
from bridge_ds.tasks.record import Record
from bridge_ds.tasks.table import TableTask

__all__ = ["TASKS", "Xcopa"]

_CONNECTIVES = {
    "en": ("because", "therefore"),
    "et": ("sest", "seetõttu"),
    "ht": ("poukisa", "donk sa"),
    "id": ("karena", "maka"),
    "it": ("perché", "quindi"),
    "qu": ("imataq", "chaymi"),
    "sw": ("kwa sababu", "kwa hiyo"),
    "ta": ("காரணமாக", "எனவே"),
    "th": ("เพราะ", "ดังนั้น"),
    "tr": ("çünkü", "bu yüzden"),
    "vi": ("bởi vì", "vì vậy"),
    "zh": ("因为", "所以"),
}
"""Language -> (before a cause, before an effect)."""
_QUESTIONS = ("cause", "effect")


class Xcopa(TableTask):
    """11 languages; English (COPA itself) only from local files of the same columns."""

    name = "xcopa"
    hub = "cambridgeltl/xcopa"
    kind = "choices"
    codes = ("et", "ht", "id", "it", "qu", "sw", "ta", "th", "tr", "vi", "zh")
    prompt = "{premise} {connective}"
    columns = {  # noqa: RUF012
        "premise": "premise", "question": "question", "choice1": "choice1", "choice2": "choice2", "label": "label",
        "idx": "idx", "connective": "connective",
    }  # fmt: skip
    has_train = False
    null_keeps = ("connective",)

    @property
    def chance(self) -> float:
        """One in two."""
        return 0.5

    def key_of(self, row: Record, number: int, language: str) -> str:
        """By the benchmark's own number, where the data has it."""
        return f"{self.name}-{row.value('idx') if row.has('idx') else number}"

    def example(self, row: Record, language: str, key: str) -> Example:
        """Premise and connective; the choices continue them."""
        question = row.text("question")
        if question not in _QUESTIONS:
            raise DataError(f"{row.where} has the question {question!r}; expected cause or effect; correct the data.")
        known = find_variety(language, _CONNECTIVES)
        if known is None and not row.has("connective"):
            raise ConfigError(
                f"xcopa knows no word for 'because' in {language!r}; expected one of {', '.join(_CONNECTIVES)}; give "
                "the data a column `connective`."
            )
        if row.has("connective"):
            connective = row.text("connective")
        else:
            connective = _CONNECTIVES[known or language][_QUESTIONS.index(question)]
        premise = row.text("premise").rstrip(".。।!?！？")
        choices = tuple(_lower_first(row.text(name)) for name in ("choice1", "choice2"))
        if not all(choices):
            raise DataError(f"{row.where} has an empty choice; expected text, which can be scored; correct the data.")
        label = row.label("label", ("choice1", "choice2"))
        source, null = self.render(row, {"premise": premise, "connective": connective})
        return Example(source, choices[label], label, language, key, choices, null)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


TASKS = (Xcopa(),)
