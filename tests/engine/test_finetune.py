"""The LLM alone is trained on what it reads in an evaluation, on real processes, and becomes a folder that a bridge is
trained to."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from bridge_ds.bridge import LLMAlone
from bridge_ds.checkpoint.origin import find_origin
from bridge_ds.config.finetune import finetune_config
from bridge_ds.config.load import load_config, load_run_config, save_config
from bridge_ds.config.names import resolve
from bridge_ds.config.schema import Config
from bridge_ds.data.loading.collate import collate
from bridge_ds.data.loading.corpus import open_corpus
from bridge_ds.data.loading.loader import make_loader
from bridge_ds.data.loading.steps import StepDataset
from bridge_ds.data.loading.tokenize import load_tokenizers
from bridge_ds.data.text.prompting import Context
from bridge_ds.engine.preempt import StopRequest
from bridge_ds.engine.setup import base_identities, build_model
from bridge_ds.errors import CheckpointError, ConfigError, LaunchError
from bridge_ds.first_stage import FirstStage
from bridge_ds.hub.source import open_source
from bridge_ds.inference.prompt import PromptBuilder
from bridge_ds.llm.positions import check_positions, positions_taken
from bridge_ds.world import World
from tests import launch, tiny
from tests.engine.test_runs import lines
from tests.made import make_run
from tests.samples import tokenize_sample

SAMPLES = [
    {"source": "the cat sat on the mat and looked at the dog again and again Label:", "target": "Entailment"},
    {"source": "x", "target": "no"},
]
CHAT = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }} </s>{% endfor %}<s>assistant:"


def both(folder: Path, kind: str, *more: str) -> tuple[Config, Config]:
    """A bridge's config, and that of its LLM alone."""
    models = (f"model.encoder={tiny.make_encoder('t5', folder / 'encoder')}",
              f"model.llm={tiny.make_llm(kind, folder / 'llm')}")  # fmt: skip
    settings = [*models, "model.dtype=float32", "lora.rank=2", *more]
    return load_config("testbed", settings), finetune_config("testbed", settings)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", ["data.max_prompt_tokens=12"]),
        ("gpt2", ["data.max_prompt_tokens=9", "data.truncation_side=left", "data.separator=:"]),
        ("llama", ["data.chat_template=true", "data.system_prompt=be brief"]),
    ],
)
def test_it_reads_and_predicts_what_the_llm_alone_does_in_an_evaluation(
    kind: str, more: list[str], tmp_path: Path
) -> None:
    bridge, ours = both(tmp_path, kind, *more)
    if bridge.data.chat_template:
        path = tmp_path / "llm" / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": CHAT}))
    whole, alone = load_tokenizers(bridge.model, data=bridge.data), load_tokenizers(ours.model, data=ours.data)
    assert (alone.bos_id is None) == (kind == "gpt2")
    model = build_model(ours, alone.bos_id)
    assert isinstance(model, LLMAlone) and not any(name.startswith("fusion") for name, _ in model.named_parameters())
    prompts = PromptBuilder.of(bridge.data, whole, model.llm.positions, bridge=False)
    rows = [prompts.ids(Context(sample["source"]), 8) for sample in SAMPLES]
    targets = prompts.answers([sample["target"] for sample in SAMPLES])
    assert rows[0].truncated == (() if bridge.data.chat_template else ("prompt",))
    scored = model.spliced(prompts.batch(rows, targets))
    made = [tokenize_sample(sample, alone, ours.data) for sample in SAMPLES]
    batch = collate(made, alone.encoder_pad_id, alone.pad_id, opening=alone.bos_id is not None)
    assert batch.source_tokens == 0 and batch.target_tokens == sum(map(len, targets))
    trained = model.spliced(batch)
    assert scored.injected is None and trained.injected is None
    for name in ("embeds_BXH", "mask_BX", "labels_BX"):
        assert torch.equal(getattr(trained, name), getattr(scored, name)), name

    expected = 0.0
    for row, target in zip(rows, targets, strict=True):
        before = [*(row.head or [alone.bos_id] * (alone.bos_id is not None)), *row.prompt, *row.tail]
        with torch.no_grad():
            logits = model.llm.model(input_ids=torch.tensor([before + target])).logits[0, len(before) - 1 : -1]
        expected += float(F.cross_entropy(logits, torch.tensor(target), reduction="sum"))
    assert model(batch).item() == pytest.approx(expected, rel=1e-5)
    assert model(replace(batch, layout=None)).item() == pytest.approx(expected, rel=1e-5)


