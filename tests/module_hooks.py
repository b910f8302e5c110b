# SPDX-License-Identifier: Apache-2.0
"""Hooks as activation capture and as ZeRO-3 put them on the modules of a model."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from torch import nn


def weighted_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that have parameters of their own, by name; those of the draft head, which drafts only, left out."""
    return {
        name: module
        for name, module in model.named_modules()
        if list(module.parameters(recurse=False)) and ".mtp." not in f".{name}."
    }


@contextlib.contextmanager
def captured(model: nn.Module) -> Iterator[Counter]:
    """Counts the calls of every module by name, before and after it ran."""
    calls: Counter = Counter()
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda module, inputs, name=name: calls.update([name])))
        handles.append(
            module.register_forward_hook(lambda module, inputs, output, name=name: calls.update([f"{name} done"]))
        )
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Weights are empty but while the module that holds them runs, as ZeRO-3 keeps them."""
    modules = [module for module in model.modules() if list(module.parameters(recurse=False))]
    kept = {module: [(p, p.data) for p in module.parameters(recurse=False)] for module in modules}

    def gather(module, inputs):
        for parameter, data in kept[module]:
            parameter.data = data

    def release(module, *_):
        for parameter, data in kept[module]:
            parameter.data = data.new_empty(0)

    handles = [module.register_forward_pre_hook(gather) for module in modules]
    handles += [module.register_forward_hook(release, always_call=True) for module in modules]
    for module in modules:
        release(module)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in modules:
            gather(module, None)


def not_called(model: nn.Module, calls: Counter) -> list[str]:
    """The modules with weights that no call has reached."""
    return [name for name in weighted_modules(model) if not calls[name]]


__all__ = ["captured", "gathered", "not_called", "weighted_modules"]
