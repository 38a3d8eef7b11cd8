"""The loss of the encoder alone is that of the model it was pretrained as, and that of translations the formula's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, DebertaV2Config, DebertaV2ForMaskedLM

from bridge_ds.adapt.align import infonce
from bridge_ds.adapt.english import Guarded, Reading, check_english, english_of, guarded, read
from bridge_ds.adapt.head import find_head
from bridge_ds.adapt.model import EncoderAlone, tokenizers_of
from bridge_ds.data.loading.adapting import adapted_ids, adapting_batch
from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.data.loading.tokenize import tokenize_samples
from bridge_ds.encoder.retrieval import retrieval
from bridge_ds.engine.setup import build_model
from bridge_ds.engine.trainable import trainable_table
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.world import World
from tests.adapt.made import PAIRS, TEXTS, config, encoder

SAMPLES: list[dict[str, Any]] = [
    {"text": TEXTS[0], "source": "where the corpus is from"},
    {"source": PAIRS[1][0], "target": PAIRS[1][1]},
    {"text": TEXTS[2]},
    {"source": PAIRS[3][0], "target": PAIRS[3][1]},
]


def made(folder: Path, *more: str, samples: list[dict[str, Any]] = SAMPLES) -> tuple[EncoderAlone, Batch]:
    ours = config(folder, *more)
    tokenizers = tokenizers_of(ours)
    model = build_model(ours, None)
    assert isinstance(model, EncoderAlone) and tokenizers.adapting
    count = len(samples)
    rows = adapted_ids(samples, tokenizers, ours.data, [None] * count, 0, [0] * count, list(range(count)))
    return model, adapting_batch(rows, tokenizers.encoder_pad_id, tokenizers.adapting)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_masked_tokens_as_the_models_own_class(kind: str, tmp_path: Path) -> None:
    folder = encoder(kind, tmp_path / kind)
    model, batch = made(folder, samples=[{"text": text} for text in TEXTS])
    own = AutoModelForMaskedLM.from_pretrained(folder).eval()
    labels = torch.full_like(batch.source_ids, -100).flatten()
    assert batch.layout and batch.target_tokens == len(batch.layout.positions) == len(batch.layout.labels)
    labels[batch.layout.positions] = batch.layout.labels
    with torch.no_grad():
        expected = own(
            input_ids=batch.source_ids, attention_mask=batch.source_mask, labels=labels.view_as(batch.source_ids)
        )
        found = model(batch, counted=True)
    assert found[0].item() == pytest.approx(expected.loss.item() * batch.target_tokens, rel=1e-5)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if model.is_trained(name)}
    assert {name.partition(".")[0] for name in trained} == {"encoder", "predictor"}
    assert not any("word_embeddings" in name for name in trained)
    assert "LoRA on the encoder, float32" in trainable_table(model)
    whole, _ = made(folder, "lora.rank=0", "encoder.trainable=true")
    assert any("word_embeddings" in name for name, p in whole.named_parameters() if p.requires_grad)
    assert whole(batch).item() == pytest.approx(found[0].item(), rel=1e-5)


@pytest.mark.parametrize("head", [True, False])
def test_mdebertas_head_by_its_published_names(tmp_path: Path, head: bool) -> None:
    """Its files name no `legacy`, and hold `lm_predictions`; the class with legacy=False is the reference."""
    folder = encoder("bert", tmp_path / "mdeberta")
    values = {
        "vocab_size": 352, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 80, "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm",
        "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
    }  # fmt: skip
    torch.manual_seed(1)
    own = DebertaV2ForMaskedLM(DebertaV2Config(**values, legacy=False)).eval()
    with torch.no_grad():
        for parameter in own.lm_predictions.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {name: tensor for name, tensor in own.state_dict().items() if head or not name.startswith("lm_pred")}
    DebertaV2Config(**values).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(state | {"mask_predictions.dense.weight": torch.zeros(24, 24)}, folder / "pytorch_model.bin")
    assert ("its own head predicts" if head else "hold no head") in find_head(config(folder).model).remark
    if not head:
        return
    for more in ([], ["lora.rank=0", "encoder.trainable=true"]):
        model, batch = made(folder, *more, samples=[{"text": text} for text in TEXTS])
        labels = torch.full_like(batch.source_ids, -100).flatten()
        assert batch.layout
        labels[batch.layout.positions] = batch.layout.labels
        with torch.no_grad():
            out = own(input_ids=batch.source_ids, attention_mask=batch.source_mask)
            expected = F.cross_entropy(out.logits.flatten(0, 1), labels, reduction="sum")
        assert model(batch).item() == pytest.approx(expected.item(), rel=1e-5)
    parts = [name for name, _ in model.named_parameters() if name.startswith("predictor.")]
    assert len(parts) == 5 and "encoder.model.embeddings.word_embeddings.weight" in dict(model.named_parameters())


def test_spans_as_the_models_own_decoder(tmp_path: Path) -> None:
    folder = encoder("mt5", tmp_path / "mt5")
    model, batch = made(folder, samples=[{"text": text} for text in TEXTS])
    own = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    labels = batch.target_ids.masked_fill(batch.target_mask == 0, -100)
    with torch.no_grad():
        expected = own(input_ids=batch.source_ids, attention_mask=batch.source_mask, labels=labels).loss.item()
        assert model(batch).item() == pytest.approx(expected * batch.target_tokens, rel=1e-5)
    assert not any(name.startswith("predictor") for name, p in model.named_parameters() if p.requires_grad)
    assert "decoder writes" in find_head(config(folder).model).remark
    both, mixed = made(folder, "data.objective=denoise_and_align", "adapt.pair_weight=3", "adapt.english_share=0")
    how = tokenizers_of(config(folder, "data.objective=denoise_and_align")).adapting
    assert how
    empty = adapting_batch([TokenizedSample([0], [], [], ())] * 2, 0, how)  # as in place of bad samples
    assert both(empty, counted=True).tolist() == [0, 0] and empty.target_tokens == 0
    texts = Batch.of({**mixed.tensors(), "prompt_mask": mixed.prompt_mask * 0})
    with torch.no_grad():  # of a pair nothing is written; rows 0 and 2 are texts
        labels = mixed.target_ids.masked_fill(mixed.target_mask == 0, -100)
        labels[[1, 3]] = -100
        own_loss = own(input_ids=mixed.source_ids, attention_mask=mixed.source_mask, labels=labels)
        expected = own_loss.loss.item() * int((labels >= 0).sum())
        align = both(mixed).item() - expected
        assert both.predictor and both.predictor(both.encoder(mixed.source_ids, mixed.source_mask)[-1], mixed)[
            0
        ].item() == pytest.approx(expected, rel=1e-5)
    assert 0 < align < 3 * 2 * 10 and texts.prompt_tokens == 0
    assert mixed.target_tokens == int((labels >= 0).sum()) + 2 * 3


def test_a_folder_without_a_head_predicts_by_its_embeddings(tmp_path: Path) -> None:
    folder = encoder("bert", tmp_path / "bert", head=False)
    assert "hold no head" in find_head(config(folder).model).remark
    model, batch = made(folder, "lora.rank=0", "encoder.trainable=true", samples=SAMPLES[::2])
    table = dict(model.named_parameters())["encoder.model.embeddings.word_embeddings.weight"]
    assert batch.layout
    with torch.no_grad():
        states = model.encoder(batch.source_ids, batch.source_mask)[-1].flatten(0, 1)[batch.layout.positions]
        expected = F.cross_entropy(states @ table.T, batch.layout.labels, reduction="sum").item()
    model(batch).backward()
    assert model(batch).item() == pytest.approx(expected, rel=1e-5)
    assert table.grad is not None and {name for name, _ in model.named_parameters() if name.startswith("pred")} == {
        "predictor.model.project.bias"
    }


def test_translations_pull_to_the_original_encoder(tmp_path: Path) -> None:
    folder = encoder("bert", tmp_path / "bert")
    model, batch = made(
        folder, "data.objective=align", "adapt.english_share=0", "adapt.layers=[1, 3]", samples=SAMPLES[1::2]
    )
    assert model.predictor is None and model.teacher is None and batch.target_tokens == 20
    with torch.no_grad():
        english = model.taught(batch)
        own = model.encoder(batch.source_ids, batch.source_mask)
    expected = 0.0
    for layer in (0, 2):
        one, two = (
            torch.stack([state[row, : int(mask[row].sum())].mean(0) for row in range(2)])
            for state, mask in ((own[layer], batch.source_mask), (english[layer], batch.prompt_mask))
        )
        cosines = F.cosine_similarity(one[:, None], two[None], dim=-1) / 0.05
        for each in (cosines, cosines.T):
            expected += -sum(float(each[row].log_softmax(-1)[row]) for row in range(2)) / 4
    assert model(batch).item() == pytest.approx(10 * expected, rel=1e-4)
    before = model(batch).item()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(batch)
        loss.backward()
        optimizer.step()
    assert model(batch).item() < before / 2
    with torch.no_grad():
        for now, then in zip(model.taught(batch), english, strict=True):
            assert torch.equal(now, then)
    whole, _ = made(folder, "data.objective=align", "lora.rank=0", "encoder.trainable=true", samples=SAMPLES[1::2])
    assert whole.teacher and not any(p.requires_grad for p in whole.teacher.parameters())
    with pytest.raises(
        ConfigError, match=r"adapt.layers is \[4\] and the encoder has 3 layers; expected numbers of these"
    ):
        made(folder, "data.objective=align", "adapt.layers=[4]", samples=SAMPLES[1::2])


def test_rows_that_are_no_pair_count_nowhere() -> None:
    torch.manual_seed(0)
    states = tuple(torch.randn(4, 5, 8) for _ in range(2))
    english = tuple(torch.randn(4, 3, 8) for _ in range(2))
    mask, other, pairs = torch.ones(4, 5), torch.ones(4, 3), torch.tensor([True, False, True, False])
    ids = torch.arange(4)[:, None].expand(4, 3)
    some = infonce(states, mask, english, ids, other, pairs, 0.1, [0, 1])
    kept = [0, 2]
    alone = infonce(
        tuple(s[kept] for s in states),
        mask[kept],
        tuple(s[kept] for s in english),
        ids[kept],
        other[kept],
        pairs[kept],
        0.1,
        [0, 1],
    )
    assert torch.allclose(some, alone, atol=1e-5)
    assert infonce(states, mask, english, ids, other, pairs & False, 0.1, [0, 1]).tolist() == [0, 0]


def test_two_translations_of_one_sentence_are_no_negatives_of_each_other() -> None:
    states = (torch.randn(3, 5, 8),)
    english = (torch.randn(3, 3, 8)[[0, 0, 2]],)
    ids = torch.tensor([[4, 5, 6], [4, 5, 6], [4, 5, 7]])
    mask, other, pairs = torch.ones(3, 5), torch.ones(3, 3), torch.tensor([True, True, False])
    loss, right = infonce(states, mask, english, ids, other, pairs, 0.1, [0])
    assert loss == 0 and right == 2
    pairs[2] = True
    both = infonce(states, mask, english, ids, other, pairs, 0.1, [0])
    rows = [(states[0].mean(1), english[0].mean(1), kept) for kept in ([0, 2], [1, 2])]
    for own, of, kept in rows:  # with the third sentence alone, each has the same loss from its own side
        logits = F.normalize(own[kept], dim=-1) @ F.normalize(of[kept], dim=-1).T / 0.1
        assert both[0] > F.cross_entropy(logits, torch.tensor([0, 1]), reduction="none")[0] / 2


def test_english_is_read_from_different_sentences_and_before_training(tmp_path: Path) -> None:
    file = tmp_path / "english.txt"
    file.write_text("".join(f"line {number % 25}\u2028of two\n" for number in range(80)), encoding="utf-8")
    ours = config(tmp_path, f"adapt.english={file}")
    check_english(ours)
    of = english_of(ours, World())
    assert of and len(of.english) == len(set(of.english)) == 25
    with pytest.raises(DataError, match=r"adapt.english: .*absent.txt cannot be read"):
        check_english(config(tmp_path, f"adapt.english={tmp_path / 'absent.txt'}"))


def test_a_chat_template_changes_nothing(tmp_path: Path) -> None:
    ours = config(encoder("bert", tmp_path / "bert"), "data.chat_template=true")
    (found,) = tokenize_samples([{"text": TEXTS[0]}], tokenizers_of(ours), ours.data)
    assert isinstance(found, TokenizedSample) and found.target


def test_english_is_measured_before_and_after(tmp_path: Path) -> None:
    folder = encoder("bert", tmp_path / "bert")
    ours = config(folder, "data.objective=denoise_and_align")
    tokenizers, model = tokenizers_of(ours), build_model(ours, None)
    assert isinstance(model, EncoderAlone)
    of = Guarded(tuple(TEXTS), tuple(pair for pair, _ in PAIRS))
    before = read(model, tokenizers, ours, of)
    same = guarded(before, read(model, tokenizers, ours, of))
    assert (
        same.cosine == pytest.approx([1, 1, 1]) and same.same == [1, 1, 1] and same.loss["before"] == same.loss["after"]
    )
    assert math.isclose(same.loss["before"], math.log(352), rel_tol=0.1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.5
    changed = guarded(before, read(model, tokenizers, ours, of))
    assert max(changed.cosine) < 0.999 and changed.loss["after"] != changed.loss["before"]
    assert len(changed.translations["after"]) == 3 and "nats" in changed.lines()[1]


def test_a_translation_counts_as_found_where_probe_says_so() -> None:
    """Both ways: the second sentence finds its translation, which finds the first one."""
    english = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    others = torch.tensor([[1.0, -0.5], [0.9, 0.2], [0.0, 1.0]])
    reading = Reading([english], [others], None)
    expected = retrieval(others.double().numpy(), english.double().numpy())
    assert expected.to_english != expected.both != expected.from_english
    assert guarded(reading, reading).translations == {"before": [expected.both], "after": [expected.both]}
