"""Every name of a language becomes a name that MLflow itself takes, and no two become one."""

from __future__ import annotations

from mlflow.utils.validation import _validate_metric

from bridge_ds.track.mlflow_names import metric_name

LANGUAGES = (
    "N'Ko", "N’Ko", "Chinese (Simplified)", "Chinese [Simplified]", "සිංහල", "हिन्दी", "हिन्दू", "བོད་སྐད", "a:b", "a*b",
    "a\nb", ".", "..", "x" * 240, "x" * 241, "(" * 240,
)  # fmt: skip


def test_mlflow_takes_them_and_tells_them_apart() -> None:
    names = [f"accuracy_percent/{'t' * 90}/{code}/finetuned_exact_match" for code in LANGUAGES]
    made = [metric_name(name) for name in [*names, "a//b", "a/", "/a", "a/..", "a"]]
    for name in made:
        _validate_metric(name, 1.0, 0, 1)
    assert len(set(made)) == len(made)


def test_what_mlflow_takes_stays() -> None:
    for code in ("en", "pt-BR", "zh_Hant", "Français", "中文", "ߒߞߏ", "a.b", "Sango 2"):
        name = f"accuracy_percent/news/{code}/bridge_acc"
        assert metric_name(name) == name
    assert metric_name("accuracy_percent/news/N'Ko/llm_acc") == "accuracy_percent/news/N_Ko-15773f/llm_acc"
