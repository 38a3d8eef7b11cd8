"""A training step as the public code of arXiv 2508.09091 does it, in our own words, for side-by-side times.

Read in github.com/ThemiraChathumina/MultiLingualImprove (commits 5a28eb1 and 95f6a6c: experiments/model.py, trainer.py,
read_data.py and experiments/mlEmbModel/JSMEmbeddingModel.py, TransSMEmbeddingModel.py):

- texts are tokenized inside the step, one source at a time, and padded to the longest;
- the encoder has frozen parameters, no `no_grad`, and runs in training mode, with its dropout;
- Global Softmax and Transformer Softmax stack the states of all layers; Transformer Softmax runs a whole
  `nn.TransformerEncoder` of one layer over L + 1 vectors of each real token and reads its first output;
- BOS, soft prompt, end vector and target are concatenated, then rows are moved to the right end by a sort and gathers;
- the LLM gets a mask and labels, and computes logits at all positions over the whole vocabulary;
- AdamW is torch's default. Everything is in one dtype, that of the models.

Dimensions: B batch, S encoder tokens, L encoder layers, N real encoder tokens, D encoder width, X LLM positions, H LLM
width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["PAPER_FUSIONS", "PaperStep"]

PAPER_FUSIONS = ("last_layer", "global_softmax", "transformer_softmax")


class PaperStep(nn.Module):
    """Texts in, loss out; state keys of fusion and mapping as the paper's `encoder_mt` and `mapping`."""

    def __init__(
        self,
        fusion: str,
        encoder: Any,
        llm: Any,
        tokenizers: tuple[Any, Any],
        longest: int = 500,
        feedforward: int = 2048,
    ) -> None:
        """Args:
        fusion: one of :data:`PAPER_FUSIONS`.
        encoder: of transformers, frozen.
        llm: of transformers, frozen.
        tokenizers: of encoder and LLM.
        longest: tokens of a source and of a target at most.
        feedforward: hidden width of Transformer Softmax's layer.
        """
        super().__init__()
        self.encoder, self.llm, self.longest = encoder, llm, longest
        self.tokenizers = tokenizers
        layers, width, llm_width = encoder.config.num_layers, encoder.config.d_model, llm.config.hidden_size
        self.fusion = fusion
        if fusion == "global_softmax":
            self.layer_weights_lb = nn.Parameter(torch.full((layers,), 3e-5))
            self.temp = nn.Parameter(torch.tensor(1e-5))
        elif fusion == "transformer_softmax":
            self.layer_weights = TokenWeights(layers, width, feedforward)
        self.fc = nn.Linear(width, llm_width)
        self.end_boundary = nn.Parameter(torch.zeros(1, 1, llm_width))

    def forward(self, sources: list[str], targets: list[str]) -> torch.Tensor:
        """Mean negative log-likelihood over the target tokens, as the LLM of transformers computes it."""
        device = self.end_boundary.device
        source_ids, source_mask = (part.to(device) for part in self.source_features(sources))
        target_ids, target_mask = (part.to(device) for part in self.target_features(targets))
        embed = self.llm.get_input_embeddings()
        bos = torch.full((len(sources), 1), self.tokenizers[1].bos_token_id, device=device)
        one = torch.ones_like(bos)
        soft = self.fc(self.fused(source_ids, source_mask))
        end = self.end_boundary.expand(len(sources), -1, -1)
        embeds = torch.cat([embed(bos), soft, end, embed(target_ids)], dim=1)
        mask = torch.cat([one, source_mask, one, target_mask], dim=1)
        labels = torch.full_like(mask, -100)
        labels[:, -target_ids.shape[1] :] = target_ids.masked_fill(target_mask == 0, -100)
        embeds, mask, kept = to_the_right(embeds, mask)
        return self.llm(inputs_embeds=embeds, attention_mask=mask, labels=labels[:, kept]).loss

    def source_features(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask [B, S]: a call of the tokenizer for each text, then lists filled up with padding."""
        tokenizer = self.tokenizers[0]
        ids, masks = [], []
        for text in texts:
            found = tokenizer(text, padding="longest", max_length=self.longest, truncation=True)
            ids.append(found.input_ids)
            masks.append(found.attention_mask)
        width = max(map(len, ids))
        for row, mask in zip(ids, masks, strict=True):
            while len(row) < width:
                row.append(tokenizer.pad_token_id)
                mask.append(0)
        return torch.tensor(ids), torch.tensor(masks)

    def target_features(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask [B, T]: one call for all texts, each with the end token's text behind it, padded on the left."""
        tokenizer = self.tokenizers[1]
        found = tokenizer(
            [text + tokenizer.eos_token for text in texts], padding="longest", padding_side="left",
            max_length=self.longest, truncation=True, add_special_tokens=False, return_tensors="pt",
        )  # fmt: skip
        return found.input_ids, found.attention_mask

    def fused(self, source_ids: torch.Tensor, source_mask: torch.Tensor) -> torch.Tensor:
        """[B, S, D]."""
        if self.fusion == "last_layer":
            return self.encoder(input_ids=source_ids, attention_mask=source_mask).last_hidden_state
        output = self.encoder(
            input_ids=source_ids, attention_mask=source_mask, output_hidden_states=True, return_dict=True
        )
        stacked_BLSD = torch.stack(output.hidden_states[1:], dim=1)
        if self.fusion == "global_softmax":
            weights_L = torch.softmax((100 + 1e5 * self.temp) * self.layer_weights_lb, dim=0)
            return (stacked_BLSD * weights_L[:, None, None]).sum(1)
        rows, layers, tokens, width = stacked_BLSD.shape
        vectors = stacked_BLSD.permute(0, 2, 1, 3).reshape(rows * tokens, layers, width)
        real = source_mask.flatten().bool()
        weights = vectors.new_zeros(rows * tokens, layers)
        weights[real] = self.layer_weights(vectors[real])
        fused_BSD = (vectors * weights[:, :, None]).sum(1).view(rows, tokens, width)
        return fused_BSD * source_mask[:, :, None]


class TokenWeights(nn.Module):
    """Transformer Softmax's weights, from the whole layer; names as in the paper's `LayerWeights`."""

    def __init__(self, layers: int, width: int, feedforward: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, nhead=1, dim_feedforward=feedforward, batch_first=True)
        self.transformerEncoder = nn.TransformerEncoder(layer, num_layers=1)
        self.layer_pos_emb = nn.Parameter(torch.randn(layers, width))
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.layer_weights = nn.Linear(width, layers)

    def forward(self, states_NLD: torch.Tensor) -> torch.Tensor:
        """[N, L]."""
        places = torch.cat([self.cls.expand(len(states_NLD), -1, -1), states_NLD + self.layer_pos_emb], dim=1)
        return self.layer_weights(self.transformerEncoder(places)[:, 0]).softmax(-1)


def to_the_right(embeds_BXH: torch.Tensor, mask_BX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Padding goes to the left end of every row, by a sort of positions; columns of padding alone go.

    Returns:
        embeddings, mask, and which columns of the input's X were kept.
    """
    places = torch.arange(1, mask_BX.shape[1] + 1, device=mask_BX.device)
    order_BX = (mask_BX * places).sort(1).indices
    mask_BX = mask_BX.gather(1, order_BX)
    embeds_BXH = embeds_BXH.gather(1, order_BX[:, :, None].expand_as(embeds_BXH))
    kept = mask_BX.sum(0) > 0
    return embeds_BXH[:, kept], mask_BX[:, kept], kept
