"""`bridge-ds convert swcm`: the folder's states are those of the encoder inside the checkpoint; what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, XLMRobertaModel

from bridge_ds.config.schema import ModelConfig
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.entry import exit_status
from tests import seeds, tiny
from tests.convert import saved
from tools.convert import main

IDS = torch.tensor([[0, 5, 9, 17, 2]])


@pytest.fixture(scope="module")
def cino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeds.make_cino(tmp_path_factory.mktemp("cino") / "cino")


@pytest.fixture(scope="module")
def peer(cino: Path) -> seeds.Swcm:
    return seeds.Swcm(cino).eval()


def test_the_encoder_is_that_of_the_checkpoint(
    cino: Path, peer: seeds.Swcm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = peer.state_dict()
    old = {"encoder.embeddings.position_ids": torch.arange(82)[None]}  # as older transformers stored it
    behind = {f"module.{key}": tensor for key, tensor in state.items()}
    forms = {
        "bare": saved.whole(state | old, tmp_path / "bare"),
        "wrapped": saved.wrapped(behind, tmp_path / "wrapped"),
        "safetensors": saved.safetensors(state, tmp_path / "safetensors"),
    }
    with torch.no_grad():
        expected = peer.encoder(input_ids=IDS, output_hidden_states=True).hidden_states[1:]
    for name, checkpoint in forms.items():
        output = tmp_path / "out" / name
        assert main(["swcm", str(checkpoint), str(output), "--encoder", str(cino)]) == 0
        said = capsys.readouterr().out
        assert f"differ from {cino}" in said and f"--set model.encoder={output}" in said
        found = load_encoder(ModelConfig(encoder=str(output), dtype="float32"))(IDS, torch.ones_like(IDS))
        for one, two in zip(found, expected, strict=True):
            assert torch.allclose(one, two, atol=1e-6)
        assert type(XLMRobertaModel.from_pretrained(output, add_pooling_layer=False)) is XLMRobertaModel
        for text in seeds.TEXTS:
            assert AutoTokenizer.from_pretrained(output)(text) == AutoTokenizer.from_pretrained(cino)(text)
        assert (output / "sentencepiece.bpe.model").is_file()


def test_a_dry_run_writes_nothing(
    cino: Path, peer: seeds.Swcm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = saved.whole(peer.state_dict(), tmp_path / "peer")
    main(["swcm", str(checkpoint), str(tmp_path / "out"), "--encoder", str(cino), "--dry-run"])
    assert "dry run: nothing was written" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_what_is_refused(cino: Path, peer: seeds.Swcm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = dict(peer.state_dict())
    layer = "encoder.encoder.layer.1.output.dense.weight"
    wrong = {
        "none of an encoder": {key: tensor for key, tensor in state.items() if not key.startswith("encoder.")},
        f"lacks {layer.removeprefix('encoder.')}": {key: tensor for key, tensor in state.items() if key != layer},
        "unexpected keys, such as classifier.weight": state | {"classifier.weight": torch.zeros(2, 2)},
        "has shape (3, 3)": state | {layer: torch.zeros(3, 3)},
        "differs from another key of the same weight": state
        | {"embed_layer.word_embeddings.weight": state["embed_layer.word_embeddings.weight"] + 1},
    }
    output = tmp_path / "out" / "swcm"

    def refused(checkpoint: Path, encoder: Path = cino) -> str:
        assert exit_status(lambda: main(["swcm", str(checkpoint), str(output), "--encoder", str(encoder)])) == 2
        assert not output.parent.exists() or not any(output.parent.iterdir())
        error = capsys.readouterr().err
        assert error.count("error: ") == 1 and "Traceback" not in error
        return error

    for number, (sentence, changed) in enumerate(wrong.items()):
        assert sentence in refused(saved.whole(changed, tmp_path / str(number)))
    whole = saved.whole(state, tmp_path / "whole")
    assert "is of type 'mt5'; expected the XLM-R" in refused(whole, tiny.make_encoder("mt5", tmp_path / "mt5"))
    assert "no checkpoint" in refused(tmp_path / "absent.bin")
    (tmp_path / "text.bin").write_text("no weights")
    assert "pickled objects, which are never run" in refused(tmp_path / "text.bin")
    output.mkdir(parents=True)
    (output / "mine").write_text("kept")
    assert exit_status(lambda: main(["swcm", str(whole), str(output), "--encoder", str(cino)])) == 2
    assert "is not empty" in capsys.readouterr().err and (output / "mine").read_text() == "kept"
