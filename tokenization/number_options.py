# SPDX-License-Identifier: Apache-2.0
"""Numbers among options: finite and in their range, before anything is loaded.

The command line, YAML and JSON all read `nan`, and `nan < 0` is false: a comparison alone lets it pass.
"""

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

# TRL's own options for which "no bound" is a choice.
MAY_BE_INFINITE = frozenset(
    {
        *("max_grad_norm", "delta", "epsilon", "epsilon_high", "off_policy_mask_threshold", "entropy_target"),
        *("vllm_importance_sampling_clip_max", "vllm_importance_sampling_cap", "vllm_server_timeout", "eval_delay"),
    }
)


def check_number(
    option: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raise a `ValueError` that names the option, unless its value is a finite number within the bounds.

    Args:
        option (`str`): As the user writes it.
        value: A number. `None`, for an option that was left out, passes; each value of a list is checked.
        least, most (`float`, *optional*): Bounds that the value may have.
        above, below (`float`, *optional*): Bounds that it may not have.
    """
    if value is None:
        return
    if isinstance(value, list | tuple):
        for each in value:
            check_number(option, each, least, most, above, below)
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"`{option}` is {value!r}, but must be a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`{option}` is {value}, but must be a finite number")
    inside = (
        (least is None or value >= least)
        and (most is None or value <= most)
        and (above is None or value > above)
        and (below is None or value < below)
    )
    if not inside:
        bounds = {"at least": least, "at most": most, "above": above, "below": below}
        wanted = " and ".join(f"{name} {bound}" for name, bound in bounds.items() if bound is not None)
        if least is not None and most is not None:
            wanted = f"from {least} to {most}"
        raise ValueError(f"`{option}` is {value}, but must be {wanted}")


def check_counts(arguments: argparse.Namespace, *names: str, least: int = 1) -> None:
    """[`check_number`] for options of a command, by their names in `arguments`."""
    for name in names:
        check_number(f"--{name.replace('_', '-')}", getattr(arguments, name), least=least)


def check_finite(*arguments: Any) -> None:
    """Raise a `ValueError` that names the first field of these dataclasses that holds NaN or an infinity."""
    for each in arguments:
        for field in fields(each):
            for option, value in numbers_in(field.name, getattr(each, field.name)):
                if math.isnan(value) or (math.isinf(value) and option not in MAY_BE_INFINITE):
                    raise ValueError(f"`{option}` is {value}, but must be a finite number")


def numbers_in(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The floats in an option, with their names, also those in its lists and mappings."""
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from numbers_in(f"{name}.{key}", each)
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from numbers_in(f"{name}[{index}]", each)


__all__ = ["check_counts", "check_finite", "check_number"]
