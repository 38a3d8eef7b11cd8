"""The command that the planner prints starts exactly the planned run: read back by the shell and the config loader."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bridge_ds.commands.plan import main as print_plan
from bridge_ds.config.load import load_config
from bridge_ds.config.schema import FusionConfig, MappingConfig
from bridge_ds.plan.advice import LAYOUTS, choices
from bridge_ds.plan.command import command, first_stage
from bridge_ds.plan.job import ENCODE_ONCE, PROCESS_GIB, Job, planned
from bridge_ds.plan.memory import GIB, memory
from bridge_ds.plan.shapes import ENCODERS, LLMS, find_shape
from bridge_ds.plan.timing import GPUS, Network, gathers, step_time

ROOT = Path(__file__).parents[2]
CLUSTERS = [(1, 1, "a10"), (1, 8, "a100-40"), (4, 4, "h100"), (16, 8, "h200")]
MODELS = [(ENCODERS["mt5-xl"], llm) for llm in LLMS.values()]
MODELS += [(encoder, LLMS["llama-2-7b"]) for encoder in ENCODERS.values()]
MODES: list[dict[str, object]] = [
    {},
    {
        "fusion": FusionConfig(name="last_layer"),
        "mapping": MappingConfig(kind="mlp"),
        "prompt": 64,
        "source": 256,
        "target": 32,
    },
    {"encoder_dropout": True, "bytes": 4, "tf32": False},
    {"encoder_trained": True, "encoder_embeddings": False, "llm_trained": True, "llm_embeddings": False},
    {"encoder_trained": True, "lora": 8, "fusion": FusionConfig(name="global_softmax", include_embeddings=True)},
    {
        "fusion": FusionConfig(name="layer_attention"),
        "mapping": MappingConfig(kind="latent", latents=32, depth=2),
        "lora": 4,
        "lora_bias": "all",
        "lora_targets": ("q_proj", "v_proj"),
    },
]


def read_back(text: str) -> tuple[Job, str]:
    """The run that a command starts, through the real loader, and its script."""
    words = shlex.split(text.replace("\\\n", " "))  # the shell takes both away, shlex does not
    start = words.index("sbatch")
    environment = dict(word.split("=", 1) for word in words[:start])
    options = {name: int(value) for name, value in re.findall(r"--(nodes|gpus-per-node)=(\d+)", " ".join(words))}
    script = words[start + 3]
    assert (ROOT / script).is_file()
    sets = words[start + 4 :]
    assert sets[::2] == ["--set"] * (len(sets) // 2)
    # As slurm/env.sh hands them on.
    config = load_config(environment["RECIPE"], [*sets[1::2], f"run.output={environment['OUTPUT']}"])
    return planned(config, options["nodes"], options["gpus-per-node"]), script


def as_chosen(job: Job) -> Job:
    """Without what a command does not decide: DeepSpeed's sizes (the file's), the process, and `encode_once` where it
    changes nothing."""
    once = job.encode_once and job.may_encode_once
    return job.having(prefetch=0, live=0, reuse=0, bucket=0, process=0.0, encode_once=once)


@pytest.mark.parametrize(("nodes", "gpus", "gpu"), CLUSTERS)
def test_every_command_is_its_plan(nodes: int, gpus: int, gpu: str) -> None:
    seen = set()
    of_models = [(Job(*models), 1) for models in MODELS]
    of_modes = [(Job(*MODELS[0]).having(**mode), len(LAYOUTS)) for mode in MODES]
    for plain, several in (*of_models, *of_modes):
        job = plain.having(nodes=nodes, gpus=gpus, process=PROCESS_GIB)
        for choice in choices(job, GPUS[gpu], Network())[:several]:
            text = command(choice.job, choice.ds_config)
            found, script = read_back(text)
            assert as_chosen(found) == as_chosen(choice.job), text
            seen.add((script, job.llm.name))
    size = {name: script for script, name in seen}
    assert size["llama-3.2-1b"] == "slurm/train_1b.sh" and size["llama-2-13b"] == "slurm/train_13b.sh"
    assert size["llama-3.1-70b"] == size["qwen2.5-72b"] == "slurm/train_70b.sh"


def test_the_encoder_is_read_once_where_that_is_faster_and_fits() -> None:
    job = Job(ENCODERS["mt5-xxl"], LLMS["llama-2-7b"], nodes=8, gpus=8, global_batch=1024, process=PROCESS_GIB)
    cluster = (GPUS["l40s"], Network(gbit=100))
    by_name = {choice.ds_config: choice for choice in choices(job, *cluster)}
    hpz = by_name["zero3_hpz.json"]
    assert hpz.fits and hpz.job.encode_once and (hpz.job.micro_batch, hpz.job.accumulation) == (8, 2)
    each = hpz.job.having(encode_once=False)
    assert ENCODE_ONCE not in command(hpz.job, hpz.ds_config)  # as in every recipe
    assert f"--set {ENCODE_ONCE}=false" in command(each, hpz.ds_config)
    assert step_time(each, *cluster)["gather"] > step_time(hpz.job, *cluster)["gather"]
    encoder = job.encoder
    states = (encoder.layers + 1) * 8 * 512 * encoder.width * 2 + encoder.heads * 512 * 512 * 2
    assert (memory(hpz.job)["total"] - memory(each)["total"]) * GIB == pytest.approx(states)
    received = {once: gathers(hpz.job.having(encode_once=once))["links"] for once in (False, True)}
    assert received[False] - received[True] == pytest.approx(encoder.parameters * 2 * 7 / 8)
    assert not by_name["zero2.json"].job.encode_once
    trained = choices(job.having(encoder_trained=True), *cluster)
    assert not any(choice.job.encode_once for choice in trained)


def test_a_limit_of_its_own_is_named() -> None:
    job = planned(load_config("mt5xl_70b", ["train.encode_once_gib=1.5"]), 4, 8)
    assert "--set train.encode_once_gib=1.5" in command(job, "zero3_hpz.json")
    assert as_chosen(read_back(command(job, "zero3_hpz.json"))[0]) == as_chosen(job)


def test_the_llm_alone_has_no_settings_of_a_bridge(tmp_path: Path) -> None:
    job = planned(load_config("xnli_llama1b_english"), 1, 8)
    text = command(job, "zero2.json", "xnli_llama1b_english")
    assert not re.search(r"source|fusion|mapping|augment", text) and "--set model.encoder=none" in text
    assert as_chosen(read_back(text)[0]) == as_chosen(job.having(stage=2))
    recipe = tmp_path / "by_tokens.yaml"
    recipe.write_text("base: xnli_llama1b_english\ndata:\n  tokens_per_micro_batch: 4000\n")
    text = command(job, "zero2.json", str(recipe))
    assert as_chosen(read_back(text)[0]) == as_chosen(job.having(stage=2)), "not rows by a budget of tokens"


def test_another_recipe_keeps_its_own_settings() -> None:
    config = load_config("testbed")
    job = planned(config, 1, 2)
    text = command(job, "zero2.json", "testbed")
    assert "OUTPUT=runs/testbed " in text
    found, _ = read_back(text)
    assert as_chosen(found) == as_chosen(job.having(stage=2))
    other = command(job.having(fusion=FusionConfig(name="last_layer"), lora=4), "zero2.json", "testbed")
    assert "OUTPUT=runs/encoder_llm_last_layer_linear_lora4 " in other and "--set lora.rank=4" in other


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "tools/plan_cluster.py", *arguments]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_folders_are_quoted_for_the_shell_and_for_yaml(tmp_path: Path) -> None:
    encoder, llm = tmp_path / "it's: an #encoder", tmp_path / "an LLM"
    for folder, of in (
        (encoder, {"model_type": "mt5", "d_ff": 96, "num_heads": 3}),
        (llm, {"num_attention_heads": 3, "hidden_act": "silu"}),
    ):
        folder.mkdir()
        sizes = {"hidden_size": 24, "num_hidden_layers": 2, "vocab_size": 50}
        (folder / "config.json").write_text(json.dumps(sizes | of))
    page = plan("--encoder", str(encoder), "--llm", str(llm), "--gpus", "2", "--recipe", "testbed").stdout
    printed = page.partition("Do:\n")[2]
    # The shell itself reads it; sbatch is a function that says what it was given.
    script = f'sbatch() {{ printf \'%s\\n\' "RECIPE=$RECIPE" "OUTPUT=$OUTPUT" sbatch "$@"; }}\n{printed}'
    said = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    found, _ = read_back(shlex.join(said))
    assert (found.encoder.source, found.llm.source) == (str(encoder), str(llm))
    assert found.encoder == find_shape(str(encoder), ENCODERS)


def test_hub_ids_are_known_and_an_id_that_is_given_stays() -> None:
    for known in (ENCODERS, LLMS):
        for shape in known.values():
            assert "/" in shape.source and find_shape(shape.source, known) == find_shape(shape.name, known) == shape
    chat = find_shape("meta-llama/Llama-2-13b-chat-hf", LLMS)
    assert (chat.name, chat.source) == ("llama-2-13b", "meta-llama/Llama-2-13b-chat-hf")
    wrong = plan("--llm", "llama-3.1-8b-instruct")  # of which repository?
    assert wrong.returncode == 2 and "hub id" in wrong.stderr


def test_the_page_shows_what_deepspeed_is_told() -> None:
    job = ["--llm", "llama-3.1-70b", "--nodes", "8", "--gpus", "4", "--gpu", "h100"]
    page = plan(*job).stdout
    assert "Do:" in page and max(map(len, page.splitlines())) <= 120
    found = json.loads(plan(*job, "--json").stdout)["choices"][0]
    assert found["ds_config"] == "zero3_hpz.json"
    layer = LLMS["llama-3.1-70b"].layer
    assert found["deepspeed_sizes"] == {
        "stage3_prefetch_bucket_size": layer,
        "stage3_max_live_parameters": 3 * layer,
        "stage3_max_reuse_distance": layer,
        "zero_hpz_partition_size": 4,
    }
    for size in (layer, 3 * layer):
        assert f"{size:,}" in page
    refused = plan("--fusion", "global_sofmax")
    assert refused.returncode == 2 and "did you mean 'global_softmax'" in refused.stderr


def test_what_the_command_does_first_is_planned_too(tmp_path: Path) -> None:
    """llm.finetune: the LLM alone, by LoRA or whole, with the settings of the command under its own."""
    recipe = tmp_path / "recipe.yaml"
    text = "base: mt5xl_13b\nllm:\n  finetune: true\n"
    recipe.write_text(text)
    job = planned(load_config(str(recipe)), 2, 8).having(micro_batch=4, checkpointing=True)
    assert first_stage(job, "zero3.json", "mt5xl_13b") is None
    first = first_stage(job, "zero3.json", str(recipe))
    assert first and not first.encoder.layers and not first.source and first.llm == job.llm
    assert (first.lora, first.llm_trained, first.micro_batch, first.stage) == (16, False, 4, 3)
    assert first.checkpointing and first.global_batch == job.global_batch
    recipe.write_text(text + "  finetune_settings: [llm.trainable=true, train.micro_batch=1]\n")
    whole = first_stage(job, "zero3.json", str(recipe))
    assert whole and (whole.lora, whole.llm_trained, whole.micro_batch) == (0, True, 1)
    # Weights, gradients, and three copies in float32 over 16 ranks.
    assert memory(whole)["LLM and optimizer"] > 12 * job.llm.parameters / 16 / GIB
    assert memory(whole)["LLM and optimizer"] > 10 * memory(first)["bridge and optimizer"] > 0


def test_the_page_says_that_what_comes_first_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: mt5xl_13b\nllm:\n  finetune: true\n  finetune_settings: [llm.trainable=true]\n")
    where = ["--recipe", str(recipe), "--nodes", "1", "--gpus", "4"]
    assert print_plan(where) == 0
    said = capsys.readouterr().out
    assert "First the LLM is taught the task (llm.finetune): all of its weights" in said and "does NOT fit" in said
    assert print_plan([*where, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["choices"][0]
    assert found["fits"] and found["first_stage"]["memory_gib"]["total"] > 80 > found["memory_gib"]["total"]
    recipe.write_text(recipe.read_text().replace("true]", "true, run.ds_config=zero3.json]"))
    assert print_plan([*where[:3], "8", *where[4:]]) == 0
    assert "does NOT fit" not in capsys.readouterr().out
