# SPDX-License-Identifier: Apache-2.0
"""Memory of a training run on one GPU, by part.

Activations and gradients are those of a step on tensors without memory (`dry_run.py`); weights, optimizer states and
tables are counted. The run needs what its largest moment needs: forward and backward, the optimizer's step, or the
generation of answers to learn from.

With n processes, FSDP2 keeps 1 / n of every weight, gradient and state, and has two layers whole at a time. Whatever
is assumed instead of computed is named in `ASSUMPTIONS` and counted as `reserve`.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from eval.fit.activations import Workload, cache_bytes
from eval.fit.training.dry_run import TABLE_GRADIENTS, DryRun, Parameter, compute_dtype, dry_run
from eval.fit.training.live_memory import ACTIVATIONS, GRADIENTS
from eval.fit.training.recipe import Setup
from modeling_longcat_lite import LongCatLiteConfig

PARTS = ("weights", "gradients", "optimizer", "activations", "tables", "communication", "reserve")
CONTEXT, NCCL, FRAGMENTATION = 10**9, 10**9, 0.05
ASSUMPTIONS = (
    "reserve: 1 GB for CUDA and its libraries, 1 GB for NCCL with several GPUs, 5 % of the rest for fragmentation",
    "logits in the chunks that TRL uses without Triton; with Triton up to 2 GB less",
    "packed rows with a dense mask, which sdpa needs and flash attention does not",
)

# Bytes of optimizer state per trained value: copies in the stored dtype, or a fixed number.
COPIES = {"adamw_torch": 2, "adamw_torch_fused": 2, "adagrad": 1, "rmsprop": 1, "sgd": 0}
FIXED = {
    **dict.fromkeys(["adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"], 2 * (1 + 4 / 256)),
    **dict.fromkeys(["lion_8bit", "paged_lion_8bit", "rmsprop_bnb_8bit"], 1 + 4 / 256),
    **dict.fromkeys(["paged_adamw_32bit"], 8.0),
    **dict.fromkeys(["lion_32bit", "paged_lion_32bit", "rmsprop_bnb", "rmsprop_bnb_32bit"], 4.0),
}
ROW_STATE = 8  # a second moment and a stamp
BITSANDBYTES = {4: 0.5 + 4 / 64, 8: 1.0}  # bytes per value; 4 bits with a float32 scale for each 64 values


@dataclass(frozen=True)
class MemoryPlan:
    """What one GPU holds.

    Args:
        parts (`dict[str, float]`): Bytes of each of `PARTS`, at the fullest moment.
        moment (`str`): Name of that moment.
        trained (`int`): Number of trained values, over all GPUs.
        host (`float`): Bytes of host memory that each process takes for tables.
    """

    setup: Setup
    parts: dict[str, float]
    moment: str
    trained: int
    host: float

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def counted(self) -> float:
        """Without what is only assumed."""
        return self.total - self.parts["reserve"]


def plan_memory(config: LongCatLiteConfig, setup: Setup) -> MemoryPlan:
    """The plan of a run of `setup` with a model of `config`.

    Raises:
        `ValueError`: for an optimizer whose memory is not known.
    """
    check_optimizer(setup.optimizer)
    processes = setup.gpus if setup.shard == "fsdp2" else 1
    computed = compute_dtype(setup).itemsize
    upcast = 4 / computed if setup.shard == "fsdp2" and setup.bf16 else 1.0  # FSDP2 stores what is trained in float32
    run = dry_run(config, setup)
    table_processes = processes if setup.tables == "sharded" else 1
    held = run.memory.peak({GRADIENTS: upcast / processes, TABLE_GRADIENTS: upcast / table_processes})
    trunk = [p for p in run.parameters if not p.is_table]
    tables = [p for p in run.parameters if p.is_table]

    fixed = dict.fromkeys(PARTS, 0.0)
    fixed["weights"] = summed(trunk, lambda p: p.count * stored_size(p, setup)) / processes
    fixed["tables"] = summed(tables, lambda p: p.count * stored_size(p, setup)) / table_processes
    fixed["optimizer"] = summed(trunk, lambda p: state_bytes(p, setup)) / processes
    fixed["optimizer"] += summed(tables, lambda p: state_bytes(p, setup)) / table_processes
    if setup.has_reference:
        plain = getattr(torch, setup.dtype).itemsize
        fixed["weights"] += summed(trunk, lambda p: p.count * plain) / processes
        fixed["tables"] += summed(tables, lambda p: p.count * plain) / table_processes
    fixed["communication"] = communication(run, setup, computed)

    rows = row_gradients(config, setup)
    moments = {
        "forward and backward": (held.pop(ACTIVATIONS), sum(held.values()) + rows),
        "optimizer step": optimizer_step(trunk, tables, setup, processes, table_processes, rows),
    }
    if setup.trainer == "grpo":
        moments["generation"] = generation_bytes(config, setup), 0.0
    moment = max(moments, key=lambda name: sum(moments[name]))
    fixed["activations"], fixed["gradients"] = moments[moment]
    fixed["reserve"] = CONTEXT + NCCL * (setup.gpus > 1) + FRAGMENTATION * sum(fixed.values())
    stored = sum(config.subtable_sizes) * config.subtable_width * getattr(torch, setup.dtype).itemsize
    trained = sum(p.count for p in run.parameters if p.trained)
    return MemoryPlan(setup, fixed, moment, trained, float(stored) if setup.tables == "host" else 0.0)


def summed(parameters: Iterable[Parameter], size: Callable[[Parameter], float]) -> float:
    return float(sum(map(size, parameters)))


def check_optimizer(name: str) -> None:
    if name not in {*COPIES, *FIXED, "adafactor"}:
        known = ", ".join(sorted({*COPIES, *FIXED, "adafactor"}))
        raise ValueError(f"`optim: {name}` is an optimizer whose memory is not known here; known are {known}.")


def stored_size(parameter: Parameter, setup: Setup) -> float:
    """Bytes of a value between steps."""
    if parameter.packable and setup.bits < 16:
        return BITSANDBYTES[setup.bits]
    if parameter.is_adapter and setup.bits < 16:
        return 2
    if parameter.trained and ((setup.shard == "fsdp2" and setup.bf16) or parameter.is_adapter):
        return 4
    return getattr(torch, setup.dtype).itemsize


def state_bytes(parameter: Parameter, setup: Setup) -> float:
    """Bytes of an optimizer's states for a parameter."""
    if parameter.is_table and setup.train_tables == "rowwise":
        return parameter.shape[0] * ROW_STATE
    if not parameter.trained:
        return 0
    if setup.optimizer in COPIES:
        return COPIES[setup.optimizer] * parameter.count * stored_size(parameter, setup)
    if setup.optimizer == "adafactor":
        rows = parameter.shape[-1] if len(parameter.shape) > 1 else 1
        columns = parameter.shape[-2] if len(parameter.shape) > 1 else parameter.count
        return 4 * (parameter.count / rows + parameter.count / columns)
    # The Trainer has bitsandbytes keep 32 bits for embeddings.
    is_embedding = parameter.is_table or "embed_tokens" in parameter.name
    if "8bit" in setup.optimizer and is_embedding:
        return 4 * round(FIXED[setup.optimizer]) * parameter.count
    return FIXED[setup.optimizer] * parameter.count


