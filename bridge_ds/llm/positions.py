"""Whether the longest sample that a run allows has a place in both models, seen before they are loaded.

A model with a table of positions (GPT-2, BERT) fails at the first sample that is longer than the table, at some step,
and again after each restart. One with rotary or relative positions reads on, further than it was trained for.
"""

from __future__ import annotations

from typing import Any

import torch

from bridge_ds.config.schema import Config
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.data.text.truncate import SoftPrompt
from bridge_ds.encoder.families import family_of
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.configs import base_config
from bridge_ds.llm.packing import is_wanted
from bridge_ds.llm.support import behavior_of, llm_table, positions_of
from bridge_ds.llm.tiny_copy import in_table, tiny_copy

__all__ = ["check_positions", "encoder_table", "notes_on_bases", "positions_taken"]


def check_positions(
    config: Config, encoder_config: Any, llm_config: Any, tokenizers: Tokenizers, resumes: bool = False
) -> list[str]:
    """Compare the lengths of `data` with both models' positions.

    Args:
        config: the run.
        encoder_config: transformers config of the encoder; None = there is none.
        llm_config: of the LLM; likewise.
        tokenizers: both, with the run's chat template.
        resumes: the run goes on from a checkpoint, which records the lengths.

    Returns:
        notes for the user, a sentence each.

    Raises:
        ConfigError: a sample that is as long as allowed would have no place in a model's table.
    """
    data, fixed = config.data, config.mapping.fixed_length
    _check_encoder_positions(config, encoder_config, resumes)
    if not config.model.has_llm:
        return []
    taken, positions = positions_taken(config, tokenizers), positions_of(llm_config)
    table = llm_table(config.model.llm, llm_config, config.model.trust_remote_code)
    if not table and (not positions or taken <= positions):
        return []
    if not table:
        return [
            f"a sample may take {taken} positions, and the LLM was made for {positions} (max_position_embeddings); "
            "longer ones are trained on beyond that, and truncated by evaluation and generation."
        ]
    if data.taught_share(config.model.has_bridge):
        _check_lesson(config, tokenizers, table)
    _check_apart(config, table, resumes)
    if taken <= table:
        return []
    parts = _taken(config, tokenizers)
    soft, prompt = 0 if fixed else parts["soft prompt"], parts["prompt"]
    room = table - (taken - soft - prompt)
    keys = ["max_source_tokens"] * bool(soft) + ["max_prompt_tokens"] * bool(prompt)
    if room < 2 * len(keys) or not keys:
        keys, room = ["max_target_tokens"], data.max_target_tokens - (taken - table)
    fit = _shares({key: getattr(data, key) for key in keys}, room)
    advice = _settings(fit, resumes) if room >= 2 else ""
    raise ConfigError(
        f"a sample may take {taken} positions of the LLM ({_parts(config, tokenizers)}), and {config.model.llm!r} has "
        f"a table of {table}; expected no more; "
        + (f"set {advice}." if advice else "lower the lengths in data.max_*_tokens, or choose another LLM.")
    )


def _check_encoder_positions(config: Config, encoder_config: Any, resumes: bool = False) -> None:
    """The part of :func:`check_positions` that is about the encoder.

    Raises:
        ConfigError: as there.
    """
    longest = config.data.max_source_tokens
    most = encoder_table(config, encoder_config) if encoder_config else 0
    if most and longest > most:
        raise ConfigError(
            f"data.max_source_tokens is {longest}, and the encoder {config.model.encoder!r} has a table "
            f"of positions for {most} tokens; expected no more; set {_settings({'max_source_tokens': most}, resumes)}."
        )


def notes_on_bases(config: Config, tokenizers: Tokenizers, resumes: bool = False) -> list[str]:
    """:func:`check_positions` and :func:`~bridge_ds.llm.support.behavior_of` at the start of a run.

    Returns:
        notes for the user, a sentence each.

    Raises:
        ConfigError: see there; or a model's config is unusable.
    """
    of = config.model
    encoder = None
    if of.has_encoder:
        encoder = base_config("model.encoder", of.encoder, of.encoder_revision, of.trust_remote_code)
    if not of.has_llm:
        return check_positions(config, encoder, None, tokenizers, resumes)
    llm = base_config("model.llm", of.llm, of.llm_revision, of.trust_remote_code)
    notes = check_positions(config, encoder, llm, tokenizers, resumes)
    behavior = behavior_of(of.llm, llm, of.trust_remote_code)
    remarks = [behavior.remark] if behavior.remark else []
    if is_wanted(config, "cuda" if torch.cuda.is_available() else "cpu") and not behavior.packs:
        remarks.append("its class does not compute joined rows as each alone, so that they are padded (train.packing)")
    return [*notes, *(f"of the LLM: {remark}." for remark in remarks)]


