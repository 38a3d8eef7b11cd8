"""`BridgeForCausalLM`: a trained bridge with its two base models, as a model of transformers.

Dimensions: B batch, S encoder tokens, K LLM tokens on one side of the soft prompt, T target tokens, X spliced length,
V vocabulary.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from bridge_ds.errors import ConfigError, DataError
from bridge_ds.hub.config import BridgeConfig, to_run
from bridge_ds.hub.folder import SharedBridge, upload, valid_choice, write_folder
from bridge_ds.hub.inputs import batch_of, refuse_token_options
from bridge_ds.hub.source import check_bases, hub_options, open_source
from bridge_ds.inference.bases import Placing, quantization
from bridge_ds.inference.choice import ChoiceTable
from bridge_ds.inference.generator import Generator
from bridge_ds.inference.load import LoadedBridge, load_model
from bridge_ds.llm.loss import nll_sum, predicting
from bridge_ds.llm.splice import Spliced

__all__ = ["BridgeForCausalLM"]


class BridgeForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Encoder, fusion, mapping and LLM as one model: `generate(**processor(texts))`.

    The LLM's own `generate` writes, with the soft prompt in its `inputs_embeds`, so that each architecture keeps its
    cache, positions and masks. Only the bridge is saved.
    """

    config_class = BridgeConfig
    config: BridgeConfig
    main_input_name = "input_ids"
    base_model_prefix = "bridge"
    _supports_sdpa = True

    def __init__(
        self,
        config: BridgeConfig,
        loaded: LoadedBridge | None = None,
        generation: Mapping[str, Any] | None = None,
        card: Callable[[BridgeConfig], str] | None = None,
        choice: Callable[[], ChoiceTable | None] | None = None,
    ) -> None:
        """Args:
            config: of the bridge.
            loaded: all four stages and both tokenizers.
            generation: options of GenerationConfig that belong to the bridge.
            card: makes the model card, on first use.
            choice: reads choice.json, on first use.

        Raises:
            ConfigError: nothing is loaded.
        """
        if loaded is None:
            raise ConfigError(
                "a bridge cannot be made from its config alone; expected trained weights and two pretrained models; "
                "load one with BridgeForCausalLM.from_pretrained(RUN)."
            )
        super().__init__(config)
        self.bridge, self.tokenizers, self.generator = (
            loaded.model,
            loaded.tokenizers,
            Generator(loaded.model, loaded.tokenizers),
        )
        self._make_card, self._read_choice = card, choice
        self.generation_config = self.generator.config(**(generation or {}))
        self.eval()

    @functools.cached_property
    def card(self) -> str:
        """The model card, Markdown: made from the run, or the one that the bridge was loaded with."""
        return self._make_card(self.config) if self._make_card else ""

    @functools.cached_property
    def choice(self) -> ChoiceTable | None:
        """In which languages the LLM alone is better (choice.json); None = there is no such table.

        Raises:
            CheckpointError: it was measured with other weights, base models or prompt settings.
            DataError: it cannot be read.
        """
        return self._read_choice() if self._read_choice else None

    @property
    def device(self) -> torch.device:
        """Where the input goes."""
        return self.bridge.device

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
            args: not used.
            config: instead of the one in the folder.
            revision: of the bridge's hub repository.
            encoder: where the encoder is now, if elsewhere than recorded.
            llm: where the LLM is now, if elsewhere than recorded.
            encoder_revision: hub revision of the encoder.
            llm_revision: hub revision of the LLM.
            allow_base_mismatch: load base models whose hashes differ from the recorded ones.
            dtype: of both base models: auto (as in training), bfloat16, float32, float16 (the LLM alone).
            device_map: of both base models (`auto`, a device, a dict), see :mod:`bridge_ds.frozen.device_map`.
            max_memory: by device, with a strategy such as `device_map="auto"`.
            quantization_config: of the LLM.
            load_in_4bit: the LLM in 4 bits by bitsandbytes.
            load_in_8bit: the LLM in 8 bits by bitsandbytes.
            attn_implementation: of the LLM.
            trust_remote_code: run code that comes with a base model; never taken from a config.
            options: HUB_OPTIONS of :mod:`bridge_ds.hub.source`.

        Raises:
            ConfigError: nothing there, an unknown option, or a base model that cannot be loaded.
            CheckpointError: no valid checkpoint, other base models than those of the training, or tensors that do not
                fit.
        """
        dtype = options.pop("torch_dtype", None) if dtype is None else dtype
        hub = hub_options(cls.from_pretrained, options, args)
        bases = {"encoder": encoder, "llm": llm, "encoder_revision": encoder_revision, "llm_revision": llm_revision}
        source = open_source(os.fspath(pretrained_model_name_or_path), revision, hub, config, bases)
        # AutoModelForCausalLM has moved it into the config.
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
        tensors, base = source.tensors(), dict[str, str]()

        def check(found: Mapping[str, str]) -> None:
            base.update(found)
            check_bases(source, found, allow_base_mismatch)

        fit = "it must have been made for this {} and these widths"
        loaded = load_model(run, tensors, source.config.base, check, placing, hub, remedy=fit)
        source.config.name_or_path = source.name
        choice = functools.partial(source.read_choice, tensors, base, run.data)
        return cls(source.config, loaded, source.generation, source.card, choice)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Write config.json, generation_config.json, bridge.safetensors and README.md (the model card).

        That is some tens of MB: the base models are not copied; config.json holds their names and hashes. A trained
        encoder or LLM is written too (encoder.safetensors, llm.safetensors), and LoRA's updates (lora.safetensors).
        Loaded and saved again, the bytes are the same.

        Args:
            save_directory: created if absent.
            is_main_process: others write nothing.
            push_to_hub: then call :meth:`push_to_hub`, with `repo_id` (default: the folder's name).
            options: of :meth:`push_to_hub`.
        """
        if not is_main_process:
            return
        write_folder(Path(save_directory), self._shared())
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
            ConfigError: a base model is named by a local folder, which nobody else could load.
        """
        for ignored in ("max_shard_size", "tags"):  # no file is large enough; the card has its own tags
            options.pop(ignored, None)
        return upload(repo_id, self._shared(), **options)

    def _shared(self) -> SharedBridge:
        choice = valid_choice(lambda: self.choice)
        return SharedBridge(self.config, self.bridge, self.generation_config, self.card, choice)

    def get_input_embeddings(self) -> torch.nn.Module:
        """Of the LLM."""
        return self.bridge.llm.model.get_input_embeddings()  # type: ignore[no-any-return]

    def get_output_embeddings(self) -> torch.nn.Module:
        """Of the LLM."""
        return self.bridge.llm.model.get_output_embeddings()  # type: ignore[no-any-return]

    def prefix(self, input_ids: torch.Tensor, *, side: str = "left", **inputs: torch.Tensor | None) -> Spliced:
        """What the LLM reads, [prefix | soft, end | suffix | labels], contiguous, on whatever side the input is padded.

        Args:
            input_ids: [B, S] encoder ids.
            side: of the padding of the result.
            inputs: attention_mask [B, S], 1 on real tokens (default: all); prefix_ids [B, K], LLM ids before the soft
                prompt (default: BOS, if the bridge has one, and EOS in rows in which the LLM would read nothing at
                all); suffix_ids [B, K], LLM ids after it (the text itself with `augment_prompt`, the end of a chat
                template); prefix_mask and suffix_mask, as attention_mask; labels [B, T], LLM ids to predict, EOS
                included, IGNORE (-100) on padding.
        """
        return self.bridge.spliced(batch_of(self.tokenizers, self.device, input_ids, **inputs), side)

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
        """Logits at every position of what the LLM reads, [B, X, V], right-padded; arguments as for :meth:`prefix`.

        Returns:
            `logits`, and with `labels` the `loss`: mean -log p over the target tokens of the batch, in nats.
        """
        spliced = self.prefix(
            input_ids, side="right", attention_mask=attention_mask, prefix_ids=prefix_ids, prefix_mask=prefix_mask,
            suffix_ids=suffix_ids, suffix_mask=suffix_mask, labels=labels,
        )  # fmt: skip
        options.pop("return_dict", None)
        with self.bridge.llm.attending(spliced.injected):
            output = self.bridge.llm.model(
                inputs_embeds=spliced.embeds_BXH, attention_mask=spliced.mask_BX, use_cache=False, **options
            )
        loss = None
        if labels is not None:
            positions_N, labels_N = predicting(spliced.labels_BX)
            loss = nll_sum(output.logits.flatten(0, 1)[positions_N], labels_N) / max(1, len(labels_N))
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
                (sampling, beams, streamer, stop_strings, ...). `max_length` counts the prompt's positions too, padding
                included; better give `max_new_tokens`. Default: greedy, as many tokens as the longest target of the
                training.

        Returns:
            As transformers: [B * num_return_sequences, tokens] ids of what was written, without the prompt, or an
            output object with `return_dict_in_generate=True`.

        Raises:
            DataError: the prompt leaves the LLM no position to write to, or an option cannot work with a soft prompt.
        """
        names = list(inspect.signature(batch_of).parameters)[2:-1]
        given = {name: options.pop(name) for name in names if name in options}
        options.pop("labels", None)  # of a processor that was given the right answers too
        given.setdefault("input_ids", inputs)
        if given["input_ids"] is None:
            raise DataError("generate has no input_ids; expected a processor's output: generate(**processor(texts)).")
        refuse_token_options(self.generation_config if generation_config is None else generation_config, options)
        return self.generator.generate(
            self.prefix(**given), generation_config, defaults=self.generation_config, **options
        )

    def compute_transition_scores(self, *args: Any, **options: Any) -> torch.Tensor:
        """As transformers: log-probabilities of the tokens written, from `scores` of generate's output object."""
        return self.bridge.llm.model.compute_transition_scores(*args, **options)  # type: ignore[no-any-return]
