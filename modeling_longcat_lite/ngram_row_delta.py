# SPDX-License-Identifier: Apache-2.0
"""The rows of the n-gram tables that a training changed, as a safetensors file of megabytes beside 58.5 GiB.

    table_{i}.row_ids     [n_i] int64: sorted, distinct
    table_{i}.rows        [n_i, W]: their new values
    metadata              what row ids depend on (`hash_metadata`), `subtable_width`, and `base_model`, its name

Tables of which nothing changed may be left out. A delta belongs to one base model; of several, the later one wins
where both have a row.

Shapes: S tables, W row width.
"""

import os
import re
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import cached_file

from .configuration_longcat_lite import LongCatLiteConfig
from .ngram_hot_rows import hash_metadata

ROW_DELTA_FILE = "ngram_row_delta.safetensors"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(?<!\.safetensors)")

# Of one table: sorted row ids `[n]` int64, and their values `[n, W]`.
TableRows: TypeAlias = tuple[torch.Tensor, torch.Tensor]


def write_row_delta(path: str | os.PathLike, config: LongCatLiteConfig, tables: list[TableRows], base_model: str):
    """Writes the changed rows of all tables, one entry each. Beside its place first, then renamed."""
    path, tensors = Path(path), dict[str, torch.Tensor]()
    for i, (row_ids, rows) in enumerate(tables):
        if len(row_ids):
            tensors |= {f"table_{i}.row_ids": row_ids.contiguous(), f"table_{i}.rows": rows.contiguous()}
    metadata = {
        **hash_metadata(config),
        "subtable_width": str(config.subtable_width),
        "base_model": base_model,
        "format": "pt",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    save_file(tensors, beside, metadata=metadata)
    beside.replace(path)


def find_row_delta(delta: str | os.PathLike, **hub_arguments) -> str | os.PathLike:
    """A file or folder as it is named; of a repository on the Hub, `user/name`, the downloaded file.

    Raises:
        `ValueError`: when neither there nor here is anything of that name.
    """
    if Path(delta).exists() or not HUB_NAME.fullmatch(str(delta)):
        return delta
    try:
        return str(cached_file(str(delta), ROW_DELTA_FILE, **hub_arguments))
    except OSError as error:
        raise ValueError(
            f"{delta}: no such folder, and no repository on the Hub with {ROW_DELTA_FILE} ({error})"
        ) from error


def read_row_delta(path: str | os.PathLike, config: LongCatLiteConfig) -> list[TableRows]:
    """The changed rows, one entry a table; of a folder, those of the delta in it.

    Raises:
        `ValueError`: naming the file, and the field, table or row, when the file is not of this config.
    """
    path = Path(path)
    path = path / ROW_DELTA_FILE if path.is_dir() else path
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a file of changed rows ({error})") from error
    for field, expected in {**hash_metadata(config), "subtable_width": str(config.subtable_width)}.items():
        if metadata.get(field) != expected:
            raise ValueError(
                f"{path}: `{field}` is {metadata.get(field)}, but {expected} in the config: these rows belong to "
                "another model"
            )
    kinds = ("row_ids", "rows")
    known = {f"table_{i}.{kind}" for i in range(config.num_subtables) for kind in kinds}
    if tensors.keys() - known:
        raise ValueError(f"{path}: `{min(tensors.keys() - known)}` is no tensor of changed rows")
    found: list[Any] = []
    for i, size in enumerate(config.subtable_sizes):
        of_table = [tensors.get(f"table_{i}.{kind}") for kind in kinds]
        if of_table == [None, None]:
            of_table = [torch.empty(0, dtype=torch.int64), torch.empty(0, config.subtable_width)]
        else:
            check_table(path, i, size, config.subtable_width, *of_table)
        found.append(tuple(of_table))
    return found


def changed_rows_by_order(path: str | os.PathLike, config: LongCatLiteConfig) -> dict[int, int]:
    """How many rows a delta changes, by the number of tokens of their n-grams. Raises as [`read_row_delta`]."""
    counts = [len(row_ids) for row_ids, _ in read_row_delta(path, config)]
    each = config.num_subtables_per_order
    begins = range(0, len(counts), each)
    return {order: sum(counts[begin : begin + each]) for order, begin in enumerate(begins, start=2)}


def check_table(
    path: Path, table: int, size: int, width: int, row_ids: torch.Tensor | None, rows: torch.Tensor | None
) -> None:
    """Raises a `ValueError` for what cannot be rows of a table `[size, width]`."""
    name = f"{path}: `table_{table}"
    if row_ids is None or rows is None:
        raise ValueError(f"{name}` lacks its {'row ids' if row_ids is None else 'rows'}")
    if row_ids.dtype != torch.int64 or row_ids.dim() != 1:
        raise ValueError(f"{name}.row_ids` is {row_ids.dtype} {list(row_ids.shape)}; it must be one row of int64")
    if rows.dtype not in FLOATS:
        raise ValueError(f"{name}.rows` is {rows.dtype}; rows can be float32, bfloat16 or float16")
    if rows.shape != (len(row_ids), width):
        raise ValueError(f"{name}.rows` has shape {list(rows.shape)}, and must have {[len(row_ids), width]}")
    outside = row_ids[(row_ids < 0) | (row_ids >= size)]
    if len(outside):
        raise ValueError(f"{name}.row_ids` has row {int(outside[0])}; rows go from 0 to {size - 1}")
    if (row_ids[1:] <= row_ids[:-1]).any():
        raise ValueError(f"{name}.row_ids` is not sorted, or has a row twice")


__all__ = ["ROW_DELTA_FILE", "changed_rows_by_order", "find_row_delta", "read_row_delta", "write_row_delta"]