def test_lengths_and_identities_are_those_of_the_llm(tmp_path: Path, shards: Path) -> None:
    bridge, ours = both(tmp_path, "gpt2", f"data.shards={shards}", "data.tokens_per_micro_batch=140",
                        "train.global_batch=8", "train.micro_batch=8",
                        "data.max_prompt_tokens=60", "data.workers=0")  # fmt: skip
    tokenizers = load_tokenizers(ours.model, data=ours.data)
    assert positions_taken(ours, tokenizers) == 60 + ours.data.max_target_tokens
    assert positions_taken(bridge, load_tokenizers(bridge.model)) == 48 + 1 + ours.data.max_target_tokens
    model = build_model(ours, tokenizers.bos_id)
    long = replace(ours, data=replace(ours.data, max_prompt_tokens=125))
    with pytest.raises(ConfigError, match=r"133 positions of the LLM \(prompt 125, target 8\).*max_prompt_tokens=120"):
        check_positions(long, None, model.llm.model.config, tokenizers)
    assert set(base_identities(ours, model, tokenizers)) == {"llm", "llm_tokenizer", "llm_end_ids"}
    # A token budget is one of prompt and target, and a rank that has only bad samples still has a row to run.
    (step, *_) = make_loader(ours, World(), tokenizers, 0, corpus=(corpus := open_corpus(ours.data, 0, World())))
    assert len(step.micro) > 1 and all(
        batch.positions <= 140 and batch.source_ids.shape[1] == 0 for batch in step.micro
    )
    dataset = StepDataset(ours, World(), tokenizers, corpus, 1)
    empty = dataset._collate([dataset._empty()])
    assert model(empty).item() == 0 and empty.target_tokens == 0


STEPS = 4


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The testbed's LLM, with noise on its matrices: it has to learn its tasks again."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("noisy") / "llm"
    shutil.copytree(resolve("testbed/llm"), folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in (each for each in model.model.layers.parameters() if each.dim() == 2):
            weight.add_(torch.randn_like(weight), alpha=1.5 * float(weight.std()))
    model.save_pretrained(folder)
    return folder


def settings(*more: str) -> list[str]:
    return [part for value in ("track.uri=none", "data.workers=0", *more) for part in ("--set", value)]


@pytest.fixture(scope="module")
def bridge(llm: Path) -> Path:
    """A run with llm.finetune on two ranks: LoRA, scored before and after, and then two steps of the bridge."""
    run = llm.parent / "bridge"
    first = ["train.steps=24", "train.global_batch=16", "train.lr=5e-3", "evaluation.tasks=[testbed_news]"]
    more = settings(f"run.output={run}", f"model.llm={llm}", "train.steps=2", "train.global_batch=8", "data.workers=1",
                    "evaluation.limit=20", "evaluation.tasks=[]",
                    "llm.finetune=true", f"llm.finetune_settings={json.dumps(first)}")  # fmt: skip
    # Not forked ones: each process replaces itself by its own command.
    job = launch.Job(launch.train_command(["--ds_config", "zero2.json", *more]), 2, run.parent / "logs")
    said = launch.succeed(job.wait()).outputs[0]
    first_said, second_said = said.split(
        f"the LLM is in {run}/finetune/llm; train a bridge to it with --set model.llm="
    )
    assert f"note: the LLM is taught the task first, in {run}/finetune with train.steps=24, " in first_said
    assert "LoRA on the LLM, float32" in first_said and "fusion" not in first_said
    assert f"note: the LLM of this run is {run}/finetune/llm, which was taught" in second_said
    assert "fusion" in second_said
    return run


@pytest.fixture(scope="module")
def learned(bridge: Path) -> Path:
    return bridge / "finetune"


@pytest.mark.slow
def test_english_is_learned_and_the_folder_is_that_llm(learned: Path, llm: Path) -> None:
    from transformers import AutoModelForCausalLM

    results = json.loads((learned / "evaluation.json").read_text())
    assert set(results) == {"llm", "finetuned", "chance", "checkpoint"}
    before, after = (results[system]["testbed_news"]["en"]["acc"] for system in ("llm", "finetuned"))
    assert before < 0.5 and after > 0.7
    record = lines(learned)[0]
    assert record["source_tokens"] > record["target_tokens"] > 0 and record["layer_weights"] == []

    files = {path.name for path in (learned / "llm").iterdir()}
    assert files >= {"config.json", "generation_config.json", "model.safetensors", "README.md", "tokenizer.json"}
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (learned / "llm" / name).read_bytes() == (llm / name).read_bytes(), name
    card = (learned / "llm" / "README.md").read_text()
    assert "LoRA of rank 16, merged" in card and "384 in 24 steps of 16" in card and "fusion" not in card
    updates = load_file(learned / "checkpoints" / f"step-{24:08d}" / "lora.safetensors")
    first = "llm.model.model.layers.0.mlp.up_proj"
    update = 2 * updates[f"{first}.lora_B.default.weight"] @ updates[f"{first}.lora_A.default.weight"]
    found, was = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).model.layers[0].mlp.up_proj.weight
        for folder in (learned / "llm", llm)
    )
    assert torch.allclose(found, was + update, atol=1e-6) and not torch.allclose(found, was, atol=1e-3)


