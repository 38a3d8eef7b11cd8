"""Word mixing: whole words, by a function of (seed, epoch, sample) alone, and of sources alone."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from bridge_ds.config.schema import Config, ModelConfig
from bridge_ds.data.loading.corpus import open_corpus
from bridge_ds.data.loading.loader import held_out, make_loader
from bridge_ds.data.loading.steps import StepDataset
from bridge_ds.data.loading.texts import texts_of
from bridge_ds.data.loading.tokenize import Tokenizers, load_tokenizers
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.data.text.mixing import WordMixer, read_mixer
from bridge_ds.entry import exit_status
from bridge_ds.errors import BridgeError, ConfigError, DataError
from bridge_ds.testbed import dictionary
from bridge_ds.testbed.languages import GRAMMARS, vocabulary, word_list
from bridge_ds.world import World
from tests.data.conftest import make_config, task_rows

TABLE = {"dog": [["perro"], ["hund", "köter"]], "ice cream": [["helado"]], "ice": [["hielo"]], "i": [["yo"]]}
ALL = WordMixer({english: [words[0][:1]] for english, words in TABLE.items()}, 1.0)


@pytest.mark.parametrize(
    ("text", "mixed"),
    [
        ("a dog, (dog) DOG! Dog.", "a perro, (perro) PERRO! Perro."),
        ("dogs dog's well-dog dog_ dog1 do\u0300g dog\u0301", "dogs dog's well-dog perro_ dog1 do\u0300g dog\u0301"),
        ("Ice cream, ICE\n CREAM; ice, cream ice", "Helado, HELADO; hielo, cream hielo"),
        ("So I saw i", "So yo saw yo"),
        ("  no  words\tof it ", "  no  words\tof it "),
        ("", ""),
    ],
)
def test_whole_words_the_longest_entry_and_their_case(text: str, mixed: str) -> None:
    assert ALL.mix(text, 0, 0, 0) == mixed
    assert ALL.knows(text) == (mixed != text)


def test_a_pure_function_in_which_each_word_draws_by_itself() -> None:
    mixer, text = WordMixer(TABLE, 0.3), "dog cat " * 2000
    mixed = mixer.mix(text, 7, 1, 12)
    assert mixed == WordMixer(TABLE, 0.3).mix(text, 7, 1, 12)
    others = [mixer.mix(text, *key) for key in ((8, 1, 12), (7, 2, 12), (7, 1, 13))]
    assert len({mixed, *others}) == 4
    words = mixed.split()
    assert words[1::2] == ["cat"] * 2000
    counts = {word: words.count(word) / 2000 for word in ("perro", "hund", "köter")}
    # Five standard deviations: languages are drawn equally, then one of their words.
    assert counts["perro"] == pytest.approx(0.15, abs=0.04)
    assert counts["hund"] == pytest.approx(0.075, abs=0.03) == counts["köter"]
    # What is replaced by a smaller share is among what a larger one replaces.
    kept = [a == "dog" or a == b for a, b in zip(WordMixer(TABLE, 0.1).mix(text, 7, 1, 12).split(), words, strict=True)]
    assert all(kept)
    assert WordMixer(TABLE, 0.0).mix(text, 7, 1, 12) == text


def test_a_dictionary_is_read(tmp_path: Path) -> None:
    file = tmp_path / "words.tsv"
    file.write_bytes("\ufeffEnglish\tword\tLanguage\r\ncat\tgato\tes\r\n\r\ncat\tKatze\tde\ncat\tgato\tes\n".encode())
    mixer = read_mixer(str(file), 1.0)
    assert {mixer.mix("cat", 0, 0, number) for number in range(30)} == {"gato", "Katze"}
    assert mixer.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert {read_mixer(str(file), 1.0, ["de"]).mix("The CAT", 0, 0, n) for n in range(30)} == {"The KATZE"}
    # Spellings of one entry (capitals, apostrophes) are one entry.
    file.write_text("Dog\tperro\tes\ndog\tcan\tes\nDOG\tHund\tde\nDog’s bed\tcama\tes\ndog's bed\tBett\tde\n")
    mixer = read_mixer(str(file), 1.0)
    assert {mixer.mix("a dog", 0, 0, number) for number in range(60)} == {"a perro", "a can", "a Hund"}
    assert {mixer.mix("a dog's bed", 0, 0, number) for number in range(30)} == {"a cama", "a Bett"}


@pytest.mark.parametrize(
    ("content", "languages", "error", "words"),
    [
        (b"cat\tgato\n", (), DataError, "has 2 columns in line 1; expected three columns with tabs between them"),
        (b"cat\tgato\tes\ncat\tgato\tes\tx\n", (), DataError, "has 4 columns in line 2"),
        (b"cat\t\tes\n", (), DataError, "has an empty column in line 1"),
        (b"\n\n", (), DataError, "holds no entry"),
        (b"cat\tg\xff\tes\n", (), DataError, "is not UTF-8"),
        (b"cat\tgato\tes\n", ("fr",), ConfigError, "has 'fr', which no line"),
        (None, (), DataError, "cannot be read (No such file or directory)"),
    ],
)
def test_a_bad_dictionary_gets_one_sentence(
    tmp_path: Path, content: bytes | None, languages: tuple[str, ...], error: type[BridgeError], words: str
) -> None:
    file = tmp_path / "words.tsv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(error) as raised:
        read_mixer(str(file), 1.0, languages)
    assert words in str(raised.value) and str(raised.value).endswith(".")


def test_what_is_mixed_of_a_sample() -> None:
    sample = {"source": "a dog", "target": "dog", "text": "dog"}
    # Encoder and LLM read the same text in use; a prompt of its own, the target and the lesson stay as they are.
    assert texts_of(sample, "task_and_self_teaching", 0, 0, 0, ALL)[:4] == ("a perro", "a perro", "dog", "dog")
    assert texts_of(sample | {"prompt": "dog?"}, "task", 0, 0, 0, ALL)[:3] == ("a perro", "dog?", "dog")
    whole = texts_of({"text": "a dog and a dog"}, "prefix_lm", 3, 0, 0)
    mixed = texts_of({"text": "a dog and a dog"}, "prefix_lm", 3, 0, 0, ALL)
    assert mixed == whole._replace(source=ALL.mix(whole.source, 3, 0, 0), prompt=ALL.mix(whole.source, 3, 0, 0))


@pytest.fixture
def mixed(shards: Path, tmp_path: Path) -> Config:
    """Two epochs; in the dictionary are words that the encoder's tokenizer knows."""
    file = tmp_path / "words.tsv"
    file.write_text("cat\tbirds\txx\nmat\thouse\txx\nthe\tn7\tyy\n")
    return make_config(shards, steps=7, mix_words=str(file), mix_words_share=0.5)


