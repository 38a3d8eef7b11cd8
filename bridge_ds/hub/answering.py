"""What a loaded bridge does: the LLM's input, a forward pass with a loss, and writing.

Letters: B batch, S encoder tokens, K LLM tokens on one side of the soft prompt, T target tokens, X spliced length,
V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.modeling_outputs import CausalLMOutput

from bridge_ds.bridge import BridgeModel, Ids
from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.errors import DataError
from bridge_ds.hub.inputs import refuse_unseeing, right_padded
from bridge_ds.inference.generator import Generator
from bridge_ds.llm.loss import nll_sum, predicting
from bridge_ds.llm.splice import IGNORE, Spliced

__all__ = ["Answering"]


class Answering:
    """Mixin of :class:`bridge_ds.hub.model.BridgeForCausalLM`."""

    bridge: BridgeModel
    """All four stages."""
    tokenizers: Tokenizers
    """Both."""
    generation_config: GenerationConfig
    """What holds where generate is told nothing."""
    generator: Generator
    """Writes."""

    @property
    def device(self) -> torch.device:
        """Where the input goes."""
        return self.bridge.device

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
        """What the LLM sees: [prefix | soft, end | suffix | labels], contiguous, whatever side the input is padded on.

        Args:
            input_ids: [B, S] encoder ids.
            attention_mask: [B, S], 1 on real tokens; none = all are.
            prefix_ids: [B, K] LLM ids before the soft prompt; none = the token that opens the LLM's input in this
                bridge, where one does (and the end token in rows in which the LLM would read nothing at all).
            prefix_mask: likewise, as for `input_ids`.
            suffix_ids: [B, K] LLM ids after it: the text itself with `augment_prompt`, the end of a chat template.
            suffix_mask: as for `input_ids`.
            labels: [B, T] LLM ids to predict, the end token included; IGNORE (-100) on padding.
            side: of the padding of the result.
        """
        device, rows = self.device, input_ids.shape[0]
        none = input_ids.new_zeros(rows, 0)
        if prefix_ids is None:
            prefix_ids, prefix_mask = self._opening(input_ids, attention_mask, suffix_ids, suffix_mask)
        target = None
        if labels is not None:
            real = labels != IGNORE
            target = _on(device, labels.masked_fill(~real, self.tokenizers.pad_id), real.long())
        # Encoders count positions from the left, so that padding there would be text to some of them.
        source = right_padded(*_on(device, input_ids, attention_mask), self.tokenizers.encoder_pad_id)
        before = _on(device, prefix_ids, prefix_mask)
        after = _on(device, none if suffix_ids is None else suffix_ids, suffix_mask)
        target = target or (after[0][:, :0], after[1][:, :0])
        return self.bridge.spliced(Batch(*source, *after, *target, *before), side)

    def _opening(self, *sides: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """What stands before the soft prompt where nothing is given: [B, 1] ids and mask.

        Args:
            sides: ids and mask in turn of all that stands behind it.
        """
        of = self.tokenizers
        ids = sides[0]
        assert ids is not None
        empty_B = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        for some, mask in zip(sides[::2], sides[1::2], strict=True):
            if some is not None and some.shape[1]:
                empty_B &= torch.zeros_like(empty_B) if mask is None else ~mask.bool().any(1).to(empty_B.device)
        opening = of.eos_id if of.bos_id is None else of.bos_id
        mask_B = empty_B if of.bos_id is None else torch.ones_like(empty_B)
        return ids.new_full((len(ids), 1), opening), mask_B[:, None].long()

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
            places_N, labels_N = predicting(spliced.labels_BX)
            loss = nll_sum(output.logits.flatten(0, 1)[places_N], labels_N) / max(1, len(labels_N))
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
                (sampling, beams, streamer, stop_strings, ...). `max_length` counts the prompt's places too, padding
                included; better give `max_new_tokens`. Default: greedy, as many tokens as the longest target of the
                training.

        Returns:
            As transformers: [B * num_return_sequences, tokens] ids of what was written, without the prompt, or an
            output object with `return_dict_in_generate=True`.

        Raises:
            DataError: the prompt leaves the LLM no place to write, or an option cannot work with a soft prompt.
        """
        names = list(inspect.signature(self.prefix).parameters)[:-2]
        given = {name: options.pop(name) for name in names if name in options}
        options.pop("labels", None)  # of a processor that was given the right answers too
        given.setdefault("input_ids", inputs)
        if given["input_ids"] is None:
            raise DataError("generate has no input_ids; expected a processor's output: generate(**processor(texts)).")
        config = self.generation_config if generation_config is None else generation_config
        refuse_unseeing(config, options)
        return self.generator.generate(
            self.prefix(**given), generation_config, defaults=self.generation_config, **options
        )

    def compute_transition_scores(self, *args: Any, **options: Any) -> torch.Tensor:
        """As transformers: log-probabilities of the tokens written, from `scores` of generate's output object."""
        return self.bridge.llm.model.compute_transition_scores(*args, **options)  # type: ignore[no-any-return]


def _on(device: torch.device, ids: torch.Tensor, mask: torch.Tensor | None) -> Ids:
    """Ids and mask on the device; without a mask all are real."""
    return ids.to(device), torch.ones_like(ids, device=device) if mask is None else mask.to(device)
