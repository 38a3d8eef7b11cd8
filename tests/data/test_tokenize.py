"""Token ids: what a target looks like to each kind of tokenizer, what is truncated, where a text is split."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_ds.config.changes import completed, followed
from bridge_ds.config.load import from_dict, to_dict
from bridge_ds.config.schema import Config, DataConfig, ModelConfig
from bridge_ds.data.loading.batch import StepBatches
from bridge_ds.data.loading.collate import collate, pad, unwrap, wrap
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.data.loading.tokenize import (
    check_vocabulary,
    load_tokenizers,
)
from bridge_ds.data.text.convention import WRITTEN, settled
from bridge_ds.data.text.words import split_text
from bridge_ds.errors import ConfigError, DataError
from tests.data.conftest import save_byte_level, save_metaspace
from tests.samples import tokenize_sample

SAMPLE = {"source": "the cat sat on a mat", "target": "two birds"}


def _load(encoder: Path, llm: Path, **data: object):
    return load_tokenizers(ModelConfig(encoder=str(encoder), llm=str(llm)), data=DataConfig(**data))  # type: ignore[arg-type]


def test_byte_level_targets_begin_with_a_space(tokenizers) -> None:
    assert tokenizers.leading_space
    # As in the middle of a text, which is what the LLM has learnt to expect.
    inside = tokenizers.llm("cat two birds", add_special_tokens=False)["input_ids"]
    first = tokenizers.llm("cat", add_special_tokens=False)["input_ids"]
    assert tokenizers.labels(["two birds"])[0] == [*inside[len(first) :], tokenizers.eos_id]
    assert tokenizers.labels(["  two birds \n"])[0] == tokenizers.labels(["two birds"])[0]
    assert tokenizers.prompt_ids("Label: ") == tokenizers.llm("Label:", add_special_tokens=False)["input_ids"]


def test_metaspace_targets_do_not(encoder_folder: Path, tmp_path: Path) -> None:
    tokenizers = _load(encoder_folder, save_metaspace(tmp_path))
    assert not tokenizers.leading_space
    inside = tokenizers.llm("cat two birds", add_special_tokens=False)["input_ids"]
    first = tokenizers.llm("cat", add_special_tokens=False)["input_ids"]
    assert tokenizers.labels(["two birds"])[0] == [*inside[len(first) :], tokenizers.eos_id]


def test_word_level_targets_do_not(encoder_folder: Path) -> None:
    tokenizers = _load(encoder_folder, encoder_folder)
    assert not tokenizers.leading_space
    # The LLM's own template (which appends </s> here) is left out; one end token, ours, remains.
    assert tokenizers.labels(["cat"])[0].count(tokenizers.eos_id) == 1


def test_special_tokens_are_decided_by_the_tokenizer(tokenizers, encoder_folder: Path, tmp_path: Path) -> None:
    assert tokenizers.bos_id is None
    assert tokenizers.pad_id == tokenizers.eos_id, "no pad token: the end token is used"
    assert tokenizers.encoder_pad_id == tokenizers.encoder.pad_token_id == 0
    with_start = _load(encoder_folder, save_byte_level(tmp_path / "bos", bos=True))
    assert with_start.bos_id == with_start.llm.convert_tokens_to_ids("<start>")
    assert with_start.bos_id not in with_start.labels(["cat"])[0]


OWN, FORGOTTEN, SAID, DENIED, ONE_ID, ONE_ID_SAID = range(6)


@pytest.mark.parametrize(
    ("rule", "opened"),
    [
        ("auto", {OWN, SAID, ONE_ID_SAID}),  # what the tokenizer, or its own file, says: SmolLM2's opens no text
        ("always", {OWN, FORGOTTEN, SAID, DENIED, ONE_ID, ONE_ID_SAID}),
        ("never", set()),
        ("unless_eos", {OWN, FORGOTTEN, SAID, ONE_ID_SAID}),  # runs before there was a choice
    ],
)
def test_opening_token_is_what_the_tokenizer_does_by_itself_or_what_the_run_says(
    encoder_folder: Path, tmp_path: Path, rule: str, opened: set[int]
) -> None:
    changes: dict[int, dict[str, object]] = {
        OWN: {}, FORGOTTEN: {}, SAID: {"add_bos_token": True}, DENIED: {"add_bos_token": False},
        ONE_ID: {"eos_token": "<start>"}, ONE_ID_SAID: {"eos_token": "<start>", "add_bos_token": True},
    }  # fmt: skip
    save_byte_level(tmp_path, bos=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    found = set()
    for case, change in changes.items():
        if case == FORGOTTEN:
            core = json.loads((tmp_path / "tokenizer.json").read_text())
            (tmp_path / "tokenizer.json").write_text(json.dumps({**core, "post_processor": None}))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, **change}))
        loaded = _load(encoder_folder, tmp_path, bos=rule)
        assert loaded.bos_id in (None, 1) and loaded.llm.bos_token_id == 1
        found |= {case} if loaded.bos_id == 1 else set()
    assert found == opened


def test_opening_token_that_the_tokenizer_puts_is_put_whatever_its_name(encoder_folder: Path, tmp_path: Path) -> None:
    """As XGLM, which begins each text with its end token, and has another BOS; or none."""
    save_byte_level(tmp_path, bos=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for bos in ("<end>", None):
        changed = {**settings, "bos_token": bos, "eos_token": "<end>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(changed))
        found = _load(encoder_folder, tmp_path)
        assert (found.bos_id, found.llm.bos_token_id) == (1, None if bos is None else found.eos_id)
        data = settled(DataConfig(), found)
        assert _load(encoder_folder, tmp_path, **{key: getattr(data, key) for key in WRITTEN}).bos_id == 1
        assert _load(encoder_folder, tmp_path, bos="unless_eos").bos_id is None


def test_opening_of_several_tokens_is_refused_and_not_left_out(encoder_folder: Path, tmp_path: Path) -> None:
    """As GLM, whose texts begin with [gMASK]<sop>."""
    core = json.loads((save_byte_level(tmp_path, bos=True) / "tokenizer.json").read_text())
    template = core["post_processor"]["single"]
    core["post_processor"]["single"] = [template[0], template[0], *template[1:]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(core))
    with pytest.raises(ConfigError, match="puts '<start><start>' before each text, and a bridge puts one"):
        _load(encoder_folder, tmp_path)
    assert _load(encoder_folder, tmp_path, bos="never").bos_id is None
    assert _load(encoder_folder, tmp_path, bos="unless_eos").bos_id == 1  # as before there was a choice


def test_a_run_that_wants_an_opening_token_needs_one(encoder_folder: Path, llm_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.bos is always, and the tokenizer of model.llm .* has no BOS"):
        _load(encoder_folder, llm_folder, bos="always")


def test_targets_are_written_as_the_run_says(encoder_folder: Path, llm_folder: Path, tmp_path: Path) -> None:
    plain = _load(encoder_folder, llm_folder)
    spaced, bare = (plain.llm(text, add_special_tokens=False)["input_ids"] for text in (" cat", "cat"))
    assert spaced != bare
    for space, ids in (("auto", spaced), ("space", spaced), ("none", bare)):
        assert _load(encoder_folder, llm_folder, target_space=space).labels([" cat "])[0] == [*ids, plain.eos_id]
        assert _load(encoder_folder, llm_folder, target_space=space, target_end=False).labels(["cat"])[0] == ids
    metaspace = save_metaspace(tmp_path)
    usual = _load(encoder_folder, metaspace, target_space="none").labels(["cat"])[0]
    assert usual == _load(encoder_folder, metaspace).labels(["cat"])[0]
    # What was put in front is no part of an answer.
    assert _load(encoder_folder, llm_folder).answer(" cat") == "cat"
    assert _load(encoder_folder, llm_folder, target_space="none").answer(" cat") == " cat"


@pytest.mark.parametrize(
    ("separator", "shown"), [("", "cat"), (" ", "cat "), ("\n\n", "cat\n\n"), (" =>", "cat =>"), ("keep", "cat \n")]
)
def test_a_prompt_ends_as_the_run_says(encoder_folder: Path, llm_folder: Path, separator: str, shown: str) -> None:
    found = _load(encoder_folder, llm_folder, separator=separator)
    assert found.llm.decode(found.prompt_ids("cat \n")) == shown
    assert found.prompt_ids("") == []


def test_a_target_without_end_token_is_cut_to_its_full_length(encoder_folder: Path, llm_folder: Path) -> None:
    data = DataConfig(target_end=False, max_target_tokens=2)
    found = load_tokenizers(ModelConfig(encoder=str(encoder_folder), llm=str(llm_folder)), data=data)
    target = tokenize_sample({"source": "the cat", "target": "two red birds fly"}, found, data).target
    assert target == found.labels(["two red birds fly"])[0][:2]


def test_what_auto_has_come_to_is_recorded_and_followed(encoder_folder: Path, tmp_path: Path) -> None:
    opened = _load(encoder_folder, save_byte_level(tmp_path / "bos", bos=True))
    new = settled(DataConfig(), opened)
    assert (new.bos, new.target_space) == ("always", "space")
    other = _load(encoder_folder, save_metaspace(tmp_path / "metaspace"))
    assert settled(DataConfig(), other) == replace(DataConfig(), bos="never", target_space="none")
    said = DataConfig(bos="unless_eos", target_space="none")
    assert settled(said, opened) == said

    # A run that is resumed takes what was recorded; one from before the settings has none of them.
    assert followed(Config(), to_dict(Config(data=new))).data == new
    assert followed(Config(data=said), to_dict(Config(data=new))).data == said
    old = to_dict(Config())
    del old["data"]["bos"], old["data"]["target_space"]
    assert followed(Config(), old).data == replace(DataConfig(), bos="unless_eos")
    assert from_dict(completed(old)).data == replace(DataConfig(), bos="unless_eos")
    assert from_dict(completed({})).data.bos == "unless_eos" and completed({"data": None})["data"]["bos"]
    assert from_dict(completed({"data": {"bos": "never"}})).data.bos == "never"


def test_every_place_that_loads_tokenizers_says_how_the_run_writes() -> None:
    root = Path(__file__).parents[2]
    calls = [
        (path, call)
        for folder in ("bridge_ds", "tools")
        for path in (root / folder).rglob("*.py")
        for call in re.findall(r"(?<!def )(?<!_)load_tokenizers\((.*)\)", path.read_text(encoding="utf-8"))
    ]
    assert len(calls) >= 6
    assert all(".data" in call for _, call in calls), [each for each in calls if ".data" not in each[1]]


def test_a_language_model_needs_an_end_token(encoder_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no end token"):
        _load(encoder_folder, save_byte_level(tmp_path / "endless", eos=None))


def test_a_tokenizer_that_cannot_be_loaded_is_named(encoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"model.llm .*empty' could not be loaded") as caught:
        _load(encoder_folder, tmp_path / "empty")
    assert "\n" not in str(caught.value)


def test_ids_out_of_the_vocabulary_are_refused(tokenizers) -> None:
    rows = len(tokenizers.llm)
    check_vocabulary(tokenizers.llm, rows, "model.llm")
    with pytest.raises(ConfigError, match=rf"model.llm gives ids up to {rows - 1} .* has {rows - 1} embedding rows"):
        check_vocabulary(tokenizers.llm, rows - 1, "model.llm")


def test_lengths_are_cut_and_counted_and_ends_stay(tokenizers) -> None:
    whole = tokenize_sample(SAMPLE, tokenizers, DataConfig(augment_prompt=True))
    assert whole.truncated == ()
    assert whole.source == tokenizers.source_ids(SAMPLE["source"])
    short = tokenize_sample(
        SAMPLE,
        tokenizers,
        DataConfig(augment_prompt=True, max_source_tokens=3, max_prompt_tokens=2, max_target_tokens=2),
    )
    assert short.truncated == ("source", "prompt", "target")
    assert short.source == [*whole.source[:2], tokenizers.encoder.eos_token_id]
    assert short.prompt == whole.prompt[:2]
    assert short.target == [whole.target[0], tokenizers.eos_id]


def test_prompt_is_the_samples_own_or_the_source_or_nothing(tokenizers) -> None:
    with_prompt = {**SAMPLE, "prompt": "red house"}
    augment = DataConfig(augment_prompt=True)
    assert tokenize_sample(with_prompt, tokenizers, DataConfig()).prompt == []
    assert tokenize_sample(with_prompt, tokenizers, augment).prompt == tokenizers.prompt_ids("red house")
    assert tokenize_sample(SAMPLE, tokenizers, augment).prompt == tokenizers.prompt_ids(SAMPLE["source"])


def test_prefix_lm_goes_on_where_the_source_ends(tokenizers) -> None:
    text = " ".join(f"n{i}" for i in range(40))
    data = DataConfig(objective="prefix_lm", max_source_tokens=4)
    sample = tokenize_sample({"text": text}, tokenizers, data, seed=1, epoch=0, number=3)
    before, after = split_text(text, 1, 0, 3)
    assert sample.truncated == ("source",)
    assert tokenizers.encoder.decode(sample.source[:-1]).split() == before.split()[-3:]
    assert sample.source[-1] == tokenizers.encoder.eos_token_id
    assert tokenizers.llm.decode(sample.target[:-1]).strip() == after


def test_prefix_lm_target_has_no_space_that_its_text_has_not(tokenizers, encoder_folder: Path, tmp_path: Path) -> None:
    """Between two characters of a script without spaces none; after a space one, in the same text, too."""
    text, data = "猫坐在垫子上 狗在睡觉", DataConfig(objective="prefix_lm")
    found = {}
    for epoch in range(99):
        _, after = split_text(text, 0, epoch, 0)
        row = tokenize_sample({"text": text}, tokenizers, data, epoch=epoch)
        found[after] = tokenizers.llm.decode(row.target[:-1])
    assert tokenizers.leading_space and len(found) > 6
    assert found == {after: " " * (after == "狗在睡觉") + after for after in found}
    # SentencePiece puts a space of its own before each text.
    metaspace = _load(encoder_folder, save_metaspace(tmp_path))
    (bare,), (spaced,) = metaspace.targets(["cat"], [False]), metaspace.targets(["cat"], [True])
    assert spaced == metaspace.targets(["cat"])[0] and metaspace.llm.convert_ids_to_tokens(spaced)[0].startswith("▁")
    assert "▁" not in "".join(metaspace.llm.convert_ids_to_tokens(bare))


@settings(max_examples=100, deadline=None)
@given(words=st.lists(st.text("abcéක", min_size=1, max_size=4), min_size=2, max_size=60), number=st.integers(0, 10**9))
def test_split_is_pure_and_keeps_every_word(words: list[str], number: int) -> None:
    text = " \n".join(words)
    before, after = split_text(text, 7, 2, number)
    assert (before, after) == split_text(text, 7, 2, number)
    assert before.split() + after.split() == words
    share = len(before.split()) / len(words)
    assert 0.1 <= share <= 0.9


def test_split_moves_with_epoch_seed_and_sample() -> None:
    text = " ".join(map(str, range(1000)))
    splits = {split_text(text, seed, epoch, number)[0] for seed in (0, 1) for epoch in (0, 1) for number in (0, 1)}
    assert len(splits) == 8
    with pytest.raises(DataError, match=r"has 1 words in `text`"):
        split_text(" word ", 0, 0, 0)


def test_tokenizers_can_be_sent_to_a_spawned_worker(tokenizers) -> None:
    assert pickle.loads(pickle.dumps(tokenizers)).labels(["cat"])[0] == tokenizers.labels(["cat"])[0]


def test_padding_is_on_the_right_and_masked_by_length() -> None:
    ids, mask = pad([[5, 6, 9], [7]], 9)
    assert ids.tolist() == [[5, 6, 9], [7, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64
    ids, mask = pad([[], []], 0)
    assert ids.shape == mask.shape == (2, 0)
    assert ids.dtype == mask.dtype == torch.int64


@pytest.mark.parametrize("longest", [3, 3000])
def test_wrapping_a_step_keeps_it(longest: int) -> None:
    rows = [TokenizedSample(list(range(longest)), [], [4, 5], ()), TokenizedSample([6], [], [7, 8, 9], ())]
    micro = [collate(rows, 0, 1), collate(rows[:1], 0, 1, opening=True)]
    step = StepBatches(step=1, micro=micro, ids_hash="x", consumed=3, truncated={"source": 0})
    packed = wrap(step)
    # Inside the message, or as one shared tensor; never a tensor beside it.
    tensors = [value for value in vars(packed).values() if isinstance(value, torch.Tensor)]
    assert tensors == ([] if longest == 3 else [packed.buffer])
    assert longest > 3 or len(pickle.dumps(packed)) < 65536
    back = unwrap(packed)
    assert (back.step, back.ids_hash, back.consumed, back.truncated) == (1, "x", 3, {"source": 0})
    for one, two in zip(back.micro, micro, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.tensors().values(), two.tensors().values(), strict=True))
    assert back.micro[0].prompt_ids.shape == (2, 0)
    assert back.micro[0].target_tokens == 5
    assert back.micro[0].source_tokens == longest + 1
