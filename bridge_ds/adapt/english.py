"""What an adapted encoder has lost of English: a guard, measured with the original weights and with the trained ones.

Dimensions: B sentences of a batch, S encoder tokens, N sentences, D encoder width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bridge_ds.adapt.model import EncoderAlone
from bridge_ds.config.schema import Config
from bridge_ds.data.loading.adapting import adapted_ids, adapting_batch, cut
from bridge_ds.data.loading.collate import pad
from bridge_ds.data.loading.corpus import open_corpus
from bridge_ds.data.loading.tokenize import Tokenizers, language_of
from bridge_ds.data.shards.samples import BadSample
from bridge_ds.encoder.pool import mean_state
from bridge_ds.encoder.retrieval import retrieval
from bridge_ds.errors import DataError
from bridge_ds.objectives import OBJECTIVES
from bridge_ds.reading import NotText, decoded
from bridge_ds.world import World

__all__ = ["English", "Guarded", "check_english", "english_of", "guarded", "read"]

_MOST = 500
"""Sentences that are measured."""
_ROWS = 16
"""Sentences of a forward pass."""
_LEAST = 20
"""Fewest sentences: of fewer, retrieval says nothing."""


@dataclass(frozen=True)
class Guarded:
    """Sentences to measure."""

    english: tuple[str, ...]
    others: tuple[str, ...] = ()
    """Their translations, if there are any: those that the encoder was trained on."""
    languages: tuple[object, ...] = ()
    """Codes of these, for an encoder with language tags."""


@dataclass(frozen=True)
class English:
    """Before and after, by layer where it says so."""

    sentences: int
    cosine: list[float]
    """By layer: mean cosine of a sentence's mean states before and after; 1 = as it was."""
    same: list[float]
    """By layer: share of the sentences whose state after is nearest to its own before, among all of them."""
    translations: dict[str, list[float]]
    """`before`, `after` -> by layer: share of the sentences that find their translation and are found by it
    (:attr:`bridge_ds.encoder.retrieval.Retrieval.both`), the encoder's own states on both sides; empty where there are
    no pairs."""
    loss: dict[str, float]
    """`before`, `after` -> nats for a hidden token; empty where no text was read."""

    def lines(self) -> list[str]:
        """For the user."""
        said = [
            f"English, {self.sentences} sentences, before -> after: cosine of the mean states "
            f"{min(self.cosine):.3f} (lowest layer), nearest to itself {100 * min(self.same):.1f} %"
        ]
        if self.loss:
            said.append(f"  loss of a hidden English token {self.loss['before']:.3f} -> {self.loss['after']:.3f} nats")
        if self.translations:
            best = {when: max(shares) for when, shares in self.translations.items()}
            said.append(
                f"  the training pairs, retrieval at the best layer {100 * best['before']:.1f} % -> "
                f"{100 * best['after']:.1f} %"
            )
        return said

    def as_json(self) -> dict[str, Any]:
        """For english.json."""
        return asdict(self)


def check_english(config: Config) -> None:
    """Read `adapt.english`, if a run will, before it trains.

    Raises:
        DataError: as :func:`english_of`.
    """
    if config.adapt.english and not config.model.has_llm:
        _lines(Path(config.adapt.english))


def english_of(config: Config, world: World) -> Guarded | None:
    """The sentences by which a run is guarded: those of `adapt.english`, else those of its pairs; None = there are
    none.

    Raises:
        DataError: the file cannot be read, or has too few lines.
    """
    if config.adapt.english:
        return Guarded(tuple(_lines(Path(config.adapt.english))))
    objective = OBJECTIVES[config.data.objective]
    if not objective.aligns:
        return None
    corpus = open_corpus(config.data, config.run.seed, world)
    rows = corpus.once(4 * _MOST)
    others: dict[str, tuple[str, object]] = {}  # of a sentence that comes twice, once: it could not be told from itself
    for which in range(len(rows.numbers)):
        try:
            sample = corpus.read(rows, which)
        except BadSample:
            continue
        if "target" in objective.of(sample).required:
            others.setdefault(sample["target"], (sample["source"], language_of(sample, config.data)))
    if len(others) < _LEAST:
        return None
    english, found = zip(*islice(others.items(), _MOST), strict=True)
    return Guarded(english, *zip(*found, strict=True))


