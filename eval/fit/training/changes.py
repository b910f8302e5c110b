# SPDX-License-Identifier: Apache-2.0
"""What would make a training run fit: single changes, the least intrusive first, then several together."""

from collections.abc import Iterator
from dataclasses import replace

from eval.fit.training.memory import MemoryPlan, plan_memory
from eval.fit.training.recipe import Adapter, Setup
from modeling_longcat_lite import LongCatLiteConfig

ATTENTION = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
MOST_GPUS = 2**9


def single_changes(setup: Setup) -> Iterator[tuple[str, Setup]]:
    """What to write into the recipe or onto the command line, and the setup that it gives."""
    if setup.tables in ("resident", "sharded"):
        frozen = replace(setup, tables="host", train_tables="none")
        yield "`model_init_kwargs: {ngram_tables: host}`, tables frozen", frozen
    if setup.gpus > 1 and setup.shard == "none":
        yield "`--shard fsdp2`", replace(setup, shard="fsdp2", train_tables="none")
    if setup.shard == "fsdp2" and setup.bf16 and setup.dtype == "bfloat16":
        yield "`bf16: false`, which keeps what is trained in bfloat16", replace(setup, bf16=False)
    if not setup.checkpointing:
        yield "`gradient_checkpointing: true`", replace(setup, checkpointing=True)
    fewest = 2 if setup.trainer == "dpo" else 1
    if setup.rows > fewest:
        yield "`per_device_train_batch_size: 1`, with more gradient accumulation", replace(setup, rows=fewest)
    if setup.optimizer.startswith("adamw_torch"):
        yield "`optim: adamw_8bit`", replace(setup, optimizer="adamw_8bit")
    if setup.dtype == "float32" and setup.shard == "none":
        yield "`dtype: bfloat16`", replace(setup, dtype="bfloat16")
    if setup.length >= 2048:
        yield f"rows of {setup.length // 2} tokens", replace(setup, length=setup.length // 2)


def changes_that_fit(config: LongCatLiteConfig, plan: MemoryPlan, limit: float) -> list[tuple[str, MemoryPlan]]:
    """Single changes with which a run fits into `limit` bytes, and an adapter if that does.

    Where no single change is enough: all that help together, with more GPUs if need be, and more GPUs alone.
    """
    tried = [(text, plan_memory(config, setup)) for text, setup in single_changes(plan.setup)]
    fitting = [(text, other) for text, other in tried if other.total <= limit]
    if not fitting:
        together, texts = plan, list[str]()
        for text, _ in tried:
            setup = dict(single_changes(together.setup)).get(text)
            other = None if setup is None else plan_memory(config, setup)
            if other is not None and other.total < together.total:
                together, texts = other, [*texts, text]
            if together.total <= limit:
                fitting.append((" and ".join(texts), together))
                break
        else:
            fitting += more_gpus(config, together, texts, limit)
        fitting += more_gpus(config, plan, [], limit)
    if plan.setup.adapter is None and plan.setup.tables != "sharded":
        adapted = replace(plan.setup, adapter=Adapter(16, ATTENTION), train_tables="none", has_reference=False)
        other = plan_memory(config, adapted)
        if other.total <= limit:
            fitting.append(("`use_peft: true` on the attention, rank 16", other))
    return fitting


def more_gpus(
    config: LongCatLiteConfig, plan: MemoryPlan, texts: list[str], limit: float
) -> list[tuple[str, MemoryPlan]]:
    """The smallest power of two of GPUs with which it fits, sharded; empty if there is none."""
    gpus = 2
    while gpus <= MOST_GPUS:
        if gpus > plan.setup.gpus:
            other = plan_memory(config, replace(plan.setup, gpus=gpus, shard="fsdp2"))
            if other.total <= limit:
                return [(" and ".join([*texts, f"`--gpus {gpus} --shard fsdp2`"]), other)]
        gpus *= 2
    return []


__all__ = ["changes_that_fit"]
