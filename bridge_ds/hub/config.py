"""`BridgeConfig`: what config.json of a shared bridge holds. The base models are named and verified, not contained."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from bridge_ds.config.build import check
from bridge_ds.config.load import from_dict, to_dict
from bridge_ds.config.schema import Config
from bridge_ds.data.text.convention import READ
from bridge_ds.data.text.truncate import side_of
from bridge_ds.errors import ConfigError
from bridge_ds.typed import typed

__all__ = ["CONFIG", "MODEL_TYPE", "BridgeConfig", "from_run", "save_config", "settings_sha256", "to_run"]

CONFIG = "config.json"
MODEL_TYPE = "bridge_ds"
"""`model_type` in config.json."""
_NOT_SHARED = {
    "encoder": ("lr_scale", "weight_decay", "dropout", "activation_checkpointing"),
    "llm": ("lr_scale", "weight_decay", "dropout"),
    "lora": ("dropout", "lr_scale"),
    "fusion": ("backend", "lr_scale"),
    "mapping": ("match_embedding_rms", "end_init", "dropout"),
    "injection": ("lr_scale",),
}
"""Keys of the recipe that matter only in training."""
_NO_SETTING = (
    "architectures", "encoder", "encoder_revision", "files", "llm", "llm_revision", "model_type", "settings_sha256",
    "transformers_version",
)  # fmt: skip
"""Keys of config.json that its hash leaves out: names of the base models may change, their hashes (`base`) may not."""


class BridgeConfig(PreTrainedConfig):
    """What a bridge computes: two base models by name and hash, and the settings of what is between them."""

    model_type = MODEL_TYPE

    encoder: str = ""
    """Hub id or folder of the encoder (as model.encoder)."""
    llm: str = ""
    """Hub id or folder of the causal language model (as model.llm)."""
    encoder_revision: str | None = None
    """Hub revision of the encoder; None = the default branch."""
    llm_revision: str | None = None
    """Hub revision of the LLM; None = the default branch."""
    base: dict[str, str] = dataclasses.field(default_factory=dict)
    """Hashes of `encoder`, `llm`, `encoder_tokenizer`, `llm_tokenizer` (:mod:`bridge_ds.frozen.identity`)."""
    files: dict[str, Any] | None = None
    """`bytes` and `sha256` of each file of trained tensors, by name; None where config.json has none (an older folder,
    or somebody changed a file on purpose and removed them)."""
    settings_sha256: str | None = None
    """See :func:`settings_sha256`; None where config.json has none."""
    base_dtype: str = "bfloat16"
    """dtype of both base models in training, and by default when they are loaded."""
    fusion: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of the recipe's `fusion:` part."""
    mapping: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of the recipe's `mapping:` part."""
    injection: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of the recipe's `injection:` part if it has a form; empty = the soft prompt alone."""
    encoder_training: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of the recipe's `encoder:` part if the encoder was trained too; empty = it was frozen."""
    llm_training: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of the recipe's `llm:` part if all of the LLM was trained too; empty = it was frozen."""
    lora: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of the recipe's `lora:` part if the LLM has LoRA's updates; empty = it has none."""
    augment_prompt: bool = False
    """The LLM reads the source text too, after the soft prompt (as data.augment_prompt)."""
    bos: str = "unless_eos"
    """As data.bos. The default, as of the next three, is what exports did before they had the key."""
    separator: str = ""
    """As data.separator."""
    target_space: str = "auto"
    """As data.target_space."""
    target_end: bool = True
    """As data.target_end."""
    chat_template: bool = False
    """The prompt is in the LLM's chat template (as data.chat_template)."""
    system_prompt: str = ""
    """System message of the template (as data.system_prompt)."""
    truncation_side: str = "right"
    """Where a long text is truncated: right = its end | left = its beginning."""
    source_language: str = ""
    """Default language of texts, for encoders that are told it (as data.source_language)."""
    max_source_tokens: int = 512
    """Encoder tokens of a text; longer ones are truncated."""
    max_prompt_tokens: int = 512
    """LLM tokens of a text that the LLM reads too."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **options: Any) -> BridgeConfig:
        """As transformers: the config in the content of config.json. Keys of every model that mean nothing for a bridge
        (num_labels, auto_map) are left out.

        Raises:
            ConfigError: a value of another type, or a key that neither a bridge nor transformers knows.
        """
        path = f"{CONFIG} of {options.get('name_or_path') or config_dict.get('_name_or_path') or 'a bridge'}"
        ours = {key: value for key, value in config_dict.items() if key in _shape().__dataclass_fields__}
        try:
            typed(json.dumps(ours), _shape())
        except ValueError as error:
            raise ConfigError(f"{path} {error}; export the bridge again.") from None
        for key in sorted(set(config_dict) - set(ours) - _of_every_model()):
            if not key.startswith("_"):
                raise ConfigError(
                    f"{path} has the key {key}, which this version does not know; expected {', '.join(ours)}; use the "
                    "version that exported it, or take a key out that you added."
                )
        return super().from_dict(ours, **options)  # type: ignore[no-any-return]

    def to_diff_dict(self) -> dict[str, Any]:
        """For config.json, without the dtype in which the base models happen to be loaded."""
        values: dict[str, Any] = super().to_diff_dict()
        values.pop("dtype", None)
        if self.settings_sha256 is None:
            values.pop("settings_sha256", None)
        return values


@functools.cache
def _shape() -> Any:
    """The types of :class:`BridgeConfig`'s own keys."""
    own = {**BridgeConfig.__annotations__, "architectures": "list[str] | None"}
    fields = [(name, kind, dataclasses.field(default=None)) for name, kind in own.items()]
    return dataclasses.make_dataclass("_Shape", fields, namespace={"__module__": __name__})


