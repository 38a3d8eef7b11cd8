"""A bridge is trained between the models of the seeds: CINO, XLM-SWCM's encoder, LLaMAX, PolyLM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf

from bridge_ds.bridge import TRAINABLE
from bridge_ds.config.schema import Config, DataConfig, FusionConfig, ModelConfig
from bridge_ds.convert.swcm import convert_swcm
from bridge_ds.data.loading.collate import collate
from bridge_ds.data.loading.tokenize import check_vocabulary, load_tokenizers
from bridge_ds.engine.setup import build_model
from bridge_ds.inference.score import score_choices
from tests import seeds
from tests.samples import tokenize_sample

SAMPLES = [
    {"source": "the cat sat on the mat", "target": "Entailment"},
    {"source": "a dog", "target": "Neutral"},
    {"source": "one river of rain and a bridge that joins two banks", "target": "Contradiction"},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("seeds")
    cino = seeds.make_cino(root / "cino")
    torch.save(seeds.Swcm(cino).state_dict(), root / "xlm-swcm.bin")
    list(convert_swcm(root / "xlm-swcm.bin", root / "swcm", encoder=str(cino)))
    llms = {"llamax": seeds.make_llamax(root / "llamax"), "polylm": seeds.make_polylm(root / "polylm")}
    return {"cino": cino, "swcm": root / "swcm"} | llms


@pytest.mark.parametrize(("encoder", "llm"), [("cino", "polylm"), ("swcm", "llamax")])
def test_a_bridge_is_trained_from_them(folders: dict[str, Path], encoder: str, llm: str) -> None:
    config = Config(
        model=ModelConfig(encoder=str(folders[encoder]), llm=str(folders[llm]), dtype="float32"),
        fusion=FusionConfig(dropout=0.0),
    )
    tokenizers = load_tokenizers(config.model)
    model = build_model(config, tokenizers.bos_id)
    check_vocabulary(tokenizers.encoder, model.encoder.vocab_size, "model.encoder")
    check_vocabulary(tokenizers.llm, model.llm.vocab_size, "model.llm")
    for text in seeds.TEXTS:  # nothing is lost on the way
        ids = tokenizers.source_ids(text)
        assert tokenizers.encoder.unk_token_id not in ids and len(ids) > 3
        assert tokenizers.llm.decode(tokenizers.labels([text])[0], skip_special_tokens=True).strip() == text
    rows = [tokenize_sample(sample, tokenizers, DataConfig(augment_prompt=True)) for sample in SAMPLES]
    batch = collate(rows, tokenizers.encoder_pad_id, tokenizers.pad_id)
    singles = [collate([row], tokenizers.encoder_pad_id, tokenizers.pad_id) for row in rows]
    with torch.no_grad():
        model.mapping.scale.fill_(0.1)
        alone = [model(single) for single in singles]
        assert model(batch).item() == pytest.approx(sum(alone).item(), rel=1e-5)
        labels = [row.target_ids[0].tolist() for row in singles]
        scores = score_choices(model.llm, model.prefix(batch), [labels] * 3).log_p.view(3, 3)
    for row in range(3):
        assert scores[row, row].item() == pytest.approx(-alone[row].item(), rel=1e-4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith(TRAINABLE), name


def test_the_models_are_those_of_transformers(folders: dict[str, Path]) -> None:
    kinds = {"cino": tf.XLMRobertaModel, "swcm": tf.XLMRobertaModel, "llamax": tf.LlamaForCausalLM}
    for name, kind in (kinds | {"polylm": tf.GPT2LMHeadModel}).items():
        auto = tf.AutoModel if kind is tf.XLMRobertaModel else tf.AutoModelForCausalLM
        assert type(auto.from_pretrained(folders[name])) is kind


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "llm"), [("cino", "polylm"), ("swcm", "llamax")])
def test_a_run_from_them(folders: dict[str, Path], shards: Path, tmp_path: Path, encoder: str, llm: str) -> None:
    from tests import launch

    settings = [
        f"run.output={tmp_path / 'run'}", f"model.encoder={folders[encoder]}", f"model.llm={folders[llm]}",
        "model.dtype=float32", f"data.shards={shards}", "data.workers=0", "evaluation.tasks=[]", "track.uri=none",
        "train.steps=2", "train.global_batch=4", "train.micro_batch=4",
    ]  # fmt: skip
    launch.succeed(launch.train([part for each in settings for part in ("--set", each)], 1, tmp_path / "logs"))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
