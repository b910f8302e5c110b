# SPDX-License-Identifier: Apache-2.0
"""One training step on tensors without memory: the most that it would hold.

The model, the adapter, checkpointing and the loss are those of a real run, so the count includes whatever autograd
keeps: the gathered rows of the routed experts, the chunks of logits, the mask of packed rows.

Shapes: B batch, T tokens of a row, S sub-tables, W width of a table row.
"""

import json
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from eval.fit.training.live_memory import GRADIENTS, LiveMemory
from eval.fit.training.recipe import Setup
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM

TABLE_GRADIENTS = "table gradients"
TABLES = ".embedders."


@dataclass(frozen=True)
class Parameter:
    """A parameter's size, and what decides how it is stored; `packable` by bitsandbytes."""

    name: str
    count: int
    shape: tuple[int, ...]
    itemsize: int
    trained: bool
    packable: bool

    @property
    def is_table(self) -> bool:
        return TABLES in self.name

    @property
    def is_adapter(self) -> bool:
        return "lora_" in self.name


class EmptyTables:
    """In place of tables that are not on the device: rows of the right shape."""

    def __init__(self, width: int):
        self.width = width

    def gather(self, ids: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """`[S, B, T]` ids to `[B, T, S * W]`."""
        return torch.empty(*ids.shape[1:], len(ids) * self.width, device=device, dtype=dtype)


def compute_dtype(setup: Setup) -> torch.dtype:
    """The dtype in which weights are computed with: FSDP2 in mixed precision gathers them in bfloat16."""
    if setup.shard == "fsdp2" and setup.bf16:
        return torch.bfloat16
    return getattr(torch, setup.dtype)


def build(config: LongCatLiteConfig, setup: Setup) -> Any:
    """The causal model, inside its adapter if there is one, ready for a step."""
    from peft import LoraConfig, get_peft_model
    from trl.models import enable_selective_activation_checkpointing
    from trl.trainer.utils import add_fused_lm_head

    off_device = setup.tables in ("host", "disk")
    model = LongCatLiteForCausalLM._from_config(
        config, dtype=compute_dtype(setup), ngram_tables=setup.tables if off_device else "resident"
    )
    embedding: Any = model.model.ngram_embeddings
    if embedding is not None:
        if off_device:
            embedding.tables = EmptyTables(config.subtable_width)
        # Gradients by rows are sparse; `memory.row_gradients` counts them.
        embedding.embedders.requires_grad_(setup.train_tables == "dense")
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    trained: Any = model
    if setup.adapter is not None:
        modules, adapter = setup.adapter.target_modules, setup.adapter
        trained = get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=adapter.r,
                target_modules=modules if isinstance(modules, str) else list(modules) or None,
                target_parameters=list(adapter.target_parameters) or None,
            ),
            # float32, except where FSDP2 gathers it in bfloat16 or, as in TRL, the weights are packed.
            autocast_adapter_dtype=setup.bits == 16 and compute_dtype(setup) == getattr(torch, setup.dtype),
        )
    if setup.checkpointing:
        if setup.selective:
            enable_selective_activation_checkpointing(model)
            model.gradient_checkpointing_enable()
        else:
            model.activation_checkpointing_enable()
        if setup.adapter is not None:
            model.enable_input_require_grads()
    trained.train()
    return trained


def inputs_of(setup: Setup) -> dict[str, torch.Tensor]:
    """A batch as the collator makes it: packed rows as one row with positions, others with a mask."""
    shape = (1, setup.rows * setup.length) if setup.packed else (setup.rows, setup.length)
    tokens = torch.zeros(shape, dtype=torch.long)
    extra = {"position_ids": torch.zeros_like(tokens)} if setup.packed else {"attention_mask": torch.ones_like(tokens)}
    return {"input_ids": tokens, "labels": torch.zeros_like(tokens), **extra}


@dataclass(frozen=True)
class DryRun:
    """What a step held.

    Args:
        parameters (`tuple[Parameter, ...]`): Of the model, in the dtype that they are computed in.
        memory (`LiveMemory`): Its `peak` has `ACTIVATIONS`, `GRADIENTS` and `TABLE_GRADIENTS`.
    """

    parameters: tuple[Parameter, ...]
    memory: LiveMemory


def dry_run(config: LongCatLiteConfig, setup: Setup) -> DryRun:
    """Runs a step of `setup` on a model of the config; two of them where gradients accumulate."""
    # Settings that do not change the step are removed, so that another number of GPUs reuses the run.
    same = replace(setup, gpus=1, context_parallel=1, optimizer="", has_reference=False)
    return remembered(config.to_json_string(use_diff=False), same)


@cache
def remembered(config_json: str, setup: Setup) -> DryRun:
    config = LongCatLiteConfig.from_dict(json.loads(config_json))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about names of transformers that PEFT uses
        trained = build(config, setup)
    with FakeTensorMode(allow_non_fake_inputs=True):
        # Fake tensors of a CPU from here on: unlike meta tensors, they choose the operations that a GPU would.
        trained.to_empty(device="cpu")
        batch = inputs_of(setup)
        memory = LiveMemory(trained, lambda name: TABLE_GRADIENTS if TABLES in name else GRADIENTS)
        with memory:
            for _ in range(2 if setup.accumulates else 1):
                one_step(setup, trained, batch)
        return DryRun(tuple(describe(trained)), memory)


def one_step(setup: Setup, trained, batch: dict[str, torch.Tensor]) -> None:
    """Forward and backward; preferences also run the reference."""
    with torch.autocast("cpu", torch.bfloat16) if setup.bf16 else nullcontext():
        loss = trained(**batch, fused_lm_head=True).loss
        if setup.trainer == "dpo":
            with torch.no_grad():
                trained(**batch, fused_lm_head=True)
    loss.backward()


def describe(trained) -> list[Parameter]:
    """The parameters of a model, with those that bitsandbytes would pack marked."""
    linears = {
        f"{name}.weight"
        for name, module in trained.named_modules()
        # Quantizers leave the head, the router, and everything but linear layers alone.
        if type(module) is torch.nn.Linear and "lora_" not in name and not name.endswith("lm_head")
    }
    return [
        Parameter(name, p.numel(), tuple(p.shape), p.itemsize, p.requires_grad, name in linears)
        for name, p in trained.named_parameters()
    ]


__all__ = ["TABLE_GRADIENTS", "DryRun", "Parameter", "compute_dtype", "dry_run"]
