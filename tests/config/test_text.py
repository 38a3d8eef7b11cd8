"""A setting that is text is the letters that were written: YAML guesses no numbers, dates or comments from them; and a
path with `~` or `$NAME` is the place that a shell would make of it."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from bridge_ds.config.load import load_config, load_run_config, save_config
from bridge_ds.config.schema import Config, metadata
from bridge_ds.config.schema.fields import read_path
from bridge_ds.config.text import expand
from bridge_ds.errors import ConfigError

GUESSED = [
    "/d/run #2", "0123456", "1e5", "1_000", "0x1F", "12:30:00", "2024-01-01", "no", "Yes", "on", "true", "null",
    "None", "'quoted'", '"quoted"', "a: b", "- a", "[a", "{a}", "a, b", "&a", "*a", "!a", "%a", "@a", "`a`", "|", ">",
    "<<", "=", " two  spaces ", "ends:", "ünï ", "a\\nb", "?", "a=b=c", "",
]  # fmt: skip
"""Texts that YAML takes for something else, refuses, or shortens."""


@pytest.mark.parametrize("text", GUESSED)
def test_a_text_setting_is_what_was_typed_letter_by_letter(text: str, tmp_path: Path) -> None:
    config = load_config("testbed", [f"track.name={text}", f"evaluation.data.xnli.fields.premise={text}"])
    assert config.track.name == config.evaluation.data["xnli"].fields["premise"] == text
    save_config(config, tmp_path / "config.yaml")
    assert load_run_config(tmp_path) == config
    if text:
        assert load_config("testbed", [f"run.output={text}"]).run.output == text


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("0123456", "0123456"), ("1e5", "1e5"), ("1_000", "1_000"), ("0x1F", "0x1F"), ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"), ("no", "no"), ("Yes", "Yes"), ("true", "true"), ("1.50", "1.50"),
        ("'007'", "007"), ('"a\\tb"', "a\tb"), ("a b # remark", "a b"), ("+1", "+1"), ("=", "="),
    ],
)  # fmt: skip
def test_a_text_setting_without_quotes_in_a_recipe_keeps_its_letters(tmp_path: Path, written: str, means: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"track: {{name: {written}}}\nmodel:\n  llm_revision: {written}\n"
        f"evaluation:\n  languages: [{written}, en]\n  data:\n    {written.split()[0]}:\n      revision: {written}\n"
        if "#" not in written and '"' not in written and written != "="
        else f"track:\n  name: {written}\nmodel:\n  llm_revision: {written}\nevaluation:\n  languages: [en]\n"
    )
    config = load_config(str(recipe))
    assert config.track.name == config.model.llm_revision == means
    if config.evaluation.data:
        assert config.evaluation.languages == (means, "en")
        (task,) = config.evaluation.data.values()
        assert task.revision == means


def test_settings_of_other_types_are_read_as_before(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "train: {steps: 7, lr: 1e-3, betas: [0.9, 0.99], tf32: no}\n"
        "run: {seed: 12345678901234567, stop_signals: USR1}\n"
        "model: {llm_revision: ~, encoder_revision: null, activation_checkpointing: Yes}\n"
        "evaluation: {tasks: 'xnli, xcopa', data: {xnli: {fields: {premise: 1}}}}\n"
    )
    config = load_config(str(recipe), ["train.warmup_ratio=.5", "train.max_grad_norm=1_0", "data.augment_prompt=on"])
    assert (config.train.steps, config.train.lr, config.train.betas, config.train.tf32) == (7, 1e-3, (0.9, 0.99), False)
    assert (config.train.warmup_ratio, config.train.max_grad_norm, config.data.augment_prompt) == (0.5, 10.0, True)
    assert config.run.seed == 12345678901234567 and config.run.stop_signals == ("USR1",)
    assert config.model.llm_revision is None and config.model.encoder_revision is None
    assert config.model.activation_checkpointing and config.evaluation.tasks == ("xnli", "xcopa")
    assert config.evaluation.data["xnli"].fields == {"premise": "1"}
    for none in ("null", "~", ""):
        assert load_config(str(recipe), [f"model.llm_revision={none}"]).model.llm_revision is None
    assert load_config("testbed", ["evaluation.languages=no"]).evaluation.languages == ("no",)
    assert load_config("testbed", ["evaluation.languages=[no, 'y']"]).evaluation.languages == ("no", "y")
    assert load_config("testbed", ["evaluation.tasks=[]"]).evaluation.tasks == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.steps=yes", "train.steps is True; expected a whole number"),
        ("train.steps=1.5", "train.steps is 1.5; expected a whole number"),
        ("train.tf32=1", "train.tf32 is 1; expected true or false"),
        ("train.tf32='true'", "expected true or false"),
        ("evaluation.tasks=[a, b", "not readable as YAML"),
        ("data.mixture=[/d/run #2=1, /d/b=1]", "not readable as YAML"),
        ("evaluation.tasks=null", "expected a list"),
        ("evaluation.data={a", "not readable as YAML"),
    ],
)
def test_what_is_no_value_of_its_type_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as found:
        load_config("testbed", [text])
    assert words in str(found.value)


def test_a_text_setting_that_is_null_in_a_recipe_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    for null in ("null", "~", ""):
        recipe.write_text(f"track:\n  name: {null}\n")
        with pytest.raises(ConfigError, match=r"track\.name is None; expected text"):
            load_config(str(recipe))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("NOT_SET", raising=False)


def test_home_and_variables_are_expanded_in_every_path_setting(environment: None, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "run: {output: ~/run, start_from: '$SCRATCH/first'}\nmodel: {encoder: ~/models/mt5}\n"
        "data: {mixture: [~/a=1, '${SCRATCH}/b=2'], stage_dir: $SCRATCH, cache_dir: '~'}\ntrack: {uri: 'sqlite:///~/m.db'}\n"
        "evaluation: {data: {xnli: {source: ~/xnli, prompt: '$SCRATCH ~ {premise}'}}}\n"
    )
    typed = ["model.llm=${SCRATCH}/llm", "data.shards=~/shards", "run.ds_config=~/ds.json", "run.resume=~/run/step-1",
             "evaluation.llm_from=$HOME/run", "evaluation.data.xnli.fields.premise=$SCRATCH",
             "track.name=~/$HOME"]  # fmt: skip
    config = load_config(str(recipe), typed)
    assert (config.run.output, config.run.start_from) == ("/home/me/run", "/scratch/me/first")
    assert (config.run.ds_config, config.run.resume) == ("/home/me/ds.json", "/home/me/run/step-1")
    assert (config.model.encoder, config.model.llm) == ("/home/me/models/mt5", "/scratch/me/llm")
    assert config.data.mixture == ("/home/me/a=1", "/scratch/me/b=2")
    assert (config.data.stage_dir, config.data.cache_dir) == ("/scratch/me", "/home/me")
    assert (config.data.shards, config.track.uri) == ("/home/me/shards", "sqlite:////home/me/m.db")
    assert (config.evaluation.llm_from, config.evaluation.data["xnli"].source) == ("/home/me/run", "/home/me/xnli")
    # What is no path is text.
    assert config.evaluation.data["xnli"].prompt == "$SCRATCH ~ {premise}" and config.track.name == "~/$HOME"
    assert config.evaluation.data["xnli"].fields == {"premise": "$SCRATCH"}
    # A record is not read as if it were typed, an override of it is.
    (tmp_path / "config.yaml").write_text("run: {output: $SCRATCH/run}\n")
    assert load_run_config(tmp_path).run.output == "$SCRATCH/run"
    assert load_run_config(tmp_path, ["model.llm=~/llm"]).model.llm == "/home/me/llm"


@pytest.mark.parametrize("path", ["$NOT_SET/run", "/d/${NOT_SET}", "~nobody-of-that-name/run", "${}/x"])
def test_what_cannot_be_expanded_is_refused(environment: None, path: str) -> None:
    for key in ("run.output", "data.shards", "evaluation.data.xnli.source"):
        with pytest.raises(ConfigError, match="expected") as found:
            load_config("testbed", [f"{key}={path}"])
        assert key in str(found.value) and path in str(found.value)


def test_signs_that_are_no_variable_stay(environment: None) -> None:
    for path in ("/d/a~b", "/d/cost$", "/d/$", "/d/$-1", "a/~"):
        assert expand("run.output", path) == path


def is_path(key: str) -> bool:
    of = metadata(key.split("."))
    inner = metadata([*key.split("."), 0]) if typing.get_origin(of[0]) is tuple else ()
    return any(getattr(note, "func", None) is read_path for note in (*of, *inner))


def test_every_setting_that_its_sentence_calls_a_place_is_a_path() -> None:
    import ast
    import re

    files = (Path(__file__).parents[2] / "bridge_ds" / "config" / "schema").glob("*.py")
    parts = {type(getattr(Config(), part)).__name__: part for part in vars(Config())}
    parts["TaskDataConfig"] = "evaluation.data.any"
    seen = []
    for node in (node for file in files for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)):
        for item, sentence in zip(node.body, node.body[1:], strict=False):
            if not (
                isinstance(item, ast.AnnAssign)
                and node.name in parts
                and re.search(r"Text|Path|Literal", of := ast.unparse(item.annotation))
            ):
                continue
            if "dict[" in of:
                continue
            text = ast.literal_eval(sentence.value)  # type: ignore[attr-defined]
            key = f"{parts[node.name]}.{item.target.id}"  # type: ignore[union-attr]
            if re.search(r"\(path\b|(?i:\bfolder\b)|a path|scored run|tracking URI", text) and key != "track.name":
                seen.append(key)
                assert is_path(key), f"give {key} the type Path (Paths) in bridge_ds/config/schema"
    assert {"run.output", "model.llm", "data.mixture", "track.uri", "evaluation.data.any.source"} <= set(seen)