@pytest.mark.slow
def test_a_bridge_is_trained_to_it_and_neither_is_taken_for_the_other(
    bridge: Path, learned: Path, tmp_path: Path
) -> None:
    config = load_run_config(bridge)
    assert len(lines(bridge)) == 2 and config.model.llm == str(learned / "llm")
    assert (config.llm.finetune, config.llm.finetune_settings, config.lora.rank) == (False, (), 0)
    for folder, make, what in ((learned, load_config, "the LLM alone"), (bridge, finetune_config, "a bridge")):
        with pytest.raises(CheckpointError, match=f"step-0.* is of a training of {what} .*; set another run.output"):
            find_origin(make("testbed", [f"run.output={folder}"]), folder)
        with pytest.raises(CheckpointError, match=f"step-0.* is of a training of {what} .*; set another run.start_f"):
            find_origin(make("testbed", [f"run.start_from={folder}"]), tmp_path)
    for name in (learned, learned / "checkpoints" / f"step-{24:08d}"):
        with pytest.raises(ConfigError, match=r"trained the LLM alone.*--set model.llm=.*finetune/llm"):
            open_source(str(name))


@pytest.mark.slow
def test_all_weights_under_stage_3_killed_and_resumed_exactly(tmp_path: Path, small_run: list[str]) -> None:
    from transformers import AutoModelForCausalLM

    run, again = tmp_path / "run", tmp_path / "again"
    more: dict[str, Any] = {"llm.trainable": "true", "model.dtype": "bfloat16", "train.steps": STEPS, "data.workers": 0,
                            "model.activation_checkpointing": "true", "data.validation_percent": 10,
                            "checkpoint.every": 2, "checkpoint.keep_last": 0}  # fmt: skip
    words = [*small_run, *(part for key, value in more.items() for part in ("--set", f"{key}={value}"))]
    for folder in (run, again):
        words = ["--finetune", *words, "--set", f"run.output={folder}"]
        said = launch.succeed(launch.train(words, 2, tmp_path / f"{folder.name}-logs")).text
        if folder == run:
            left_out = shutil.ignore_patterns("heartbeat", "llm", f"step-{STEPS:08d}")
            shutil.copytree(run, again, ignore=left_out)
    assert "(step 2, " in said
    assert [line["loss"] for line in lines(again)] == [line["loss"] for line in lines(run)]
    assert lines(run)[-1]["validation_loss"] < lines(run)[0]["loss"]
    last = Path("checkpoints") / f"step-{STEPS:08d}"
    for name in (last / "llm.safetensors", last / "optimizer.safetensors", "llm/model.safetensors"):
        assert (again / name).read_bytes() == (run / name).read_bytes(), name
    held = load_file(run / last / "llm.safetensors")
    assert load_file(run / last / "bridge.safetensors") == {}
    model = AutoModelForCausalLM.from_pretrained(run / "llm")
    assert model.dtype == torch.bfloat16 and model.config.use_cache
    for name, weight in model.named_parameters():
        assert torch.equal(weight, held[f"llm.model.{name}"].bfloat16()), name


