# SPDX-License-Identifier: Apache-2.0
"""What goes where under each `ngram_tables`: modules over the GPUs, the rest in host memory.

This repeats what `device_map="auto"` does with the budgets that are printed as `max_memory`: modules in their order,
GPU after GPU, and never back to a GPU that was full. The first GPU keeps room for the largest layer that follows,
because a layer in host memory passes through it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from eval.fit.activations import (
    Workload,
    activation_bytes,
    attention_cache_bytes,
    history_bytes,
    stage_bytes,
    staging_bytes,
)
from eval.fit.weights import TABLES, Checkpoint, Unit, weigh

PLACEMENTS = ("resident", "host", "disk")
GIB = 2**30
GPU_RESERVE, HOST_RESERVE = GIB // 2, 2 * GIB
CACHE, ACTIVATIONS, TRANSIT, STAGING, RESERVE = "KV cache", "activations", "layer in transit", "row staging", "reserve"


@dataclass(frozen=True)
class Machine:
    """Memory in bytes, rates in bytes per second. Without GPUs the host computes."""

    gpus: int
    gpu_memory: int
    host_memory: int
    gpu_bandwidth: float = 1000e9
    host_bandwidth: float = 50e9
    link_bandwidth: float = 25e9
    disk_bandwidth: float = 3e9
    tflops: float = 100.0


@dataclass
class Plan:
    """Bytes by part on every device, and whether they fit.

    Args:
        on_host (`list[Unit]`): Computed on the host without GPUs; sent through the link to a GPU otherwise.
        max_memory (`dict[int | str, int]`): As `from_pretrained` takes it.
        missing (`dict[str, int]`): Bytes by which a device is too small.
    """

    placement: str
    gpus: list[Counter]
    host: Counter
    disk: Counter
    on_gpu: list[Unit]
    on_host: list[Unit]
    max_memory: dict[int | str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return not self.missing

    @property
    def offloaded(self) -> int:
        """Bytes of weights that pass through the link in each forward."""
        return sum(unit.size for unit in self.on_host) if self.gpus else 0


@dataclass(frozen=True)
class Model:
    """A checkpoint, its units and the bytes of its tables by placement: weighed once for all plans."""

    checkpoint: Checkpoint
    units: dict[str, list[Unit]]
    tables: dict[str, int]

    @classmethod
    def of(cls, checkpoint: Checkpoint, bits: int | str | None) -> "Model":
        weighed = {placement: weigh(checkpoint, placement, bits) for placement in PLACEMENTS}
        tables = {p: sum(unit.parts.get(TABLES, 0) for unit in units) for p, units in weighed.items()}
        units = {p: [u for u in units if p == "resident" or TABLES not in u.parts] for p, units in weighed.items()}
        return cls(checkpoint, units, tables)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as it is stored."""
        return self.tables["disk"] // sum(self.checkpoint.config.subtable_sizes)


def assign(units: Sequence[Unit], budgets: Sequence[int]) -> list[int]:
    """The GPU of every unit, `len(budgets)` for host memory, as accelerate's `infer_auto_device_map` fills them."""
    places, device, used = [], 0, 0
    for i, unit in enumerate(units):
        largest = max((later.size for later in units[i + 1 :]), default=0)
        while device < len(budgets) and used + unit.size > budgets[device] - (largest if device == 0 else 0):
            device, used = device + 1, 0
        used += unit.size
        places.append(device)
    return places


def balanced(units: Sequence[Unit], budgets: Sequence[int]) -> list[int]:
    """Budgets under `device_map="auto"`: all but the last get an even share plus 1.25 times the largest unit."""
    share = sum(unit.size for unit in units) // len(budgets) + int(1.25 * max(unit.size for unit in units))
    return [min(share, budget) for budget in budgets[:-1]] + list(budgets[-1:])


def cache_by_gpu(model: Model, run: Workload, units: Sequence[Unit], places: Sequence[int], gpus: int) -> list[int]:
    """Bytes of the cache on every GPU: with its attentions, and on the first GPU for layers in host memory."""
    config, dtype = model.checkpoint.config, model.checkpoint.dtype
    shares = [0] * gpus
    shares[0] = history_bytes(config, run)
    for unit, place in zip(units, places, strict=True):
        shares[place if place < gpus else 0] += unit.attentions * attention_cache_bytes(config, run, dtype)
    return shares


