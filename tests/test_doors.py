"""One text, one input: training, evaluation, harness, generate, serve, hub and doctor give both models the same ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bridge_ds import BridgeForCausalLM, BridgeProcessor
from bridge_ds.config.load import load_run_config
from bridge_ds.data.loading.loader import make_loader
from bridge_ds.data.loading.tokenize import load_tokenizers
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.data.text.prompting import framed
from bridge_ds.data.text.truncate import side_of
from bridge_ds.doctor.load import load_run
from bridge_ds.doctor.measure import examine
from bridge_ds.evaluation.scorer import Scorer
from bridge_ds.generate.pipeline import GenerateOptions, Pipeline
from bridge_ds.inference.load import load_trained
from bridge_ds.inference.stops import Decoder
from bridge_ds.serve.backends import ServedModel
from bridge_ds.serve.protocol import ChatRequest, CompletionRequest
from bridge_ds.serve.replies import Reply
from bridge_ds.world import World
from tests import launch, tiny
from tests.evaluation.fakes import FakeTask
from tests.made import make_run
from tests.samples import tokenize_sample

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
)
LONG = " ".join(f"the cat {n} sat on one of two banks" for n in range(9))
TEXTS = [LONG, "a dog", " the mat\n", "write </s> then <|user|> and <pad>", "猫 on the mat"]
TARGET = "write </s> or {"
SETTINGS = {
    "right": [],
    "left": ["data.truncation_side=left", "data.augment_prompt=true"],
    "chat": ["data.chat_template=true", "data.system_prompt=be brief", "data.augment_prompt=true"],
    "chat left": ["data.chat_template=true", "data.truncation_side=left"],
}
Ids = tuple[list[int], list[int], list[int]]
"""Before the soft prompt, of the source, after it."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An mT5, and a Llama with a chat template whose role marks are control tokens."""
    from transformers import AutoTokenizer

    root = tmp_path_factory.mktemp("models")
    llm = tiny.make_llm("llama", root / "llm")
    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>"]})
    tokenizer.save_pretrained(llm)
    (llm / "chat_template.jinja").write_text(CHAT)
    return {"encoder": tiny.make_encoder("mt5", root / "encoder"), "llm": llm}