def sources(config: Config, world: int, tokenizers: Tokenizers, first: int = 1) -> dict[tuple[int, int], list[str]]:
    """(step, sample) -> what the encoder reads, sorted."""
    found: dict[tuple[int, int], list[str]] = {}
    for rank in range(world):
        corpus = open_corpus(config.data, config.run.seed, World())
        for step, batches in enumerate(
            make_loader(config, World(rank=rank, size=world), tokenizers, first - 1, corpus=corpus), first
        ):
            for batch in batches.micro:
                for row in batch.source_ids:
                    text = tokenizers.encoder.decode(row, skip_special_tokens=True)
                    found.setdefault((step, int(text.split()[0][1:])), []).append(text)
    return found


def test_ranks_micro_batches_and_the_first_step_change_nothing(mixed: Config, tokenizers: Tokenizers) -> None:
    alone = sources(mixed, 1, tokenizers)
    other = dataclasses.replace(mixed, train=dataclasses.replace(mixed.train, micro_batch=4))
    assert sources(other, 2, tokenizers) == alone
    resumed = sources(mixed, 2, tokenizers, first=5)
    assert resumed == {key: texts for key, texts in alone.items() if key[0] >= 5}
    plain = {row: sample["source"] for row, sample in enumerate(task_rows(50))}
    changed = [key for key, texts in alone.items() if texts != [plain[key[1]]]]
    assert len(alone) > len(changed) > len(alone) // 2
    # The second time a sample is read, other words of it are replaced.
    by_sample: dict[int, set[str]] = {}
    for (_, sample), texts in alone.items():
        by_sample.setdefault(sample, set()).update(texts)
    assert sum(len(texts) == 2 for texts in by_sample.values()) > 20


