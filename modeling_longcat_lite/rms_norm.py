# SPDX-License-Identifier: Apache-2.0
"""Root-mean-square norm (arXiv 1910.07467), computed in float32."""

import torch
from torch import nn


class LongCatLiteRMSNorm(nn.Module):
    """`weight * x / sqrt(mean(x**2) + eps)` over the last dimension; any leading shape, dtype of the input kept."""

    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        wide = hidden_states.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


__all__ = ["LongCatLiteRMSNorm"]
