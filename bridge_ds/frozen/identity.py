"""Which base models and tokenizers a bridge belongs to: hashes over all that decides what they compute."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bridge_ds.frozen.digest import digests
from bridge_ds.frozen.verify import cached_file, loaded_files, model_file, weight_files

__all__ = [
    "as_first_recorded", "is_weak", "model_identity", "published_config", "tokenizer_files", "tokenizer_identity",
    "vocabulary_identity", "weak_model_identity",
]  # fmt: skip

_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "spiece.model",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""What every tokenizer of transformers is read from, where it is there; each class has files of its own besides."""
_OF_THE_SAVE = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")
"""Keys of a config.json that say how it was saved and nothing about the model."""
_DECIDING = (
    "add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces", "legacy",
    "split_special_tokens", "src_lang", "tgt_lang",
)  # fmt: skip
"""Options of a tokenizer that decide ids, of which its backend has only some."""
_FORMAT = "2:"
"""Prefix of these hashes. Older ones have none: they cover the sizes, headers and 64 KiB of each file of weights, and
the vocabulary of a tokenizer."""

_log = logging.getLogger(__name__)


def is_weak(identity: str) -> bool:
    """Whether it is an older hash, which does not cover everything."""
    return not identity.startswith(_FORMAT)


def model_identity(
    config_json: str,
    name: str,
    revision: str | None = None,
    hub: Mapping[str, Any] = MappingProxyType({}),
    *,
    like: str = "",
    first: str = "",
) -> str:
    """Hash over the architecture and every byte of every file of weights that loading reads.

    Args:
        config_json: the architecture, see :func:`published_config`.
        name: folder or hub id.
        revision: hub revision.
        hub: see :func:`bridge_ds.frozen.verify.weight_files`.
        like: what a checkpoint recorded; returned where it is an older hash that still matches.
        first: the architecture as the first checkpoints recorded it, see :func:`as_first_recorded`.

    Raises:
        ConfigError: a file of the weights is missing or cannot be read.
    """
    if like and is_weak(like):
        for text in filter(None, (config_json, first)):
            if like in (weak_model_identity(text, name, revision, hub, everything=each) for each in (True, False)):
                _say_weak(name)
                return like
    digest = hashlib.sha256(config_json.encode())
    code = _code(name, config_json, revision, hub)
    for part in (*digests([*loaded_files(name, revision, hub), *code]), _file_of_each_tensor(name, revision, hub)):
        digest.update(b"\0" + part.encode())
    return _FORMAT + digest.hexdigest()


