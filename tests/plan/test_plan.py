"""The plan: parameter counts are the models' own, memory is near what was measured, the advice holds together."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bridge_ds.bridge import build_bridge
from bridge_ds.compat.streamed import PART_BYTES
from bridge_ds.config.load import RECIPES, load_config
from bridge_ds.config.schema import Config, FusionConfig, LoraConfig, MappingConfig, ModelConfig
from bridge_ds.data.loading.collate import collate
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.data.loading.tokenize import load_tokenizers
from bridge_ds.encoder.families import FAMILIES
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.engine.setup import build_model
from bridge_ds.errors import ConfigError
from bridge_ds.fusion import FUSIONS
from bridge_ds.llm.frozen import FrozenLLM
from bridge_ds.mapping import MAPPINGS
from bridge_ds.plan.advice import LAYOUTS, choices
from bridge_ds.plan.job import PROCESS_GIB, Job, layout, planned, trained_parameters
from bridge_ds.plan.lora import lora_parameters
from bridge_ds.plan.memory import PART, memory
from bridge_ds.plan.shapes import ENCODERS, LLMS, Shape, find_shape
from bridge_ds.plan.timing import GPUS, Network, gathers, operators, step_time
from tests import tiny
from tools import plan_cluster

ROOT = Path(__file__).parents[2]
LONG = pytest.mark.skipif(not os.environ.get("BRIDGE_DS_LONG"), reason="minutes long: set BRIDGE_DS_LONG=1")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
    ],
)
def test_counts_are_the_published_ones(name: str, count: int) -> None:
    assert LLMS[name].parameters == count


def test_kept_states_of_mt5_xl_are_what_the_docs_say() -> None:
    job = Job(ENCODERS["mt5-xl"], LLMS["llama-2-7b"])
    assert job.kept_bytes == 24 * 2048 * 2
    assert job.having(fusion=FusionConfig(name="last_layer")).kept_bytes == 2048 * 2
    assert job.having(fusion=FusionConfig(include_embeddings=True), bytes=4).kept_bytes == 25 * 2048 * 4
    assert job.having(encoder_trained=True).kept_bytes == job.having(encoder_dropout=True).kept_bytes == 0
    alone = planned(load_config("xnli_llama1b_english"), 1, 1)
    assert alone.kept_bytes == 0


@pytest.mark.parametrize("kind", ["mt5", "xlm-roberta", "bert"])
def test_a_folder_counts_as_transformers_does(kind: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    from bridge_ds.encoder.families import family_of

    folder = tiny.make_encoder(kind, tmp_path / kind)
    family = family_of(str(folder), AutoConfig.from_pretrained(folder))
    model = family.loader()(folder, **family.options)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert find_shape(str(folder), ENCODERS).parameters == counted
    llm = tiny.make_llm("llama", tmp_path / "llm")
    from transformers import AutoModelForCausalLM

    whole = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_pretrained(llm).parameters())
    assert find_shape(str(llm), LLMS).parameters == whole


TIED = ("gpt2", "opt", "bloom", "gpt_bigcode", "gpt_neo", "falcon", "xglm", "biogpt", "cohere", "cohere2", "starcoder2",
        "smollm3", "ernie4_5", "gemma", "gemma2", "gemma3_text")  # fmt: skip
UNTIED = ("llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "olmo2", "granite", "gpt_neox", "gptj")


@pytest.mark.parametrize("kind", [*TIED, *UNTIED])
def test_what_a_config_leaves_out_is_as_its_class_has_it(kind: str, tmp_path: Path) -> None:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 24, "num_attention_heads": 4, "vocab_size": 50}
    sizes |= {"max_position_embeddings": 70}
    if kind == "opt":
        sizes |= {"ffn_dim": 48, "word_embed_proj_dim": 32}
    if kind == "gpt_neox":
        sizes |= {"intermediate_size": 48}
    config = CONFIG_MAPPING[kind](**sizes)
    rotary = {"rotary_emb_base": 10000, "rotary_pct": 0.25} if kind == "gpt_neox" else {}
    (tmp_path / "config.json").write_text(json.dumps(sizes | rotary | {"model_type": kind}))
    shape = find_shape(str(tmp_path), LLMS)
    assert shape.tied == config.tie_word_embeddings == (kind in TIED)
    if kind in ("gpt2", "opt", "gpt_neox"):
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(config)
        assert shape.parameters == sum(parameter.numel() for parameter in made.parameters())


FUSION_VALUES = {
    "backend": "reference", "state_norm": "rms", "dropout": 0.3, "heads": 2, "feedforward": 40,
    "include_embeddings": True, "lr_scale": 0.5,
}  # fmt: skip
MAPPING_VALUES = {
    "latents": 5, "depth": 2, "heads": 3, "head_width": 7, "feedforward": 3, "dropout": 0.2, "end_init": "zeros",
    "match_embedding_rms": False, "init": "embeddings", "init_samples": 7,
}  # fmt: skip


def test_trained_parameters_are_those_of_the_bridge_for_every_option(tmp_path: Path) -> None:
    """Of what a run builds, option by option and all at once."""
    from transformers import AutoModelForCausalLM

    folders = tiny.make_encoder("mt5", tmp_path / "encoder"), tiny.make_llm("llama", tmp_path / "llm")
    config = Config(model=ModelConfig(encoder=str(folders[0]), llm=str(folders[1]), dtype="float32"))
    encoder = load_encoder(config.model)
    llm = FrozenLLM(AutoModelForCausalLM.from_pretrained(folders[1]))

    def check(**parts: object) -> None:
        each = dataclasses.replace(config, **parts)
        bridge = build_bridge(each, encoder, llm, None)
        made = sum(p.numel() for part in (bridge.fusion, bridge.mapping) for p in part.parameters())
        assert trained_parameters(planned(each, 1, 1)) == made, parts

    # A field of these parts that nobody has thought of here would be one that no plan has been held against.
    assert {"name", *FUSION_VALUES} == {each.name for each in dataclasses.fields(FusionConfig)}
    assert {"kind", *MAPPING_VALUES} == {each.name for each in dataclasses.fields(MappingConfig)}
    for name in FUSIONS:
        refused = pytest.raises(ConfigError, match=r"fusion\.heads is 7") if "heads" in FUSIONS[name].options else None
        with refused or contextlib.nullcontext():
            check(fusion=FusionConfig(name=name, heads=7))
        for values in ({}, FUSION_VALUES, *({key: value} for key, value in FUSION_VALUES.items())):
            check(fusion=FusionConfig(name=name, **values))
    for kind in MAPPINGS:
        for values in ({}, MAPPING_VALUES, *({key: value} for key, value in MAPPING_VALUES.items())):
            check(mapping=MappingConfig(kind=kind, **values))


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_encoder_of_each_family_is_counted_as_it_is_made(kind: str, tmp_path: Path) -> None:
    import torch
    import transformers

    sizes = {
        "t5": {"d_model": 32, "d_ff": 80, "d_kv": 8, "num_layers": 3, "num_heads": 6},
        "m2m_100": {"d_model": 32, "encoder_layers": 3, "encoder_ffn_dim": 80, "encoder_attention_heads": 4},
        "bert": {"hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 80, "num_attention_heads": 4},
    }
    of = sizes["t5" if kind.endswith("t5") else kind if kind in sizes else "bert"]
    if kind == "deberta-v2":  # as mDeBERTa has them
        of |= {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
               "pos_att_type": "p2c|c2p", "position_biased_input": False}  # fmt: skip
    config = transformers.AutoConfig.for_model(kind, vocab_size=100, **of)
    config.save_pretrained(tmp_path)
    family = FAMILIES[kind]
    with torch.device("meta"):
        pooler = {key: value for key, value in family.options.items() if key == "add_pooling_layer"}
        model = family.load_class()(config, **pooler)
    assert find_shape(str(tmp_path), ENCODERS).parameters == sum(p.numel() for p in model.parameters())


def test_a_part_of_another_kind_is_refused_and_never_counted(tmp_path: Path) -> None:
    job = Job(ENCODERS["mt5-xl"], LLMS["llama-2-13b"])
    with pytest.raises(ConfigError, match="did you mean 'last_layer'"):
        job.having(fusion=dataclasses.replace(job.fusion, name="last_leyer"))
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        job.having(mapping=dataclasses.replace(job.mapping, kind="liner"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "albert", "hidden_size": 64}))
    with pytest.raises(ConfigError, match=r"model_type .* is 'albert'; expected one of mt5, "):
        find_shape(str(tmp_path), ENCODERS)


@pytest.mark.parametrize("targets", [("q_proj", "k_proj", "v_proj"), ("self_attn.o_proj",), ("down_proj", "up_proj")])
def test_loras_updates_are_those_of_the_named_layers(targets: tuple[str, ...], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from bridge_ds.llm.frozen import FrozenLLM
    from bridge_ds.llm.lora import add_lora

    folder = tiny.make_llm("llama", tmp_path)
    llm = FrozenLLM(AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False))
    add_lora(llm, LoraConfig(rank=3, targets=targets), 0)
    shape = find_shape(str(folder), LLMS)
    made = sum(p.numel() for p in llm.parameters() if p.requires_grad)
    assert made == lora_parameters(shape, 3, targets=targets) < lora_parameters(shape, 3)
    # A name that is not known: at most all.
    assert lora_parameters(shape, 3, targets=(*targets, "qkv")) == lora_parameters(shape, 3)


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_loras_updates_and_trained_biases_are_counted_as_they_are_made(kind: str, bias: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from bridge_ds.llm.frozen import FrozenLLM
    from bridge_ds.llm.lora import add_lora

    folder = tiny.make_llm(kind, tmp_path / kind)
    llm = FrozenLLM(AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False))
    made = lora_parameters(find_shape(str(folder), LLMS), 2, bias)
    if kind == "llama" and bias != "none":
        assert made == lora_parameters(find_shape(str(folder), LLMS), 2)
        return
    add_lora(llm, LoraConfig(rank=2, bias=bias), 0)
    parameters = {name: p.numel() for name, p in llm.named_parameters() if name in llm.trained}
    biases = sum(count for name, count in parameters.items() if "trained_bias" in name)
    assert biases == made - lora_parameters(find_shape(str(folder), LLMS), 2)
    # GPT-2's queries, keys and values are one matrix.
    assert kind == "gpt2" or sum(parameters.values()) == made
    assert lora_parameters(find_shape(str(folder), LLMS), 0, bias) == 0
    assert lora_parameters(LLMS["qwen2.5-7b"], 8, bias) - lora_parameters(LLMS["qwen2.5-7b"], 8) == (
        0 if bias == "none" else 28 * (3584 + 2 * 512)
    )


def test_recipes_name_known_models() -> None:
    for recipe in RECIPES.glob("*.yaml"):
        model = load_config(recipe.stem).model
        assert find_shape(model.encoder, ENCODERS) and find_shape(model.llm, LLMS)
    with pytest.raises(ConfigError, match=r"mt5-xl"):
        find_shape("mt6-xl", ENCODERS)


def test_memory_moves_the_right_way() -> None:
    job = Job(ENCODERS["mt5-xl"], LLMS["llama-2-13b"], nodes=2, gpus=8)
    whole = memory(job.having(stage=2))["frozen weights"]
    assert memory(job)["frozen weights"] == pytest.approx(whole / 16)
    assert memory(job.having(hpz=True))["frozen weights"] == pytest.approx(whole / 16 + whole / 8)
    assert memory(job.having(checkpointing=True))["LLM activations"] < memory(job)["LLM activations"] / 4
    assert memory(job.having(micro_batch=4))["total"] < memory(job)["total"]
    assert gathers(job.having(hpz=True))["nodes"] < gathers(job)["nodes"] / 50
    assert gathers(job.having(stage=2))["links"] == 0
    # NCCL: a layer as one buffer and as the tensors cut out of it, a table as one tensor; one ahead, one at work.
    large, layer = job.having(llm=LLMS["llama-3.1-70b"]), LLMS["llama-3.1-70b"].layer * 2
    assert memory(large)["gathered layers"] * 2**30 == pytest.approx(4 * layer)
    assert memory(large.having(prefetch=1000))["gathered layers"] * 2**30 == pytest.approx(3 * layer + 2000)
    table = ENCODERS["mt5-xxl"].embedding * 2
    small = large.having(encoder=ENCODERS["mt5-xxl"], llm=LLMS["llama-3.2-1b"], prefetch=1000)
    assert memory(small)["gathered layers"] * 2**30 == pytest.approx(table + ENCODERS["mt5-xxl"].layer * 2 + 2000)
    assert memory(job.having(lora=8))["LLM activations"] > 1.8 * memory(job)["LLM activations"]
    for choice in choices(job, GPUS["a100-80"], Network()):
        assert choice.ds_config in LAYOUTS
        assert choice.job.micro_batch * choice.job.accumulation * 16 == job.global_batch
        assert choice.fits == (choice.total <= 72)


def test_what_is_encoded_together_is_bounded() -> None:
    """64 micro-batches of 8 rows of 512 tokens at mT5-XL: 25 GiB of states, were they all there."""
    job = Job(ENCODERS["mt5-xl"], LLMS["llama-2-13b"], nodes=2, gpus=8, global_batch=64 * 8 * 16, encode_once=True)
    one = memory(job.having(encode_once=False))["encoder states"]
    state = 25 * 8 * 512 * 2048 * 2 / 2**30
    assert (job.accumulation, job.together, job.readings) == (64, 10, 7)
    bias = job.encoder.heads * 512**2 * 2 / 2**30
    assert memory(job)["encoder states"] == pytest.approx(one + 9 * (state + bias))
    free = job.having(encode_once_gib=64 * state + 1e-6)
    assert (free.together, free.readings) == (64, 1) and memory(free)["encoder states"] > 25
    gathered = {name: gathers(each)["nodes"] for name, each in (("free", free), ("job", job))}
    assert gathered["job"] - gathered["free"] == pytest.approx(6 * job.encoder.parameters * 2 * 15 / 16)
    assert operators(job) > operators(free)
    none = job.having(encode_once_gib=state * 1.9)
    assert not none.may_encode_once and memory(none) == memory(job.having(encode_once=False))
    # A trained encoder, one that drops, or one that is not sharded, is never read so, whatever the setting.
    for other in ({"stage": 2}, {"encoder_trained": True}, {"encoder_dropout": True}):
        apart = job.having(**other)
        assert apart.together == 1 and memory(apart) == memory(apart.having(encode_once=False))


def test_float32_is_timed_at_its_own_rate() -> None:
    job = Job(ENCODERS["mt5-base"], LLMS["llama-3.2-1b"])
    for gpu in GPUS.values():
        half, tf32, whole = (
            step_time(job.having(bytes=size, tf32=tf32), gpu, Network())["compute"]
            for size, tf32 in ((2, False), (4, True), (4, False))
        )
        assert 1.9 * half < tf32 <= whole == pytest.approx(half * gpu.tflops / gpu.float32)


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_stage_2_is_chosen_where_it_fits_and_is_as_fast(gpus: int) -> None:
    """As the README says. A 1B LLM: gathers are short and hidden, and memory is no reason."""
    job = Job(ENCODERS["mt5-xl"], LLMS["llama-3.2-1b"], gpus=gpus, process=PROCESS_GIB)
    best, *others = choices(job, GPUS["a100-80"], Network())
    assert best.ds_config == "zero2.json" and best.fits
    assert any(other.fits and other.total < best.total for other in others), "nothing to be preferred to"
    # Of one file's ways the order is by gathers and passes, where they make a difference.
    (full,) = (other for other in others if other.ds_config == "zero3.json")
    assert full.job.encode_once == full.job.may_encode_once


def test_what_else_is_trained_is_counted() -> None:
    job = Job(ENCODERS["mt5-xl"], LLMS["llama-2-13b"], nodes=2, gpus=8)
    count = job.encoder.parameters
    for stage, bytes_each in ((3, 16 / 16), (2, 4 + 16 / 16)):
        frozen = memory(job.having(stage=stage))
        trained = memory(job.having(stage=stage, encoder_trained=True))
        assert trained["encoder and optimizer"] * 2**30 == pytest.approx(count * bytes_each)
        assert trained["total"] > frozen["total"]
        assert trained["frozen weights"] < frozen["frozen weights"]
        again = memory(job.having(stage=stage, encoder_trained=True, encoder_checkpointing=True))
        assert again["encoder activations"] < trained["encoder activations"] / 3
    assert trained_parameters(job.having(encoder_trained=True)) == trained_parameters(job) + count
    assert gathers(job.having(encoder_trained=True))["nodes"] > gathers(job)["nodes"]
    # Embeddings that stay are float32 as the rest, without gradient and moments; an untied projection is trained.
    both = job.having(stage=2, encoder_trained=True, llm_trained=True)
    for part, model in (("encoder", job.encoder), ("llm", job.llm)):
        kept = both.having(**{f"{part}_embeddings": False})
        assert trained_parameters(kept) == trained_parameters(both) - model.embedding
        assert kept.weights == both.weights and kept.frozen_bytes == 4 * model.embedding
        assert memory(kept)["frozen weights"] * 2**30 == pytest.approx(4 * model.embedding)
        less = 16 * model.embedding / 16 / 2**30
        assert memory(kept)["total"] == pytest.approx(memory(both)["total"] - less)
        assert all(gathers(kept.having(stage=s))["nodes"] < gathers(both.having(stage=s))["nodes"] for s in (2, 3))
    # Counted by hand for a Llama of width 4, MLP 8, one key head of 2: q, k, v, o, gate, up, down.
    tiny_llm = Shape("x", layers=3, width=4, ffn=8, q=4, kv=2, vocab=9, heads=2)
    assert lora_parameters(tiny_llm, 5) == 3 * 5 * ((4 + 4) + 2 * (4 + 2) + (4 + 4) + 3 * (4 + 8))


def run(tool: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"tools/{tool}.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def test_the_command_prints_a_plan_that_fits_two_pages() -> None:
    sizes = ["--encoder", "mt5-xl", "--llm", "llama-2-13b", "--nodes", "2", "--gpus", "8"]
    page = run("plan_cluster", *sizes)
    assert page.returncode == 0 and page.stderr == ""
    assert page.stdout.count("\n") < 60 and max(map(len, page.stdout.splitlines())) <= 120
    for word in ("frozen weights", "gathered layers", "LLM activations", "tokens/s", "sbatch --nodes=2", "launches"):
        assert word in page.stdout
    found = json.loads(run("plan_cluster", *sizes, "--json").stdout)
    assert found["llm"]["parameters"] == 13_015_864_320
    assert {choice["ds_config"] for choice in found["choices"]} == set(LAYOUTS)
    more = run("plan_cluster", *sizes, "--train-encoder", "--lora", "8").stdout
    assert "encoder and optimizer" in more and "--set lora.rank=8 --set encoder.trainable=true" in more
    large = ["--llm", "llama-3.1-70b", "--nodes", "64", "--gpus", "8", "--global-batch", "512"]
    assert "zero3_hpz.json" in run("plan_cluster", *large).stdout
    one = ["--gpus", "1", "--gpu", "a10", "--global-batch", "1", "--source-tokens", "65536"]
    small = run("plan_cluster", "--llm", "llama-3.1-70b", *one)
    assert "Nothing fits" in small.stdout
    for wrong in (["--llm", "llama-9"], ["--nodes", "3"]):
        refused = run("plan_cluster", *wrong)
        assert refused.returncode == 2 and refused.stderr.startswith("error: ") and "Traceback" not in refused.stderr


def test_numbers_that_mean_nothing_are_refused() -> None:
    sizes = ("nodes", "gpus", "gpu-gib", "network-gbit", "network-share", "utilization", "global-batch",
             "source-tokens", "target-tokens")  # fmt: skip
    for name in sizes:
        for value in ("0", "-8"):
            refuse_by_parser("--" + name, value, "is not above 0")
    for name in ("prompt-tokens", "launch-us", "lora"):
        refuse_by_parser("--" + name, "-1", "is not 0 or more")
    refuse_by_parser("--network-share", "1.5", "is more than 1")
    refuse_by_parser("--gpu-gib", "nan", "above 0")
    refuse_by_parser("--network-gbit", "inf", "is not finite")
    refuse_by_parser("--gpus", "two", "invalid int value")
    assert run("plan_cluster", "--nodes", "0").returncode == 2
    with pytest.raises(ConfigError, match=r"model\.llm is none, and no plan is made of the encoder alone"):
        plan_cluster.main(["--llm", "none"])


def refuse_by_parser(option: str, value: str, words: str) -> None:
    said = io.StringIO()
    with pytest.raises(SystemExit) as left, contextlib.redirect_stderr(said):
        plan_cluster.main([f"{option}={value}"])
    assert left.value.code == 2 and words in said.getvalue(), (option, value)


def test_the_readme_says_what_is_planned() -> None:
    text = (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")
    job = Job(ENCODERS["mt5-xl"], LLMS["llama-2-13b"], nodes=2, gpus=8, process=PROCESS_GIB)
    for stage in (3, 2):
        row = f"16 | {memory(job.having(stage=stage))['total']:.1f} | not measured |"
        assert row in text, f"the table of plans in docs/slurm.md should have: {row}"


def test_a_config_is_planned_for_its_nodes() -> None:
    """hpZ's copy of the weights is shared by the GPUs of a node, and its size is that of a node."""
    config = load_config("mt5xl_70b", ["data.tokens_per_micro_batch=2000"])
    wide, narrow = (planned(config, nodes, 32 // nodes) for nodes in (4, 8))
    copy = 2 * (ENCODERS["mt5-xl"].parameters + LLMS["llama-3.1-70b"].parameters) / 2**30
    more = memory(narrow)["frozen weights"] - memory(wide)["frozen weights"]
    assert more == pytest.approx(copy / 4 - copy / 8)
    assert (wide.sizes["zero_hpz_partition_size"], narrow.sizes["zero_hpz_partition_size"]) == (8, 4)
    assert wide.micro_batch == 2000 // (512 + 128), "rows that the budget of tokens allows"
    # Numbers of a file win over those of the models.
    assert planned(load_config("testbed"), 1, 2).having(prefetch=7).sizes["stage3_prefetch_bucket_size"] == 7


@LONG
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_planned_memory_is_near_what_ranks_take(ranks: int, tmp_path: Path) -> None:
    """Real widths, few layers: 0.9 GiB of weights."""
    sizes = ["--encoder", "mt5-base", "--encoder-layers", "2", "--llm", "llama-3.2-1b", "--llm-layers", "1"]
    done = run(
        "bench/rehearse",
        "--folder",
        str(tmp_path),
        *sizes,
        "--ranks",
        str(ranks),
        "--no-unsharded",
        "--json",
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    for measured in found["measured_gib"]:
        assert found["planned_gib"]["total"] == pytest.approx(measured, rel=0.1)


def test_rehearsal_refuses_what_it_cannot_make(tmp_path: Path) -> None:
    refused = run("bench/rehearse", "--folder", str(tmp_path), "--encoder", "xlm-roberta-base")
    assert refused.returncode == 2 and "expected an mT5" in refused.stderr


def test_the_plan_knows_how_models_are_read() -> None:
    assert PART == PART_BYTES


def test_torch_is_not_needed_to_plan() -> None:
    code = "import sys, bridge_ds.plan.advice; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


def test_a_second_copy_over_the_ranks_that_the_file_names() -> None:
    whole = Job(encoder=ENCODERS["mt5-xl"], llm=LLMS["llama-2-13b"], nodes=2, gpus=8, micro_batch=1, hpz=True)
    of = whole.frozen_bytes / 2**30
    for nodes, size, second in ((2, 0, 8), (2, 2, 2), (1, 2, 2), (1, 0, 0)):
        job = whole.having(nodes=nodes, hpz_ranks=size)
        assert job.second == second and job.shards == (second or job.ranks)
        assert memory(job)["frozen weights"] == pytest.approx(of / job.ranks + (of / second if second else 0))
    found = layout({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}})
    assert (found["hpz"], found["hpz_ranks"]) == (True, 2)


@pytest.mark.parametrize(("device", "offload"), [("cpu", True), ("none", False), (None, False)])
def test_a_deepspeed_file_is_read_as_deepspeed_reads_it(device: str | None, offload: bool, tmp_path: Path) -> None:
    """No offload to no device; no second copy where one group has all ranks."""
    zero = {"stage": 3, "offload_param": device and {"device": device}, "zero_hpz_partition_size": 8}
    (tmp_path / "own.json").write_text(json.dumps({"zero_optimization": zero}))
    config = load_config("mt5xl_70b", [f"run.ds_config={tmp_path}/own.json"])
    one, two = planned(config, 1, 8), planned(config, 2, 8)
    assert (one.offload, one.second, two.second) == (offload, 0, 8)


def test_a_mixture_of_experts_is_not_planned_as_one_mlp_a_layer(tmp_path: Path) -> None:
    from transformers import MixtralConfig

    MixtralConfig(num_local_experts=8).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"is a mixture of experts .num_local_experts 8., of which no plan"):
        find_shape(str(tmp_path), LLMS)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_soft_prompt_that_the_llm_reads_by_itself_is_counted(checkpointing: bool) -> None:
    """What autograd keeps, counted; the rest of the plan's activations is work that comes and goes."""
    settings = ["model.dtype=float32", f"model.activation_checkpointing={str(checkpointing).lower()}",
                "data.max_source_tokens=200", "data.max_target_tokens=8", "data.max_prompt_tokens=2",
                "data.augment_prompt=true", "train.micro_batch=8", "train.global_batch=8"]  # fmt: skip
    for form in ("gated_prompt", "none"):
        config = load_config("testbed", [*settings, f"injection.form={form}"])
        of = load_tokenizers(config.model, data=config.data)
        model = build_model(config, of.bos_id).train()
        rows = [TokenizedSample([5 + number % 50 for number in range(200)], [5, 6], [7] * 8, ()) for _ in range(8)]
        own = {parameter.data_ptr() for parameter in model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept, own: set[int] = own) -> torch.Tensor:
            place = tensor.untyped_storage()
            kept |= {} if place.data_ptr() in own else {place.data_ptr(): place.nbytes()}
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(collate(rows, 0, 0))
        job = planned(config, 1, 1)
        plan = memory(job)
        assert job.apart == (201 if form == "gated_prompt" else 0) and loss.isfinite()
        planned_mib = sum(plan[part] for part in ("LLM activations", "fusion and mapping")) * 1024
        assert planned_mib == pytest.approx(sum(kept.values()) / 2**20, rel=0.25), form
