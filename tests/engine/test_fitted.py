"""`mapping.init=embeddings`: the mapping that was fitted, the same in every stage, and what the log says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bridge_ds.checkpoint.layout import step_folder
from bridge_ds.commands.encode import main as encode
from bridge_ds.config.load import load_config
from bridge_ds.data.loading.corpus import open_corpus
from bridge_ds.data.loading.loader import make_loader
from bridge_ds.data.loading.tokenize import load_tokenizers
from bridge_ds.engine.setup import build_model
from bridge_ds.world import World
from tests import launch
from tests.engine.test_bad_input import settings
from tests.engine.test_runs import lines

pytestmark = pytest.mark.slow
SAMPLES = 20


def fitted(arguments: list[str]) -> dict[str, torch.Tensor]:
    """What the mapping must begin with, token by token and by torch's own solver."""
    config = load_config("testbed", [value for value in arguments if value != "--set"])
    tokenizers = load_tokenizers(config.model, data=config.data)
    model = build_model(config, tokenizers.bos_id)
    model.eval()
    loader = make_loader(config, World(), tokenizers, 0, corpus=open_corpus(config.data, config.run.seed, World()))
    texts, _ = loader.first_texts(SAMPLES)
    assert len(texts) == SAMPLES
    table = model.llm.model.get_input_embeddings().weight.detach()
    inputs, outputs, ends = [], [], []
    with torch.no_grad():
        for text in texts:
            own = tokenizers.encoder([text], return_offsets_mapping=True)
            llm = tokenizers.llm(text, add_special_tokens=False, return_offsets_mapping=True)
            ids = torch.tensor(own["input_ids"])
            states = model.encoder(ids, torch.ones_like(ids))
            (features,) = model.mapping.before_last(model.fusion(states, torch.ones_like(ids)))
            for feature, (start, end) in zip(features, own["offset_mapping"][0], strict=True):
                met = [n for n, (a, b) in enumerate(llm["offset_mapping"]) if max(a, start) < min(b, end)]
                met = met if end > start else [-1]  # the end token
                if met:
                    inputs.append(feature)
                    outputs.append(table[[llm["input_ids"][n] for n in met]].mean(0))
            ends.append(table[llm["input_ids"][-1]])
    x, y = torch.stack(inputs).double(), torch.stack(outputs).double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    penalty = 1e-3 * (x - mean_x).square().sum(0).mean()
    more_x = torch.cat([x - mean_x, penalty.sqrt() * torch.eye(x.shape[1], dtype=torch.float64)])
    more_y = torch.cat([y - mean_y, y.new_zeros(x.shape[1], y.shape[1])])
    weight = torch.linalg.lstsq(more_x, more_y).solution.T
    return {"weight": weight, "bias": mean_y - weight @ mean_x, "end": torch.stack(ends).mean(0).double()}


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_every_stage_begins_with_the_solution_and_has_the_same_losses(
    zygote: launch.Zygote, small_run: list[str], tmp_path: Path, kind: str
) -> None:
    choice = [*small_run, *settings(
        mapping__init="embeddings", mapping__init_samples=SAMPLES, mapping__kind=kind, train__steps=3,
        train__lr=1e-9, train__max_grad_norm=0, checkpoint__every=1, checkpoint__keep_last=0, data__workers=0,
        fusion__dropout=0,
    )]  # fmt: skip

    def run(name: str, ds: str, ranks: int, *more: str) -> tuple[Path, str]:
        values = [*choice, *settings(run__output=tmp_path / name), *more]
        job = zygote.start(["--ds_config", ds, *values], ranks, tmp_path / f"{name}-logs")
        return tmp_path / name, launch.succeed(job.wait()).text

    one, said = run("one", "zero2.json", 1)
    assert "mapping fitted to the LLM's embeddings of " in said and f" tokens in {SAMPLES} texts" in said
    assert "soft prompt RMS" not in said
    kept = load_file(step_folder(one / "checkpoints", 1) / "bridge.safetensors")
    expected, scale = fitted(choice), kept["mapping.scale"].double()
    last = "mapping.project" if kind == "linear" else "mapping.project.2"
    for name, wanted in ((f"{last}.weight", "weight"), (f"{last}.bias", "bias"), ("mapping.end", "end")):
        torch.testing.assert_close(kept[name].double() * scale, expected[wanted], rtol=1e-3, atol=1e-5)
    for name, ds, ranks in (("two", "zero2.json", 2), ("three", "zero3.json", 2)):
        other, _ = run(name, ds, ranks)
        assert [line["loss"] for line in lines(other)] == pytest.approx([line["loss"] for line in lines(one)], rel=1e-5)
        assert torch.equal(load_file(step_folder(other / "checkpoints", 1) / "bridge.safetensors")["mapping.end"],
                           kept["mapping.end"])  # fmt: skip
    # Resumed, nothing is fitted again.
    assert "mapping fitted" not in run("one", "zero2.json", 1, *settings(train__steps=4))[1]
    # Where the states of all texts are kept, no encoder is needed.
    states = settings(data__states_cache=tmp_path / "states")
    assert encode([*choice, *states]) == 0
    kept_states, said = run("kept", "zero3.json", 2, *states)
    assert "the encoder is not loaded" in said and "mapping fitted" in said
    assert [line["loss"] for line in lines(kept_states)] == pytest.approx(
        [line["loss"] for line in lines(one)][:3], rel=1e-5
    )
