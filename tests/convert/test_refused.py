"""What cannot be converted rightly is refused with the key and the reason, exit status 2; nothing is left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bridge_ds.entry import exit_status
from tests.convert import peers, saved
from tools.convert import main

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state(models: dict[str, Path]) -> State:
    torch.manual_seed(0)
    return dict(peers.LangBridgeModel(models["encoder"], models["llm"], "linear").state_dict())


@pytest.fixture
def refused(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command, see it end with 2 and leave nothing; returns its sentence."""

    def run(source: str, checkpoint: Path, *more: str) -> str:
        output = tmp_path / "out" / "run"
        named = ["--encoder", str(models["encoder"]), "--llm", str(models["llm"]), "--output", str(output)]
        tokens = ["--no-added-tokens"] if source == "langbridge" else []
        assert exit_status(lambda: main([source, str(checkpoint), *tokens, *named, *more])) == 2
        assert not output.parent.exists() or not any(output.parent.iterdir())
        said = capsys.readouterr().err
        error = said.splitlines()[-1]  # an option that is given twice is reported before it
        assert error.startswith("error: ") and said.count("error: ") == 1 and "Traceback" not in said
        return error

    return run


def without(key: str) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if name != key}


WRONG: dict[str, tuple[Callable[[State], State], str]] = {
    "a key of the mapping is missing": (
        without("lb.alignment.enc_eos"),
        "lacks lb.alignment.enc_eos, which becomes mapping.end",
    ),
    "half of the mapping is missing": (without("lb.alignment.linear.bias"), "lacks lb.alignment.linear.bias"),
    "no mapping at all": (
        lambda state: {key: value for key, value in state.items() if "alignment" not in key},
        "none of a mapping of LangBridge",
    ),
    "a key more": (
        lambda state: state | {"lb.alignment.extra": torch.zeros(2)},
        "1 unexpected keys, such as lb.alignment.extra of shape (2,)",
    ),
    "another shape of the mapping": (
        lambda state: state | {"lb.alignment.linear.weight": torch.zeros(32, 25)},
        "lb.alignment.linear.weight has shape (32, 25); expected (32, 24) for mapping.project.weight",
    ),
    "empty, as ZeRO-3 leaves it": (
        lambda state: state | {"lb.alignment.linear.weight": torch.zeros(0)},
        "lb.alignment.linear.weight has shape (0,); expected (32, 24)",
    ),
    "not finite": (
        lambda state: state | {"lb.alignment.enc_eos": torch.full((32,), float("nan"))},
        "lb.alignment.enc_eos holds values that are no finite numbers",
    ),
    "whole numbers": (
        lambda state: state | {"lb.alignment.enc_eos": torch.zeros(32, dtype=torch.int64)},
        "lb.alignment.enc_eos holds values that are no finite numbers (torch.int64)",
    ),
    "half of a resampler": (
        lambda state: state | {"lb.alignment.latents": torch.zeros(4, 24)},
        "lacks lb.alignment.layers.0.0.norm_media.weight, which becomes mapping.project.layers.0.norm_states.weight",
    ),
    "a resampler with other heads": (
        lambda state: (
            state
            | {"lb.alignment.latents": torch.zeros(4, 24), "lb.alignment.layers.0.0.to_q.weight": torch.zeros(100, 24)}
        ),
        "lb.alignment.layers.0 has queries 100 wide",
    ),
    "a part of the encoder is missing": (
        without("lb.enc.encoder.block.1.layer.0.SelfAttention.q.weight"),
        "lacks encoder.block.1.layer.0.SelfAttention.q.weight of shape (16, 24)",
    ),
    "another encoder": (
        lambda state: state | {"lb.enc.shared.weight": torch.zeros(7, 24)},
        "lb.enc.shared.weight has shape (7, 24); shared.weight of the model",
    ),
    "more layers than the LLM has": (
        lambda state: state | {"lb.lm.layers.9.mlp.up_proj.weight": torch.zeros(3)},
        "has lb.lm.layers.9.mlp.up_proj.weight of shape (3,); the model",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_keys_and_shapes(what: str, state: State, refused: Callable[..., str], tmp_path: Path) -> None:
    change, words = WRONG[what]
    assert words in refused("langbridge", saved.whole(change(state), tmp_path / "peer"))


@pytest.mark.parametrize("setting", ["lora.rank=2", "injection.form=gated_prompt", "encoder.trainable=true"])
def test_settings_that_train_more_than_there_is(
    setting: str, state: State, refused: Callable[..., str], tmp_path: Path
) -> None:
    said = refused("langbridge", saved.whole(state, tmp_path / "peer"), "--set", setting)
    assert "which the checkpoint does not hold; expected its own parts alone" in said


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (0,)])
def test_a_gate_of_layalign_is_one_number(
    shape: tuple[int, ...], models: dict[str, Path], refused: Callable[..., str], tmp_path: Path
) -> None:
    peer = peers.LayAlign(models["encoder"], models["llm"], "Linear", (0, 1), 3).state_dict()
    gate = next(key for key in peer if key.endswith("adaption_gate"))
    said = refused("layalign", saved.whole(peer | {gate: torch.zeros(shape)}, tmp_path / "peer"))
    assert f"{gate} has shape {shape}; expected one number" in said


