# SPDX-License-Identifier: Apache-2.0
"""What would make a model fit, or keep its weights off the link: one change at a time, in numbers.

Each change is the smallest of its kind that helps, searched for with the same plans that the report shows.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from eval.fit_memory import Run
from eval.fit_placement import PLACEMENTS, Machine, Model, Plan, plan

MOST_GPUS = 64
MOST_MEMORY = 4096 * 10**9
GB = 10**9
CONTEXT_STEP, SHORTEST_CHUNK = 128, 256


@dataclass(frozen=True)
class Change:
    """Options that differ, and the placement that works with them."""

    options: str
    placement: str
    why: str


def works(plans: list[Plan], on_gpus: bool) -> str | None:
    """The first placement that fits, with every weight on a GPU if `on_gpus`; `None` if there is none."""
    return next((p.placement for p in plans if p.fits and not (on_gpus and p.offloaded)), None)


def all_plans(model: Model, run: Run, machine: Machine) -> list[Plan]:
    """One plan for every placement."""
    return [plan(model, run, machine, placement) for placement in PLACEMENTS]


def smallest(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """The smallest number of `low..high` that fits, if those above it do too; `None` if `high` does not."""
    if low > high or not fits(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


def largest(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number of `low..high` that fits, if those below it do too; `None` if `low` does not."""
    found = smallest(0, high - low, lambda back: fits(high - back))
    return None if found is None else high - found


def find_changes(model: Model, run: Run, machine: Machine, on_gpus: bool = False) -> list[Change]:
    """Changes of one option each, that make some placement fit.

    Args:
        on_gpus (`bool`, *optional*, defaults to `False`): Count only what leaves no weight in host memory.
    """
    found = [*changes_of_run(model, run, machine, on_gpus), *changes_of_machine(model, run, machine, on_gpus)]
    return [change for change in found if change is not None]


def changes_of_run(model: Model, run: Run, machine: Machine, on_gpus: bool) -> Iterator[Change | None]:
    """Without another machine: shorter chunks, a shorter context, fewer rows, fewer bits, no draft head."""

    def placement(**fields) -> str | None:
        return works(all_plans(model, replace(run, **fields), machine), on_gpus)

    def placement_of(other: Model) -> str | None:
        return works(all_plans(other, run, machine), on_gpus)

    def change(option: str, field: str, value: int | None, why: str) -> Change | None:
        if value is None or value == getattr(run, field):
            return None
        name = placement(**{field: value})
        return Change(f"{option} {value}", name, why) if name else None

    # Below that, a prompt takes too long: every chunk reads all experts.
    powers = [2**n for n in range(SHORTEST_CHUNK.bit_length() - 1, 20) if 2**n < run.prefill_tokens]
    chunk = next((size for size in reversed(powers) if placement(chunk=size)), None)
    yield change("--prefill-chunk", "chunk", chunk, "less is held while a prompt is read")
    steps = largest(1, run.context // CONTEXT_STEP, lambda n: placement(context=n * CONTEXT_STEP) is not None)
    yield change("--context", "context", steps and steps * CONTEXT_STEP, "a smaller cache")
    batch = largest(1, run.batch, lambda n: placement(batch=n) is not None)
    yield change("--batch", "batch", batch, "a smaller cache, and less held while prompts are read")
    for bits in (8, 4):
        stored = run.bits or 8 * model.checkpoint.table_dtype.itemsize
        if bits < stored and (name := placement_of(Model.of(model.checkpoint, bits))):
            yield Change(f"--bits {bits}", name, f"n-gram tables of {bits} bits")
            break
    if model.checkpoint.draft_head and (name := placement_of(without_draft_head(model, run))):
        yield Change("num_nextn_predict_layers=0", name, "an argument of `from_pretrained`: no draft head")


def without_draft_head(model: Model, run: Run) -> Model:
    """The same checkpoint, loaded with `num_nextn_predict_layers=0`."""
    config = copy.deepcopy(model.checkpoint.config)
    config.num_nextn_predict_layers = 0
    return Model.of(replace(model.checkpoint, config=config, draft_head=False), run.bits)


def changes_of_machine(model: Model, run: Run, machine: Machine, on_gpus: bool) -> Iterator[Change | None]:
    """Another machine: more GPUs, larger ones, more host memory."""

    def placement(**fields) -> str | None:
        return works(all_plans(model, run, replace(machine, **fields)), on_gpus)

    if machine.gpus:
        # Not monotone by necessity: another GPU moves what lies where.
        gpus = next((n for n in range(machine.gpus + 1, MOST_GPUS + 1) if placement(gpus=n)), None)
        name = placement(gpus=gpus) if gpus else None
        yield Change(f"--gpus {gpus}", name, "more of them") if name else None
        low = machine.gpu_memory // GB + 1
        memory = smallest(low, MOST_MEMORY // GB, lambda n: placement(gpu_memory=n * GB) is not None)
        name = placement(gpu_memory=memory * GB) if memory else None
        yield Change(f"--gpu-memory {memory}GB", name, "larger ones") if name else None
    low = machine.host_memory // GB + 1
    memory = smallest(low, MOST_MEMORY // GB, lambda n: placement(host_memory=n * GB) is not None)
    name = placement(host_memory=memory * GB) if memory else None
    yield Change(f"--host-memory {memory}GB", name, "more of it") if name else None


__all__ = ["Change", "all_plans", "find_changes"]
