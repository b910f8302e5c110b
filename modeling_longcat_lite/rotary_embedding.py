# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding on interleaved pairs (DeepSeek style), plain or YaRN (arXiv 2309.00071).

With the released settings (factor 10, `mscale == mscale_all_dim == 1`) cosine and sine keep their size; the softmax
scale of the attention grows by (0.1 ln 10 + 1)**2 = 1.5135 instead.

Shapes: B batch rows, H heads, T tokens, Dr rotated width of a head.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update


class LongCatLiteRotaryEmbedding(nn.Module):
    """Cosines and sines for positions: `[B, T]` ids to two tensors `[B, T, Dr / 2]`, one angle per pair."""

    inv_freq: torch.Tensor

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        is_default = self.rope_type == "default"
        initialize = self.compute_default_rope_parameters if is_default else ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = initialize(config)
        # Both names are what `PreTrainedModel._init_weights` and `dynamic_rope_update` look for.
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: PreTrainedConfig, device=None, **_) -> tuple[torch.Tensor, float]:
        """Unscaled inverse frequencies, `theta ** (-2 i / Dr)`, and cosine factor 1."""
        exponents = torch.arange(0, config.qk_rope_head_dim, 2, dtype=torch.float32, device=device)
        return 1.0 / config.rope_parameters["rope_theta"] ** (exponents / config.qk_rope_head_dim), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float32)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def rotate_pairs(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the pairs `(x0, x1), (x2, x3), ...` of `[B, H, T, Dr]` by `[B, T, Dr / 2]` angles.

    The result holds all first members, then all second ones, as in transformers. Queries and keys agree on this
    order, so their products do not change.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1)


def yarn_softmax_factor(rope_parameters: dict) -> float:
    """YaRN's factor on the softmax scale, `(0.1 mscale_all_dim ln factor + 1)**2`; 1 without `mscale_all_dim`."""
    mscale = rope_parameters.get("mscale_all_dim")
    if rope_parameters["rope_type"] != "yarn" or not mscale or rope_parameters["factor"] <= 1:
        return 1.0
    return (0.1 * mscale * math.log(rope_parameters["factor"]) + 1.0) ** 2


__all__ = ["LongCatLiteRotaryEmbedding", "rotate_pairs", "yarn_softmax_factor"]
