# SPDX-License-Identifier: Apache-2.0
"""What the routers of a training forward selected, for counting and for losses.

TRL runs the trunk and applies the language-model head itself, so the hooks are on the trunk. A hook on each router
keeps its result between the beginning and the end of the trunk's forward. Activation checkpointing runs layers again
in the backward pass, outside a forward of the trunk, so a second run is ignored with any kind of checkpointing. The
hooks of the routers compute nothing, because a recomputation must save exactly the tensors of its forward.

Shapes: B batch, T tokens, M = B T, E routed experts, Z zero experts, k experts per token.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from modeling_longcat_lite import LongCatLiteModel


@dataclass
class RouterForward:
    """One training forward, layer after layer.

    Args:
        counted (`torch.Tensor` of shape `[M]`, *optional*): `False` for padding; `None` if there is no padding.
        logits (list of `torch.Tensor` of shape `[M, E + Z]`): With their graph, in float32.
        expert_ids (list of `torch.Tensor` of shape `[M, k]`): Selected experts; zero experts have the highest ids.
    """

    counted: torch.Tensor | None
    logits: list[torch.Tensor] = field(default_factory=list)
    expert_ids: list[torch.Tensor] = field(default_factory=list)


def watch_routers(trunk: LongCatLiteModel, observe: Callable[[RouterForward], None]) -> None:
    """Calls `observe` at the end of each forward of `trunk` in training mode with gradients enabled.

    Padding is where `ngram_attention_mask` or a 2D `attention_mask` is 0; pass masks by name, as trainers do. Packed
    rows have neither, and all their tokens count.
    """
    under_way: list[RouterForward] = []

    def begin(module, inputs, named):
        under_way.clear()  # an earlier forward may have raised
        if not (module.training and torch.is_grad_enabled()):
            return
        mask = named.get("ngram_attention_mask")
        mask = named.get("attention_mask") if mask is None else mask
        is_padding_mask = mask is not None and mask.ndim == 2
        under_way.append(RouterForward(mask.flatten() != 0 if is_padding_mask else None))

    def keep(module, inputs, output):
        if under_way:
            logits, _, expert_ids = output
            under_way[0].logits.append(logits)
            under_way[0].expert_ids.append(expert_ids)

    def end(module, inputs, output):
        if under_way:
            observe(under_way.pop())

    trunk.register_forward_pre_hook(begin, with_kwargs=True)
    layers: Any = trunk.layers
    for layer in layers:
        layer.mlp.router.register_forward_hook(keep)
    trunk.register_forward_hook(end)


__all__ = ["RouterForward", "watch_routers"]
