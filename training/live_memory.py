# SPDX-License-Identifier: Apache-2.0
"""Counts the bytes of a computation on tensors without memory.

Under `FakeTensorMode` a model runs with shapes and dtypes alone: no byte is allocated, but every operation makes the
tensors that it would make, and autograd keeps those that it would keep. This mode, entered inside of that one, adds up
the storages that are alive and remembers the moment when they were most:

    with FakeTensorMode():
        model = ...                                   # no memory is taken
        with LiveMemory(model) as memory:
            model(ids).loss.backward()
    memory.peak["activations"], memory.peak["gradients"]  # bytes

Weights are not counted: they do not change.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
WEIGHTS, ACTIVATIONS, GRADIENTS = "weights", "activations", "gradients"


class LiveMemory(TorchDispatchMode):
    """Counts `activations`, and `gradients` from when a parameter has them.

    Args:
        model (`nn.Module`): Of fake tensors.
        kind_of (`Callable[[str], str]`, *optional*): Name of a parameter to the kind of its gradient.
        shares (`Mapping[str, float]`, *optional*):
            By kind, what part of its bytes counts, 1 by default: where gradients are split over N processes, 1 / N.
    """

    def __init__(
        self,
        model: nn.Module,
        kind_of: Callable[[str], str] = lambda name: GRADIENTS,
        shares: Mapping[str, float] | None = None,
    ):
        super().__init__()
        self.shares = {WEIGHTS: 0.0, **(shares or {})}
        self.now: Counter = Counter()
        self.peak: Counter = Counter()
        self.total = self.peak_total = 0.0
        self._storages: dict[int, tuple[str, int]] = {}
        for tensor in [*model.parameters(), *model.buffers()]:
            self._see(tensor, WEIGHTS)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._accumulated(kind_of(name)))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]

    def __exit__(self, *exception):
        for hook in self._hooks:
            hook.remove()
        return super().__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is aten._local_scalar_dense.default:
            # A value asked for: of a check, which passes.
            return False if args[0].dtype == torch.bool else 0
        result = grouped_product(*args) if func is aten._grouped_mm.default else func(*args, **(kwargs or {}))
        return tree_map_only(torch.Tensor, self._see, result)

    def _accumulated(self, kind: str) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                self._count(*self._storages.pop(key := parameter.grad.untyped_storage()._cdata), sign=-1)
                self._storages[key] = kind, parameter.grad.untyped_storage().nbytes()
                self._count(*self._storages[key])

        return hook

    def _see(self, tensor: torch.Tensor, kind: str = ACTIVATIONS) -> torch.Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = kind, storage.nbytes()
            weakref.finalize(storage, self._gone, key).atexit = False
            self._count(*self._storages[key])
        return tensor

    def _gone(self, key: int) -> None:
        self._count(*self._storages.pop(key), sign=-1)

    def _count(self, kind: str, size: int, sign: int = 1) -> None:
        counted = sign * size * self.shares.get(kind, 1.0)
        self.now[kind] += counted  # type: ignore[assignment]
        self.total += counted
        if self.total > self.peak_total:
            self.peak_total, self.peak = self.total, self.now.copy()


def grouped_product(left: torch.Tensor, right: torch.Tensor, ends: torch.Tensor, *_: Any) -> torch.Tensor:
    """The shape of `_grouped_mm`, which torch itself gives for bfloat16 alone.

    `[S, I] @ [E, I, O]`, a matrix for each group of rows, is `[S, O]`; `[I, S] @ [S, O]`, a product for each group of
    the inner index, is `[E, I, O]`.
    """
    if right.dim() == 3:
        return left.new_empty(left.shape[0], right.shape[-1])
    return left.new_empty(ends.shape[0], left.shape[0], right.shape[-1])


__all__ = ["ACTIVATIONS", "GRADIENTS", "LiveMemory"]
