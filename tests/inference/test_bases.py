"""Models that are split over devices give what whole ones give, bit for bit, and no operator mixes devices.

The devices are those of tests/devices.py, where accelerate's hooks do their real work; what is offloaded to the disk is
in tests/test_device_map.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from bridge_ds import BridgeForCausalLM, BridgeProcessor
from bridge_ds.bridge import BridgeModel
from bridge_ds.config.load import load_run_config
from bridge_ds.data.text.prompting import Context
from bridge_ds.doctor.example import look
from bridge_ds.doctor.load import load_run
from bridge_ds.doctor.measure import examine
from bridge_ds.errors import ConfigError, LaunchError
from bridge_ds.evaluation.scorer import Scorer
from bridge_ds.frozen import device_map as place
from bridge_ds.harness.requests import Continuation
from bridge_ds.inference.bases import one_process
from bridge_ds.inference.load import load_trained
from bridge_ds.injection import FORMS
from bridge_ds.tasks.base import Example
from bridge_ds.world import World
from tests import tiny
from tests.devices import Devices
from tests.evaluation.fakes import FakeTask
from tests.made import harness_answerer, make_run

TEXTS = ["the cat sat on the mat", "a dog"]
LABELS = ("Entailment", "Neutral", "Contradiction", "good day")
LLAMA = {"": "cpu:2", "model.embed_tokens": "cpu:1", "model.layers.0": "cpu:1", "model.rotary_emb": "cpu:1"}
GPT2 = {"": "cpu:1", "transformer.h.1": "cpu:2", "transformer.ln_f": "cpu:2"}  # its head is its table of embeddings
SPLIT_ENCODER = {"encoder": "cpu:3", "encoder.encoder.block.1": "cpu:2", "encoder.encoder.final_layer_norm": "cpu:1"}
MAPS = {
    "llama": LLAMA | {"encoder": "cpu:3"},  # the soft prompt comes from another device
    "gpt2": GPT2 | SPLIT_ENCODER,  # states of layers on three devices
    "trained": LLAMA | SPLIT_ENCODER,  # the encoder, and LoRA on the LLM
    "every_layer": LLAMA | {"encoder": "cpu:3"},  # and encoder states in the LLM's layers
    "gated_prompt": LLAMA | SPLIT_ENCODER,
    # Each whole on its device: accelerate has no hooks there that bring inputs along.
    "every_layer whole": {"": "cpu:1", "encoder": "cpu:2"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("placed")
    # Code in C takes pointers, which labels do not have.
    common = [
        f"model.encoder={tiny.make_encoder('mt5', root / 'mt5')}",
        f"data.shards={shards}",
        "fusion.backend=torch",
    ]
    llms = {kind: tiny.make_llm(kind, root / kind) for kind in ("llama", "gpt2")}
    made = {kind: make_run(root / f"run-{kind}", [*common, f"model.llm={llm}"]) for kind, llm in llms.items()}
    trained = [*common, f"model.llm={llms['llama']}", "encoder.trainable=true", "lora.rank=2"]
    made |= {"trained": make_run(root / "run-trained", trained)}
    for form in FORMS:
        injected = [*common, f"model.llm={llms['llama']}", f"injection.form={form}", "data.augment_prompt=true"]
        made[form] = make_run(root / f"run-{form}", injected, change=open_gates)
    return made


def open_gates(model: BridgeModel) -> None:
    assert model.injection is not None
    model.injection.gates.fill_(0.5)


def scored(run: Path, device_map: Any) -> dict[str, Any]:
    """What evaluation, harness, doctor and generate find, each loading by itself."""
    config = load_run_config(run)
    model, tokenizers, _ = load_trained(run, config, device_map)
    examples = [Example(text, "1", 1, "en", text, null="on a mat") for text in TEXTS]
    found: dict[str, Any] = {}
    for bridge in (True, False):
        options = {"bridge": bridge, "calibrate": True, "max_new_tokens": 5}
        scorer = Scorer(model, tokenizers, config.data, model.device, **options)  # type: ignore[arg-type]
        for task in (FakeTask(labels=LABELS), FakeTask(labels=LABELS, kind="number")):
            answers = scorer(examples, task)
            found[f"{bridge} {task}"] = answers.predictions, answers.weights
    data = dataclasses.replace(config.data, augment_prompt=True)
    answerer = harness_answerer(model, tokenizers, data)
    contexts = [Context(TEXTS[0]), Context(None), Context(TEXTS[1], "be brief: ", "\nso ")]
    found["score"] = answerer.score(contexts, [[Continuation(f" {label}") for label in LABELS]] * 3)
    found["write"] = answerer.write(contexts, 6, ["q"])
    loaded = load_run(run, device_map)
    found["measured"], rows = examine(loaded, 5)
    found["example"] = look(loaded, rows[0])
    hub, inputs = BridgeForCausalLM.from_pretrained(run, device_map=device_map), BridgeProcessor.from_pretrained(run)
    features = inputs(TEXTS, text_target=["wet", "good day"])
    found["loss"] = hub(**features).loss.item()
    for options in ({}, {"num_beams": 3}):
        found[str(options)] = hub.generate(**features, max_new_tokens=6, **options).tolist()
    return found


@pytest.mark.parametrize("kind", MAPS)
def test_split_models_give_the_same_bits(runs: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # labels are given in this thread alone
    run = runs[kind.split()[0]]
    with Devices() as devices, torch.no_grad():
        # Labelled too: attention goes another way through tensors of torch's own class, by a last bit.
        whole = scored(run, "cpu:9")
        split = scored(run, MAPS[kind])
    for name, value in whole.items():
        assert split[name] == value, name
    assert set(MAPS[kind].values()) <= set(devices.operators), "each of them has worked"


def test_labels_are_not_mixed() -> None:
    with Devices(), torch.no_grad():
        one, other = torch.ones(2, 3, device="cpu:1"), torch.ones(2, 3).to("cpu:2")
        for wrong in (
            lambda: one + other,
            lambda: one + torch.ones(2, 3),
            lambda: one[other > 0],
            lambda: one @ other.T,
        ):
            with pytest.raises(RuntimeError, match="expected one device"):
                wrong()
        assert (one + other.to("cpu:1")).device == torch.device("cpu:1") and (one + 1).sum().item() == 12


def test_fusion_and_mapping_are_where_the_encoder_takes_its_input(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    run = runs["gpt2"]
    with Devices():
        model, _, _ = load_trained(run, load_run_config(run), MAPS["gpt2"])
        trained = {str(p.device) for part in (model.fusion, model.mapping) for p in part.parameters()}
        assert trained == {"cpu:3"} and str(model.device) == "cpu:1" and model.apart
        ids = torch.ones(2, 4, dtype=torch.long, device="cpu:3")
        assert {str(state.device) for state in model.encoder(ids, ids)} == {"cpu:3"}
        text = place.describe_devices(model.encoder.model, model.llm.model)
        assert text.startswith("encoder on cpu:3 (0.00 GiB), cpu:2 (0.00 GiB)") and "; LLM on cpu:1 (" in text


def test_a_strategy_leaves_the_llm_what_the_encoder_does_not_take(runs: dict[str, Path]) -> None:
    run = runs["llama"]
    config = load_run_config(run)
    size = (run.parent / "llama" / "model.safetensors").stat().st_size + 70_000

    def disk(max_memory: Any) -> set[str]:
        model, _, _ = load_trained(run, config, "auto", max_memory)
        placed = getattr(model.llm.model, "hf_device_map", {"": "cpu"})
        return {name for name, where in placed.items() if where == "disk"}

    encoder = load_trained(run, config, "cpu")[0].encoder
    taken = sum(p.numel() * p.element_size() for p in encoder.parameters())
    assert not disk(f"cpu={size + taken + 1_000_000}") and disk(f"cpu={size // 2 + taken}")
    assert place.room_beside({"cpu": 10**6, 0: 5}, encoder) == {"cpu": 10**6 - taken, 0: 5}
    assert place.room_beside({"cpu": 1}, encoder) == {"cpu": 0}


def test_what_was_trained_is_not_offloaded(runs: dict[str, Path]) -> None:
    config = load_run_config(runs["trained"])
    for name, device_map in (
        ("encoder.model.encoder.block.1", {"": "cpu", "encoder": "cpu", "encoder.encoder.block.1": "disk"}),
        ("lora", {"": "cpu", "model.layers.1": "disk"}),
    ):
        with pytest.raises(ConfigError, match=rf"leaves \S*{name}\S*, which was trained, on the CPU or the disk"):
            load_trained(runs["trained"], config, device_map)


def test_memory_that_does_not_suffice_is_one_sentence(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("bridge_ds.inference.bases.load_llm", full)
    with pytest.raises(LaunchError, match=r"memory \(CUDA out of memory\); expected room for both; split them"):
        load_trained(runs["llama"], load_run_config(runs["llama"]), "cpu")


def test_one_process_splits() -> None:
    one_process("auto", World())
    one_process(None, World(0, 2))
    with pytest.raises(LaunchError, match="a device map is given to 2 ranks; expected one process"):
        one_process("auto", World(0, 2))
