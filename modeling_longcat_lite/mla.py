# SPDX-License-Identifier: Apache-2.0
"""Multi-head latent attention with scaled latents (arXiv 2405.04434; scales: arXiv 2509.01322, variance alignment).

Keys and values of all heads come from one latent per token, which together with one shared rotated key is all that
the cache holds: `kv_lora_rank + qk_rope_head_dim` numbers per token and attention.

Shapes: B batch rows, T tokens, L tokens with history, D hidden size, H heads, C rank of the key-value latent,
Dn unrotated, Dr rotated and Dv value width of a head.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_longcat_lite import LongCatLiteConfig
from .plain_weights import plain_weight
from .rms_norm import LongCatLiteRMSNorm
from .rotary_embedding import rotate_pairs, yarn_softmax_factor


def masked(scores: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Scores `[B, H, T, L]` with a mask `[B, 1, T, L]`: booleans mark what is visible, numbers are added."""
    if attention_mask is None:
        return scores
    if attention_mask.dtype == torch.bool:
        # Not -inf: a padding token sees nothing, and NaN in its row would spread through the cache.
        return scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    return scores + attention_mask


def wide(scores: torch.Tensor) -> torch.dtype:
    """The dtype that a softmax is computed in. float64 is kept: its lowest number, which masks a score, is -inf in
    float32."""
    return torch.promote_types(scores.dtype, torch.float32)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain operations; the only implementation that returns its weights.

    Args:
        query (`torch.Tensor` of shape `[B, H, T, Dn + Dr]`), key (`[B, H, L, Dn + Dr]`), value (`[B, H, L, Dv]`).
        attention_mask (`torch.Tensor` of shape `[B, 1, T, L]`, *optional*): See [`masked`].

    Returns:
        Output `[B, T, H, Dv]` and weights `[B, H, T, L]`.
    """
    scores = masked(torch.matmul(query, key.transpose(2, 3)) * scaling, attention_mask)
    weights = nn.functional.softmax(scores, dim=-1, dtype=wide(scores)).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class LongCatLiteMLA(nn.Module):
    """One attention sublayer. `layer_idx` counts sublayers (two per shortcut-connected layer): its cache slot."""

    # Read by the attention functions of transformers: every head has its own expanded key, and decoding is causal.
    num_key_value_groups = 1
    is_causal = True

    def __init__(self, config: LongCatLiteConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.attention_dropout = config.attention_dropout
        self.kv_lora_rank = config.kv_lora_rank
        self.qk_nope_head_dim, self.qk_rope_head_dim = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.qk_head_dim, self.v_head_dim = config.qk_head_dim, config.v_head_dim

        hidden, heads, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
        self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=bias)
        self.q_a_layernorm = LongCatLiteRMSNorm(config.q_lora_rank, eps=config.latent_norm_eps)
        self.q_b_proj = nn.Linear(config.q_lora_rank, heads * self.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, self.kv_lora_rank + self.qk_rope_head_dim, bias=bias)
        self.kv_a_layernorm = LongCatLiteRMSNorm(self.kv_lora_rank, eps=config.latent_norm_eps)
        self.kv_b_proj = nn.Linear(self.kv_lora_rank, heads * (self.qk_nope_head_dim + self.v_head_dim), bias=False)
        self.o_proj = nn.Linear(heads * self.v_head_dim, hidden, bias=bias)

        self.q_scale = (hidden / config.q_lora_rank) ** 0.5 if config.mla_scale_q_lora else 1.0
        self.kv_scale = (hidden / config.kv_lora_rank) ** 0.5 if config.mla_scale_kv_lora else 1.0
        self.scaling = self.qk_head_dim**-0.5 * yarn_softmax_factor(config.rope_parameters)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attends `[B, T, D]` states to themselves and to the cache; returns `[B, T, D]` and the weights, if any."""
        batch, length = hidden_states.shape[:2]
        query = self._query(hidden_states, position_embeddings)  # [B, H, T, Dn+Dr]
        latent, rotated_key = self._latent(hidden_states, position_embeddings)  # [B, 1, T, C], [B, 1, T, Dr]
        if cache is not None:
            latent, rotated_key = cache.update(latent, rotated_key, self.layer_idx)
        attend = (
            self._attend_to_latents
            if self._latents_are_cheaper(query, latent, attention_mask)
            else self._attend_to_heads
        )
        output, weights = attend(query, latent, rotated_key, attention_mask, **kwargs)  # [B, T, H, Dv]
        return self.o_proj(output.reshape(batch, length, -1)), weights

    def _latents_are_cheaper(self, query: torch.Tensor, latent: torch.Tensor, attention_mask) -> bool:
        """Whether to leave the history in latent form: in decoding, and for short chunks after a long history.

        Expanding costs `C (Dn + Dv)` per head and token of history. Attending to latents costs `2 C + Dr` per pair of
        tokens, instead of `Dn + Dr + Dv`.
        """
        length, history = query.shape[2], latent.shape[2]
        is_plain = (
            self.config._attn_implementation in ("eager", "sdpa")
            and not (self.training and self.attention_dropout)
            and plain_weight(self.kv_b_proj) is not None
        )
        # Several queries without a mask: a prefill, whose causality is left to the attention function.
        if not is_plain or (attention_mask is None and length > 1):
            return False
        width, rotated = self.qk_nope_head_dim + self.v_head_dim, self.qk_rope_head_dim
        in_latents = length * (self.kv_lora_rank * width + history * (2 * self.kv_lora_rank + rotated))
        in_heads = history * (self.kv_lora_rank * width + length * (width + rotated))
        return in_latents < in_heads

    def _attend_to_latents(self, query, latent, rotated_key, attention_mask, **_):
        """Attention as if every head's key and value were the latent (arXiv 2405.04434, appendix on absorption).

        `q . (K c) = (K^T q) . c` and `sum w V c = V (sum w c)`: the two halves of `kv_b_proj` move to the query and to
        the output, and nothing that grows with the history is expanded.
        """
        batch, heads, length, _ = query.shape
        to_key, to_value = self.kv_b_proj.weight.view(heads, -1, self.kv_lora_rank).split(
            [self.qk_nope_head_dim, self.v_head_dim], dim=1
        )  # [H, Dn, C], [H, Dv, C]
        unrotated, rotated = (query * self.scaling).split([self.qk_nope_head_dim, self.qk_rope_head_dim], dim=-1)
        latent, rotated_key = latent.squeeze(1), rotated_key.squeeze(1)  # [B, L, C], [B, L, Dr]
        # The heads share keys and values: they are rows of one matrix product.
        absorbed = torch.matmul(unrotated, to_key).reshape(batch, heads * length, -1)  # [B, H*T, C]
        scores = torch.bmm(rotated.reshape(batch, heads * length, -1), rotated_key.transpose(1, 2))
        scores = torch.baddbmm(scores, absorbed, latent.transpose(1, 2)).view(batch, heads, length, -1)
        scores = masked(scores, attention_mask)
        weights = scores.softmax(dim=-1, dtype=wide(scores)).to(query.dtype)  # [B, H, T, L]
        summed = torch.bmm(weights.view(batch, heads * length, -1), latent).view(batch, heads, length, -1)
        return torch.matmul(summed, to_value.transpose(1, 2)).transpose(1, 2), weights

    def _attend_to_heads(self, query, latent, rotated_key, attention_mask, **kwargs):
        key, value = self._expand(latent, rotated_key)  # [B, H, L, Dn+Dr], [B, H, L, Dv]
        width = value.shape[-1]
        if self.config._attn_implementation == "sdpa" and width < key.shape[-1]:
            # The fused kernels want values as wide as keys; without them a prefill of 2,048 takes three times as long.
            value = nn.functional.pad(value, (0, key.shape[-1] - width))
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return output[..., :width], weights

    def _query(self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]):
        query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states))) * self.q_scale
        query = query.view(*hidden_states.shape[:2], -1, self.qk_head_dim).transpose(1, 2)  # [B, H, T, Dn+Dr]
        unrotated, rotated = query.split([self.qk_nope_head_dim, self.qk_rope_head_dim], dim=-1)
        return torch.cat([unrotated, rotate_pairs(rotated, *position_embeddings)], dim=-1)

    def _latent(self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]):
        # Shaped as one head, which is what every cache class expects.
        compressed = self.kv_a_proj_with_mqa(hidden_states).unsqueeze(1)  # [B, 1, T, C+Dr]
        latent, rotated_key = compressed.split([self.kv_lora_rank, self.qk_rope_head_dim], dim=-1)
        # The scale applies to the latent only; the rotated key is left as it is.
        latent = self.kv_a_layernorm(latent) * self.kv_scale
        return latent, rotate_pairs(rotated_key, *position_embeddings)

    def _expand(self, latent: torch.Tensor, rotated_key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch, _, length, _ = latent.shape
        expanded = self.kv_b_proj(latent.squeeze(1)).view(batch, length, -1, self.qk_nope_head_dim + self.v_head_dim)
        expanded = expanded.transpose(1, 2)  # [B, H, L, Dn+Dv]
        unrotated_key, value = expanded.split([self.qk_nope_head_dim, self.v_head_dim], dim=-1)
        rotated_key = rotated_key.expand(-1, unrotated_key.shape[1], -1, -1)
        return torch.cat([unrotated_key, rotated_key], dim=-1), value


__all__ = ["LongCatLiteMLA", "eager_attention_forward"]