def test_two_names_of_one_weight_must_agree(state: State, refused: Callable[..., str], tmp_path: Path) -> None:
    torn = state | {"lb.embeddings.weight": state["lb.embeddings.weight"] + 1}
    said = refused("langbridge", saved.whole(torn, tmp_path / "peer"))
    assert "lb.lm.embed_tokens.weight differs from another key of the same weight" in said


class Thing:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_pickled_objects_are_never_run(refused: Callable[..., str], tmp_path: Path) -> None:
    for old in (False, True):
        file = tmp_path / f"evil-{old}.bin"
        torch.save({"end_boundary": Thing(tmp_path / "ran")}, file, _use_new_zipfile_serialization=not old)
        assert "holds pickled objects" in refused("mindmerger", file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("save", [saved.safetensors, saved.whole, saved.wrapped])
def test_damaged_files(state: State, refused: Callable[..., str], tmp_path: Path, save) -> None:
    found = save(state, tmp_path / "peer")
    file = found if found.is_file() else found / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:5], b"", b"<html>" + whole[6:]):
        file.write_bytes(damaged)
        assert f"{file} cannot be read" in refused("langbridge", file)


def test_parts(state: State, refused: Callable[..., str], tmp_path: Path) -> None:
    folder = saved.parts(state, tmp_path / "peer")
    index = folder / "pytorch_model.bin.index.json"
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert "names the part pytorch_model-00002-of-00002.bin, which is not beside it" in refused("langbridge", folder)
    index.write_text(json.dumps({"weight_map": {"lb.x": "../elsewhere.bin"}}))
    assert "names the part '../elsewhere.bin'; expected a file name" in refused("langbridge", folder)
    index.write_text("{}")
    assert "no readable index (KeyError)" in refused("langbridge", folder)
    shutil.copy(folder / "pytorch_model-00001-of-00002.bin", folder / "pytorch_model-00002-of-00002.bin")
    index.write_text(
        json.dumps({"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}})
    )
    assert "expected every key once" in refused("langbridge", index)


def test_what_is_no_checkpoint(state: State, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds none of model.safetensors" in refused("paper", tmp_path / "empty")
    assert "no checkpoint" in refused("paper", tmp_path / "nowhere.bin")
    (tmp_path / "notes.txt").write_text("hello")
    assert "no kind of file that is read" in refused("paper", tmp_path / "notes.txt")
    for content, words in (([1, 2], "holds list"), ({"epoch": 3}, "has int at epoch"), ({}, "holds no tensor")):
        torch.save(content, tmp_path / "odd.pt")
        assert words in refused("paper", tmp_path / "odd.pt")
    # Another project's checkpoint.
    assert "none of a mapping of MindMerger" in refused("mindmerger", saved.whole(state, tmp_path / "peer"))


def test_variants_of_the_paper_that_are_not_published(
    models: dict[str, Path], refused: Callable[..., str], tmp_path: Path
) -> None:
    peer = peers.MPTModel(models["encoder"], models["llm"], "global_softmax")
    state = dict(peer.state_dict()) | {"encoder_mt.learnable_queries_base": torch.zeros(1, 2, 24)}
    said = refused("paper", saved.whole(state, tmp_path / "peer"))
    assert "unexpected keys, such as encoder_mt.learnable_queries_base" in said
    short = dict(peer.state_dict()) | {"encoder_mt.layer_weights_lb": torch.zeros(2)}
    said = refused("paper", saved.whole(short, tmp_path / "peer"))
    assert "encoder_mt.layer_weights_lb has shape (2,); expected (3,) for fusion.scores" in said


def test_settings_that_contradict_the_checkpoint(
    state: State, models: dict[str, Path], refused: Callable[..., str], tmp_path: Path
) -> None:
    checkpoint = saved.whole(state, tmp_path / "peer")
    said = refused("langbridge", checkpoint, "--set", "mapping.kind=mlp")
    assert "mapping.kind=mlp, but the checkpoint is linear" in said
    paper = saved.whole(peers.MPTModel(models["encoder"], models["llm"], "global_softmax").state_dict(), tmp_path / "p")
    assert "fusion.state_norm=rms, but the checkpoint is none" in refused(
        "paper", paper, "--set", "fusion.state_norm=rms"
    )
    assert "unknown key 'model.dtyp'" in refused("langbridge", checkpoint, "--set", "model.dtyp=float32")
    assert "nowhere/x" in refused("langbridge", checkpoint, "--encoder", "nowhere/x")


def test_output_that_is_in_use(state: State, models: dict[str, Path], tmp_path: Path, capsys) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine").touch()
    words = ["langbridge", str(saved.whole(state, tmp_path / "peer")), "--output", str(used)]
    assert exit_status(lambda: main(words)) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert [path.name for path in used.iterdir()] == ["mine"]


def test_output_that_cannot_be_written(state: State, models: dict[str, Path], tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    checkpoint = saved.whole(state, tmp_path / "peer")
    named = ["--encoder", str(models["encoder"]), "--llm", str(models["llm"]), "--no-added-tokens"]
    output = str(tmp_path / "file" / "run")
    assert exit_status(lambda: main(["langbridge", str(checkpoint), *named, "--output", output])) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"enc": 5}', "has enc 5; expected a valid string; it is not asked for the names"),
        ('["enc"]', "holds list; expected an object; it is not asked"),
        ('{"enc": "a", "enc": "b"}', "the key 'enc' twice"),
        ("\ud83d".encode("utf-8", "surrogatepass"), "is not UTF-8"),
    ],
)
def test_a_config_that_does_not_name_the_models(
    state: State, tmp_path: Path, capsys, caplog: pytest.LogCaptureFixture, text: str | bytes, words: str
) -> None:
    checkpoint = saved.whole(state, tmp_path / "peer")
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert exit_status(lambda: main(["langbridge", str(checkpoint), "--output", str(tmp_path / "run")])) == 2
    said = capsys.readouterr().err
    assert words in caplog.text + said and "does not name its encoder; give it with --encoder" in said
    assert "Traceback" not in said and not (tmp_path / "run").exists()


def test_models_must_be_named_and_have_room(state: State, models: dict[str, Path], tmp_path: Path, capsys) -> None:
    checkpoint = saved.whole(state, tmp_path / "peer")
    for more, words in (
        ([], "does not name its encoder; give it with --encoder"),
        (["--encoder", str(models["encoder"])], "does not name its llm; give it with --llm"),
        (
            ["--encoder", str(models["encoder"]), "--llm", str(models["llm"])],
            "adds 8 tokens to the encoder's tokenizer",
        ),
    ):
        arguments = ["langbridge", str(checkpoint), "--output", str(tmp_path / "run"), *more]
        assert exit_status(lambda words=arguments: main(words)) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
