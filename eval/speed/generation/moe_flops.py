# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations and calls of a mixture-of-experts layer, ours and transformers', with the same routing.

A selected zero expert should cost nothing but its share of one weighted copy of the input: the operations counted must
be those of the router and of the selected routed experts.
"""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from eval.speed.models import EXPERTS, Models
from eval.speed.paired_timing import time_paired

# A plain loop over experts calls it once for each expert that any token selects.
PER_EXPERT_CALL = "index_add_"


def grouped_mm_flops(rows: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor, *_, **__) -> int:
    """Rows after the last group are not computed: they are the zero experts'."""
    return 2 * int(offs[-1]) * weight.shape[-2] * weight.shape[-1]


grouped_mm_flops._get_raw = True  # type: ignore[attr-defined]  # called with tensors, not with shapes


class CallCounter(TorchDispatchMode):
    """Counts the ATen calls in a `with` block, all of them and those of [`PER_EXPERT_CALL`]."""

    def __init__(self):
        super().__init__()
        self.calls = self.per_expert_calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        self.per_expert_calls += PER_EXPERT_CALL in func.__name__
        return func(*args, **(kwargs or {}))


def count(layer: nn.Module, states: torch.Tensor) -> dict[str, int]:
    """Floating-point operations of the matrix products and ATen calls of one forward."""
    mapping = {torch.ops.aten._grouped_mm.default: grouped_mm_flops, torch.ops.aten._grouped_mm: grouped_mm_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as flops:
        layer(states)
    with CallCounter() as counter:
        layer(states)
    return {
        "flops": flops.get_total_flops(),
        "calls": counter.calls,
        "calls_per_expert": counter.per_expert_calls,
    }


def with_same_weights(models: Models) -> dict[str, nn.Module]:
    """The first layer's experts of every model, all with the weights of ours."""
    layers = {f"ours, {name}": models.ours[name].model.layers[0].mlp for name in EXPERTS}
    ours, theirs = layers[f"ours, {EXPERTS[0]}"], models.theirs.model.layers[0].mlp
    theirs.router.load_state_dict(ours.router.state_dict())
    theirs.experts.down_proj.copy_(ours.experts.down_proj)
    # transformers allocates rows for the zero experts too and never reads them.
    theirs.experts.gate_up_proj[: models.shape.n_routed_experts].copy_(ours.experts.gate_up_proj)
    return {**layers, "in-tree": theirs}


@torch.no_grad()
def measure_moe_flops(models: Models, tokens: int, repeats: int) -> dict:
    """Counts and times per implementation for `tokens` random states, with the number of operations necessary."""
    shape, layers = models.shape, with_same_weights(models)
    states = torch.randn(1, tokens, shape.hidden_size).to(models.theirs.dtype)
    selected = layers["in-tree"].get_submodule("router")(states)[2]
    routed = int((selected < shape.n_routed_experts).sum())
    router_flops = 2 * tokens * shape.hidden_size * (shape.n_routed_experts + shape.zero_expert_num)
    expert_flops = 6 * shape.hidden_size * shape.expert_ffn_hidden_size
    times = time_paired({k: lambda layer=layer: layer(states) for k, layer in layers.items()}, repeats)  # type: ignore[misc]
    expected = layers["in-tree"](states).float()
    return {
        "dtype": models.dtype,
        "tokens": tokens,
        "selected": selected.numel(),
        "selected_routed": routed,
        "selected_zero": selected.numel() - routed,
        "necessary_flops": router_flops + routed * expert_flops,
        "implementations": {
            name: count(layer, states)
            | {
                "ms": times.median_ms(name),
                "largest_difference": (layer(states).float() - expected).abs().max().item(),
            }
            for name, layer in layers.items()
        },
    }


__all__ = ["measure_moe_flops"]