@functools.cache
def _of_every_model() -> set[str]:
    return {*PreTrainedConfig().to_dict(), "auto_map", "num_labels", "torch_dtype"}


def from_run(config: Config, base: Mapping[str, str]) -> BridgeConfig:
    """The config of a trained run.

    Args:
        config: the run's.
        base: identities of the base models, as a checkpoint's manifest holds them.
    """
    values = to_dict(config)
    parts: dict[str, Any] = {
        part: {key: value for key, value in values[part].items() if key not in left_out}
        for part, left_out in _NOT_SHARED.items()
    }
    training, llm, lora = parts.pop("encoder"), parts.pop("llm"), parts.pop("lora")
    injection = parts.pop("injection")
    return BridgeConfig(
        encoder=config.model.encoder,
        llm=config.model.llm,
        encoder_revision=config.model.encoder_revision,
        llm_revision=config.model.llm_revision,
        base=dict(base),
        base_dtype=config.model.dtype,
        **{key: values["data"][key] for key in READ},
        truncation_side=side_of(config.data),
        encoder_training=training if config.encoder.trainable else {},
        llm_training=llm if config.llm.trainable else {},
        lora=lora if config.lora.rank else {},
        injection=injection if config.injection.spec else {},
        architectures=["BridgeForCausalLM"],
        **parts,
    )


def to_run(config: BridgeConfig, trust_remote_code: bool = False) -> Config:
    """The config of a run with these settings, checked.

    Args:
        config: of a shared bridge.
        trust_remote_code: never from the config: a file from elsewhere must not allow itself to run code.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type or out of range.
    """
    found = from_dict(
        {
            "model": {
                "encoder": config.encoder,
                "llm": config.llm,
                "encoder_revision": config.encoder_revision,
                "llm_revision": config.llm_revision,
                "dtype": config.base_dtype,
                "trust_remote_code": trust_remote_code,
            },
            "encoder": config.encoder_training,
            "llm": config.llm_training,
            "lora": config.lora,
            "fusion": config.fusion,
            "mapping": config.mapping,
            "injection": config.injection,
            "data": {key: getattr(config, key) for key in (*READ, "truncation_side")},
        }
    )
    check(found)
    return found


def save_config(config: BridgeConfig, folder: str | os.PathLike[str], files: Mapping[str, Any] | None = None) -> None:
    """Write config.json with its own hash.

    Args:
        config: of the bridge.
        folder: made if absent.
        files: what is recorded of the files of trained tensors; None = as in `config`.
    """
    saved = copy.deepcopy(config)
    saved.files = config.files if files is None else dict(files)
    saved.settings_sha256 = settings_sha256(json.loads(saved.to_json_string()))
    saved.save_pretrained(folder)


def settings_sha256(values: Mapping[str, Any]) -> str:
    """Hash of the settings in config.json, all but where the base models are and how the file was written.

    Args:
        values: of config.json.
    """
    settings = {key: value for key, value in values.items() if key not in _NO_SETTING}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