def test_the_first_stage_is_done_once_and_with_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"run.output={tmp_path}", "llm.finetune=true", "llm.finetune_settings=[lora.rank=4]", "train.lr=1",
                 "lora.alpha=8", "evaluation.languages=[qaa]"]  # fmt: skip

    def stage(*more: str) -> FirstStage:
        given = [*overrides, *more]
        return FirstStage(load_config("testbed", given), "testbed", given)

    begun = stage()
    assert not begun.is_done and begun.bridge().model.llm == f"{tmp_path}/finetune/llm"
    of = begun.config
    assert (of.run.output, of.lora.rank, of.lora.alpha, of.train.lr) == (f"{tmp_path}/finetune", 4, 8, 2e-4)
    assert not (of.model.has_encoder or of.llm.finetune or of.evaluation.tasks)
    assert of.track.uri == f"sqlite:///{tmp_path.parent}/mlflow.db" and of.track.name == f"{tmp_path.name}, finetune"
    (tmp_path / "finetune" / "llm").mkdir(parents=True)
    (tmp_path / "finetune" / "llm" / "config.json").touch()
    save_config(of, tmp_path / "finetune" / "config.yaml")
    assert stage("train.lr=2").is_done  # the bridge's
    again = stage("llm.finetune_settings=[lora.rank=8]")
    with pytest.raises(CheckpointError, match=r"llm was taught with lora.rank 4; this start has 8; .* remove .*finet"):
        again.is_done  # noqa: B018
    left_out = stage("llm.finetune_settings=[]")
    with pytest.raises(CheckpointError, match=r"llm was taught with lora.rank 4; this start has 16"):
        left_out.is_done  # noqa: B018
    for setting, was in (("model.llm=x", "testbed/llm"), ("data.shards=task:x", "testbed/english")):
        key, now = setting.split("=")
        with pytest.raises(CheckpointError, match=f"was taught with {key} '{was}'; this start has '{now}'; .* restore"):
            stage(setting).is_done  # noqa: B018
    with pytest.raises(ConfigError, match=r"llm.finetune is true and model.encoder is none"):
        load_config("testbed", ["llm.finetune=true", "model.encoder=none", "lora.rank=1"])
    with pytest.raises(ConfigError, match=r"run.start_from is 'x', whose bridge belongs to the LLM"):
        load_config("testbed", ["llm.finetune=true", "run.start_from=x"])
    monkeypatch.setenv("BRIDGE_DS_AFTER_FINETUNE", f"{tmp_path}/other/finetune")
    assert not stage(f"run.output={tmp_path}/other2").is_done  # at once: another run's
    monkeypatch.setattr("bridge_ds.first_stage._VISIBLE", 0.1)
    with pytest.raises(LaunchError, match=r"not seen by this rank .* expected a run.output that all nodes share"):
        stage(f"run.output={tmp_path}/other").is_done  # noqa: B018


