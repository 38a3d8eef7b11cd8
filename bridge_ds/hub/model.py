"""`BridgeForCausalLM`: a trained bridge with its two base models, as a model of transformers.

Letters: B batch, S encoder tokens, K LLM tokens on one side of the soft prompt, T target tokens, X spliced length,
V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from bridge_ds.bridge import BridgeModel
from bridge_ds.data.tokenize import Tokenizers
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.hub.bases import Placing, load_bases, quantization
from bridge_ds.hub.config import BridgeConfig, to_run
from bridge_ds.hub.inputs import refuse_unseeing, right_padded
from bridge_ds.hub.source import Source, hub_options, open_source, renamed
from bridge_ds.llm.generate import end_ids
from bridge_ds.llm.loss import nll_sum, predicting
from bridge_ds.llm.splice import IGNORE, Spliced

__all__ = ["BridgeForCausalLM"]

_log = logging.getLogger(__name__)
_IGNORED = ("_from_auto", "_from_pipeline", "_commit_hash", "adapter_kwargs", "low_cpu_mem_usage", "use_safetensors")
"""What the Auto classes pass to every model; there is nothing here that they could change."""


class BridgeForCausalLM(PreTrainedModel, GenerationMixin):
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
        card: str = "",
    ) -> None:
        """Args:
            config: what the bridge is.
            bridge: all four stages, loaded.
            tokenizers: both; for the ids that begin, end and pad.
            generation: options of GenerationConfig that belong to the bridge.
            card: the model card that goes with it.

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
        self.card = card
        llm = bridge.llm.model
        # Ours alone: temperatures and penalties that an LLM ships were not chosen for a soft prompt, and the scores of
        # evaluation are those of greedy decoding.
        self.generation_config = GenerationConfig(
            **{
                "bos_token_id": tokenizers.bos_id,
                "eos_token_id": sorted(end_ids(llm, tokenizers.eos_id)),
                "pad_token_id": tokenizers.pad_id,
                **(generation or {}),
            }
        )
        self.positions = int(getattr(llm.config.get_text_config(), "max_position_embeddings", 0) or 0)
        self.eval()

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
            device_map: of the LLM (`auto`, a device, a dict); encoder and bridge go to its first device.
            max_memory: by device, with `device_map="auto"`.
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
        if options or args:
            known = [name for name in inspect.signature(cls.from_pretrained).parameters if name not in ("args", "options")]
            what = repr(next(iter(options))) if options else "a second positional argument"
            raise ConfigError(f"from_pretrained does not know {what}; expected some of {', '.join(known)}.")
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
    def _around(cls, source: Source, bridge: BridgeModel, tokenizers: Tokenizers) -> BridgeForCausalLM:
        config = copy.deepcopy(source.config)
        config.name_or_path = source.name
        return cls(config, bridge, tokenizers, generation=source.generation, card=source.card(config))

    def get_input_embeddings(self) -> torch.nn.Module:
        """Of the LLM."""
        return self.bridge.llm.model.get_input_embeddings()  # type: ignore[no-any-return]

    def get_output_embeddings(self) -> torch.nn.Module:
        """Of the LLM."""
        return self.bridge.llm.model.get_output_embeddings()  # type: ignore[no-any-return]

    def prefix(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        prefix_ids: torch.Tensor | None = None,
        prefix_mask: torch.Tensor | None = None,
        suffix_ids: torch.Tensor | None = None,
        suffix_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        side: str = "left",
    ) -> Spliced:
        """What the LLM sees: [prefix | soft, end | suffix | labels], contiguous, whichever side the inputs are padded on.

        Args:
            input_ids: [B, S] encoder ids.
            attention_mask: [B, S], 1 on real tokens; none = all are.
            prefix_ids: [B, K] LLM ids before the soft prompt; none = the LLM's opening token, where it has one.
            prefix_mask: likewise, as for `input_ids`.
            suffix_ids: [B, K] LLM ids after it: the text itself with `augment_prompt`, the end of a chat template.
            suffix_mask: as for `input_ids`.
            labels: [B, T] LLM ids to predict, the end token included; IGNORE (-100) on padding.
            side: of the padding of the result.
        """
        device, rows = self.device, input_ids.shape[0]
        bos = self.tokenizers.bos_id
        none = input_ids.new_zeros(rows, 0)
        if prefix_ids is None:
            prefix_ids, prefix_mask = (none if bos is None else input_ids.new_full((rows, 1), bos)), None
        pairs = [(prefix_ids, prefix_mask), (input_ids, attention_mask), (none if suffix_ids is None else suffix_ids, suffix_mask)]
        if labels is not None:
            real = labels != IGNORE
            pairs.append((labels.masked_fill(~real, self.tokenizers.pad_id), real.long()))
        parts = [
            (ids.to(device), torch.ones_like(ids, device=device) if mask is None else mask.to(device))
            for ids, mask in pairs
        ]
        # Encoders count positions from the left, so that padding there would be text to some of them.
        parts[1] = right_padded(*parts[1], self.tokenizers.encoder_pad_id)
        return self.bridge.around(*parts, side=side)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        prefix_ids: torch.Tensor | None = None,
        prefix_mask: torch.Tensor | None = None,
        suffix_ids: torch.Tensor | None = None,
        suffix_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **options: Any,
    ) -> CausalLMOutput:
        """Logits at every place of what the LLM sees, [B, X, V], right-padded; arguments as for :meth:`prefix`.

        Returns:
            `logits`, and with `labels` the `loss`: mean -log p over the target tokens of the batch, in nats.
        """
        spliced = self.prefix(
            input_ids, attention_mask, prefix_ids, prefix_mask, suffix_ids, suffix_mask, labels, side="right"
        )
        options.pop("return_dict", None)
        output = self.bridge.llm.model(
            inputs_embeds=spliced.embeds_BXH, attention_mask=spliced.mask_BX, use_cache=False, **options
        )
        loss = None
        if labels is not None:
            where_BX, labels_N = predicting(spliced.labels_BX)
            loss = nll_sum(output.logits[where_BX], labels_N) / max(1, len(labels_N))
        return CausalLMOutput(
            loss=loss, logits=output.logits, hidden_states=output.hidden_states, attentions=output.attentions
        )

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self, inputs: torch.Tensor | None = None, generation_config: GenerationConfig | None = None, **options: Any
    ) -> Any:
        """Write answers: `generate(**processor(texts), max_new_tokens=...)`.

        Args:
            inputs: [B, S] encoder ids, the same as `input_ids`.
            generation_config: instead of `self.generation_config`.
            options: the other arguments of :meth:`prefix`, and all of transformers' `GenerationMixin.generate`
                (sampling, beams, streamer, stop_strings, ...). Beside `max_length`, padding counts; better give
                `max_new_tokens`. Default: greedy, as many tokens as the longest target of the training.

        Returns:
            As transformers: [B * num_return_sequences, tokens] ids of what was written, without the prompt, or an
            output object with `return_dict_in_generate=True`.

        Raises:
            DataError: the prompt leaves the LLM no place to write, or an option cannot work with a soft prompt.
        """
        names = list(inspect.signature(self.prefix).parameters)[:-2]
        given = {name: options.pop(name) for name in names if name in options}
        given.setdefault("input_ids", inputs)
        if given["input_ids"] is None:
            raise DataError("generate has no input_ids; expected a processor's output: generate(**processor(texts)).")
        config = self.generation_config if generation_config is None else generation_config
        refuse_unseeing(config, options)
        llm = self.bridge.llm.model
        # transformers fills what it is not told from the model's own.
        llm.generation_config = self.generation_config
        if options.get("stop_strings") or config.stop_strings:
            options.setdefault("tokenizer", self.tokenizers.llm)
        spliced = self.prefix(**given)
        self._fit(spliced, config, options)
        return llm.generate(
            inputs_embeds=spliced.embeds_BXH,
            attention_mask=spliced.mask_BX,
            generation_config=generation_config,
            **options,
        )

    def _fit(self, spliced: Spliced, config: GenerationConfig, options: dict[str, Any]) -> None:
        """Take `max_new_tokens` down to the places that the LLM has left."""
        used = spliced.mask_BX.shape[1]
        if not self.positions:
            return
        if used >= self.positions:
            raise DataError(
                f"the prompt takes {used} places and the LLM has {self.positions}; expected room for an answer; lower "
                "max_source_tokens or max_prompt_tokens of the processor."
            )
        asked = options.get("max_new_tokens", config.max_new_tokens)
        if asked is not None and used + asked > self.positions:
            options["max_new_tokens"] = self.positions - used
            _log.warning(
                "max_new_tokens is %d; the prompt takes %d of the LLM's %d places, so at most %d are written.",
                asked, used, self.positions, self.positions - used,
            )  # fmt: skip

    def compute_transition_scores(self, *args: Any, **options: Any) -> torch.Tensor:
        """As transformers: log-probabilities of the tokens written, from `scores` of generate's output object."""
        return self.bridge.llm.model.compute_transition_scores(*args, **options)  # type: ignore[no-any-return]

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Write config.json, generation_config.json, bridge.safetensors and README.md (the model card): some tens of MB.

        The base models are not copied; config.json names them and holds their hashes. Loaded and saved again, the
        bytes are the same.

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
