"""How a run writes text for its LLM: the token that opens it, and whether a target begins with a space.

The settings `data.bos` and `data.target_space` decide, or leave it to the tokenizer (`auto`), as found out here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bridge_ds.config.names import resolve
from bridge_ds.config.schema import DataConfig, ModelConfig
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.verify import reach

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bridge_ds.data.loading.tokenize import Tokenizers

__all__ = ["KEEP", "READ", "WRITTEN", "begins_with_space", "opening", "settled"]

WRITTEN = ("bos", "separator", "target_space", "target_end")
"""Keys of `data` that decide it."""
READ = (
    "augment_prompt", *WRITTEN, "chat_template", "system_prompt", "source_language", "max_source_tokens",
    "max_prompt_tokens",
)  # fmt: skip
"""Keys of `data` that decide what the models read and write; beside them, the side on which a text is truncated."""
KEEP = "keep"
"""Value of `data.separator` that leaves the white space at a prompt's end as it is."""


def opening(tokenizer: PreTrainedTokenizerBase, rule: str, model: ModelConfig, hub: Mapping[str, Any]) -> int | None:
    """Id of the token that opens the LLM's input, or none.

    Most tokenizers that need one add it themselves, but not all: transformers 5 ignores `add_bos_token` where there is
    a tokenizer.json, so the config file is read too. A begin token that neither of them adds (SmolLM2's <|im_start|>,
    GPT-2's end token under another name) opens no text, and one that the tokenizer adds does, whatever its name
    (XGLM's is its end token).

    Args:
        tokenizer: the LLM's.
        rule: `data.bos`.
        model: the base models.
        hub: options of the Hub (cache_dir, token, local_files_only).

    Raises:
        ConfigError: data.bos is always, and the tokenizer has none; or the tokenizer adds several tokens.
    """
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    bos_id: int | None = tokenizer.bos_token_id
    if rule == "always" and bos_id is None:
        raise ConfigError(
            f"data.bos is always, and the tokenizer of model.llm {model.llm!r} has no BOS; expected one; set "
            "data.bos=never, or bos_token in its tokenizer_config.json."
        )
    if rule in ("always", "never"):
        return None if rule == "never" else bos_id
    framed, bare = (_ids(tokenizer, "a", special=special) for special in (True, False))
    if rule == "auto" and framed[1 : 1 + len(bare)] == bare != framed[: len(bare)]:
        return framed[0]
    before = next((at for at in range(len(framed)) if framed[at : at + len(bare)] == bare), 0)
    if rule == "auto" and before > 1:  # GLM's [gMASK]<sop>
        tokens = "".join(tokenizer.convert_ids_to_tokens(framed[:before]))
        raise ConfigError(
            f"the tokenizer of model.llm {model.llm!r} puts {tokens!r} before each text, and a bridge puts one token "
            "or none; choose another LLM, or train without them: data.bos=never."
        )
    if bos_id is None or framed[:1] == [bos_id]:
        return bos_id
    home = resolve(model.llm)
    wanted = get_tokenizer_config(home, revision=model.llm_revision, **reach(home, hub)).get("add_bos_token")
    if wanted is None:
        wanted = rule == "unless_eos" and bos_id != tokenizer.eos_token_id
    return bos_id if wanted else None


def begins_with_space(tokenizer: PreTrainedTokenizerBase, rule: str) -> bool:
    """Whether a target is tokenized with a space before it.

    A target continues a text. Byte-level BPE (GPT-2, Qwen, Llama 3) and Gemma keep the space in the word's token, so
    "b" alone is not the token that the model has learnt to expect after "a". SentencePiece with its dummy prefix
    (Llama 2, T5) adds the space itself, and one more would be an extra token. No attribute says which it is, so the
    end of "a b" is compared with both ways of writing "b".

    Args:
        tokenizer: the LLM's.
        rule: `data.target_space`.
    """
    if rule != "auto":
        return rule == "space"
    inside, alone, spaced = (_ids(tokenizer, text, special=False) for text in ("a b", "b", " b"))
    return bool(spaced) and spaced != alone and inside[-len(spaced) :] == spaced


def settled(data: DataConfig, tokenizers: Tokenizers) -> DataConfig:
    """The config with `auto` resolved, to be recorded: another release of transformers may resolve it differently."""
    bos = tokenizers.llm.bos_token_id  # any other token can only be found again by `auto`
    if tokenizers.adapting:
        return data
    found: dict[str, Any] = {
        "bos": "never" if tokenizers.bos_id is None else "always" if tokenizers.bos_id == bos else "auto",
        "target_space": "space" if tokenizers.leading_space else "none",
    }
    return replace(data, **{key: value for key, value in found.items() if getattr(data, key) == "auto"})


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
