"""The table fits a terminal and says each number once, in its place."""

from __future__ import annotations

from bridge_ds.evaluation.table import table


def _results(languages: tuple[str, ...], **systems: float) -> dict:
    def system(accuracy: float) -> dict:
        scores = {
            code: {"acc": accuracy - k / 100, "exact_match": accuracy / 2, "n": 300} for k, code in enumerate(languages)
        }
        return {"news": scores}

    return {**{name: system(accuracy) for name, accuracy in systems.items()}, "chance": {"news": 0.2}}


def test_six_languages_fit_on_one_line() -> None:
    text = table(_results(("en", "qaa", "qab", "qac", "qad", "qae"), bridge=1.0, llm=0.30))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 110
    head = next(line for line in lines if "qaa" in line)
    assert head.split() == ["en", "qaa", "qab", "qac", "qad", "qae", "others", "chance"]
    rows = [line for line in lines if line.startswith("  ") and line != head]
    assert [row.split("  ")[1].strip() for row in rows] == ["LLM alone", "bridge", "LLM alone", "bridge"]
    assert rows[1].split() == [
        "bridge",
        "acc",
        "100.0",
        "99.0",
        "98.0",
        "97.0",
        "96.0",
        "95.0",
        "97.0",
        "20.0",
    ]
    assert rows[2].split()[-2:] == ["15.0", "-"]
    # Columns stand under each other.
    assert all(len(row) == len(head) for row in rows)
    assert "300 samples per language; 95 % interval at most +/- 5.7" in text


def test_many_languages_are_broken_into_lines() -> None:
    codes = ("en", *(f"l{k:02}" for k in range(24)))
    text = table(_results(codes, bridge=0.8, llm=0.3, transformer_softmax=0.9))
    assert max(map(len, text.splitlines())) <= 110
    assert all(text.count(f" {code}") == 1 for code in codes[1:])
    assert text.count("others ") == 1 and "transformer_softmax" in text


def test_english_alone_has_no_mean_of_the_others() -> None:
    row = next(line for line in table(_results(("en",), bridge=0.5)).splitlines() if line.startswith("  bridge"))
    assert row.split() == ["bridge", "acc", "50.0", "-", "20.0"]


def test_long_codes_have_a_space_between_them_and_english_any_code() -> None:
    lines = table(_results(("eng_Latn", "ace_Arab", "taq_Tfng"), bridge=0.5)).splitlines()
    head = next(line for line in lines if "ace_Arab" in line)
    assert head.split() == ["eng_Latn", "ace_Arab", "taq_Tfng", "others", "chance"]
    (row,) = [line for line in lines if line.startswith("  bridge") and " acc " in line]
    assert row.index(".", row.index("acc")) + 2 == head.index("eng_Latn") + len("eng_Latn")


def test_where_the_llm_alone_was_left_out_the_bridge_is_shown() -> None:
    """And means are of the languages that both were scored in (evaluation.llm_from of a run that trains the LLM)."""
    results = _results(("en", "sw", "ta"), bridge=0.9, llm=0.5)
    results["bridge"]["reviews"] = results["bridge"]["news"]
    results["chance"]["reviews"] = 0.5
    for code in ("en", "ta"):
        del results["llm"]["news"][code]
    lines = table(results).splitlines()
    rows = [line.split() for line in lines if line.startswith("  ") and " acc " in line]
    assert rows == [
        ["LLM", "alone", "acc", "-", "49.0", "-", "49.0", "20.0"],
        ["bridge", "acc", "90.0", "89.0", "88.0", "89.0", "20.0"],
        ["bridge", "acc", "90.0", "89.0", "88.0", "88.5", "50.0"],
    ]
    assert sum(line.split()[:3] == ["en", "sw", "ta"] for line in lines) == 2