def test_what_the_second_stage_would_refuse_is_refused_before_the_first(tmp_path: Path) -> None:
    models = [f"model.encoder={tiny.make_encoder('bert', tmp_path / 'encoder')}",
              f"model.llm={tiny.make_llm('llama', tmp_path / 'llm')}"]  # fmt: skip

    def stage(*more: str) -> FirstStage:
        given = [*models, f"run.output={tmp_path}/new", "llm.finetune=true", *more]
        return FirstStage(load_config("testbed", given), "testbed", given)

    stage("evaluation.tasks=[]").check_bridge()
    with pytest.raises(ConfigError, match=r"data.max_source_tokens is 90, and the encoder .* positions for 80 tokens"):
        stage("data.max_source_tokens=90").check_bridge()
    with pytest.raises(ConfigError, match=r"evaluation.languages has 'xx'"):
        stage("evaluation.tasks=[testbed_news]", "evaluation.languages=[xx]").check_bridge()
    run = make_run(tmp_path / "run", models)
    for refuse in (FirstStage.check_bridge, lambda first: first.check(1, 1)):
        with pytest.raises(CheckpointError, match=r"run/checkpoints/step-00000001 is of a bridge, and its LLM is not "):
            refuse(stage(f"run.output={run}"))
    with pytest.raises(LaunchError, match=r"train.global_batch 6 "):
        stage("llm.finetune_settings=[train.global_batch=6]").check(4, 4)


def test_a_checkpoint_of_the_first_stage_is_one_to_resume(tmp_path: Path) -> None:
    models = [f"model.encoder={tiny.make_encoder('bert', tmp_path / 'encoder')}",
              f"model.llm={tiny.make_llm('llama', tmp_path / 'llm')}"]  # fmt: skip
    given = [*models, f"run.output={tmp_path}/run", "llm.finetune=true", "run.resume=must", "evaluation.tasks=[]"]
    first = FirstStage(load_config("testbed", given), "testbed", given)
    with pytest.raises(CheckpointError, match=r"no valid checkpoint in .*/run/finetune/checkpoints; expected one"):
        first.check(1, 1)  # there is nothing yet
    alone = ["model.encoder=none", "injection.form=none", "lora.rank=16", "lora.alpha=32"]
    make_run(first.folder, [*models, *alone])
    first.check(1, 1)
    first.check_bridge()
    # As one that is named.
    (of_first,) = (first.folder / "checkpoints").glob("step-*")
    named = [*given, f"run.resume={of_first}"]
    back = FirstStage(load_config("testbed", named), "testbed", named)
    back.check(1, 1)
    back.check_bridge()
    assert find_origin(back.config, first.folder).checkpoint.folder == of_first
    assert find_origin(back.bridge(), tmp_path / "run").checkpoint is None
    # The LLM is there, and the bridge has no checkpoint yet.
    assert find_origin(first.bridge(), tmp_path / "run").checkpoint is None
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"no valid checkpoint in .*/run/checkpoints; expected one"):
        find_origin(first.bridge(), tmp_path / "run")


def test_the_second_stage_meets_elsewhere_as_the_same_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [f"run.output={tmp_path}", "llm.finetune=true"]
    first, started = FirstStage(load_config("testbed", given), "testbed", given), []
    monkeypatch.setattr("os.execve", lambda _, words, env: started.append((words, env)))
    monkeypatch.setenv("LOCAL_RANK", "0")  # as init_distributed leaves it on a rank that sees one GPU alone
    first.start_again(1234, StopRequest(), World(rank=7, size=8, local_rank=3, local_size=4, node=1))
    ((words, env),) = started
    assert words[1:] == sys.orig_argv[1:] and env["MASTER_PORT"] == "1234"
    assert World.detect({"RANK": "7", "WORLD_SIZE": "8", "LOCAL_RANK": env["LOCAL_RANK"]}).local_rank == 3


AGAIN = """
import os, signal, sys, threading, time
from bridge_ds.engine.preempt import StopRequest
stop = StopRequest().listen(["USR2", "TERM"])
if sys.argv[-1] != "again":
    if sys.argv[1] == "before":
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()  # which takes signals too
        os.kill(os.getpid(), signal.SIGUSR2)
    stop.pass_on()
    if sys.argv[1] == "after":
        os.kill(os.getpid(), signal.SIGTERM)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], "again"])
print(stop.signal or "none")
"""


def test_a_request_to_stop_between_the_stages_reaches_the_second() -> None:
    said = [subprocess.run([sys.executable, "-c", AGAIN, when], capture_output=True, text=True, timeout=60)
            for when in ("before", "after", "never")]  # fmt: skip
    assert [run.stdout.strip() for run in said] == ["SIGUSR2", "SIGTERM", "none"], said[0].stderr
