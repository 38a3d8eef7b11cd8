"""Encoders that take a language tag: the ids are those of the tokenizer switched to it, at every door."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bridge_ds.config.schema import DataConfig, ModelConfig
from bridge_ds.data.loading.corpus import open_corpus
from bridge_ds.data.loading.loader import make_loader
from bridge_ds.data.loading.tokenize import Tokenizers, load_tokenizers, tokenize_samples
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.data.shards.samples import BadSample
from bridge_ds.data.text import languages
from bridge_ds.data.text.prompting import Context, Limits, context_ids
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.testbed import ENCODER_PATH
from bridge_ds.world import World
from tests import made, tiny
from tests.choices import table
from tests.data.conftest import make_config
from tests.samples import tokenize_sample

SINHALA = "පූසා පැදුර මත"
WORDS = ["▁", "▁the", "▁cat", "▁පූසා", "▁පැදුර", "▁මත", *"abcehtqu", *dict.fromkeys(SINHALA.replace(" ", ""))]
TAGS = {"nllb": "sin_Sinh", "m2m": "si", "mbart": "si_LK"}
ENGLISH = {"nllb": "eng_Latn", "m2m": "en", "mbart": "en_XX"}


def save_tagged(kind: str, folder: Path) -> Path:
    """A small tokenizer of the family's own class."""
    from transformers import M2M100Tokenizer, MBartTokenizer, NllbTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    names = {name: number for number, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    if kind == "nllb":
        NllbTokenizer(vocab=names, merges=[]).save_pretrained(folder)
    elif kind == "mbart":
        MBartTokenizer(vocab=[(name, -float(number)) for name, number in names.items()]).save_pretrained(folder)
    else:
        import sentencepiece

        spiece = sentencepiece.SentencePieceProcessor(model_file=str(ENCODER_PATH / "spiece.model"))
        pieces = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", *map(spiece.id_to_piece, range(len(spiece)))])
        (folder / "own.json").write_text(json.dumps({piece: id for id, piece in enumerate(pieces)}))
        M2M100Tokenizer(str(folder / "own.json"), str(ENCODER_PATH / "spiece.model")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=list(TAGS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tagged(kind: str, tmp_path: Path, llm_folder: Path) -> Tokenizers:
    return load_tokenizers(ModelConfig(encoder=str(save_tagged(kind, tmp_path / kind)), llm=str(llm_folder)))


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was said yet."""
    monkeypatch.setattr(languages, "_said", set())


def expected(of: Tokenizers, tag: str, text: str = SINHALA) -> list[int]:
    """What transformers gives for a source language."""
    import copy

    switched: Any = copy.deepcopy(of.encoder)
    switched.src_lang = tag
    ids: list[int] = switched(text)["input_ids"]
    return ids


def test_language_tag_of_a_source_by_any_name_of_its_language(tagged: Tokenizers, kind: str) -> None:
    right, english = expected(tagged, TAGS[kind]), expected(tagged, ENGLISH[kind])
    assert right != english and len(right) == len(english)
    for name in ("si", "sin", "sin_Sinh", "si-LK", "si_LK", "SI", TAGS[kind]):
        assert tagged.source_ids(SINHALA, name) == right, name
    assert tagged.source_ids(SINHALA, ENGLISH[kind]) == tagged.source_ids(SINHALA) == english
    assert tagged.sources([SINHALA] * 3, ["en", "si", "en"]) == [english, right, english]
    assert pickle.loads(pickle.dumps(tagged)).source_ids(SINHALA, "si") == right  # as in a data worker
    assert tagged.encoder.src_lang == ENGLISH[kind]  # type: ignore[attr-defined]
    nllb_only = {"zh": "zho_Hans", "zh-TW": "zho_Hant", "ar": "arb_Arab", "sw": "swh_Latn", "hin_Latn": "hin_Deva"}
    for name, tag in nllb_only.items() if kind == "nllb" else ():
        assert tagged.languages and tagged.languages.find(name) == tag


@pytest.mark.usefixtures("fresh")
def test_language_is_found_while_another_thread_clears_what_is_kept() -> None:
    class Cleared(dict[str, Any]):
        def __setitem__(self, name: str, value: object) -> None:
            """As where a thread clears it just then."""

    found = languages.SourceLanguages("en", {"en": ((1,), ()), "si": ((2,), ())})
    object.__setattr__(found, "_found", Cleared())
    assert found.find("sin") == "si" and found.find("zu") is None


def test_language_unknown_is_said_once_and_names_the_tag(
    tagged: Tokenizers, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    samples = [{"source": SINHALA, "target": "the"}] * 2
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            rows = tokenize_samples(samples, tagged, DataConfig())
    assert [row.source for row in rows if not isinstance(row, BadSample)] == [expected(tagged, ENGLISH[kind])] * 2
    (said,) = caplog.messages
    assert f"{ENGLISH[kind]} is used" in said and "data.source_language" in said


def test_language_that_the_encoder_lacks_is_refused_with_the_nearest(tagged: Tokenizers, tmp_path: Path) -> None:
    with pytest.raises(BadSample, match=r"language 'sinn' is none of the encoder's; .* did you mean 'sin"):
        tokenize_sample({"source": "the", "target": "the", "language": "sinn"}, tagged, DataConfig())
    with pytest.raises(BadSample, match=r"language \['si'\] is none of the encoder's"):
        tokenize_sample({"source": "the", "target": "the", "language": ["si"]}, tagged, DataConfig())
    pack_rows([{"source": "the cat", "target": "the"}] * 16, tmp_path / "shards")
    config = make_config(tmp_path / "shards", source_language="sinn")
    pack_rows([{"source": "the cat", "target": "the"}] * 16, tmp_path / "named", language="sinn")
    with pytest.raises(ConfigError, match=r"the index of .*named .data.source_language overrides it.: the language"):
        make_loader(make_config(tmp_path / "named"), World(), tagged)
    make_loader(make_config(tmp_path / "named", source_language="si"), World(), tagged)
    with pytest.raises(ConfigError, match=r"data.source_language: the language 'sinn' .* did you mean 'sin"):
        make_loader(config, World(), tagged)


@pytest.mark.usefixtures("fresh")
def test_language_comes_from_the_sample_then_the_setting_then_the_shard(
    tagged: Tokenizers, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"source": SINHALA, "target": "the"}, {"source": SINHALA, "target": "the", "language": "en"}]
    pack_rows(rows, tmp_path / "shards", language="si")
    config = make_config(tmp_path / "shards", global_batch=2)
    si, en, am = (expected(tagged, tag) for tag in (TAGS[kind], ENGLISH[kind], languages_tag(tagged, "ar")))
    for setting, first in (("", si), ("ar", am)):
        data = DataConfig(shards=str(tmp_path / "shards"), source_language=setting)
        corpus = open_corpus(data, 0, World())
        read = [corpus.read(corpus.rows(np.arange(2)), which) for which in (0, 1)]
        found = tokenize_samples(sorted(read, key=lambda row: "language" in row), tagged, data)
        assert [row.source for row in found if not isinstance(row, BadSample)] == [first, en]
    step = next(iter(make_loader(config, World(), tagged)))
    batch = step.micro[0]
    assert sorted(ids.tolist() for ids in batch.source_ids) == sorted([si, en])
    assert not caplog.messages


@pytest.mark.usefixtures("fresh")
def test_language_of_each_sample_is_kept_under_another_name(tmp_path: Path) -> None:
    """--map packs nothing but what it names; of tars that others made it is read from there."""
    from bridge_ds.data.packing.index_folder import index_folder
    from bridge_ds.data.packing.job import PackOptions, pack_parts
    from bridge_ds.data.packing.sources import file_parts, parse_map

    (tmp_path / "a.tsv").write_text("q\ta\tiso\n" + f"{SINHALA}\tthe\tsi\n", "utf-8")
    mapping = parse_map(["source=q", "target=a", "language=iso"])
    pack_parts(file_parts([tmp_path / "a.tsv"]), PackOptions(mapping=tuple(mapping.items())), tmp_path / "mapped")
    corpus = open_corpus(DataConfig(shards=str(tmp_path / "mapped")), 0, World())
    right = {"source": SINHALA, "target": "the", "language": "si"}
    assert corpus.read(corpus.rows(np.arange(1)), 0) == right
    pack_rows([{"source": SINHALA, "target": "the", "iso": "si"}], tmp_path / "theirs")
    index_folder(tmp_path / "theirs", fields=parse_map(["language=iso"]))
    corpus = open_corpus(DataConfig(shards=str(tmp_path / "theirs")), 0, World())
    assert corpus.read(corpus.rows(np.arange(1)), 0) == right | {"iso": "si"}


def languages_tag(of: Tokenizers, language: str) -> str:
    assert of.languages
    return of.languages.tag(language)


def test_language_tag_outlives_every_cut(tagged: Tokenizers, kind: str) -> None:
    assert tagged.languages
    before, after = (list(part) for part in tagged.languages.frames[TAGS[kind]])
    text = " ".join(["the cat"] * 30)
    for objective in ("task", "prefix_lm"):
        data = DataConfig(objective=objective, max_source_tokens=8)
        row = tokenize_sample({"source": text, "target": "the", "text": text, "language": "si"}, tagged, data)
        assert len(row.source) == 8 and row.source[: len(before)] == before
        assert row.source[-len(after) :] == after
    ids = context_ids(tagged, Context(text, language="si"), Limits(8, 8), 4)
    assert len(ids.source) == 8 and ids.source[: len(before)] == before and ids.source[-len(after) :] == after


def test_an_encoder_without_tags_takes_any_language(tokenizers: Tokenizers) -> None:
    assert tokenizers.languages is None
    plain = tokenizers.source_ids("the cat")
    assert tokenizers.source_ids("the cat", "xx") == plain
    row = tokenize_sample({"source": "the cat", "target": "a", "language": "English"}, tokenizers, DataConfig())
    assert row.source == plain


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an NLLB-like encoder, as training leaves one."""
    folder = tmp_path_factory.mktemp("nllb")
    encoder = tiny.make_encoder("m2m_100", folder / "encoder", vocab=300)
    for path in encoder.glob("*token*"):
        path.unlink()
    save_tagged("nllb", encoder)
    settings = [
        f"model.encoder={encoder}",
        f"model.llm={tiny.make_llm('llama', folder / 'llm')}",
        "model.dtype=float32",
    ]
    return made.make_run(folder / "run", settings)


def test_language_at_every_door_gives_the_ids_of_the_switched_tokenizer(run: Path, tmp_path: Path) -> None:
    """Processor, generate, server, export, harness and evaluation."""
    from bridge_ds.generate.files import answer_file
    from bridge_ds.generate.pipeline import GenerateOptions, Pipeline
    from bridge_ds.hub.processor import BridgeProcessor
    from bridge_ds.serve.backends import ServedModel
    from bridge_ds.serve.protocol import APIError, CompletionRequest, ServerLimits, parse_request

    answerer = Pipeline.load(str(run), GenerateOptions(max_new_tokens=3))
    processor = answerer.processor
    si, en = expected(processor.tokenizers, "sin_Sinh"), expected(processor.tokenizers, "eng_Latn")
    lists = processor([SINHALA, SINHALA], language=["si", "en"], return_tensors=None)
    assert lists["input_ids"] == [si, en]
    assert processor(SINHALA, language="si", return_tensors=None)["input_ids"] == [si]
    with pytest.raises(DataError, match=r"there are 1 of language for 2 texts"):
        processor([SINHALA] * 2, language=["si"])
    with pytest.raises(DataError, match=r"language 'sinn' .* did you mean"):
        processor(SINHALA, language="sinn")

    assert answerer.row(SINHALA, "si").source == si
    spoken = Pipeline(answerer.model, processor, GenerateOptions(language="si"))
    assert spoken.row(SINHALA).source == si and spoken.row(SINHALA, "en").source == en
    lines = [{"source": SINHALA, "language": "si"}, {"source": SINHALA, "language": "en"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answer_file(answerer, tmp_path / "in.jsonl", tmp_path / "out.jsonl", "source", 1)
    written = [json.loads(line)["answer"] for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert written == [answerer.write([answerer.row(SINHALA, code)])[0] for code in ("si", "en")]

    model = ServedModel(answerer.model)
    body = {"model": "m", "prompt": SINHALA, "language": "si"}
    (row,) = model.rows(parse_request(CompletionRequest, body, "m", ServerLimits()), print)
    assert row.ids.source == si
    with pytest.raises(APIError, match=r"language 'sinn' .* did you mean") as refused:
        model.rows(parse_request(CompletionRequest, body | {"language": "sinn"}, "m", ServerLimits()), print)
    assert (refused.value.status, refused.value.param) == (400, "language")
    # The LLM alone, which a table may choose for a language, needs no tag.
    model.choice = table(sinn="llm")
    (row,) = model.rows(parse_request(CompletionRequest, body | {"language": "sinn"}, "m", ServerLimits()), print)
    assert row.way == "llm" and not row.ids.source
    unknown = Pipeline(answerer.model, processor, GenerateOptions(language="sinn"))
    with pytest.raises(ConfigError, match="--language: the language 'sinn'"):
        unknown.check_language()
    unknown.choice = table(sinn="llm")
    unknown.check_language()
    languages = processor.tokenizers.languages
    assert languages and languages.find("si_1") == languages.find("si")
    for number in range(3000):  # a client may ask for any
        languages.find(f"si_{number}")
    assert len(languages._found) <= 1000
    with pytest.raises(APIError, match="language is 3; expected a valid string"):
        parse_request(CompletionRequest, body | {"language": 3}, "m", ServerLimits())

    answerer.model.config.source_language = "si"
    answerer.model.save_pretrained(tmp_path / "exported")
    assert BridgeProcessor.from_pretrained(tmp_path / "exported")(SINHALA, return_tensors=None)["input_ids"] == [si]


@pytest.mark.usefixtures("fresh")
def test_language_of_a_benchmark_and_of_a_harness_task(
    run: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from bridge_ds.evaluation.scorer import Scorer
    from bridge_ds.harness.model import BridgeLM
    from bridge_ds.tasks.base import Example
    from bridge_ds.tasks.xnli import Xnli

    lm = BridgeLM(run=str(run))
    si, en = expected(lm.tokenizers, "sin_Sinh"), expected(lm.tokenizers, "eng_Latn")
    for name, tag in {"belebele_sin_Sinh": "sin_Sinh", "xnli_sw": "swh_Latn", "lambada_mt_it": "ita_Latn"}.items():
        assert lm._language_of(SimpleNamespace(task_name=name)) == tag
    assert lm._language_of(SimpleNamespace(task_name="hellaswag")) == ""
    asked = [
        SimpleNamespace(args=(SINHALA, " the"), doc_id=0, task_name=name) for name in ("belebele_sin_Sinh", "xnli_en")
    ]
    seen: list[list[int]] = []
    made = lm.answerer.prompts.ids
    lm.answerer.prompts.ids = lambda context, room: seen.append((found := made(context, room)).source) or found  # type: ignore
    lm.loglikelihood(asked, disable_tqdm=True)
    assert sorted(seen) == sorted([si, en])
    assert "task belebele_sin_Sinh: its contexts are given to the encoder as sin_Sinh" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"language in --model_args: the language 'sinn'"):
        BridgeLM(run=str(run), language="sinn")

    scorer = Scorer(lm.answerer.generator.model, lm.tokenizers, DataConfig(), torch.device("cpu"), bridge=True)
    examples = [Example(SINHALA, "Neutral", 1, code, f"{code}", null="Label:") for code in ("si", "en", "qaa", "qaa")]
    rows = scorer._rows([(each.source, each.language) for each in examples], [4] * len(examples), Xnli())
    assert [row.source for row in rows] == [si, en, en, en]
    assert len(scorer(examples, Xnli()).predictions) == 4
    assert [m for m in caplog.messages if "'qaa'" in m and "eng_Latn is used" in m] == caplog.messages[-1:]
