"""A base model's tokenizer: whatever its files hold, one that turns a text into ids, or one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from bridge_ds.config.names import resolve
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.configs import reason_of, refuse_absent
from bridge_ds.frozen.foreign import refuse_foreign, stored_json
from bridge_ds.frozen.verify import cached_file, reach

__all__ = ["load_tokenizer"]

_OBJECTS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_OTHERS = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


def load_tokenizer(
    key: str,
    name: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    hub: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Arguments as of :func:`bridge_ds.frozen.configs.base_config`.

    Raises:
        ConfigError: no such model, a file of the tokenizer is damaged or of another kind, or it gives no ids.
    """
    from transformers import AutoTokenizer

    refuse_absent(key, name, revision, hub)
    home = resolve(name)
    # `except BaseException`: a parser in Rust that meets what it did not foresee raises PanicException, which is no
    # Exception.
    try:
        options = {"revision": revision, "trust_remote_code": trust_remote_code, **reach(home, hub)}
        tokenizer = AutoTokenizer.from_pretrained(home, **options)
        _try(tokenizer)
    except BaseException as error:
        if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        for file in (*_OBJECTS, *_OTHERS):
            if path := cached_file(home, file, revision, hub):
                (stored_json if file in _OBJECTS else refuse_foreign)(key, path)
        raise ConfigError(
            f"the tokenizer of {key} {name!r} could not be loaded ({reason_of(error)}); expected a hub id or a local "
            "folder with tokenizer files that belong together; download them again."
        ) from error
    return tokenizer


def _try(tokenizer: Any) -> None:
    """Raises ValueError, or what the tokenizer raises, unless it gives ids."""
    vocabulary = tokenizer.get_vocab()
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    ids = [*tokenizer("a b", verbose=False)["input_ids"], *(each for each in special if each is not None)]
    if not vocabulary or not all(isinstance(each, int) for each in (*ids, *tokenizer.all_special_ids)):
        raise ValueError("it gives no ids, or its special tokens have none")
    if not all(isinstance(each, int) for each in vocabulary.values()):
        raise ValueError("its vocabulary holds ids that are no numbers")
    tokenizer.convert_ids_to_tokens(ids)
