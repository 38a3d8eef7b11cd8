"""Scores of a run's tasks, by its bridge and by the LLM alone, and which kept answers they may be made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.config.load import to_dict
from bridge_ds.config.renames import with_old_names
from bridge_ds.config.schema import Config, DataConfig
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.data.text.convention import WRITTEN
from bridge_ds.data.text.truncate import Limits, side_of
from bridge_ds.engine.distributed import any_rank
from bridge_ds.engine.setup import END_IDS
from bridge_ds.evaluation.predictions import Scored
from bridge_ds.evaluation.score import compare
from bridge_ds.evaluation.scorer import Scorer
from bridge_ds.evaluation.store import PredictionStore, llm_of
from bridge_ds.inference.prompt import truncation_lines
from bridge_ds.tasks import tasks_of
from bridge_ds.world import World

__all__ = ["score_run"]


def score_run(
    model: BridgeModel,
    tokenizers: Tokenizers,
    config: Config,
    world: World,
    device: torch.device,
    before_batch: Callable[[], None] | None = None,
    *,
    run: Path | None = None,
    checkpoint: str = "",
    base: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Score the bridge and the LLM alone on the run's tasks: the content of evaluation.json (a collective).

    Where the run trained the LLM itself, the LLM alone is left out, unless `evaluation.llm_from` names its answers.

    Args:
        before_batch: called before each batch on every rank; what it raises ends the scoring.
        run: run folder, where predictions go (see :mod:`bridge_ds.evaluation.predictions`) and where a scoring that was
            killed is taken up; none = they are not kept.
        checkpoint: name of the checkpoint's folder that the bridge is of.
        base: hashes of the base models as the checkpoint records them: answers of others are not taken up.

    Raises:
        ConfigError: an unknown task or language.
        DataError: test data that cannot be had.
        LaunchError: predictions that cannot be written.
    """
    wanted = config.evaluation

    def any_of(flag: bool) -> bool:
        return any_rank(flag) if world.size > 1 else flag

    bridge, llm = (
        Scorer(
            model, tokenizers, config.data, device, bridge=with_bridge, calibrate=wanted.null_scores,
            max_new_tokens=wanted.max_new_tokens, any_of=any_of,
        )
        for with_bridge in (True, False)
    )  # fmt: skip
    stores = _stores(config, run, checkpoint, base)
    alone = model.llm.original or bool(wanted.llm_from)
    if not alone and world.is_main:
        print(
            "the LLM alone is not scored, for this run trained it; evaluation.llm_from=RUN takes another run's answers"
        )
    results = compare(
        bridge,
        llm if alone else None,
        tasks_of(config),
        wanted.languages,
        wanted.limit,
        wanted.batch,
        world,
        before_batch=before_batch,
        stores=stores,
        llm_is_there=model.llm.original,
    )
    if world.is_main:
        for store in stores:
            for line in truncation_lines(store.cut, Limits.of(config.data)):
                print(f"{store.scored.name}: {line}", flush=True)
    return results


def _stores(
    config: Config, run: Path | None, checkpoint: str, base: Mapping[str, str] | None = None
) -> tuple[PredictionStore, PredictionStore]:
    values = with_old_names(to_dict(config))  # hashed: a run that was scored before the renames must not change
    # All of the config that a score of the LLM alone depends on; a bridge's depends on its training, too.
    lengths = {key: values["data"][key] for key in ("max_source_tokens", "max_prompt_tokens", "augment_prompt")}
    # Left out where they say what always was, so that what was scored before there were such settings still counts.
    before = to_dict(DataConfig(bos="unless_eos"))
    written = {key: values["data"][key] for key in WRITTEN if values["data"][key] != before[key]}
    lengths |= {} if side_of(config.data) == "right" else {"truncation_side": side_of(config.data)}
    if config.data.chat_template:
        lengths |= {"chat_template": True, "system_prompt": config.data.system_prompt}
    shared = {
        "model": values["model"],
        "lengths": lengths | written,
        "scoring": {key: values["evaluation"][key] for key in ("calibrate", "max_new_tokens")},
    }
    # The names of models say too little: a folder may hold others by now.
    shared |= {"base": {key: base[key] for key in ("llm", "llm_tokenizer", END_IDS) if key in base}} if base else {}
    parts = ["encoder", "lora", "fusion", "mapping", "data", "train"]
    parts += ["injection"] if config.injection.spec else []  # older predictions have no such part
    trained = {part: values[part] for part in parts} | {"checkpoint": checkpoint, "base": dict(base or {})}
    if config.llm.trainable:
        trained["llm"] = values["llm"]
    folder = None if run is None else run / "evaluation"
    seed = config.run.seed
    ours = Scored("bridge", config.fusion.name, seed, checkpoint)
    if not config.model.has_encoder:
        ours = Scored("finetuned", "finetuned LLM", seed, checkpoint)
    return (
        PredictionStore(
            ours,
            folder and folder / ours.system,
            shared | {"bridge": trained, "seed": seed},
        ),
        PredictionStore(
            Scored("llm", "LLM alone", seed, ""),
            folder and folder / "llm",
            shared,
            llm_of(config.evaluation.llm_from),
        ),
    )
