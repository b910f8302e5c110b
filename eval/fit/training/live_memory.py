# SPDX-License-Identifier: Apache-2.0
"""Counts the bytes of a computation on tensors without memory.

Under `FakeTensorMode` a model runs with shapes and dtypes alone: no byte is allocated, but every operation makes the
tensors that it would make, and autograd keeps those that it would keep. This mode, entered inside the other, adds up
the storages that are alive and records every moment:

    with FakeTensorMode():
        model = ...                                   # no memory is taken
        with LiveMemory(model) as memory:
            model(ids).loss.backward()
    memory.peak()  # {"activations": bytes, "gradients": bytes}

Weights are not counted, because they do not change.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
ACTIVATIONS, GRADIENTS = "activations", "gradients"


class LiveMemory(TorchDispatchMode):
    """Counts `activations` at every moment of a computation, and `gradients` once a parameter has them.

    Args:
        model (`nn.Module`): Of fake tensors.
        kind_of (`Callable[[str], str]`, *optional*): From the name of a parameter, the kind of its gradient.
    """

    def __init__(self, model: nn.Module, kind_of: Callable[[str], str] = lambda name: GRADIENTS):
        super().__init__()
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.kinds = list(dict.fromkeys([ACTIVATIONS, *map(kind_of, trained)]))
        self.history: list[tuple[int, ...]] = []  # bytes of each kind, after every tensor that was made
        self._now = [0] * len(self.kinds)
        self._storages: dict[int, tuple[int, int]] = {}  # what they count as, and their bytes
        self._weights = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._accumulated(self.kinds.index(kind_of(name))))
            for name, parameter in trained.items()
        ]

    def __exit__(self, *exception):
        for hook in self._hooks:
            hook.remove()
        return super().__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is aten._local_scalar_dense.default:
            # A check asks for a value; it passes.
            return False if args[0].dtype == torch.bool else 0
        result = grouped_product(*args) if func is aten._grouped_mm.default else func(*args, **(kwargs or {}))
        return tree_map_only(torch.Tensor, self._see, result)

    def peak(self, shares: Mapping[str, float] | None = None) -> dict[str, float]:
        """Bytes of each kind at the moment when their sum is largest.

        Args:
            shares (`Mapping[str, float]`, *optional*):
                By kind, the share of its bytes that counts: 1 / n for gradients that n processes share. 1 by default.
        """
        factors = [(shares or {}).get(kind, 1.0) for kind in self.kinds]
        weighted = torch.tensor(self.history, dtype=torch.float64) * torch.tensor(factors, dtype=torch.float64)
        return dict(zip(self.kinds, weighted[weighted.sum(dim=1).argmax()].tolist(), strict=True))

    def _accumulated(self, kind: int) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                key = parameter.grad.untyped_storage()._cdata
                was, size = self._storages[key]
                self._now[was] -= size
                self._now[kind] += size
                self._storages[key] = kind, size

        return hook

    def _see(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages and key not in self._weights:
            self._storages[key] = 0, storage.nbytes()
            weakref.finalize(storage, self._gone, key).atexit = False
            self._now[0] += storage.nbytes()
            self.history.append(tuple(self._now))
        return tensor

    def _gone(self, key: int) -> None:
        kind, size = self._storages.pop(key)
        self._now[kind] -= size


def grouped_product(left: torch.Tensor, right: torch.Tensor, ends: torch.Tensor, *_: Any) -> torch.Tensor:
    """The result of `_grouped_mm` by shape; torch's own fake version takes only bfloat16.

    With R rows in E groups: `[R, I] @ [E, I, O]`, a matrix for each group, is `[R, O]`, and `[I, R] @ [R, O]`, a
    product for each group, is `[E, I, O]`.
    """
    if right.dim() == 3:
        return left.new_empty(left.shape[0], right.shape[-1])
    return left.new_empty(ends.shape[0], left.shape[0], right.shape[-1])


__all__ = ["ACTIVATIONS", "GRADIENTS", "LiveMemory"]