def test_validation_and_the_llm_alone_read_the_texts_as_they_are(mixed: Config, tokenizers: Tokenizers) -> None:
    config = dataclasses.replace(mixed, data=dataclasses.replace(mixed.data, validation_percent=20))
    corpus = open_corpus(config.data, config.run.seed, World())
    part = held_out(config, World(), tokenizers, corpus)
    assert part
    plain = {sample["source"] for sample in task_rows(50)}
    read = [tokenizers.encoder.decode(r, skip_special_tokens=True) for b in part.micro for r in b.source_ids]
    assert read and set(read) <= plain
    assert corpus.recorded["mix_words_sha256"] == corpus.mixer.sha256  # type: ignore[union-attr]
    models = ModelConfig(encoder="none", llm=tokenizers.llm.name_or_path)
    alone = load_tokenizers(models)
    prompts = StepDataset(config, World(), alone, corpus, 1).make(1).micro[0].prompt_ids
    assert set(alone.llm.batch_decode(prompts, skip_special_tokens=True)) <= plain


@pytest.mark.parametrize("setting", [{"augment_share": 0.0}, {"augment_cipher": 1.0}, {"replay": 0.9}])
def test_the_llm_reads_held_out_texts_as_it_does_in_scoring(
    shards: Path, tokenizers: Tokenizers, setting: dict[str, float]
) -> None:
    config = make_config(shards, steps=1, global_batch=2, validation_percent=20, augment_prompt=True, **setting)
    part = held_out(config, World(), tokenizers, open_corpus(config.data, config.run.seed, World()))
    assert part
    read = [tokenizers.llm.decode(r, skip_special_tokens=True) for b in part.micro for r in b.prompt_ids]
    assert read and set(read) <= {sample["source"] for sample in task_rows(50)}


def test_the_example_shows_the_mixed_text_and_a_foreign_dictionary_is_refused(
    mixed: Config, tokenizers: Tokenizers, tmp_path: Path
) -> None:
    corpus = open_corpus(mixed.data, mixed.run.seed, World())
    dataset = StepDataset(mixed, World(), tokenizers, corpus, 1)
    batch = dataset.make(1)
    first = tokenizers.encoder.decode(batch.micro[0].source_ids[0][batch.micro[0].source_mask[0].bool()])
    assert first in batch.example and np.array_equal(batch.ids_hash, dataset.make(1).ids_hash)
    foreign = tmp_path / "foreign.tsv"
    foreign.write_text("gato\tcat\txx\n")  # the columns are exchanged
    config = dataclasses.replace(mixed, data=dataclasses.replace(mixed.data, mix_words=str(foreign)))
    with pytest.raises(DataError, match=r"no word of data.mix_words .*foreign.tsv is in the first 50 sources"):
        make_loader(config, World(), tokenizers)


def test_the_testbed_has_a_dictionary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = {language: set(word_list(language)) for language in GRAMMARS}
    english, found = set(word_list("en")), list(dictionary.entries())
    assert all(one in english and word in words[language] for one, word, language in found)
    assert ("dogs", vocabulary("qac").noun("dog", True, None), "qac") in found
    file = tmp_path / "words.tsv"
    assert exit_status(lambda: dictionary.main(["--output", str(file), "--language", "qae"])) == 0
    assert read_mixer(str(file), 1.0).mix("Review: the dogs", 0, 0, 0) == (
        f"Review: the {vocabulary('qae').noun('dog', True, None)}"
    )
    assert exit_status(lambda: dictionary.main(["--output", str(file), "--language", "si"])) == 2
    assert "language 'si' is not one of the testbed's" in capsys.readouterr().err


def test_rows_of_every_objective_can_be_packed(tmp_path: Path) -> None:
    pack_rows([{"text": "the cat sat"}, {"source": "gato", "text": "the cat"}], tmp_path / "own")
    config = make_config(tmp_path / "own", steps=1, global_batch=2, objective="self_teaching")
    corpus = open_corpus(config.data, 0, World())
    rows = corpus.rows(np.arange(2))
    read = [texts_of(corpus.read(rows, row), "self_teaching", 0, 0, row)[:4] for row in range(2)]
    assert sorted(read) == [("gato", "gato", None, "the cat"), ("the cat sat", "the cat sat", None, "the cat sat")]