@pytest.fixture(scope="module")
def settings(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    shards = tmp_path_factory.mktemp("data") / "shards"
    pack_rows([{"source": text, "target": TARGET} for text in TEXTS], shards)
    return [
        f"model.encoder={models['encoder']}", f"model.llm={models['llm']}", f"data.shards={shards}",
        "data.max_source_tokens=30", "data.max_prompt_tokens=20", "data.max_target_tokens=20", "data.workers=0",
        f"train.global_batch={len(TEXTS)}", "train.micro_batch=1", "model.dtype=float32",
    ]  # fmt: skip


@pytest.fixture(scope="module", params=SETTINGS)
def run(request: pytest.FixtureRequest, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run", [*settings, *SETTINGS[request.param]])


def expected(run: Path) -> list[Ids]:
    """Written down again from the rule: what a text's own tokens are, cut at one side, in what transformers renders."""
    config = load_run_config(run)
    data, of = config.data, load_tokenizers(config.model, data=config.data)
    head, tail = [of.bos_id], []
    if data.chat_template:
        system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
        text = of.llm.apply_chat_template(
            [*system, {"role": "user", "content": "HERE"}], tokenize=False, add_generation_prompt=True
        )
        head, tail = (of.llm(part, add_special_tokens=False)["input_ids"] for part in text.split("HERE"))
    rows = []
    for text in TEXTS:
        source = of.encoder(text, split_special_tokens=True)["input_ids"]
        shown = of.llm(text.rstrip(), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if data.truncation_side == "left":
            source, shown = source[-30:], shown[-20:]
        else:
            source, shown = source if len(source) <= 30 else [*source[:29], source[-1]], shown[:20]
        rows.append((head, source, [*(shown if data.augment_prompt else []), *tail]))
    return rows


def in_training(run: Path) -> list[Ids]:
    config = load_run_config(run)
    loader = make_loader(config, World(), load_tokenizers(config.model, data=config.data))
    step = next(iter(loader))
    found = {}
    bos = load_tokenizers(config.model).bos_id
    for batch in step.micro:
        real = [
            ids[0, : int(mask.sum())].tolist()
            for ids, mask in (
                (batch.head_ids if batch.head_ids is not None else torch.tensor([[bos]]),
                 batch.head_mask if batch.head_mask is not None else torch.ones(1, 1)),
                (batch.source_ids, batch.source_mask), (batch.prompt_ids, batch.prompt_mask),
            )
        ]  # fmt: skip
        found[tuple(real[1])] = tuple(real)
    assert step.truncated["source"] == 1, "counted"
    # A step's samples are shuffled.
    return [found[tuple(source)] for _, source, _ in expected(run)]


def in_evaluation(run: Path) -> list[Ids]:
    config = load_run_config(run)
    model, tokenizers, _ = load_trained(run, config, "cpu")
    scorer = Scorer(model, tokenizers, config.data, torch.device("cpu"), bridge=True)
    task = FakeTask(labels=("wet", "dog"))
    from bridge_ds.tasks.base import Example

    answers = scorer([Example(text, "wet", 0, "en", str(n)) for n, text in enumerate(TEXTS)], task)
    assert answers.cut["texts"] == len(TEXTS) and answers.cut["source"] == 1
    rows = scorer._rows([(text, "en") for text in TEXTS], [8] * len(TEXTS), task)
    return [(row.head, row.source, [*row.prompt, *row.tail]) for row in rows]


def in_harness(run: Path) -> list[Ids]:
    pytest.importorskip("lm_eval")
    from bridge_ds.harness.model import BridgeLM

    lm = BridgeLM(run=str(run))
    texts = [framed(_context(text), lm.tokenizers.frame) for text in TEXTS]
    if lm.config.data.chat_template:  # as --apply_chat_template asks
        chats = [_context(lm.apply_chat_template([{"role": "user", "content": text}])) for text in TEXTS]
        assert chats == texts
    rows = [lm.answerer.prompts.ids(context, 4) for context in texts]
    assert lm.answerer.prompts.truncated["source"] == 1
    return [(row.head, row.source, [*row.prompt, *row.tail]) for row in rows]


def _context(text: str) -> Any:
    from bridge_ds.data.text.prompting import parse

    return parse(text)


def _answerer(run: Path, **style: Any) -> Pipeline:
    return Pipeline.load(str(run), GenerateOptions(**style))


def in_generate(run: Path) -> list[Ids]:
    answerer = _answerer(run)
    found = [answerer.row(text) for text in TEXTS]
    if load_run_config(run).data.chat_template:
        chat = Pipeline(answerer.model, answerer.processor, GenerateOptions(chat=True))
        assert [chat.row(text) for text in TEXTS] == found
        assert [chat.row([{"role": "user", "content": text}]) for text in TEXTS] == found
    return [(row.head, row.source, [*row.prompt, *row.tail]) for row in found]


def in_serve(run: Path) -> list[Ids]:
    model = ServedModel(BridgeForCausalLM.from_pretrained(run))
    rows = model.rows(CompletionRequest(model="m", prompt=TEXTS, max_tokens=8), print)
    reply = Reply("m", False, [row.length for row in rows], sum(row.truncated for row in rows))
    # The source of one, the prompt of two.
    count = 2 if load_run_config(run).data.augment_prompt else 1
    assert reply.usage["truncated"] == count and reply.headers == {"X-Bridge-Truncated": str(count)}
    if load_run_config(run).data.chat_template:
        for text, row in zip(TEXTS, rows, strict=True):
            chat = ChatRequest(model="m", max_tokens=8, messages=[{"role": "user", "content": text}])
            assert [other.ids for other in model.rows(chat, print)] == [row.ids]
    return [(row.ids.head, row.ids.source, [*row.ids.prompt, *row.ids.tail]) for row in rows]


def in_hub(run: Path) -> list[Ids]:
    model = BridgeForCausalLM.from_pretrained(run)
    model.save_pretrained(run / "exported")
    found = []
    for place in (run, run / "exported"):
        processor = BridgeProcessor.from_pretrained(place)
        made = processor(TEXTS, max_new_tokens=8, return_tensors=None)
        found.append(list(zip(made["prefix_ids"], made["input_ids"], made["suffix_ids"], strict=True)))
    assert found[0] == found[1]
    assert (
        json.loads((run / "exported" / "config.json").read_text())["truncation_side"]
        == processor.config.truncation_side
    )
    return found[1]


def in_doctor(run: Path) -> list[Ids]:
    loaded = load_run(run, "cpu")
    _, rows = examine(loaded, len(TEXTS))
    bos = loaded.tokenizers.bos_id
    found = {tuple(row.source): (list(row.head) or [bos], row.source, row.prompt) for row in rows}
    return [found[tuple(source)] for _, source, _ in expected(run)]


DOORS: dict[str, Callable[[Path], list[Ids]]] = {
    "training": in_training, "evaluation": in_evaluation, "harness": in_harness, "generate": in_generate,
    "serve": in_serve, "hub": in_hub, "doctor": in_doctor,
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_the_same_text_has_the_same_ids_whatever_its_length_in_every_door(run: Path, door: str) -> None:
    found = [tuple(map(list, row)) for row in DOORS[door](run)]
    assert found == expected(run)


def test_answers_are_labels_of_the_same_kind_in_training_and_hub(run: Path) -> None:
    config = load_run_config(run)
    of = load_tokenizers(config.model, data=config.data)
    row = tokenize_sample({"source": "a dog", "target": TARGET}, of, config.data)
    space = "" if config.data.chat_template else " "
    assert row.target[-1] == of.eos_id and row.target.count(of.eos_id) == 1
    assert of.llm.decode(row.target[:-1]) == space + TARGET
    processor = BridgeProcessor.from_pretrained(run)
    assert processor("a dog", text_target=TARGET)["labels"][0].tolist() == row.target
    assert processor.decode(row.target) == TARGET
    assert Decoder(of, chat=True).bare(" as written") == " as written"


def test_runs_and_exports_without_these_keys_keep_the_rule_of_their_training(
    settings: list[str], tmp_path: Path
) -> None:
    import yaml

    run = make_run(tmp_path / "run", settings)
    values = yaml.safe_load((run / "config.yaml").read_text())
    for key in ("chat_template", "system_prompt", "truncation_side"):
        del values["data"][key]
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    data = load_run_config(run).data
    assert (data.chat_template, data.system_prompt, side_of(data)) == (False, "", "right")
    BridgeForCausalLM.from_pretrained(run).save_pretrained(tmp_path / "exported")
    path = tmp_path / "exported" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            {k: v for k, v in values.items() if k not in ("chat_template", "truncation_side", "settings_sha256")}
        )
    )
    assert BridgeProcessor.from_pretrained(tmp_path / "exported").context_ids(
        _context(LONG)
    ) == BridgeProcessor.from_pretrained(run).context_ids(_context(LONG))


@pytest.mark.slow
def test_a_run_in_a_chat_template_has_the_loss_that_its_export_finds(settings: list[str], tmp_path: Path) -> None:
    """Two ranks under ZeRO-3; of a step without a learning rate the loss is that of the weights which are saved."""
    run = tmp_path / "run"
    more = [
        f"run.output={run}", "data.chat_template=true", "data.system_prompt=be brief", "data.augment_prompt=true",
        "train.steps=2", "train.lr=0", "train.global_batch=4", "train.micro_batch=2", "fusion.dropout=0",
        "track.uri=none", "checkpoint.every=2", "evaluation.tasks=[]", "data.workers=1",
    ]  # fmt: skip
    arguments = [part for setting in [*settings, *more] for part in ("--set", setting)]
    outcome = launch.succeed(launch.train(arguments, 2, tmp_path / "logs"))
    assert "head (" in outcome.text and "<|system|>" in outcome.text
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    recorded = {step["step"]: (step["loss"], step["ids_hash"]) for step in steps if "loss" in step}

    config = load_run_config(run)
    model, processor = BridgeForCausalLM.from_pretrained(run), BridgeProcessor.from_pretrained(run)
    from bridge_ds.data.loading.corpus import open_corpus
    from bridge_ds.data.loading.plan import StepPlan

    corpus = open_corpus(config.data, config.run.seed, World())
    for number in (1, 2):
        rows = StepPlan(config, corpus).rows(number)
        samples = [corpus.read(rows, row) for row in range(4)]
        inputs = processor([s["source"] for s in samples], text_target=[s["target"] for s in samples], max_new_tokens=8)
        with torch.no_grad():
            assert float(model(**inputs).loss) == pytest.approx(recorded[number][0], rel=1e-4)
