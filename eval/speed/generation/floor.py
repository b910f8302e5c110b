# SPDX-License-Identifier: Apache-2.0
"""The floor of a forward: its matrix products alone, and its active weights read once, both measured here and now.

The floor is the larger of the two. Nothing else is in it: no norm, activation, softmax, routing, cache or Python of a
model. Its products read weights of the model's own sizes, each used once a pass, so that caches help it no more than
they help the model.

Shapes: M rows (tokens of all batch rows together), B batch, T tokens, L tokens with history, H heads,
C key-value latent rank, P/R/V unrotated, rotated and value width of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from eval.speed.paired_timing import time_paired
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM


@dataclass(frozen=True)
class Work:
    """What one forward does: `length` new tokens a row behind `history` of them; the head scores one position."""

    batch: int
    length: int
    history: int = 0


def expert_rows(config: LongCatLiteConfig, tokens: int) -> list[int]:
    """Tokens per routed expert if routing is balanced over routed and zero experts; experts without any left out."""
    total = tokens * config.moe_topk * config.n_routed_experts / (config.n_routed_experts + config.zero_expert_num)
    share, rest = divmod(round(total), config.n_routed_experts)
    return [rows for i in range(config.n_routed_experts) if (rows := share + (i < rest))]


def weight_products(model: LongCatLiteForCausalLM, work: Work) -> list[tuple[torch.Tensor, int]]:
    """Every active weight `[out, in]` with the number of rows it is applied to."""
    tokens = work.batch * work.length
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    products = []
    for name, weight in model.named_parameters():
        if name.startswith("lm_head."):
            products.append((weight.detach(), work.batch))
        elif id(weight) in linear:
            products.append((weight.detach(), tokens))
        elif ".experts." in name:
            rows_per_expert = enumerate(expert_rows(model.config, tokens))
            products += [(weight[expert].detach(), rows) for expert, rows in rows_per_expert]
    return products


def attention_products(config: LongCatLiteConfig, work: Work, dtype: torch.dtype) -> list[tuple[torch.Tensor, ...]]:
    """Factors of scores and outputs of one attention: over latents in decode, over heads (half the square) else."""
    heads, latent, rotated = config.num_attention_heads, config.kv_lora_rank, config.qk_rope_head_dim
    if work.length == 1:
        batch, rows, keys, key_width, value_width = work.batch, heads, work.history + 1, latent + rotated, latent
    else:
        assert work.history == 0, "a chunk behind a history has no floor here"
        batch, rows, keys = work.batch * heads, work.length, (work.length + 1) // 2
        key_width, value_width = config.qk_head_dim, config.v_head_dim
    return [
        (torch.randn(batch, rows, key_width, dtype=dtype), torch.randn(batch, keys, key_width, dtype=dtype).mT),
        (torch.randn(batch, rows, keys, dtype=dtype), torch.randn(batch, keys, value_width, dtype=dtype)),
    ]


def fastest_attention_products(config: LongCatLiteConfig, work: Work, dtype: torch.dtype) -> list[tuple]:
    """In `dtype` or in float32, whichever is faster: on processors without bfloat16 arithmetic, attention functions
    compute in float32."""
    candidates = {name: attention_products(config, work, name) for name in {dtype, torch.float32}}
    functions = {
        str(name): lambda pairs=pairs: [torch.bmm(left, right) for left, right in pairs]  # type: ignore[misc]
        for name, pairs in candidates.items()
    }
    fastest = time_paired(functions, repeats=3).fastest(list(functions))
    return next(pairs for name, pairs in candidates.items() if str(name) == fastest)


def floor_functions(model: LongCatLiteForCausalLM, work: Work) -> dict[str, Callable[[], object]]:
    """`"products"` and `"reading"`, to be timed like any alternative."""
    weights = weight_products(model, work)
    linear = [(torch.randn(rows, weight.shape[1], dtype=weight.dtype), weight.t()) for weight, rows in weights]
    attention = fastest_attention_products(model.config, work, model.dtype)
    sublayers = model.config.num_hidden_layers
    # Summed as float32 whatever the weights are: this is to take as long as reading does, not as bfloat16 sums do.
    words = sum(weight.numel() * weight.element_size() for weight, _ in weights) // 4
    bytes_to_read = torch.ones(words)

    def products():
        for left, right in linear:
            torch.mm(left, right)
        for _ in range(sublayers):
            for left, right in attention:
                torch.bmm(left, right)

    return {"products": products, "reading": bytes_to_read.sum}


def active_weights(model: LongCatLiteForCausalLM, work: Work) -> dict[str, int]:
    """Number of active weights of a forward, and their bytes."""
    weights = [weight for weight, _ in weight_products(model, work)]
    return {"count": sum(w.numel() for w in weights), "bytes": sum(w.numel() * w.element_size() for w in weights)}


__all__ = ["Work", "active_weights", "expert_rows", "floor_functions"]
