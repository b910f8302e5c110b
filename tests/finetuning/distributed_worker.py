# SPDX-License-Identifier: Apache-2.0
"""What each process of `test_distributed.py` runs, and one process as the reference.

    torchrun --nproc_per_node 2 tests/finetuning/distributed_worker.py FOLDER

reads the checkpoint FOLDER/model and writes, for every way of sharing the work, FOLDER/{way}.safetensors: the losses
of some AdamW steps, the weights after them, and tokens that were then generated. Without torchrun it writes
FOLDER/alone.safetensors, and FOLDER/alone_frozen.safetensors of a run with frozen tables.

Every process of a data-parallel run takes one of the two rows of a batch; both rows count the same labels, so that the
mean over processes is the mean over the batch.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from accelerated_model import prepare
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.distributed import DistributedConfig

from modeling_longcat_lite import LongCatLiteForCausalLM

CONFIGS = Path(__file__).parents[2] / "training" / "accelerate_configs"
STEPS, LENGTH = 4, 24
# A large `eps`: of a gradient that is all rounding, Adam would make a whole step.
OPTIMIZER = {"lr": 1e-3, "weight_decay": 0.1, "eps": 1e-6}


def batches(vocab_size: int) -> list[torch.Tensor]:
    """`[2, LENGTH]` ids for each step; few tokens, so that n-grams repeat."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(4, min(vocab_size, 20), (2, LENGTH), generator=generator) for _ in range(STEPS)]


def load(folder: Path, **options) -> LongCatLiteForCausalLM:
    model = LongCatLiteForCausalLM.from_pretrained(folder / "model", **options)
    return model.train()


def tables_of(model: LongCatLiteForCausalLM) -> list[torch.nn.Parameter]:
    return list(model.model.ngram_embeddings.embedders.parameters())


def freeze_tables(model: LongCatLiteForCausalLM) -> None:
    for table in tables_of(model):
        table.requires_grad_(False)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor of all processes."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).contiguous().clone()


def train(model, rows: slice, wrapped=None) -> torch.Tensor:
    """Losses `[STEPS]` of this process."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # One tensor at a time: those of different meshes cannot be stacked.
    optimizer = torch.optim.AdamW(trained, foreach=False, **OPTIMIZER)
    losses = []
    for batch in batches(model.config.vocab_size):
        batch = batch[rows]
        loss = (wrapped or model)(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def generate(model) -> torch.Tensor:
    """Greedy tokens after two prompts of different lengths, the same in every process."""
    prompts = torch.tensor([[3, 3, 5, 6, 7, 5, 6], [4, 5, 6, 7, 8, 9, 4]])
    mask = (prompts != 3).long()
    with torch.no_grad():
        return model.eval().generate(
            prompts, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None
        )


def run(folder: Path, way: str, model, share_rows: bool, wrapped=None) -> None:
    """Trains, generates and writes the result, from process 0."""
    spread = dist.is_initialized() and not share_rows
    rows = slice(dist.get_rank(), dist.get_rank() + 1) if spread else slice(None)
    losses = train(model, rows, wrapped)
    if spread:
        dist.all_reduce(losses)
        losses /= dist.get_world_size()
    tokens = generate(model)
    result = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    if not dist.is_initialized() or dist.get_rank() == 0:
        save_file({"losses": losses, "tokens": tokens, **result}, folder / f"{way}.safetensors")


def ddp(folder: Path) -> None:
    model = load(folder)
    run(folder, "ddp", model, share_rows=False, wrapped=DistributedDataParallel(model))


def shard(model: LongCatLiteForCausalLM, tables_too: bool) -> None:
    """FSDP2 as accelerate applies it: layers, and tables or none, are units; the rest is the root's."""
    ignored = set() if tables_too else set(tables_of(model))
    units = [*(model.model.ngram_embeddings.embedders if tables_too else ()), *model.model.layers]
    for unit in [*units, model]:
        fully_shard(unit, ignored_params=ignored)


def fsdp_tables_excluded(folder: Path) -> None:
    model = load(folder)
    freeze_tables(model)
    shard(model, tables_too=False)
    assert not any(isinstance(table, DTensor) for table in tables_of(model))
    run(folder, "fsdp_tables_excluded", model, share_rows=False)


def fsdp_tables_sharded(folder: Path) -> None:
    model = load(folder)
    shard(model, tables_too=True)
    for table in tables_of(model):
        assert isinstance(table, DTensor) and len(table.to_local()) <= (len(table) + 1) // 2
    run(folder, "fsdp_tables_sharded", model, share_rows=False)


def accelerated(name: str, freeze: bool) -> Callable[[Path], None]:
    """A file of `training/accelerate_configs`, as accelerate takes it where there are GPUs."""

    def run_it(folder: Path) -> None:
        model = load(folder)
        if freeze:
            freeze_tables(model)
        model = prepare(model, CONFIGS / f"{name}.yaml")
        assert all(isinstance(table, DTensor) is not freeze for table in tables_of(model))
        assert isinstance(model.model.layers[0].mlp.experts.down_proj, DTensor)
        run(folder, f"accelerate_{name}", model, share_rows=False)
        # Loaded in bfloat16, with a router in float32.
        model = load(folder, dtype=torch.bfloat16)
        if freeze:
            freeze_tables(model)
        assert train(prepare(model, CONFIGS / f"{name}.yaml"), slice(1)).isfinite().all()

    return run_it


def native(way: str, share_rows: bool, **sizes) -> Callable[[Path], None]:
    """transformers' own distribution, by the plans of the config."""

    def run_it(folder: Path) -> None:
        model = load(folder, distributed_config=DistributedConfig(**sizes))
        run(folder, way, model, share_rows)
        # All processes take part; the first one writes.
        model.save_pretrained(folder / f"{way}_saved")

    return run_it


WAYS = {
    "ddp": ddp,
    "fsdp_tables_excluded": fsdp_tables_excluded,
    "fsdp_tables_sharded": fsdp_tables_sharded,
    "accelerate_fsdp2": accelerated("fsdp2", freeze=True),
    "accelerate_fsdp2_tables_sharded": accelerated("fsdp2_tables_sharded", freeze=False),
    "fsdp_native": native("fsdp_native", False, fsdp_size=2),
    "tensor_parallel": native("tensor_parallel", True, tp_size=2),
    # Both processes see the same batch; attention is split as well, experts go whole.
    "expert_and_tensor_parallel": native("expert_and_tensor_parallel", True, tp_size=2, ep_size=2),
    # Each process has its own batch, and tokens travel to the experts.
    "expert_parallel": native("expert_parallel", False, fsdp_size=2, ep_size=2),
}


def main() -> None:
    folder = Path(sys.argv[1])
    if "RANK" not in os.environ:
        run(folder, "alone", load(folder), share_rows=True)
        frozen = load(folder)
        freeze_tables(frozen)
        run(folder, "alone_frozen", frozen, share_rows=True)
        return
    dist.init_process_group("gloo")
    for way in sys.argv[2:] or WAYS:
        WAYS[way](folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
