# SPDX-License-Identifier: Apache-2.0
"""The most used rows of every n-gram table as a safetensors file, to fill a cache of rows with.

    table_0 .. table_{S-1}      [up to COUNT] int64: row ids, most used first, equals by id
    metadata                    what ids depend on (`hash_metadata`), and the number of tokens that were counted

Row ids of one config mean nothing to another; `read_hot_rows` refuses those.

Shapes: T tokens, S tables.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .configuration_longcat_lite import LongCatLiteConfig
from .ngram_embedding import segment_ends


def hash_metadata(config: LongCatLiteConfig) -> dict[str, str]:
    """All that the ids of a token stream depend on, as metadata of a safetensors file."""
    return {
        "model_type": config.model_type,
        "subtable_sizes": json.dumps(config.subtable_sizes),
        "max_ngram_order": str(config.max_ngram_order),
        "ngram_base_vocab_size": str(config.ngram_base_vocab_size),
        "ngram_eos_token_id": json.dumps(sorted(segment_ends(config))),
    }


def write_hot_rows(path: str | os.PathLike, config: LongCatLiteConfig, row_ids: torch.Tensor, count: int):
    """Writes the up to `count` most used rows of each table, of the reads `row_ids` `[S, T]` (see `ngram_row_ids`).

    Beside its place first, then renamed: a file of that name is always whole.
    """
    path, tables = Path(path), {}
    for i, reads in enumerate(row_ids):
        rows, counts = reads.unique(return_counts=True)
        tables[f"table_{i}"] = rows[counts.argsort(descending=True, stable=True)[:count]]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    save_file(tables, beside, metadata={**hash_metadata(config), "tokens_counted": str(row_ids.shape[1])})
    beside.replace(path)


def read_hot_rows(path: str | os.PathLike, config: LongCatLiteConfig) -> list[torch.Tensor]:
    """The rows of each table, most used first: `[S]` tensors of int64.

    Raises:
        `ValueError`: naming the file, and the field or tensor, when the file is not of this config.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a file of hot rows ({error})") from error
    for field, expected in hash_metadata(config).items():
        if metadata.get(field) != expected:
            raise ValueError(f"{path}: `{field}` is {metadata.get(field)}, but {expected} in the config")
    names = [f"table_{i}" for i in range(config.num_subtables)]
    if sorted(tables) != sorted(names):
        raise ValueError(f"{path}: tensors must be table_0 to {names[-1]}, found {', '.join(sorted(tables))}")
    for name, size in zip(names, config.subtable_sizes, strict=True):
        ids = tables[name]
        if ids.dtype != torch.int64 or ids.dim() != 1 or (len(ids) and not 0 <= ids.min() <= ids.max() < size):
            raise ValueError(f"{path}: `{name}` must be one row of int64 ids from 0 to {size - 1}")
    return [tables[name] for name in names]


__all__ = ["hash_metadata", "read_hot_rows", "write_hot_rows"]
