"""`BridgeForCausalLM`: a trained bridge with its two base models, as a model of transformers."""

from __future__ import annotations

import copy
import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from bridge_ds.bridge import BridgeModel
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.errors import ConfigError
from bridge_ds.hub.answering import Answering
from bridge_ds.hub.bases import load_bases, quantization
from bridge_ds.hub.config import BridgeConfig, to_run
from bridge_ds.hub.source import BridgeSource, hub_options, open_source, renamed
from bridge_ds.inference.bases import Placing
from bridge_ds.inference.generator import Generator

__all__ = ["BridgeForCausalLM"]

_IGNORED = ("_from_auto", "_from_pipeline", "_commit_hash", "adapter_kwargs", "low_cpu_mem_usage", "use_safetensors")
"""What the Auto classes pass to every model; there is nothing here that they could change."""


class BridgeForCausalLM(Answering, PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Encoder, fusion, mapping and LLM as one model that answers: `generate(**processor(texts))`.

    The LLM's own `generate` does the writing, with the soft prompt as its first input, so that each architecture keeps
    its own cache, positions and masks. Saved is the bridge alone.
    """

    config_class = BridgeConfig
    config: BridgeConfig
    main_input_name = "input_ids"
    base_model_prefix = "bridge"
    _supports_sdpa = True

    def __init__(
        self,
        config: BridgeConfig,
        bridge: BridgeModel | None = None,
        tokenizers: Tokenizers | None = None,
        *,
        generation: dict[str, Any] | None = None,
        card: Callable[[BridgeConfig], str] | None = None,
    ) -> None:
        """Args:
            config: what the bridge is.
            bridge: all four stages, loaded.
            tokenizers: both; for the ids that begin, end and pad.
            generation: options of GenerationConfig that belong to the bridge.
            card: makes the model card, when it is first wanted.

        Raises:
            ConfigError: the stages are missing.
        """
        if bridge is None or tokenizers is None:
            raise ConfigError(
                "a bridge cannot be made from its config alone; expected trained weights and two pretrained models; "
                "load one with BridgeForCausalLM.from_pretrained(RUN)."
            )
        super().__init__(config)
        self.bridge = bridge
        self.tokenizers = tokenizers
        self._make_card = card
        # Ours alone: temperatures and penalties that an LLM ships were not chosen for a soft prompt, and the scores of
        # evaluation are those of greedy decoding.
        self.generation_config = GenerationConfig(
            **{
                "bos_token_id": tokenizers.bos_id,
                "eos_token_id": sorted(bridge.llm.end_ids(tokenizers.eos_id)),
                "pad_token_id": tokenizers.pad_id,
                **(generation or {}),
            }
        )
        self.positions = bridge.llm.positions
        self.generator = Generator(bridge, tokenizers)
        self.eval()

    @functools.cached_property
    def card(self) -> str:
        """The model card, Markdown: made from the run, or the one that the bridge was loaded with."""
        return self._make_card(self.config) if self._make_card else ""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        config: BridgeConfig | None = None,
        revision: str | None = None,
        encoder: str | None = None,
        llm: str | None = None,
        encoder_revision: str | None = None,
        llm_revision: str | None = None,
        allow_base_mismatch: bool = False,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        max_memory: Any = None,
        quantization_config: Any = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        attn_implementation: str | None = None,
        trust_remote_code: bool | None = None,
        **options: Any,
    ) -> BridgeForCausalLM:
        """Load a bridge and the two base models that it belongs to.

        Args:
            pretrained_model_name_or_path: run folder, checkpoint folder, folder of `save_pretrained`, or hub id.
            args: none are taken.
            config: instead of the one that lies there.
            revision: of the bridge's hub repository.
            encoder: where the encoder is now, if elsewhere than recorded; likewise `llm`.
            llm: see `encoder`.
            encoder_revision: hub revision of the encoder; likewise `llm_revision`.
            llm_revision: see `encoder_revision`.
            allow_base_mismatch: take base models whose hashes are not those that are recorded.
            dtype: of both base models: auto (as in training), bfloat16, float32, float16 (the LLM alone).
            device_map: of both base models (`auto`, a device, a dict), see :mod:`bridge_ds.frozen.place`.
            max_memory: by device, with a strategy such as `device_map="auto"`.
            quantization_config: of the LLM.
            load_in_4bit: the LLM in 4 bits by bitsandbytes; likewise `load_in_8bit`.
            load_in_8bit: see `load_in_4bit`.
            attn_implementation: of the LLM.
            trust_remote_code: run code that comes with a base model; never taken from a config.
            options: HUB_OPTIONS of :mod:`bridge_ds.hub.source`.

        Raises:
            ConfigError: nothing there, an unknown option, or a base model that cannot be loaded.
            CheckpointError: no valid checkpoint, other base models than those of the training, or tensors that do not
                fit.
        """
        name = os.fspath(pretrained_model_name_or_path)
        hub = hub_options(options)
        dtype = options.pop("torch_dtype", None) if dtype is None else dtype
        for ignored in _IGNORED:
            options.pop(ignored, None)
        cls._refuse_unknown(args, options)
        bases = {
            "encoder": encoder, "llm": llm, "encoder_revision": encoder_revision, "llm_revision": llm_revision,
        }  # fmt: skip
        source = renamed(open_source(name, revision, hub, config), bases)
        # AutoModelForCausalLM has put it into the config by now.
        attention = attn_implementation or source.config._attn_implementation
        source.config._attn_implementation = None
        run = to_run(source.config, bool(trust_remote_code))
        placing = Placing(
            dtype=dtype,
            device_map=device_map,
            max_memory=max_memory,
            quantization=quantization(quantization_config, load_in_4bit, load_in_8bit, run.model.dtype),
            llm_options={"attn_implementation": attention} if attention else {},
        )
        bridge, tokenizers = load_bases(source, run, placing, hub, allow_base_mismatch)
        return cls._around(source, bridge, tokenizers)

    @classmethod
    def _refuse_unknown(cls, args: Sequence[Any], options: Mapping[str, Any]) -> None:
        if options or args:
            known = [
                name for name in inspect.signature(cls.from_pretrained).parameters if name not in ("args", "options")
            ]
            what = repr(next(iter(options))) if options else "a second positional argument"
            raise ConfigError(f"from_pretrained does not know {what}; expected some of {', '.join(known)}.")

    @classmethod
    def _around(cls, source: BridgeSource, bridge: BridgeModel, tokenizers: Tokenizers) -> BridgeForCausalLM:
        config = copy.deepcopy(source.config)
        config.name_or_path = source.name
        return cls(config, bridge, tokenizers, generation=source.generation, card=source.card)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Write config.json, generation_config.json, bridge.safetensors and README.md (the model card).

        These are some tens of MB: the base models are not copied; config.json names them and holds their hashes. A
        trained encoder or LLM is written too (encoder.safetensors, llm.safetensors), and LoRA's updates
        (lora.safetensors). Loaded and saved again, the bytes are the same.

        Args:
            save_directory: made if absent.
            is_main_process: others write nothing.
            push_to_hub: then call :meth:`push_to_hub`, with `repo_id` (default: the folder's name).
            options: of :meth:`push_to_hub`.
        """
        from bridge_ds.hub.share import write_folder

        if not is_main_process:
            return
        write_folder(self, Path(save_directory))
        if push_to_hub:
            self.push_to_hub(options.pop("repo_id", Path(save_directory).name), **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """Upload what :meth:`save_pretrained` writes.

        Args:
            repo_id: `name` or `organisation/name`.
            options: commit_message, commit_description, private, token, revision, create_pr.

        Returns:
            the commit's URL.

        Raises:
            ConfigError: a base model is named by a folder of this machine, which nobody else could load.
        """
        from bridge_ds.hub.share import upload

        return upload(self, repo_id, **options)