def optimizer_step(
    trunk, tables, setup: Setup, processes: int, table_processes: int, row_gradients: float
) -> tuple[float, float]:
    """The temporary copy of a state that `foreach` makes, and all gradients."""
    trained = summed(trunk, lambda p: p.count * stored_size(p, setup) * p.trained) / processes
    trained += summed(tables, lambda p: p.count * stored_size(p, setup) * p.trained) / table_processes
    return trained if setup.optimizer == "adamw_torch" else 0.0, trained + row_gradients


def row_gradients(config: LongCatLiteConfig, setup: Setup) -> float:
    """Sparse gradients of tables: a row and its id for every read, and another copy without repetitions."""
    if setup.train_tables != "rowwise":
        return 0.0
    reads = setup.rows * setup.length * config.num_subtables * (2 if setup.accumulates else 1)
    return 2.0 * reads * (config.subtable_width * getattr(torch, setup.dtype).itemsize + 8)


def unit_of(name: str) -> str:
    """The module that FSDP2 gathers with a parameter: a layer, a table, the tail, the embedding, or the rest."""
    found = re.search(r"layers\.\d+\.|embedders\.\d+\.|embed_tokens|mtp\.", name)
    return found[0] if found else "tail" if "lm_head" in name or name.endswith("model.norm.weight") else "root"


def communication(run: DryRun, setup: Setup, computed: int) -> float:
    """Memory for exchange between GPUs: with FSDP2 two whole units, the gradients of one, the tail and the rest; with
    DDP a copy of the gradients, which it exchanges in buckets."""
    if setup.gpus == 1:
        return 0.0
    trained = [p for p in run.parameters if p.trained]
    if setup.shard == "none":
        return summed(trained, lambda p: p.count * stored_size(p, setup))
    whole: defaultdict[str, float] = defaultdict(float)
    gradients: defaultdict[str, float] = defaultdict(float)
    for p in run.parameters:
        if not p.is_table or setup.tables == "sharded":
            size = BITSANDBYTES[setup.bits] if p.packable and setup.bits < 16 else computed
            whole[unit_of(p.name)] += p.count * size
            gradients[unit_of(p.name)] += p.count * computed * p.trained
    stays = whole.pop("tail", 0.0) + whole.pop("root", 0.0)
    return stays + max(2 * whole[unit] + gradients[unit] for unit in whole)


def generation_bytes(config: LongCatLiteConfig, setup: Setup) -> float:
    """The cache, and the logits of the last tokens in float32, twice."""
    cache = cache_bytes(config, Workload(setup.length, setup.rows), compute_dtype(setup))
    return cache + setup.rows * 2 * 4 * config.vocab_size


__all__ = ["ASSUMPTIONS", "PARTS", "MemoryPlan", "plan_memory"]
