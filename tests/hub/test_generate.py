"""What a bridge writes: the same as a loop without a cache, in any batch, on any padding side, under every option."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, TextIteratorStreamer, TextStreamer

from bridge_ds import BridgeForCausalLM, BridgeProcessor
from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.loading.collate import collate
from bridge_ds.data.loading.tokenize import tokenize_samples
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.hub.inputs import right_padded
from tests import tiny

TEXTS = ["the cat sat on the mat", "a dog", "one river of rain and a bridge that joins two banks of it and the cat"]
MORE = {"max_new_tokens": 12}


def load(run: Path) -> tuple[BridgeForCausalLM, BridgeProcessor]:
    return BridgeForCausalLM.from_pretrained(run), BridgeProcessor.from_pretrained(run)


@pytest.fixture(scope="module")
def llama(runs: dict[str, Path]) -> tuple[BridgeForCausalLM, BridgeProcessor]:
    return load(runs["llama"])


@torch.no_grad()
def by_steps(model: BridgeForCausalLM, inputs: Any, tokens: int) -> list[int]:
    """Greedy decoding of one row, everything computed anew at each step."""
    llm = model.bridge.llm.model
    embeds = model.prefix(**inputs, side="right").embeds_BXH
    written: list[int] = []
    while len(written) < tokens:
        token = llm(inputs_embeds=embeds, use_cache=False).logits[:, -1].argmax(-1)
        written.append(int(token))
        if written[-1] in model.generation_config.eos_token_id:
            break
        embeds = torch.cat([embeds, llm.get_input_embeddings()(token[:, None])], dim=1)
    return written


@pytest.mark.parametrize("kind", [*tiny.LLMS, "bert"])
def test_greedy_equals_a_loop_without_cache_alone_and_in_a_batch(runs: dict[str, Path], kind: str) -> None:
    model, processor = load(runs[kind])
    texts = [*TEXTS, "猫" * 30]  # more places than Mistral's window of 64
    expected = [by_steps(model, processor(text, **MORE), 12) for text in texts]
    assert len({tuple(row) for row in expected}) > 1, "the soft prompt decides what is written"
    together = model.generate(**processor(texts, **MORE), **MORE).tolist()
    for text, steps, row in zip(texts, expected, together, strict=True):
        assert model.generate(**processor(text, **MORE), **MORE)[0].tolist() == steps
        assert row[: len(steps)] == steps
        assert set(row[len(steps) :]) <= {processor.tokenizers.pad_id}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_the_padding_side_of_the_input_does_not_matter(runs: dict[str, Path], kind: str) -> None:
    model, processor = load(runs[kind])
    right = processor(TEXTS)
    left = {}
    for ids, mask in (("input_ids", "attention_mask"), ("prefix_ids", "prefix_mask"), ("suffix_ids", "suffix_mask")):
        # Junk on padding positions, and a hole in the middle of nothing but padding, must not be seen either.
        order = torch.argsort(right[mask], dim=1, stable=True)
        left[mask] = right[mask].gather(1, order)
        left[ids] = right[ids].gather(1, order).masked_fill(left[mask] == 0, 5)
    assert kind != "bert" or right["suffix_ids"].shape[1] > 0, "the LLM reads the text too"
    one, other = model.prefix(**right), model.prefix(**left)
    assert torch.equal(one.embeds_BXH, other.embeds_BXH) and torch.equal(one.mask_BX, other.mask_BX)
    assert torch.equal(model.generate(**left, **MORE), model.generate(**right, **MORE))
    lists = processor(TEXTS, return_tensors=None)
    assert [len(row) for row in lists["input_ids"]] == right["attention_mask"].sum(1).tolist()


def test_holes_are_closed() -> None:
    ids, mask = right_padded(torch.tensor([[7, 1, 8], [1, 1, 9]]), torch.tensor([[1, 0, 1], [0, 0, 1]]), 0)
    assert ids.tolist() == [[7, 8], [9, 0]] and mask.tolist() == [[1, 1], [1, 0]]
    ids, mask = right_padded(torch.tensor([[1, 1]]), torch.tensor([[0, 0]]), 0)
    assert ids.tolist() == [[0]] and mask.tolist() == [[0]], "one place is left for an encoder to run on"


def test_the_loss_is_that_of_training(runs: dict[str, Path]) -> None:
    for kind in ("llama", "bert"):
        model, processor = load(runs[kind])
        targets = ["wet", "good day", "Neutral rain"]
        output = model(**processor(TEXTS, text_target=targets))
        samples = [{"source": text, "target": target} for text, target in zip(TEXTS, targets, strict=True)]
        from bridge_ds.hub.config import to_run

        rows = tokenize_samples(samples, processor.tokenizers, to_run(model.config).data)
        batch = collate(rows, processor.tokenizers.encoder_pad_id, processor.tokenizers.pad_id)  # type: ignore[arg-type]
        assert output.loss.item() == pytest.approx(float(model.bridge(batch).detach()) / batch.target_tokens, abs=1e-5)
        output.loss.backward()
        assert model.bridge.mapping.end.grad.abs().sum() > 0, "it can be trained on"


def test_sampling_and_beams(llama: tuple[BridgeForCausalLM, BridgeProcessor], monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = llama
    inputs = processor(TEXTS)
    said: list[str] = []
    monkeypatch.setattr("transformers.generation.utils.logger.warning_once", said.append)

    def sample(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return model.generate(**inputs, **MORE, do_sample=True, temperature=3.0, num_return_sequences=2).tolist()

    assert sample(1) == sample(1) != sample(2)
    assert len(sample(1)) == 6 and sample(1)[0] != sample(1)[1]
    assert not [text for text in said if "deprecated" in text], "options and a config are not given side by side"
    options = {"return_dict_in_generate": True, "output_scores": True, **MORE}
    greedy = model.generate(**inputs, **options)
    scores = model.compute_transition_scores(greedy.sequences, greedy.scores, normalize_logits=True)
    beams = model.generate(**inputs, **options, num_beams=4, num_return_sequences=3, length_penalty=0.0)
    best = beams.sequences_scores.view(3, 3)
    assert (best[:, 0] >= scores.masked_fill(scores.isinf(), 0).sum(1) - 1e-4).all(), "no worse than greedy"
    alone = model.generate(**processor(TEXTS[2]), **MORE, num_beams=4, length_penalty=0.0)[0].tolist()
    assert beams.sequences[6].tolist()[: len(alone)] == alone, "beams of a batch are those of a row alone"


def test_scores_are_those_of_a_forward_pass(llama: tuple[BridgeForCausalLM, BridgeProcessor]) -> None:
    model, processor = llama
    inputs = processor(TEXTS)
    out = model.generate(**inputs, return_dict_in_generate=True, output_scores=True, **MORE)
    found = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    logits = model(**inputs, labels=out.sequences).logits
    for row, length in enumerate(model.prefix(**inputs).mask_BX.sum(1).tolist()):
        log_p = torch.log_softmax(logits[row, length - 1 :], -1)
        ids = out.sequences[row].tolist()
        real = ids.index(processor.tokenizers.eos_id) + 1 if processor.tokenizers.eos_id in ids else len(ids)
        steps = torch.stack([log_p[place, token] for place, token in enumerate(ids[:real])])
        assert real > 3 and torch.allclose(steps, found[row, :real], atol=1e-4)


def test_streaming_and_stop_strings(llama: tuple[BridgeForCausalLM, BridgeProcessor]) -> None:
    model, processor = llama
    inputs = processor(TEXTS[0])
    whole = processor.tokenizer.decode(model.generate(**inputs, **MORE)[0], skip_special_tokens=True)
    shown = io.StringIO()
    with redirect_stdout(shown):
        model.generate(**inputs, **MORE, streamer=TextStreamer(processor.tokenizer, skip_special_tokens=True))
    assert shown.getvalue() == whole + "\n"
    pieces = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generate(**inputs, **MORE, streamer=pieces)
    assert "".join(pieces) == whole
    stop = next(c for c in whole[2:] if c.isascii() and c.isprintable() and c not in whole[:2])
    for options in (
        {"stop_strings": [stop], **MORE},
        {"generation_config": GenerationConfig(stop_strings=stop, **MORE)},
    ):
        stopped = processor.decode(model.generate(**inputs, **options)[0])
        assert stop in stopped and whole.strip().startswith(stopped.strip()) and len(stopped) < len(whole)


def test_other_options_reach_the_llm(llama: tuple[BridgeForCausalLM, BridgeProcessor]) -> None:
    model, processor = llama
    inputs = processor(TEXTS)
    plain = model.generate(**inputs, **MORE)
    first = int(plain[0, 0])
    assert first not in model.generate(**inputs, **MORE, bad_words_ids=[[first]])[:, 0]
    assert torch.equal(model.generate(**inputs, **MORE, cache_implementation="static"), plain)
    assert torch.equal(model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], **MORE), plain)
    assert model.generate(**inputs).shape[1] == 10, "as many tokens as the longest target of the training"
    used = model.prefix(**inputs).mask_BX.shape[1]
    for options in ({"max_length": used + 3}, {"generation_config": GenerationConfig(max_length=used + 3)}):
        assert torch.equal(model.generate(**inputs, **options), plain[:, :3])
    with pytest.raises(DataError, match="max_length is 4"):
        model.generate(**inputs, max_length=4)
    guided = {"guidance_scale": 3.0, "negative_prompt_ids": torch.full((3, 1), processor.tokenizers.bos_id)}
    assert not torch.equal(model.generate(**inputs, **MORE, **guided), plain)
    assert torch.equal(model.generate(**inputs, **MORE, **guided | {"guidance_scale": 1.0}), plain)
    with pytest.raises(ValueError, match="max_new_token'"):
        model.generate(**inputs, max_new_token=3)
    for option in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": model}, {"guidance_scale": 2.0},
                   {"prefill_chunk_size": 4}, {"cache_implementation": "paged"}):  # fmt: skip
        with pytest.raises(DataError, match=next(iter(option))):
            model.generate(**inputs, **option)
    with pytest.raises(DataError, match="no input_ids"):
        model.generate()


def test_penalties_that_an_llm_ships_are_left_out(
    runs: dict[str, Path], bases: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    shipped = shutil.copytree(bases["llama"], tmp_path / "llama")
    GenerationConfig(repetition_penalty=9.0, do_sample=True, temperature=5.0, eos_token_id=[1, 7]).save_pretrained(
        shipped
    )
    plain, processor = load(runs["llama"])
    model = BridgeForCausalLM.from_pretrained(runs["llama"], llm=str(shipped), allow_base_mismatch=True)
    inputs = processor(TEXTS[0])
    options = {"min_new_tokens": 12, **MORE}
    assert torch.equal(model.generate(**inputs, **options), plain.generate(**inputs, **options))
    assert model.generation_config.eos_token_id == [1, 7], "but its own ends count"


def test_what_does_not_fit_is_cut_and_said(runs: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    model, processor = load(runs["gpt2"])
    with caplog.at_level("WARNING"):
        inputs = processor([" ".join(TEXTS * 9), "a dog"])
        assert "1 of 2 texts lost their end: at most 70 source" in caplog.text
        written = model.generate(**inputs, max_new_tokens=1000, min_new_tokens=1000)
        assert "at most 57 are written" in caplog.text
    assert inputs["attention_mask"].sum(1).tolist()[0] == 70 and written.shape[1] == 128 - 71
    processor.max_source_tokens = 1000
    assert processor(" ".join(TEXTS * 9), max_new_tokens=40)["input_ids"].shape[1] == 128 - 40 - 1
    with pytest.raises(DataError, match="takes 131 positions and the LLM has 128"):
        model.generate(torch.full((1, 130), 5))


def test_a_chat_template_stands_around_the_soft_prompt(
    runs: dict[str, Path], llama: tuple[BridgeForCausalLM, BridgeProcessor]
) -> None:
    model, processor = llama
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "a dog"}]}]
    inputs = processor.apply_chat_template([chat, chat[1:]])
    texts = [processor.tokenizer.batch_decode(inputs[name]) for name in ("prefix_ids", "suffix_ids")]
    assert texts[0][0] == "<s>[system] be brief\n[user] " and texts[0][1].startswith("<s>[user] ")
    assert texts[1] == ["\n[assistant]"] * 2
    assert inputs["input_ids"][0].tolist() == processor("a dog")["input_ids"][0].tolist()
    spliced = model.prefix(**processor.apply_chat_template(chat))
    parts = [inputs["prefix_ids"][:1], inputs["input_ids"][:1], inputs["suffix_ids"][:1]]
    none = parts[1].new_zeros(1, 0)
    soft = model.bridge.soft(Batch(parts[1], torch.ones_like(parts[1]), none, none, none, none)).embeds_BKH
    head, tail = (model.get_input_embeddings()(part) for part in (parts[0], parts[2]))
    assert torch.allclose(spliced.embeds_BXH, torch.cat([head, soft, tail], dim=1), atol=1e-6)
    begun = processor.apply_chat_template([*chat, {"role": "assistant", "content": "It"}], continue_final_message=True)
    assert processor.tokenizer.decode(begun["suffix_ids"][0]).endswith("[assistant] It")
    with pytest.raises(DataError, match="expected a role and text content"):
        processor.apply_chat_template([{"role": "user", "content": 3}])
    with pytest.raises(ConfigError, match="expected a chat template"):
        BridgeProcessor.from_pretrained(runs["gpt2"]).apply_chat_template(chat)


def test_input_that_is_no_text_is_refused(llama: tuple[BridgeForCausalLM, BridgeProcessor]) -> None:
    _, processor = llama
    for wrong, told in ((3, "text holds int"), (["a", None], "text holds NoneType"), ([], "there is no text")):
        with pytest.raises(DataError, match=told):
            processor(wrong)
    with pytest.raises(DataError, match="2 of text_target for 1 texts"):
        processor("a", text_target=["b", "c"])
    empty = processor(["", "a dog"])
    assert empty["attention_mask"].sum(1).tolist()[0] == 1, "the encoder's end token alone"
