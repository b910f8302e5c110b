# SPDX-License-Identifier: Apache-2.0
"""What makes a placement fit, or keeps its weights off the link: one change at a time, in numbers.

Each change is the smallest of its kind that helps, found with the same plans that the report shows.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from eval.fit.activations import Workload
from eval.fit.placement import Machine, Model, plan
from modeling_longcat_lite.ngram_quantization import ROW_FORMATS

MOST_GPUS = 64
MOST_MEMORY = 4096  # GB
GB = 10**9
CONTEXT_STEP, SHORTEST_CHUNK = 128, 256


@dataclass(frozen=True)
class Change:
    """Options with which `ngram_tables=placement` reaches its goal."""

    placement: str
    goal: str
    options: str
    why: str


@dataclass(frozen=True)
class Search:
    """One placement on one machine. With `on_gpus` success also means that no weight is left in host memory."""

    model: Model
    run: Workload
    machine: Machine
    placement: str
    on_gpus: bool = False

    def succeeds(self, model: Model | None = None, **fields: int) -> bool:
        """Whether it fits with other `fields` of the workload or the machine, or with another model."""
        of_run = {name: value for name, value in fields.items() if name in Workload.__dataclass_fields__}
        of_machine = {name: value for name, value in fields.items() if name not in of_run}
        run, machine = replace(self.run, **of_run), replace(self.machine, **of_machine)
        result = plan(model or self.model, run, machine, self.placement)
        return result.fits and not (self.on_gpus and result.offloaded)

    def change(self, options: str, why: str) -> Change:
        return Change(self.placement, "no weight on the link" if self.on_gpus else "fits", options, why)


def smallest(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """The smallest number of `low..high` that fits, if all above it do too; `None` if `high` does not."""
    if low > high or not fits(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


def largest(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number of `low..high` that fits, if all below it do too; `None` if `low` does not."""
    found = smallest(0, high - low, lambda back: fits(high - back))
    return None if found is None else high - found


def find_changes(search: Search) -> list[Change]:
    """Every single change that leads to success; empty if none is needed."""
    if search.succeeds():
        return []
    return [*changes_of_run(search), *changes_of_tables(search), *changes_of_machine(search)]


def changes_of_run(search: Search) -> Iterator[Change]:
    """Shorter chunks, a shorter context, fewer rows."""
    run = search.run
    # Shorter chunks make a prompt too slow: every chunk reads all experts.
    chunks = [2**n for n in range(SHORTEST_CHUNK.bit_length() - 1, 20) if 2**n < run.prefill_tokens]
    chunk = next((size for size in reversed(chunks) if search.succeeds(chunk=size)), None)
    if chunk:
        yield search.change(f"--prefill-chunk {chunk}", "less is held while a prompt is read")
    steps = largest(1, run.context // CONTEXT_STEP, lambda n: search.succeeds(context=n * CONTEXT_STEP))
    if steps:
        yield search.change(f"--context {steps * CONTEXT_STEP}", "a smaller cache")
    batch = largest(1, run.batch - 1, lambda n: search.succeeds(batch=n))
    if batch:
        yield search.change(f"--batch-size {batch}", "a smaller cache, and less held while prompts are read")


def changes_of_tables(search: Search) -> Iterator[Change]:
    """Packed rows, the largest that fit; no draft head."""
    checkpoint = search.model.checkpoint
    width, dtype = checkpoint.config.subtable_width, checkpoint.table_dtype
    packed = {known.bits: known.row_bytes(width, dtype) for known in ROW_FORMATS.values() if known.is_packed}
    for bits in sorted(packed, key=packed.__getitem__, reverse=True):
        if packed[bits] < search.model.row_bytes and search.succeeds(Model.of(checkpoint, bits)):
            tables = f"n-gram tables in {ROW_FORMATS[bits].describe(dtype)}"
            yield search.change(f"--bits {bits}", f"{tables}; `eval.checkpoints.quantize` writes them")
            break
    if checkpoint.draft_head:
        config = copy.deepcopy(checkpoint.config)
        config.num_nextn_predict_layers = 0
        without = Model.of(replace(checkpoint, config=config, draft_head=False), search.run.bits)
        if search.succeeds(without):
            yield search.change("num_nextn_predict_layers=0", "no draft head; an argument of `from_pretrained`")


def changes_of_machine(search: Search) -> Iterator[Change]:
    """More GPUs, larger GPUs, more host memory; larger GPUs and more host memory where neither alone is enough."""
    machine = search.machine
    low_gpu, low_host = machine.gpu_memory // GB + 1, machine.host_memory // GB + 1
    found = False
    if machine.gpus:
        # One by one: another GPU changes what goes where, and may not help.
        gpus = next((n for n in range(machine.gpus + 1, MOST_GPUS + 1) if search.succeeds(gpus=n)), None)
        if gpus:
            yield search.change(f"--gpus {gpus}", "more of them")
        memory = smallest(low_gpu, MOST_MEMORY, lambda n: search.succeeds(gpu_memory=n * GB))
        if memory:
            yield search.change(f"--gpu-memory {memory}GB", "larger ones")
        found = bool(gpus)
    host = smallest(low_host, MOST_MEMORY, lambda n: search.succeeds(host_memory=n * GB))
    if host:
        yield search.change(f"--host-memory {host}GB", "more of it")
    elif machine.gpus and not found:
        ample = MOST_MEMORY * GB
        gpu = smallest(low_gpu, MOST_MEMORY, lambda n: search.succeeds(gpu_memory=n * GB, host_memory=ample))
        if gpu is None:
            return
        host = smallest(low_host, MOST_MEMORY, lambda n: search.succeeds(gpu_memory=gpu * GB, host_memory=n * GB))
        if host:
            yield search.change(f"--gpu-memory {gpu}GB --host-memory {host}GB", "more of both")


__all__ = ["Change", "Search", "find_changes"]