@dataclass(frozen=True)
class Reading:
    """One reading of all sentences: mean states [N, D] of each layer, and the loss of hidden tokens."""

    english: list[torch.Tensor]
    others: list[torch.Tensor]
    loss: float | None


@torch.no_grad()
def read(model: EncoderAlone, tokenizers: Tokenizers, config: Config, of: Guarded) -> Reading:
    """Read the sentences with the weights that the model has now."""
    model.eval()
    english = _states(model, tokenizers, config, of.english, ["en"] * len(of.english))
    others = (
        _states(model, tokenizers, config, of.others, of.languages or (None,) * len(of.others)) if of.others else []
    )
    how, nll, count = tokenizers.adapting, 0.0, 0
    if model.predictor is None or how is None:
        return Reading(english, others, None)
    texts = [{"text": text} for text in of.english]
    numbers = list(range(len(texts)))
    data = config.data
    rows = adapted_ids(texts, tokenizers, data, ["en"] * len(texts), 0, [0] * len(texts), numbers)
    good = [row for row in rows if not isinstance(row, BadSample)]
    for part in _parts(good):
        batch = adapting_batch(part, tokenizers.encoder_pad_id, replace(how, aligns=False)).to(model.device)
        nll += float(model(batch))
        count += batch.target_tokens
    return Reading(english, others, nll / max(1, count))


def guarded(before: Reading, after: Reading) -> English:
    """What has changed between two readings."""
    pairs = list(zip(before.english, after.english, strict=True))
    found = {"before": before, "after": after}
    return English(
        sentences=len(before.english[0]),
        cosine=[round(float(F.cosine_similarity(one, two).mean()), 6) for one, two in pairs],
        same=[_nearest(two, one) for one, two in pairs],
        translations={
            when: [
                retrieval(other.double().numpy(), english.double().numpy()).both
                for english, other in zip(of.english, of.others, strict=True)
            ]
            for when, of in found.items()
            if of.others
        },
        loss={when: round(of.loss, 6) for when, of in found.items() if of.loss is not None},
    )  # fmt: skip


def _nearest(asked_ND: torch.Tensor, among_ND: torch.Tensor) -> float:
    """Share of rows whose nearest by cosine, among those of another set, has the same number."""
    cosines_NN = F.normalize(asked_ND, dim=-1) @ F.normalize(among_ND, dim=-1).T
    return float((cosines_NN.argmax(1) == torch.arange(len(asked_ND))).float().mean())


def _states(
    model: EncoderAlone, tokenizers: Tokenizers, config: Config, texts: Sequence[str], languages: Sequence[object]
) -> list[torch.Tensor]:
    found: list[list[torch.Tensor]] = []
    for part in _parts(list(zip(texts, languages, strict=True))):
        sources = tokenizers.sources([text for text, _ in part], [code for _, code in part])
        rows = [cut(row, tokenizers, config.data) for row in sources]
        ids, mask = (tensor.to(model.device) for tensor in pad(rows, tokenizers.encoder_pad_id))
        found.append([mean_state(state, mask).cpu() for state in model.encoder(ids, mask)])
    return [torch.cat(layer) for layer in zip(*found, strict=True)]


def _parts(items: Sequence[Any]) -> Iterator[list[Any]]:
    each = iter(items)
    while part := list(islice(each, _ROWS)):
        yield part


def _lines(path: Path) -> list[str]:
    try:
        lines = (line.strip() for line in decoded(path.read_bytes()).split("\n"))
        found = list(dict.fromkeys(filter(None, lines)))
    except NotText as error:
        raise DataError(f"adapt.english: {path} {error}.") from None
    except OSError as error:
        raise DataError(
            f"adapt.english: {path} cannot be read ({error.strerror}); expected a text file; check the path."
        ) from None
    if len(found) < _LEAST:
        raise DataError(
            f"adapt.english: {path} has {len(found)} different lines with text; expected {_LEAST} English sentences or "
            "more; add some."
        )
    return found[:_MOST]