def positions_taken(config: Config, tokenizers: Tokenizers) -> int:
    """Positions of the LLM that the longest sample takes."""
    return sum(_taken(config, tokenizers).values())


def encoder_table(config: Config, encoder_config: Any) -> int:
    """Tokens for which the encoder has a table of positions; 0 = none, or unknown."""
    from transformers import AutoModel

    kind = family_of(config.model.encoder, encoder_config).load_class()
    if kind is AutoModel:
        kind = AutoModel._model_mapping.get(type(encoder_config), None)
        kind = kind[0] if isinstance(kind, list | tuple) else kind
    declared = int(getattr(encoder_config, "max_position_embeddings", 0) or 0)
    if kind is None or not declared:
        return 0
    try:
        model = tiny_copy(kind, encoder_config)
        spare = in_table(model, lambda ids: model(input_ids=ids))
    except Exception:  # whatever a class raises that takes no config made so small
        return 0
    return 0 if spare is None else declared + spare


def _taken(config: Config, tokenizers: Tokenizers) -> dict[str, int]:
    data = config.data
    head, tail = tokenizers.frame_ids if tokenizers.frame else ([0] * (tokenizers.bos_id is not None), [])
    bridge = config.model.has_encoder
    in_input = bridge and SoftPrompt.of(config).place == "input"
    return {
        "opening": len(head),
        "soft prompt": (config.mapping.fixed_length or data.max_source_tokens) * in_input,
        "its end vector": int(in_input),
        "prompt": data.max_prompt_tokens * (data.augment_prompt or not bridge),
        "chat template": len(tail),
        "target": data.max_target_tokens,
    }


def _check_lesson(config: Config, tokenizers: Tokenizers, table: int) -> None:
    """Raises ConfigError where the text from which the LLM teaches itself may be longer than its table of positions."""
    parts = _taken(config, tokenizers)
    most = table - (parts["opening"] + parts["chat template"] + parts["target"])
    if config.data.max_prompt_tokens > most:
        raise ConfigError(
            f"data.max_prompt_tokens is {config.data.max_prompt_tokens}, and {config.model.llm!r} has a table "
            f"of {table} positions, which leave {most} to the text that teaches (data.objective, data.replay); "
            "expected no more; "
            + (f"set data.max_prompt_tokens={most}." if most > 0 else "lower data.max_target_tokens.")
        )


def _check_apart(config: Config, table: int, resumes: bool) -> None:
    """Raises ConfigError where a soft prompt that the LLM reads by itself may be longer than its table of positions."""
    soft = SoftPrompt.of(config)
    longest = soft.vectors(config.data.max_source_tokens)
    if config.model.has_bridge and soft.place == "apart" and longest > table:
        key, value = ("mapping.latents", soft.length) if soft.length else ("data.max_source_tokens", longest - 1)
        fit = f"mapping.latents={table - 1}" if soft.length else _settings({"max_source_tokens": table - 1}, resumes)
        raise ConfigError(
            f"{key} is {value}, and with its end vector the LLM reads the soft prompt by itself (injection.form="
            f"{config.injection.form}): {longest} positions; {config.model.llm!r} has a table of {table}; expected no "
            f"more; set {fit}."
        )


def _settings(fit: dict[str, int], resumes: bool) -> str:
    allowed = [f"run.allow_changes={','.join(f'data.{key}' for key in fit)}"] if resumes else []
    return " ".join([*(f"data.{key}={value}" for key, value in fit.items()), *allowed])


def _parts(config: Config, tokenizers: Tokenizers) -> str:
    return ", ".join(f"{name} {count}" for name, count in _taken(config, tokenizers).items() if count)


def _shares(values: dict[str, int], room: int) -> dict[str, int]:
    """The largest values that fit: what needs less than its share leaves the rest to the other."""
    fit: dict[str, int] = {}
    for left, (key, value) in zip(
        range(len(values), 0, -1), sorted(values.items(), key=lambda each: each[1]), strict=True
    ):
        fit[key] = min(value, room // left)
        room -= fit[key]
    return {key: fit[key] for key in values}
