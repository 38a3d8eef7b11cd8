"""Measure a loaded run on some of its own training samples.

Dimensions: B batch, S encoder tokens, X spliced length, H LLM width, N target tokens, M soft vectors,
P positions of a soft prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
import torch.nn.functional as F

from bridge_ds.bridge import BridgeModel
from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.loading.collate import collate
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.data.loading.tokenize import Tokenizers, tokenize_samples
from bridge_ds.doctor.load import LoadedRun, training_samples
from bridge_ds.doctor.measurements import Measurements
from bridge_ds.errors import DataError
from bridge_ds.llm.loss import predicting
from bridge_ds.llm.splice import Spliced

__all__ = ["Losses", "SoftStatistics", "examine", "lookalikes", "losses", "others", "without_soft"]

BATCH = 16
"""Samples in one forward pass."""
POSITIONS = 16
"""First positions of the soft prompt that are reported one by one."""


def examine(loaded: LoadedRun, count: int) -> tuple[Measurements, list[TokenizedSample]]:
    """All measurements on `count` samples, and the samples as token ids.

    Raises:
        DataError: the run's shards cannot be read, or hold no usable sample.
    """
    config, tokenizers = loaded.config, loaded.tokenizers
    raw, numbers = training_samples(loaded.run, config, count)
    found = tokenize_samples(raw, tokenizers, config.data, seed=config.run.seed, numbers=numbers)
    rows = [row for row in found if isinstance(row, TokenizedSample)]
    if not rows:
        raise DataError(f"none of the first {count} samples of {config.data.shards} is usable; look at them first.")
    whole = replace(config.data, max_source_tokens=1 << 30, max_prompt_tokens=1 << 30, max_target_tokens=1 << 30)
    full = tokenize_samples(raw, tokenizers, whole, seed=config.run.seed, numbers=numbers)
    facts = loaded.facts | _data_facts(rows, [row for row in full if isinstance(row, TokenizedSample)], tokenizers)
    facts["not_finite"] = tuple(
        name for name, tensor in loaded.model.state_dict().items()
        if loaded.model.is_trained(name) and not tensor.isfinite().all()
    )  # fmt: skip
    if not facts["outside_vocabulary"]:
        facts |= _model_facts(loaded, rows, facts["not_finite"])
    return Measurements(**facts), rows


def _data_facts(rows: list[TokenizedSample], full: list[TokenizedSample], tokenizers: Tokenizers) -> dict[str, object]:
    """Shares of what was truncated and of unknown encoder tokens; `full` holds the same samples whole."""
    shares: dict[str, object] = {
        f"{name}s_cut": fmean(name in row.truncated for row in rows) for name in ("source", "prompt", "target")
    }
    closing = len(tokenizers.closing)
    kept, complete = (sum(len(row.target) - closing for row in some) for some in (rows, full))
    unknown = getattr(tokenizers.encoder, "unk_token_id", None)
    ids = [each for row in rows for each in row.source]
    return shares | {
        "samples": len(rows),
        "targets_lost": 1 - kept / complete if complete else 0.0,
        "unknown": sum(each == unknown for each in ids) / len(ids),
        "one_target": len({tuple(row.target) for row in rows}) == 1,
    }


@torch.no_grad()
def _model_facts(loaded: LoadedRun, rows: list[TokenizedSample], not_finite: tuple[str, ...]) -> dict[str, object]:
    model, tokenizers = loaded.model, loaded.tokenizers
    statistics = SoftStatistics()
    right: list[Losses] = []
    none: list[Losses] = []
    for batch in _batches(rows, loaded):
        statistics.add(model, batch)
        right.append(losses(model, model.spliced(batch)))
        none.append(losses(model, model.spliced(without_soft(model, batch, tokenizers.eos_id))))
    facts = statistics.facts() | {"loss_right": Losses.joined(right).mean, "loss_none": Losses.joined(none).mean}
    for name, error, partners in (("shuffled", "gap_error", others(rows)), ("near", "near_error", lookalikes(rows))):
        exchanged = [replace(row, source=rows[other].source) for row, other in zip(rows, partners, strict=True)]
        wrong = Losses.joined([losses(model, model.spliced(batch)) for batch in _batches(exchanged, loaded)])
        own = Losses.joined(right)
        gap_B = (wrong.nll_B - own.nll_B) / own.tokens_B
        facts |= {f"loss_{name}": wrong.mean, "gap" if name == "shuffled" else "near_gap": float(gap_B.mean())}
        facts[error] = float(gap_B.std() / len(gap_B) ** 0.5) if len(gap_B) > 1 else 0.0
    ids = torch.linspace(0, model.llm.vocab_size - 1, min(model.llm.vocab_size, 4096)).long()
    embeds_MH = model.llm.embed(ids[None].to(model.device))[0].float()
    facts["embedding_norm"] = float(embeds_MH.norm(dim=-1).median())
    wrong_parts = [*not_finite, *statistics.not_finite]
    if not torch.isfinite(Losses.joined(right).nll_B).all():
        wrong_parts.append("loss")
    return facts | {"not_finite": tuple(dict.fromkeys(wrong_parts))}


@dataclass(frozen=True)
class Losses:
    """Of each sample."""

    nll_B: torch.Tensor
    """Sum of -log p over its target tokens, nats, float64 on the CPU."""
    tokens_B: torch.Tensor
    """Its target tokens."""

    @property
    def mean(self) -> float:
        """Nats a target token."""
        return float(self.nll_B.sum() / self.tokens_B.sum())

    @classmethod
    def joined(cls, parts: Sequence[Losses]) -> Losses:
        """Of all samples."""
        return cls(torch.cat([part.nll_B for part in parts]), torch.cat([part.tokens_B for part in parts]))


@torch.no_grad()
def losses(model: BridgeModel, spliced: Spliced) -> Losses:
    """Each row's own loss, where training adds them all up."""
    places_N, labels_N = predicting(spliced.labels_BX)
    logits_NV, _ = model.llm.logits_at(spliced.embeds_BXH, places_N, injected=spliced.injected, use_cache=False)
    nll_N = F.cross_entropy(logits_NV.float(), labels_N, reduction="none").double()
    rows, length = spliced.labels_BX.shape
    row_N = places_N // length
    nll_B = nll_N.new_zeros(rows).index_add(0, row_N, nll_N)
    return Losses(nll_B.cpu(), row_N.bincount(minlength=rows).cpu())


