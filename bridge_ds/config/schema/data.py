"""The shards and how samples become batches."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DataConfig"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The English shards and how samples become batches."""

    shards: str = "testbed/english"
    """Folder of webdataset tars with index.json (made by tools/pack_shards.py), the URL of one (https://, s3://,
    hf://), or `testbed/english`."""
    mixture: tuple[str, ...] = ()
    """Several data sets instead of `shards`: a list of FOLDER=WEIGHT, drawn from in the ratio of the weights (each at
    least 1/20,000 of their sum)."""
    shuffle_shards: int = 16
    """Shards whose samples are shuffled together (the shards are shuffled too); reading stays among these."""
    validation_percent: int = 0
    """Percent of the samples, chosen by the hash of their keys, that are kept out of training. What the loss
    on them is, train.validate_every says how often."""
    stage_dir: str = ""
    """Folder on each node's own disk to which all shards are copied before training (path); empty = no copy."""
    cache_dir: str = ""
    """Folder on each node for shards fetched from a URL (path); empty = ~/.cache/bridge_ds."""
    cache_gib: float = 50.0
    """Fetched shards kept on each node, for each data set (GiB); the least recently used go first."""
    source_language: str = ""
    """Language of sources that have no field `language`, for an encoder that is told it by a tag (NLLB, M2M-100,
    mBART): its tag or an ISO 639 code, such as en; empty = what the index says of the shard, else the tokenizer's own,
    which is said."""
    objective: str = "task"
    """task: predict `target` from `source` | prefix_lm: split `text` in two and predict the rest (LangBridge)."""
    augment_prompt: bool = False
    """Also show the LLM the source text with its own embeddings, after the soft prompt (MindMerger; yes/no)."""
    bos: str = "auto"
    """Whether the LLM's BOS opens its input: auto (as its tokenizer opens a text by itself) | always | never |
    unless_eos (as in runs before this setting: also one that the tokenizer does not add, unless it is the EOS)."""
    separator: str = ""
    """Text between the LLM's prompt and the target, in place of the white space that the prompt ends with; `keep` =
    that white space as it is."""
    target_space: str = "auto"
    """A space before each target: auto (where the LLM's tokenizer has it in the token of a word inside a text:
    byte-level BPE has, SentencePiece adds it by itself) | space | none."""
    target_end: bool = True
    """Close each target with the LLM's end token (yes/no)."""
    chat_template: bool = False
    """Put the LLM's own chat template around the soft prompt, as an instruction-tuned LLM expects it (yes/no); an
    answer begins right after it, with no space of ours. Every use of the run does the same unless told otherwise."""
    system_prompt: str = ""
    """System message for the LLM in front of the chat template, in the LLM's own language; empty = none."""
    truncation_side: str = "right"
    """Where a source or prompt that is too long is cut: right = its end goes | left = its beginning (a question that
    stands at the end stays). Of prefix_lm the beginning always goes. Targets lose their end."""
    max_source_tokens: int = 512
    """Encoder tokens per sample, end token included; longer sources are cut and counted."""
    max_prompt_tokens: int = 512
    """LLM prompt tokens per sample; longer prompts are cut and counted."""
    max_target_tokens: int = 128
    """Target tokens per sample, end token included; longer targets are cut and counted."""
    max_characters: int = 10_000_000
    """Characters of a text; a sample with a longer one is bad (a tokenizer would take seconds). 0 = any length."""
    max_bad_samples: int = 0
    """Bad samples that a run may leave out (each time one comes up) before it stops: malformed, a field missing, a text
    empty or longer than max_characters. Damaged shards always stop it."""
    tokens_per_micro_batch: int = 0
    """Tokens of a micro-batch, padding included, instead of train.micro_batch samples; estimated from characters, so
    leave some room. 0 = off."""
    length_window: int = 1
    """Optimizer steps whose samples are dealt to these steps by length (1 = a step has exactly its slice of the order).
    More means less padding; the samples of the window stay the same."""
    length_chunk: int = 8
    """Samples of like length that stay together where length_window is above 1; train.micro_batch is best."""
    workers: int = 2
    """DataLoader worker processes per rank (0 = in the main process)."""
    prefetch: int = 4
    """Steps that each worker prepares ahead."""
