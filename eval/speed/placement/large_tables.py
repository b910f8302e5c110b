# SPDX-License-Identifier: Apache-2.0
"""A checkpoint with n-gram tables of any size, written as a stream: no table is ever in memory as a whole.

The backbone is a small model with random weights; the tables, one file each, hold seeded random numbers. A folder gets
its name when it is complete, and is then used again.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from eval.speed.models import Shape
from eval.speed.placement.linux import TableFile, evict
from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.checkpoint_header import read_safetensors_header
from modeling_longcat_lite.whole_files import replaced_folder

DTYPE = torch.bfloat16
BACKBONE = "model-backbone.safetensors"
BLOCK = 32 * 2**20  # bytes written at a time
SPARE = 256 * 2**20  # bytes on the drive besides the tables: backbones, and room to breathe
# Of four bfloat16 numbers at a time: signs and mantissas are random, the exponent is -6. No NaN, none near overflow.
RANDOM_BITS, FIXED_BITS = (np.uint64(int(word * 4, 16)) for word in ("807f", "3c80"))


def with_tables(shape: Shape, num_bytes: int) -> Shape:
    """`shape` with tables of at least `num_bytes` bytes together."""
    config = shape.our_config()
    rows = math.ceil(num_bytes / (config.num_subtables * config.subtable_width * DTYPE.itemsize))
    return replace(shape, ngram_vocab_size_ratio=rows / config.vocab_size)


def table_bytes(shape: Shape) -> int:
    """Bytes of all tables together."""
    config = shape.our_config()
    return sum(config.subtable_sizes) * config.subtable_width * DTYPE.itemsize


def check_space(folder: Path, shapes: list[Shape]):
    """Raises a `ValueError` that says how much is missing if checkpoints of `shapes` do not fit into `folder`."""
    needed, free = sum(map(table_bytes, shapes)) + SPARE, shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"The checkpoints need {needed / 1e9:.1f} GB, and the drive of `--work-dir` has {free / 1e9:.1f} GB free: "
            f"{(needed - free) / 1e9:.1f} GB are missing. Choose another folder or fewer `--gigabytes`."
        )


def write_table(file: BinaryIO, name: str, rows: int, width: int, generator: np.random.Generator):
    """One table `[rows, width]` as a safetensors file, block by block."""
    num_bytes = rows * width * DTYPE.itemsize
    entry = {"dtype": "BF16", "shape": [rows, width], "data_offsets": [0, num_bytes]}
    header = json.dumps({"__metadata__": {"format": "pt"}, name: entry}).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
    for begin in range(0, num_bytes, BLOCK):
        count = min(BLOCK, num_bytes - begin)
        words = generator.integers(0, 2**64, size=math.ceil(count / 8), dtype=np.uint64)
        words &= RANDOM_BITS
        words |= FIXED_BITS
        file.write(words.data.cast("B")[:count])


def make_checkpoint(
    parent: Path, shape: Shape, seed: int, on_table: Callable[[int], object] = lambda num_bytes: None
) -> Path:
    """The folder in `parent` of a checkpoint with tables of `shape`, in bfloat16; written unless it is there.

    Args:
        on_table: Called with the bytes of each table when it is on the drive.
    """
    config = shape.our_config()
    folder = parent / f"hidden-{config.hidden_size}-rows-{config.subtable_sizes[0]}-seed-{seed}"
    description = json.dumps(asdict(shape) | {"seed": seed}, indent=2)
    if folder.exists() and (folder / "shape.json").read_text() == description:
        on_table(table_bytes(shape))
        return folder
    torch.manual_seed(seed)
    with replaced_folder(folder) as new:
        # With `ngram_tables="disk"` the tables are not parameters: the model takes no more memory than its backbone.
        LongCatLiteForCausalLM(config, ngram_tables="disk").bfloat16().save_pretrained(new, max_shard_size="1TB")
        (new / "model.safetensors").rename(new / BACKBONE)
        weight_map = dict.fromkeys(read_safetensors_header(new / BACKBONE)[0], BACKBONE)
        generator = np.random.default_rng(seed)
        for i, rows in enumerate(config.subtable_sizes):
            name, path = f"model.ngram_embeddings.embedders.{i}.weight", new / f"model-table-{i:02}.safetensors"
            with path.open("wb") as file:
                write_table(file, name, rows, config.subtable_width, generator)
            evict([path])  # its reader begins cold, and memory does not fill up while the next one is written
            weight_map[name] = path.name
            on_table(rows * config.subtable_width * DTYPE.itemsize)
        # Save ids tell apart files of two saves that were mixed by mistake; here the two sources are intended.
        index = {"metadata": {"total_size": table_bytes(shape), "save_id": None}, "weight_map": weight_map}
        (new / "model.safetensors.index.json").write_text(json.dumps(index))
        (new / "shape.json").write_text(description)
    return folder


def table_files(folder: Path) -> list[TableFile]:
    """Where the tables of a checkpoint made here are, in their order."""
    found = []
    for path in sorted(folder.glob("model-table-*.safetensors")):
        (table,) = read_safetensors_header(path)[0].values()
        rows, width = table.shape
        found.append(TableFile(str(path), table.begin, rows, width * DTYPE.itemsize))
    return found


__all__ = ["BACKBONE", "DTYPE", "check_space", "make_checkpoint", "table_bytes", "table_files", "with_tables"]
