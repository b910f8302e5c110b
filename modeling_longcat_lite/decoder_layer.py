# SPDX-License-Identifier: Apache-2.0
"""The dense MLP and the shortcut-connected layer (arXiv 2509.01322, shortcut-connected MoE).

Shapes: B batch rows, T tokens, D hidden size.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_longcat_lite import LongCatLiteConfig
from .mla import LongCatLiteMLA
from .moe import LongCatLiteMoE
from .rms_norm import LongCatLiteRMSNorm


class LongCatLiteMLP(nn.Module):
    """Gated MLP, `down(act(gate(x)) * up(x))`, on `[..., D]`."""

    def __init__(self, config: LongCatLiteConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.ffn_hidden_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.ffn_hidden_size, bias=False)
        self.down_proj = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class LongCatLiteDecoderLayer(GradientCheckpointingLayer):
    """Two attention sublayers and two dense MLPs, with a MoE that skips from the first half to the end.

    h += attention_0(norm(h));  u = norm(h);  s = MoE(u);  h += mlp_0(u)
    h += attention_1(norm(h));  v = norm(h);               h += mlp_1(v) + s
    """

    def __init__(self, config: LongCatLiteConfig, layer_idx: int):
        super().__init__()
        halves = range(2)
        self.self_attn = nn.ModuleList([LongCatLiteMLA(config, 2 * layer_idx + i) for i in halves])
        self.mlps = nn.ModuleList([LongCatLiteMLP(config) for _ in halves])
        self.mlp = LongCatLiteMoE(config)
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = nn.ModuleList([LongCatLiteRMSNorm(hidden, eps) for _ in halves])
        self.post_attention_layernorm = nn.ModuleList([LongCatLiteRMSNorm(hidden, eps) for _ in halves])

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """`[B, T, D]` to `[B, T, D]`; keyword arguments go to the attention."""

        def attend(half: int, states: torch.Tensor) -> torch.Tensor:
            attended, _ = self.self_attn[half](
                self.input_layernorm[half](states),
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                cache=cache,
                **kwargs,
            )
            return states + attended

        hidden_states = attend(0, hidden_states)
        normed = self.post_attention_layernorm[0](hidden_states)
        shortcut = self.mlp(normed)
        hidden_states = attend(1, hidden_states + self.mlps[0](normed))
        normed = self.post_attention_layernorm[1](hidden_states)
        return hidden_states + self.mlps[1](normed) + shortcut


__all__ = ["LongCatLiteDecoderLayer", "LongCatLiteMLP"]