def without_soft(model: BridgeModel, batch: Batch, stand_in: int) -> Batch:
    """The batch without sources; `stand_in` opens each row if the LLM has no BOS."""
    head, head_mask = model.head(batch)
    if not head.shape[1]:
        head = batch.target_ids.new_full((len(batch.target_ids), 1), stand_in)
        head_mask = torch.ones_like(head)
    none = batch.source_ids[:, :0]
    return replace(batch, source_ids=none, source_mask=none, head_ids=head, head_mask=head_mask)


def others(rows: Sequence[TokenizedSample]) -> list[int]:
    """For each sample the next one that has another target; the next one where all have the same."""
    count = len(rows)
    found = []
    for index, row in enumerate(rows):
        ways = ((index + step) % count for step in range(1, count))
        found.append(next((other for other in ways if rows[other].target != row.target), (index + 1) % count))
    return found


def lookalikes(rows: Sequence[TokenizedSample]) -> list[int]:
    """For each sample, of those with another target the one whose source shares most tokens with its own."""
    bags = [Counter(row.source) for row in rows]
    found = []
    for index, fallback in enumerate(others(rows)):
        rivals = [other for other, row in enumerate(rows) if row.target != rows[index].target] or [fallback]
        found.append(max(rivals, key=lambda other: (bags[index] & bags[other]).total() / bags[other].total()))
    return found


