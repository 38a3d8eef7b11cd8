"""Chat templates to the last blank, answers without the added space, and the one rule of truncation."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_ds.config.build import check
from bridge_ds.config.schema import Config, DataConfig, ModelConfig
from bridge_ds.data.loading.tokenize import Tokenizers, load_tokenizers
from bridge_ds.data.text.chat import Frame, frame_of, render
from bridge_ds.data.text.prompting import Context, answers, context_ids, framed, parse
from bridge_ds.data.text.truncate import Limits, fit, side_of, truncated
from bridge_ds.errors import ConfigError, DataError
from tests.convert import readable
from tests.data.conftest import save_byte_level
from tests.samples import tokenize_sample

CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n\n{% endif %}"
)


@pytest.fixture(scope="module")
def chatty(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizers:
    folder = save_byte_level(tmp_path_factory.mktemp("chat") / "llm", bos=True)
    (folder / "chat_template.jinja").write_text(CHAT)
    return load_tokenizers(ModelConfig(encoder=str(encoder_folder), llm=str(folder)))


def in_chat(of: Tokenizers, data: DataConfig) -> Tokenizers:
    """The tokenizers as `load_tokenizers` gives them for these settings."""
    return dataclasses.replace(of, frame=frame_of(of.llm, data.chat_template, data.system_prompt))


def test_the_white_space_a_template_ends_with_is_kept_and_no_space_is_put_before_the_answer(chatty: Tokenizers) -> None:
    data = DataConfig(chat_template=True, system_prompt="a red house")
    row = tokenize_sample({"source": "the cat", "target": "{two birds}"}, in_chat(chatty, data), data)
    llm = chatty.llm
    assert llm.decode(row.head) == "<start><system>a red house<end>\n<user>"
    assert llm.decode(row.prompt) == "<end>\n<assistant>\n\n"
    assert row.target == [*llm("{two birds}", add_special_tokens=False)["input_ids"], chatty.eos_id]
    # All of it as transformers tokenizes the same chat, but for the soft prompt instead of the user's text.
    chat = [{"role": "system", "content": "a red house"}, {"role": "user", "content": "|"}]
    whole = llm.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    (mark,) = llm("|", add_special_tokens=False)["input_ids"]
    assert whole == [*row.head, mark, *row.prompt]
    assert chatty.leading_space, "without a template there is one"
    assert tokenize_sample({"source": "the cat", "target": "{two"}, chatty, DataConfig()).target == [
        *llm(" {two", add_special_tokens=False)["input_ids"], chatty.eos_id,
    ]  # fmt: skip
    data = DataConfig(chat_template=True, augment_prompt=True)
    shown = tokenize_sample({"source": "the cat", "target": "b"}, in_chat(chatty, data), data)
    assert llm.decode(shown.prompt) == "the cat<end>\n<assistant>\n\n" and llm.decode(shown.head) == "<start><user>"


def test_a_chat_of_one_message_and_a_plain_text_have_the_ids_of_training(chatty: Tokenizers) -> None:
    frame = frame_of(chatty.llm, True, "a red house")
    data = DataConfig(chat_template=True, system_prompt="a red house", augment_prompt=True)
    limits = Limits.of(data)
    for text in ("the cat", "  the cat\n", "the </s> cat <end>", "a\n\nb"):
        row = tokenize_sample({"source": text, "target": "b"}, in_chat(chatty, data), data)
        asked = parse(render(chatty.llm, [{"role": "user", "content": text}], system="a red house"))
        for context in (framed(Context(text), frame), asked):
            ids = context_ids(chatty, context, limits, 4, prompt=True)
            assert ids.source == row.source and ids.head == list(row.head), text
            assert [*ids.prompt, *ids.tail] == row.prompt, text


def test_messages_are_text_in_a_template_of_control_tokens(chatty: Tokenizers) -> None:
    end, start = chatty.eos_id, chatty.bos_id
    history = [
        {"role": "system", "content": " be <end> brief "}, {"role": "user", "content": "the <end> cat \ufdd1 sat"},
        {"role": "assistant", "content": "so <start> it"},
    ]  # fmt: skip
    context = parse(render(chatty.llm, history, answering=False))
    assert context.source == "the <end> cat  sat" and context.begun
    ids = context_ids(chatty, context, Limits(50, 50), 4)
    assert chatty.llm.decode(ids.head) == "<start><system>be <end> brief<end>\n<user>"
    assert ids.head.count(end) == 1 and ids.head.count(start) == 1
    assert chatty.llm.decode(ids.tail) == "<end>\n<assistant>so <start> it" and ids.tail.count(start) == 0
    other = parse(render(chatty.llm, history[1:2], system="one"))
    assert other.head == "<start><system>one<end>\n<user>" and not other.begun
    assert parse(render(chatty.llm, history[:2], system="one")).head.startswith("<start><system>be ")


def test_a_template_that_writes_the_date_says_the_same_every_day(chatty: Tokenizers) -> None:
    text = render(chatty.llm, [{"role": "user", "content": "a"}], chat_template="{{ strftime_now('%Y') }} " + CHAT)
    assert parse(text).head.startswith("2024 ")


def test_answers_after_a_template_have_no_space_and_others_keep_theirs(chatty: Tokenizers) -> None:
    plain, chat = answers(chatty, [" two\n"], None)[0], answers(chatty, [" two\n"], "\n")[0]
    assert plain == chatty.labels(["two"])[0] != chat
    assert chat == [*chatty.llm("two", add_special_tokens=False)["input_ids"], chatty.eos_id]


@pytest.mark.parametrize("user_end", ["</s>\n<|assistant|>\n", " ~\n", " [/INST] "])
def test_sentencepiece_puts_no_space_of_its_own_into_a_chat(
    encoder_folder: Path, tmp_path: Path, user_end: str
) -> None:
    """Head, user's turn, tail and answer are the ids of the whole chat, as transformers has them in one piece."""
    llm = readable.sentence_piece(tmp_path / "llm")
    (llm / "chat_template.jinja").write_text(
        "{{ bos_token }}<|user|>\n{{ messages[0].content }}"
        f"{{{{ {json.dumps(user_end)} }}}}"
        "{% if messages[1] %}{{ messages[1].content }}{{ eos_token }}{% endif %}"
    )
    data = DataConfig(chat_template=True)
    of = load_tokenizers(ModelConfig(encoder=str(encoder_folder), llm=str(llm)), data=data)
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "{Ent"}]
    text = of.llm.apply_chat_template(chat, tokenize=False)
    assert text == f"<s><|user|>\na{user_end}{{Ent</s>"
    row = tokenize_sample({"source": "a", "target": "{Ent"}, of, data)
    whole = of.llm(text, add_special_tokens=False)["input_ids"]
    assert [*row.head, *of.llm.convert_tokens_to_ids(["a"]), *row.prompt, *row.target] == whole
    harness = Context("a", "<s><|user|>\n", f"{user_end}{{", begun=True)
    assert context_ids(of, harness, Limits(9, 9), 1).tail == [*row.prompt, row.target[0]]


