"""A base model's own config.json and generation_config.json, found and read: whatever they hold, a config or one
sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bridge_ds.config.names import resolve
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.foreign import stored_json
from bridge_ds.frozen.verify import model_file, reach, why_no_hub

__all__ = ["base_config", "reason_of", "refuse_absent"]

_LARGEST = {
    re.compile(r"(num_|num_hidden_|num_encoder_|num_decoder_|encoder_|decoder_|n_)layers?"): 10_000,
    re.compile(r"(n|max)_positions?(_embeddings)?|max_sequence_length|n_ctx"): 2**24,
}
"""Names of sizes in a config.json that no file of weights can be compared with -> most that is believed: building a
model takes time and memory by them."""


def base_config(
    key: str,
    name: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    hub: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """The transformers config of a base model.

    Args:
        key: the setting that names it (`model.llm`).
        name: folder, hub id, or an embedded model.
        revision: hub revision.
        trust_remote_code: see `model.trust_remote_code`.
        hub: options of the hub (cache_dir, token, local_files_only).

    Raises:
        ConfigError: there is no such model, or its config.json or generation_config.json cannot be used.
    """
    from transformers import AutoConfig

    refuse_absent(key, name, revision, hub)
    home = resolve(name)
    path = model_file(home, "config.json", revision, hub)
    if path is None:  # an adapter of PEFT, which names its model
        adapter = model_file(home, "adapter_config.json", revision, hub)
        base = str(stored_json(key, adapter).get("base_model_name_or_path")) if adapter else home
        if base in (name, home):
            raise ConfigError(f"{key}: {name} holds no config.json; expected a model as save_pretrained writes it.")
        return base_config(key, base, None, trust_remote_code, hub)
    _refuse_absurd(key, path, stored_json(key, path))
    try:
        found = AutoConfig.from_pretrained(
            home, revision=revision, trust_remote_code=trust_remote_code, **reach(home, hub)
        )
        found.get_text_config()
    # Its class meets whatever the file holds: wrong types, names that are not there, sizes that do not divide.
    except Exception as error:
        raise ConfigError(
            f"{key}: {path} cannot be used ({reason_of(error)}); expected the config of a model that transformers "
            "knows; download it again, or choose another model."
        ) from error
    _check_generation(key, model_file(home, "generation_config.json", revision, hub))
    return found


def refuse_absent(
    key: str, name: str, revision: str | None = None, hub: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Refuse a model that is neither a folder nor, as far as the hub or its cache can be asked, there.

    Args:
        key: see :func:`base_config`; likewise the others.
        name: see `key`.
        revision: see `key`.
        hub: see `key`.

    Raises:
        ConfigError: no such model; the message says where it was looked for.
    """
    home = resolve(name)
    if Path(home).is_dir():
        return
    remedy = "give the full path of a folder, or a hub id that is there (hf download, on a node with network)"
    try:
        files = (model_file(home, file, revision, hub) for file in ("config.json", "adapter_config.json"))
        found = next((path for path in files if path), None)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key} {name!r} cannot be found ({reason_of(error)}); {remedy}.") from error
    if found is None:
        why = "local_files_only is set" if hub.get("local_files_only") else why_no_hub()
        there = f"the hub's cache does not hold it, and {why}" if why else "the hub has no config.json of that name"
        raise ConfigError(
            f"{key} {name!r} cannot be found: there is no such folder in {Path.cwd()}, and {there}; {remedy}."
        )


def reason_of(error: BaseException) -> str:
    """What a library said, on one line, for a sentence in parentheses."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}"[:300] if len(text) < 20 else text[:300]


def _refuse_absurd(key: str, path: Path, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _refuse_absurd(key, path, value)
        most = next((most for names, most in _LARGEST.items() if names.fullmatch(name)), None)
        if most and isinstance(value, int | float) and not 0 <= value <= most:
            raise ConfigError(
                f"{key}: {path} has {name} {str(value)[:40]}; expected a number up to {most:,}; download it again."
            )


def _check_generation(key: str, path: Path | None) -> None:
    """transformers makes an object of it; its end ids are all that is used."""
    if path is None:
        return
    from transformers import GenerationConfig

    values = stored_json(key, path)
    try:
        GenerationConfig.from_dict(dict(values))
        ends = values.get("eos_token_id")
        for each in ends if isinstance(ends, list) else [] if ends is None else [ends]:
            if isinstance(each, bool) or not isinstance(each, int) or each < 0:
                raise ValueError(f"eos_token_id is {str(ends)[:60]}; expected an id, ids or null")
    except Exception as error:  # its class meets whatever the file holds
        raise ConfigError(f"{key}: {path} cannot be used ({reason_of(error)}); download it again.") from error
