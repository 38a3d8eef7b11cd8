"""The peers' models at a small size, from their published definitions: names of their state dicts, and their forward
passes in our own words. Letters as in `bridge_ds/llm/splice.py`.

LangBridge: arXiv 2401.10695, github.com/kaistAI/LangBridge. MindMerger: arXiv 2405.17386,
github.com/CONE-MT/MindMerger. The paper: arXiv 2508.09091, github.com/ThemiraChathumina/MultiLingualImprove.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, MT5EncoderModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.fusion.test_paper import Aggregator, LayerWeights


class WithEnd(nn.Module):
    """LangBridge's alignment: `linear` or `ffn`, and `enc_eos`."""

    def __init__(self, kind: str, width: int, llm_width: int) -> None:
        super().__init__()
        self.enc_eos = nn.Parameter(torch.randn(llm_width))
        if kind == "linear":
            self.linear = nn.Linear(width, llm_width)
        else:
            self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, llm_width))

    def forward(self, states_BSD: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [B, S + 1, H]."""
        mapped = self.linear(states_BSD) if hasattr(self, "linear") else self.ffn(states_BSD)
        return torch.cat([mapped, self.enc_eos.expand(len(mapped), 1, -1)], dim=1)


class ResamplerAttention(nn.Module):
    """LangBridge's `PerceiverAttentionLayer`: 8 heads of 64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_media, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, 8 * 64, bias=False) for _ in range(3))
        self.to_out = nn.Linear(8 * 64, width, bias=False)

    def forward(self, states: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Of one row without padding: latents see states and latents, each under its own norm."""
        own = self.norm_latents(latents)
        seen = torch.cat([self.norm_media(states), own], dim=1)
        found = []
        for head in range(8):
            q, k, v = (x[..., 64 * head : 64 * (head + 1)] for x in (self.to_q(own), self.to_k(seen), self.to_v(seen)))
            found.append(torch.softmax(torch.einsum("bqe,bke->bqk", q, k) / 8.0, dim=-1) @ v)
        return self.to_out(torch.cat(found, dim=-1))


class PerceiverResampler(nn.Module):
    """LangBridge's alignment `latent`, out of training (it has dropout there)."""

    def __init__(self, width: int, llm_width: int, latents: int, depth: int = 1) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.enc_eos = nn.Parameter(torch.randn(llm_width))
        self.layers = nn.ModuleList(
            nn.ModuleList([
                ResamplerAttention(width),
                nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)),
            ])
            for _ in range(depth)
        )  # fmt: skip
        self.out_proj = nn.Linear(width, llm_width, bias=False)
        self.norm = nn.LayerNorm(llm_width)

    def forward(self, states_BSD: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [B, N + 1, H]."""
        x = self.latents.expand(len(states_BSD), -1, -1)
        for attend, mlp in self.layers:
            x = x + attend(states_BSD, x)
            x = x + mlp(x)
        return self.norm(torch.cat([self.out_proj(x), self.enc_eos.expand(len(x), 1, -1)], dim=1))


class LangBridgeModel(nn.Module):
    """Its state dict's names all begin with `lb.`."""

    def __init__(self, encoder: Path, llm: Path, kind: str) -> None:
        super().__init__()
        self.lb = nn.Module()
        self.lb.enc = MT5EncoderModel.from_pretrained(encoder)
        whole = AutoModelForCausalLM.from_pretrained(llm)
        # An LLM without its head, its head, and its input embedding once more.
        self.lb.lm, self.lb.lm_head, self.lb.embeddings = whole.model, whole.lm_head, whole.get_input_embeddings()
        widths = whole_width(self.lb.enc), whole.config.hidden_size
        latent = kind.startswith("latent")  # latent5x2: five latents, two layers
        sizes = map(int, kind.removeprefix("latent").split("x")) if latent else ()
        self.lb.alignment = PerceiverResampler(*widths, *sizes) if latent else WithEnd(kind, *widths)

    def forward(self, source_ids: torch.Tensor, text_ids: torch.Tensor) -> torch.Tensor:
        """Logits of one row without padding: the text's first token (BOS) comes before the soft tokens."""
        soft = self.lb.alignment(self.lb.enc(input_ids=source_ids).last_hidden_state)
        text = self.lb.embeddings(text_ids)
        seen = torch.cat([text[:, :1], soft, text[:, 1:]], dim=1)
        return self.lb.lm_head(self.lb.lm(inputs_embeds=seen).last_hidden_state)


def whole_width(encoder: nn.Module) -> int:
    """D."""
    return encoder.config.d_model  # type: ignore[union-attr]


class TwoLayers(nn.Module):
    """MindMerger's `MLP`."""

    def __init__(self, width: int, llm_width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, 2 * width)
        self.linear2 = nn.Linear(2 * width, llm_width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """D -> H."""
        return self.linear2(torch.relu(self.linear1(states)))


class OneLayer(nn.Module):
    """The paper's `LinearMapper`."""

    def __init__(self, width: int, llm_width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, llm_width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """D -> H."""
        return self.fc(states)


class Mapping(nn.Module):
    """MindMerger's, and the paper's, mapping: a module and the end vector, 1 x 1 x H."""

    def __init__(self, name: str, inner: nn.Module, llm_width: int) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, inner)
        self.end_boundary = nn.Parameter(torch.randn(1, 1, llm_width))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """D -> H."""
        return getattr(self, self.name)(states)


class MindMerger(nn.Module):
    """Only the state of `mapping` is saved."""

    def __init__(self, encoder: Path, llm: Path, name: str = "mlp") -> None:
        super().__init__()
        self.encoder_mt = MT5EncoderModel.from_pretrained(encoder).encoder
        self.model_llm = AutoModelForCausalLM.from_pretrained(llm)
        self.llm_embedding_layer = self.model_llm.get_input_embeddings()
        width, llm_width = whole_width(self.encoder_mt), self.model_llm.config.hidden_size
        self.mapping = Mapping(name, TwoLayers(width, llm_width), llm_width)

    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What is mapped: [B, S, D]."""
        return self.encoder_mt(input_ids=ids, attention_mask=mask).last_hidden_state

    def forward(self, source: torch.Tensor, source_mask: torch.Tensor, bos: int, *texts: torch.Tensor) -> torch.Tensor:
        """Logits of a batch, closed up to the left as MindMerger's are.

        Args:
            source: ids [B, S] and their mask.
            bos: opens the LLM's input.
            texts: ids and masks in turn (prompt, target), right-padded.

        Returns:
            [B, X, V], the last position of each row at the end.
        """
        rows = len(source)
        one = torch.ones(rows, 1, dtype=torch.long)
        embed = self.llm_embedding_layer
        parts = [embed(one * bos), self.mapping(self.states(source, source_mask))]
        parts.append(self.mapping.end_boundary.expand(rows, 1, -1))
        masks = [one, source_mask, one]
        for ids, mask in zip(texts[::2], texts[1::2], strict=True):
            parts.append(embed(ids))
            masks.append(mask)
        joined, kept = torch.cat(parts, dim=1), torch.cat(masks, dim=1).bool()
        longest = int(kept.sum(1).max())
        seen, seen_mask = torch.zeros(rows, longest, joined.shape[-1]), torch.zeros(rows, longest, dtype=torch.long)
        for row in range(rows):
            count = int(kept[row].sum())
            seen[row, longest - count :] = joined[row, kept[row]]
            seen_mask[row, longest - count :] = 1
        return self.model_llm(inputs_embeds=seen, attention_mask=seen_mask).logits


class Adapted(nn.Module):
    """LayAlign's wrapper of a Llama's attention, its `AdaptedAttention`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.adaption_gate = nn.Parameter(torch.randn(1))
        self.states: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, ...], **more: Any) -> Any:
        output, weights = self.model(hidden_states=hidden_states, position_embeddings=position_embeddings, **more)
        assert self.states is not None
        of, (rows, length) = self.model, hidden_states.shape[:2]

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.view(rows, x.shape[1], -1, of.head_dim).transpose(1, 2)

        query, _ = apply_rotary_pos_emb(
            heads(of.q_proj(hidden_states)), heads(of.k_proj(hidden_states)), *position_embeddings
        )
        key, value = heads(of.k_proj(self.states[0])), heads(of.v_proj(self.states[1]))
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        scores = query @ key.transpose(2, 3) / math.sqrt(of.head_dim)
        found = (self.adaption_gate * scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, length, -1)
        return output + of.o_proj(found), weights


