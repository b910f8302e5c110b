# SPDX-License-Identifier: Apache-2.0
"""When a layer's weight may be read without calling the layer, which gives the same result in fewer operations.

Hooks must see every call (activation capture, calibration, weights that DeepSpeed gathers for one module only), and
adapters, quantizers, offloading and parallelism change what a call computes. With any of these, the layer is called.
"""

import torch
from torch import nn
from torch.nn.modules import module as torch_modules


def plain_weight(layer: nn.Module) -> nn.Parameter | None:
    """The weight of a plain `nn.Linear` or `nn.Embedding` without hooks; `None` for any other layer."""
    if type(layer) not in (nn.Linear, nn.Embedding) or "forward" in layer.__dict__:
        return None
    if layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks:
        return None
    if torch_modules._global_forward_pre_hooks or torch_modules._global_forward_hooks:
        return None
    weight = layer.weight
    if type(weight) is not nn.Parameter or type(weight.data) is not torch.Tensor or weight.is_meta:
        return None
    return weight


__all__ = ["plain_weight"]