def test_an_llm_without_a_template_is_told_before_training(tokenizers: Tokenizers) -> None:
    assert frame_of(tokenizers.llm, False, "") == Frame()
    with pytest.raises(ConfigError, match=r"data.chat_template is true .* cannot render a chat"):
        frame_of(tokenizers.llm, True, "")
    for wrong, message in (
        (DataConfig(system_prompt="be brief"), "data.system_prompt is set and data.chat_template is false"),
        (DataConfig(chat_template=True, objective="prefix_lm"), "expected task"),
        (DataConfig(truncation_side="middle"), "data.truncation_side is 'middle'"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(Config(data=wrong))


def test_a_template_that_leaves_the_users_turn_out_is_told(chatty: Tokenizers, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    llm = AutoTokenizer.from_pretrained(save_byte_level(tmp_path))
    llm.chat_template = "hello"
    with pytest.raises(ConfigError, match="leaves the user's turn out"):
        frame_of(llm, True, "")
    llm.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(DataError, match=r"does not take this chat \(TemplateError: never\)"):
        render(llm, [{"role": "user", "content": "a"}], system="be brief")
    with pytest.raises(ConfigError, match=r"data.chat_template is true .* cannot render a chat"):
        frame_of(llm, True, "")


@given(
    ids=st.lists(st.integers(2, 9), max_size=12), limit=st.integers(-1, 14), side=st.sampled_from(["right", "left"]),
    closing=st.booleans(),
)  # fmt: skip
def test_truncation_keeps_one_side_and_the_end_token(ids: list[int], limit: int, side: str, closing: bool) -> None:
    whole = [*ids, 1] if closing else ids
    kept = truncated(whole, limit, side, closing=int(closing))
    assert len(kept) == min(len(whole), max(0, limit))
    if kept and closing:
        assert kept[-1] == 1
    text = kept[:-1] if closing and kept else kept
    assert text == (ids[: len(text)] if side == "right" else ids[len(ids) - len(text) :])


def test_a_template_that_leaves_the_system_message_out_or_writes_the_user_twice(chatty: Tokenizers) -> None:
    llm = copy.deepcopy(chatty.llm)
    llm.chat_template = "{% for m in messages if m.role != 'system' %}[{{ m.content | trim }}]{% endfor %}"
    assert frame_of(llm, True, " be brief ") == Frame("[be brief \n\n", "]")
    llm.chat_template = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match="writes the user's turn 2 times; expected once"):
        frame_of(llm, True, "")


def test_both_texts_share_what_room_there_is(tokenizers: Tokenizers) -> None:
    source, prompt = [5, 6, 7, 8, 1], [2, 3, 4, 5]
    assert fit(source, prompt, Limits(9, 9), (0, 1)) == (source, prompt, ())
    assert fit(source, prompt, Limits(3, 2), (0, 1)) == ([5, 6, 1], [2, 3], ("source", "prompt"))
    assert fit(source, prompt, Limits(3, 9, side="left"), (0, 1)) == ([7, 8, 1], prompt, ("source",))
    kept, shown, truncated = fit(source, prompt, Limits(9, 9, 8), (0, 1), room=6)
    assert (kept, shown, truncated) == ([5, 1], [2, 3, 4], ("source", "prompt")) and len(kept) + len(shown) + 1 == 6


@given(
    lengths=st.tuples(st.integers(1, 20), st.integers(0, 20)), most=st.tuples(st.integers(2, 20), st.integers(1, 20)),
    room=st.integers(2, 50), side=st.sampled_from(["right", "left"]),
)  # fmt: skip
def test_what_fits_is_read_as_in_training_and_neither_text_takes_the_room_of_both(
    lengths: tuple[int, int], most: tuple[int, int], room: int, side: str
) -> None:
    source, prompt = [*range(2, lengths[0] + 1), 1], list(range(50, 50 + lengths[1]))
    limits, ends = Limits(*most, side=side), (0, 1)
    in_training = fit(source, prompt, limits, ends)
    found = fit(source, prompt, dataclasses.replace(limits, positions=100), ends, room)
    taken = [len(kept) for kept in in_training[:2]]
    if sum(taken) + 1 <= room:
        assert found == in_training
    else:
        assert len(found[0]) + len(found[1]) + 1 == room, "nothing of it is left over"
        assert len(found[0]) >= min(taken[0], room - room // 2 - 1) and len(found[1]) >= min(taken[1], room // 2)


def test_prefix_lm_keeps_its_end_whatever_the_setting_and_old_runs_cut_at_the_right() -> None:
    assert side_of(DataConfig()) == "right" and side_of(DataConfig(truncation_side="left")) == "left"
    assert side_of(DataConfig(objective="prefix_lm")) == "left"