class LayAlign(MindMerger):
    """All of it is saved. `layers` are the LLM's that are wrapped; the encoder's first n states are read."""

    def __init__(self, encoder: Path, llm: Path, structure: str, layers: tuple[int, ...], states: int) -> None:
        super().__init__(encoder, llm)
        self.llm = [self.model_llm]
        holder = nn.Module()
        holder.model = self.model_llm
        width, llm_width = whole_width(self.encoder_mt), self.model_llm.config.hidden_size
        self.layers, self.n = layers, states
        for number in layers:
            layer = self.model_llm.model.layers[number]
            layer.self_attn = Adapted(layer.self_attn)
        self.model_llm = holder
        projector = nn.Module()
        projector.fc1, projector.fc2 = nn.Linear(states, 2 * len(layers)), nn.Linear(width, llm_width)
        if structure == "MLP":
            projector.fc3 = nn.Linear(llm_width, llm_width)
        self.encoder_aligner = nn.Module()
        self.encoder_aligner.projector = projector

    def forward(self, source: torch.Tensor, source_mask: torch.Tensor, bos: int, *texts: torch.Tensor) -> torch.Tensor:
        found = self.encoder_mt(input_ids=source, attention_mask=source_mask, output_hidden_states=True).hidden_states
        of = self.encoder_aligner.projector
        mixed = of.fc1(torch.stack(found[: self.n], dim=-1)).relu().movedim(-1, 0)
        vectors = of.fc2(mixed)
        if hasattr(of, "fc3"):
            vectors = of.fc3(vectors.relu())
        for place, number in enumerate(self.layers):
            self.llm[0].model.layers[number].self_attn.states = vectors[2 * place], vectors[2 * place + 1]
        holder, self.model_llm = self.model_llm, self.llm[0]
        try:
            return super().forward(source, source_mask, bos, *texts)
        finally:
            self.model_llm = holder