class SoftStatistics:
    """Sums over soft vectors and encoder states, batch by batch."""

    def __init__(self) -> None:
        self.norms: list[torch.Tensor] = []
        self.not_finite: list[str] = []
        self.end_norm = 0.0
        self._count_P = torch.zeros(0, dtype=torch.float64)
        self._sum_PH = torch.zeros(0, 0, dtype=torch.float64)
        self._square_P = torch.zeros(0, dtype=torch.float64)
        self._norm_P = torch.zeros(0, dtype=torch.float64)
        self._weights: list[tuple[int, torch.Tensor]] = []
        self._squares: list[torch.Tensor] = []

    def add(self, model: BridgeModel, batch: Batch) -> None:
        """Run encoder, fusion and mapping on a batch and take its sums."""
        batch = model.at_encoder(batch)
        states = model.encode(batch)
        mask_BS = batch.source_mask.bool()
        soft_BPH, soft_mask = model.mapping(model.fusion(states, batch.source_mask), batch.source_mask)
        soft_BP = soft_mask[:, :-1].bool()
        self._note("encoder states", all(bool(state[mask_BS].isfinite().all()) for state in states))
        self._note("soft prompt", bool(soft_BPH[:, :-1][soft_BP].isfinite().all()))
        tokens = int(mask_BS.sum())
        self._weights.append((tokens, model.fusion.weights().detach().float().cpu()))  # type: ignore[operator]
        self._squares.append(torch.stack([state[mask_BS].double().pow(2).mean(-1).sum() for state in states]).cpu())
        soft_BPH = soft_BPH.double().cpu()
        self.end_norm = float(soft_BPH[0, -1].norm())
        self._add_places(soft_BPH[:, :-1], soft_BP.cpu())

    def _add_places(self, soft_BPH: torch.Tensor, mask_BP: torch.Tensor) -> None:
        soft_BPH = soft_BPH.masked_fill(~mask_BP[..., None], 0)
        norm_BP = soft_BPH.norm(dim=-1)
        self.norms.append(norm_BP[mask_BP])
        new = (mask_BP.double().sum(0), soft_BPH.sum(0), norm_BP.pow(2).sum(0), norm_BP.sum(0))
        old = (self._count_P, self._sum_PH, self._square_P, self._norm_P)
        self._count_P, self._sum_PH, self._square_P, self._norm_P = (
            _padded_sum(a, b) for a, b in zip(old, new, strict=True)
        )

    def facts(self) -> dict[str, object]:
        """Fields of Measurements."""
        total = sum(tokens for tokens, _ in self._weights)
        weights_L = sum((tokens / total * weights for tokens, weights in self._weights), torch.zeros(()))
        common = (self._sum_PH.sum(0) / self._count_P.sum()).pow(2).sum()
        square = self._square_P.sum() / self._count_P.sum()
        # A position that few samples reach is left out.
        enough = (self._count_P >= max(2, 0.5 * float(self._count_P[0]))).tolist()
        indices = [index for index, is_enough in enumerate(enough[:POSITIONS]) if is_enough]
        at = torch.tensor(indices)
        mean_PH = self._sum_PH[at] / self._count_P[at, None]
        varying_P = 1 - mean_PH.pow(2).sum(-1) / (self._square_P[at] / self._count_P[at]).clamp(min=1e-300)
        return {
            "soft_norm": float(torch.cat(self.norms).median()),
            "soft_norm_by_position": tuple((self._norm_P[at] / self._count_P[at]).tolist()),
            "end_norm": self.end_norm,
            "variation": float(1 - common / square.clamp(min=1e-300)),
            "variation_by_position": tuple(varying_P.clamp(min=0).tolist()),
            "layer_weights": tuple(weights_L.tolist()),
            "layer_rms": tuple((torch.stack(self._squares).sum(0) / total).sqrt().tolist()),
        }

    def _note(self, what: str, finite: bool) -> None:
        if not finite and what not in self.not_finite:
            self.not_finite.append(what)


def _padded_sum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a + b, the shorter one taken as zero beyond its end."""
    if not len(a):
        return b
    length = max(len(a), len(b))
    pads = [F.pad(each, (0, 0) * (each.ndim - 1) + (0, length - len(each))) for each in (a, b)]
    return pads[0] + pads[1]


def _batches(rows: Sequence[TokenizedSample], loaded: LoadedRun) -> Iterator[Batch]:
    of = loaded.tokenizers
    for start in range(0, len(rows), BATCH):
        batch = collate(rows[start : start + BATCH], of.encoder_pad_id, of.pad_id)
        yield batch.to(loaded.model.device)