def spread(
    model: Model, run: Workload, machine: Machine, units: Sequence[Unit]
) -> tuple[list[int], list[int], list[int]]:
    """Place of every unit, cache of every GPU, and budget for weights of every GPU."""
    config, dtype = model.checkpoint.config, model.checkpoint.dtype
    free = machine.gpu_memory - GPU_RESERVE - activation_bytes(config, run, dtype)
    shares = [0] * machine.gpus
    while True:
        budgets = [free - share for share in shares]
        places = assign(units, balanced(units, budgets))
        needed = cache_by_gpu(model, run, units, places, machine.gpus)
        if all(need <= share for need, share in zip(needed, shares, strict=True)):
            return places, needed, budgets
        # Budgets only ever shrink, so this ends.
        shares = [max(pair) for pair in zip(needed, shares, strict=True)]


def plan(model: Model, run: Workload, machine: Machine, placement: str) -> Plan:
    """What goes where under `ngram_tables=placement`."""
    units = model.units[placement]
    result = (plan_with_gpus if machine.gpus else plan_on_host)(model, run, machine, placement, units)
    config, tables = model.checkpoint.config, model.tables[placement]
    if placement == "host":
        result.host[TABLES] += tables
    if placement == "disk":
        result.disk[TABLES] = tables
    if placement != "resident":
        staging = staging_bytes(config, run, model.row_bytes)
        if machine.gpus:
            result.host[STAGING] = staging
        else:  # freed before the first layer runs
            lookup = staging + stage_bytes(config, run, model.checkpoint.dtype)["embedding"]
            result.host[ACTIVATIONS] = max(result.host[ACTIVATIONS], lookup)
    result.host[RESERVE] = HOST_RESERVE
    if (over := sum(result.host.values()) - machine.host_memory) > 0:
        result.missing["host"] = over
    if machine.gpus:
        # accelerate sets the largest unit aside on the host too, although nothing passes through it.
        largest = max((unit.size for unit in result.on_host), default=0)
        rest = machine.host_memory - sum(result.host.values())
        result.max_memory["cpu"] = result.offloaded + max(largest, rest)
    return result


def plan_on_host(model: Model, run: Workload, machine: Machine, placement: str, units: list[Unit]) -> Plan:
    """Everything in host memory."""
    config, dtype = model.checkpoint.config, model.checkpoint.dtype
    host = Counter({CACHE: history_bytes(config, run), ACTIVATIONS: activation_bytes(config, run, dtype)})
    for unit in units:
        host.update(unit.parts)
        host[CACHE] += unit.attentions * attention_cache_bytes(config, run, dtype)
    return Plan(placement, [], host, Counter(), [], units)


def plan_with_gpus(model: Model, run: Workload, machine: Machine, placement: str, units: list[Unit]) -> Plan:
    """Units over the GPUs, the rest in host memory."""
    config, dtype = model.checkpoint.config, model.checkpoint.dtype
    places, shares, budgets = spread(model, run, machine, units)
    gpus = [Counter({CACHE: share, ACTIVATIONS: activation_bytes(config, run, dtype)}) for share in shares]
    host: Counter = Counter()
    for unit, place in zip(units, places, strict=True):
        (gpus[place] if place < len(gpus) else host).update(unit.parts)
    on_gpu = [unit for unit, place in zip(units, places, strict=True) if place < len(gpus)]
    on_host = [unit for unit, place in zip(units, places, strict=True) if place == len(gpus)]
    gpus[0][TRANSIT] = max((unit.largest_leaf for unit in on_host), default=0)
    result = Plan(placement, gpus, host, Counter(), on_gpu, on_host)
    for i, gpu in enumerate(gpus):
        gpu[RESERVE] = GPU_RESERVE
        result.max_memory[i] = max(budgets[i], 0)
        if (over := sum(gpu.values()) - machine.gpu_memory) > 0:
            result.missing[f"GPU {i}"] = over
    if not on_gpu:  # then accelerate would compute on the host
        needed = units[0].size + max(unit.size for unit in units[1:])
        result.missing["GPU 0"] = max(result.missing.get("GPU 0", 0), needed - budgets[0])
    # A table in host memory would pass through the link whole, for a few of its rows.
    if tables := sum(unit.parts.get(TABLES, 0) for unit in on_host):
        result.missing["the GPUs for tables"] = tables
    return result


__all__ = ["PLACEMENTS", "Machine", "Model", "Plan", "plan"]
