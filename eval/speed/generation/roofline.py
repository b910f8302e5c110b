# SPDX-License-Identifier: Apache-2.0
"""The roofline of a forward: an estimate of the least time it could take on this machine, measured in the same run.

It is the larger of two times: that of the bare matrix products, and that of reading the active weights once. Norms,
activations, softmax, routing, cache and a model's Python are left out. The products read weights of the model's own
sizes, each once a pass, so that caches help them no more than they help the model.

Shapes: B batch rows, M tokens together, L tokens with history, H heads, C rank of the key-value latent, Dr rotated
width of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from eval.speed.paired_timing import time_paired
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM

PARTS = ("products", "reading")


@dataclass(frozen=True)
class Forward:
    """What one forward computes: `length` new tokens a row after `past` ones; the head scores one position a row."""

    batch: int
    length: int
    past: int = 0


def expert_rows(config: LongCatLiteConfig, tokens: int) -> list[int]:
    """Tokens per routed expert if routing is balanced over routed and zero experts; experts without any left out."""
    total = tokens * config.moe_topk * config.n_routed_experts / (config.n_routed_experts + config.zero_expert_num)
    share, rest = divmod(round(total), config.n_routed_experts)
    return [rows for i in range(config.n_routed_experts) if (rows := share + (i < rest))]


def weight_products(model: LongCatLiteForCausalLM, forward: Forward) -> list[tuple[torch.Tensor, int]]:
    """Every active weight `[out, in]` with the number of tokens M that it is applied to."""
    tokens = forward.batch * forward.length
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    products = []
    for name, weight in model.named_parameters():
        if name.startswith("lm_head."):
            products.append((weight.detach(), forward.batch))
        elif id(weight) in linear:
            products.append((weight.detach(), tokens))
        elif ".experts." in name:
            rows_per_expert = enumerate(expert_rows(model.config, tokens))
            products += [(weight[expert].detach(), rows) for expert, rows in rows_per_expert]
    return products


def attention_products(
    config: LongCatLiteConfig, forward: Forward, dtype: torch.dtype
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Factors of the scores and of the outputs of one attention.

    Decoding attends to latents: `[B, H, C + Dr] x [B, C + Dr, L]`, then `[B, H, L] x [B, L, C]`.
    Prefill attends head by head, to half of the square of tokens.
    """
    heads, latent, rotated = config.num_attention_heads, config.kv_lora_rank, config.qk_rope_head_dim
    if forward.length == 1:
        batch, rows, keys, key_width, value_width = forward.batch, heads, forward.past + 1, latent + rotated, latent
    else:
        assert forward.past == 0, "a chunk after a past has no roofline here"
        batch, rows, keys = forward.batch * heads, forward.length, (forward.length + 1) // 2
        key_width, value_width = config.qk_head_dim, config.v_head_dim
    return [
        (torch.randn(batch, rows, key_width, dtype=dtype), torch.randn(batch, keys, key_width, dtype=dtype).mT),
        (torch.randn(batch, rows, keys, dtype=dtype), torch.randn(batch, keys, value_width, dtype=dtype)),
    ]


def multiply(pairs: list[tuple[torch.Tensor, torch.Tensor]]):
    for left, right in pairs:
        (torch.mm if left.dim() == 2 else torch.bmm)(left, right)


def roofline_functions(model: LongCatLiteForCausalLM, forward: Forward) -> dict[str, Callable[[], object]]:
    """The two [`PARTS`] of the roofline, to be timed like any alternative."""
    weights = weight_products(model, forward)
    linear = [(torch.randn(rows, weight.shape[1], dtype=weight.dtype), weight.t()) for weight, rows in weights]
    # Processors without bfloat16 arithmetic are faster in float32, which attention functions use on them.
    candidates = {str(d): attention_products(model.config, forward, d) for d in {model.dtype, torch.float32}}
    times = time_paired({name: lambda pairs=pairs: multiply(pairs) for name, pairs in candidates.items()}, repeats=3)  # type: ignore[misc]
    products = linear + candidates[min(candidates, key=times.median_ms)] * model.config.num_hidden_layers
    # Summed as float32 whatever the weights are: this is to take as long as reading does, not as bfloat16 sums do.
    bytes_to_read = torch.ones(sum(weight.nbytes for weight, _ in weights) // 4)
    return dict(zip(PARTS, (lambda: multiply(products), bytes_to_read.sum), strict=True))


def active_weights(model: LongCatLiteForCausalLM, forward: Forward) -> dict[str, int]:
    """Number of active weights of a forward, and their bytes."""
    weights = [weight for weight, _ in weight_products(model, forward)]
    return {"count": sum(w.numel() for w in weights), "bytes": sum(w.nbytes for w in weights)}


__all__ = ["PARTS", "Forward", "active_weights", "expert_rows", "roofline_functions"]