def weak_model_identity(
    config_json: str,
    name: str,
    revision: str | None = None,
    hub: Mapping[str, Any] = MappingProxyType({}),
    *,
    everything: bool = False,
) -> str:
    """The older hash: of each weight file name, size, header and 64 KiB; arguments as above.

    Args:
        everything: of all safetensors files in a folder, also those that are not loaded, as it was first recorded.
    """
    digest = hashlib.sha256(config_json.encode())
    folder = Path(name)
    every = everything and folder.is_dir()
    for path in sorted(folder.glob("*.safetensors")) if every else weight_files(name, revision, hub):
        with path.open("rb") as file:
            header = file.read(struct.unpack("<Q", file.read(8))[0])
            file.seek(max(8 + len(header), path.stat().st_size // 2))
            digest.update(f"{path.name}:{path.stat().st_size}".encode() + header + file.read(1 << 16))
    return digest.hexdigest()


def _say_weak(name: str) -> None:
    _log.warning(
        "note: %s is known by a hash of an earlier version, which does not see every change of it; checkpoints that "
        "are written from now on hold one over all of it.",
        name,
    )


def _code(name: str, config_json: str, revision: str | None, hub: Mapping[str, Any]) -> list[Path]:
    """Python files that come with the model and are run with `model.trust_remote_code`."""
    named = json.loads(config_json).get("auto_map") if config_json else None
    if not isinstance(named, dict):
        return []
    modules = sorted({str(value).partition(".")[0] for value in named.values()})
    if Path(name).is_dir():
        return sorted(Path(name).glob("*.py"))  # they import one another
    return [path for each in modules if (path := cached_file(name, f"{each}.py", revision, hub))]


def _file_of_each_tensor(name: str, revision: str | None, hub: Mapping[str, Any]) -> str:
    """Which tensor is read from which file, where there are several."""
    for each in ("model.safetensors", "pytorch_model.bin"):
        if cached_file(name, each, revision, hub):
            return ""
        index = cached_file(name, f"{each}.index.json", revision, hub)
        if index:
            return json.dumps(json.loads(index.read_text(encoding="utf-8"))["weight_map"], sort_keys=True)
    return ""


def published_config(name: str, revision: str | None = None, hub: Mapping[str, Any] = MappingProxyType({})) -> str:
    """A model's config.json as it was published, in one spelling, without what only says how it was saved.

    Not what transformers makes of it: that differs between versions, with the dtype and with quantization,
    and a bridge would then be refused by the very model it was trained with.
    """
    path = model_file(name, "config.json", revision, hub)
    values = json.loads(path.read_text(encoding="utf-8")) if path else {}
    return json.dumps({key: value for key, value in values.items() if key not in _OF_THE_SAVE}, sort_keys=True)


def as_first_recorded(config: Any, dtype: str) -> str:
    """The architecture as checkpoints first recorded it: the loaded config, as this version of transformers writes it.

    Args:
        config: of the loaded model.
        dtype: in which the bridge was trained.
    """
    import torch

    config = copy.deepcopy(config)
    config.dtype = getattr(torch, dtype)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return str(config.to_json_string())


def tokenizer_identity(
    tokenizer: Any,
    name: str,
    revision: str | None = None,
    hub: Mapping[str, Any] = MappingProxyType({}),
    like: str = "",
) -> str:
    """Two hashes: over the files that a tokenizer is read from, and over what it does once it is loaded.

    One that matches is enough: the same files are the same tokenizer whatever the library version serializes, and one
    that another version has saved again is the same if it does the same.

    Args:
        tokenizer: loaded.
        name: folder or hub id that it was loaded from.
        revision: hub revision.
        hub: see :func:`bridge_ds.frozen.verify.weight_files`.
        like: what a checkpoint recorded; returned where it matches, also as an older hash.
    """
    if like and is_weak(like) and vocabulary_identity(tokenizer) == like:
        _say_weak(f"the tokenizer of {name}")
        return like
    files = _hash_of(tokenizer_files(tokenizer, name, revision, hub))
    same_files, _, same_meaning = like.removeprefix(_FORMAT).partition(":")
    if files == same_files and not is_weak(like):
        return like  # what it does takes a second to ask a large one
    meaning = _meaning_of(tokenizer, cached_file(name, "tokenizer_config.json", revision, hub))
    if meaning and meaning == same_meaning and _saved_as_loaded(tokenizer, name, revision, hub):
        return like
    return f"{_FORMAT}{files}:{meaning}"


def vocabulary_identity(tokenizer: Any) -> str:
    """The older hash: over the vocabulary with its ids."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    text = "\n".join(
        f"{token}\t{number}" for token, number in sorted(vocabulary.items(), key=lambda item: (item[1], item[0]))
    )
    return hashlib.sha256(text.encode()).hexdigest()


def tokenizer_files(
    tokenizer: Any, name: str, revision: str | None = None, hub: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Path]:
    """Each file that a tokenizer is read from, by its path in the model's folder; arguments as above."""
    own = getattr(type(_of_transformers(tokenizer)), "vocab_files_names", None) or {}
    names = {*_TOKENIZER, *own.values()}
    found = {each: path for each in names if (path := cached_file(name, each, revision, hub))}
    if Path(name).is_dir():
        more = ("additional_chat_templates/*.jinja", "tokenization*.py")
        found |= {str(path.relative_to(name)): path for each in more for path in Path(name).glob(each)}
    return dict(sorted(found.items()))


def _hash_of(files: Mapping[str, Path]) -> str:
    hashes = digests(list(files.values()))
    return hashlib.sha256(json.dumps([*zip(files, hashes, strict=True)]).encode()).hexdigest()


def _of_transformers(tokenizer: Any) -> Any:
    """transformers' own tokenizer, also of a :class:`bridge_ds.data.text.spiece.SentencePieceTokenizer`."""
    return getattr(tokenizer, "tokenizer", tokenizer)


def _meaning_of(tokenizer: Any, config: Path | None) -> str:
    """Over the backend as it serializes itself, special tokens, chat template and options; empty for a tokenizer in
    Python, which cannot say what it does.

    Of a BOS that the tokenizer does not put by itself the file may say that it is wanted, which saving forgets and a
    run records (`data.bos`); or that it is not, which holds for runs older than that record.
    """
    inner = _of_transformers(tokenizer)
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is None:
        return ""
    values = json.loads(config.read_text(encoding="utf-8")) if config else {}
    options = {key: getattr(inner, key, None) for key in _DECIDING}
    options["no BOS"] = values.get("add_bos_token") is False
    special = {key: str(value) for key, value in inner.special_tokens_map.items()}
    facts = [special, inner.chat_template, options, getattr(tokenizer, "pieces_sha256", "")]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    digest.update(_serialized(backend).encode())
    return digest.hexdigest()


def _serialized(backend: Any) -> str:
    """The backend without truncation and padding, which the last call has set."""
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        return str(backend.to_str())
    finally:
        if truncation:
            backend.enable_truncation(**truncation)
        if padding:
            backend.enable_padding(**padding)


def _saved_as_loaded(tokenizer: Any, name: str, revision: str | None, hub: Mapping[str, Any]) -> bool:
    """Whether tokenizer.json, where there is one, says what was loaded: the classes of some families pass over parts
    of it, in this version of transformers."""
    from tokenizers import Tokenizer

    path = cached_file(name, "tokenizer.json", revision, hub)
    backend = _of_transformers(tokenizer).backend_tokenizer
    return path is None or _parsed(Tokenizer.from_file(str(path))) == _parsed(backend)


def _parsed(backend: Any) -> Any:
    """The serialized backend, scores to nine digits: reading them from a file changes the last bit of some."""
    return json.loads(_serialized(backend), parse_float=lambda text: f"{float(text):.9g}")