class MPTModel(MindMerger):
    """The paper's: the encoder and its fusion are in a module of their own."""

    def __init__(self, encoder: Path, llm: Path, fusion: str) -> None:
        super().__init__(encoder, llm)
        base = self.encoder_mt
        width, llm_width = whole_width(base), self.model_llm.config.hidden_size
        layers = base.config.num_layers
        self.encoder_mt = nn.Module()
        self.encoder_mt.embedding_model_base = base
        self.fusion = fusion
        if fusion == "global_softmax":
            self.encoder_mt.layer_weights_lb = nn.Parameter(3e-5 * (1 + torch.randn(layers)))
            self.encoder_mt.temp = nn.Parameter(torch.tensor(3e-4))
        elif fusion == "transformer_softmax":
            self.encoder_mt.layer_weights = LayerWeights(layers, width)
        elif fusion == "layer_attention":
            self.encoder_mt.aggregator = Aggregator(width)
        self.mapping = Mapping("mlp", OneLayer(width, llm_width), llm_width)

    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """All layers fused, zero on padding: [B, S, D]."""
        own = self.encoder_mt
        output = own.embedding_model_base(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        layers = output.hidden_states[1:]
        if self.fusion == "global_softmax":
            weights = torch.softmax((100 + 1e5 * own.temp) * own.layer_weights_lb, dim=0)
            return sum(weight * layer for weight, layer in zip(weights, layers, strict=True))
        if self.fusion == "last_layer":
            return output.last_hidden_state
        if self.fusion == "layer_attention":
            return own.aggregator(list(layers))
        fused = torch.zeros_like(layers[0])
        real = mask.bool()
        fused[real] = own.layer_weights([layer[real] for layer in layers])
        return fused
