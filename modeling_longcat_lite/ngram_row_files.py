# SPDX-License-Identifier: Apache-2.0
"""Two safetensors files about rows of the n-gram tables: rows that training changed, and rows that are read most.

A row delta has megabytes instead of the 58.5 GiB of all tables:

    table_{i}.row_ids     [n_i] int64: sorted, distinct
    table_{i}.rows        [n_i, W]: their new values
    metadata              what row ids depend on (`hash_metadata`), `subtable_width`, and the name of the `base_model`

Tables without changed rows may be left out. A delta belongs to one base model. Of several deltas the last one that has
a row wins. Because many models have the same config, the metadata also hold some weights of the base, `base_sample.*`,
which tell it from another model. Files of earlier versions do not have them; they are read too.

A file of hot rows lists the rows to keep where the model reads them:

    table_{i}             [n_i] int64: row ids, the most-read one first
    metadata              `hash_metadata`, and `tokens_counted`

Shapes: T tokens, S sub-tables, W width of a table row.
"""

import base64
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import cached_file

from .checkpoint_header import sort_metadata
from .configuration_longcat_lite import LongCatLiteConfig, segment_ends
from .whole_files import whole_file

ROW_DELTA_FILE = "ngram_row_delta.safetensors"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(?<!\.safetensors)")

# The sample of a base model: rows spread evenly over each table and over the words, some columns of each.
SAMPLE_PREFIX = "base_sample."
SAMPLED_ROWS, SAMPLED_COLUMNS = 4, 4

# Of one table: sorted row ids `[n]` int64, and their values `[n, W]`.
TableRows: TypeAlias = tuple[torch.Tensor, torch.Tensor]


def write_row_delta(
    path: str | os.PathLike,
    config: LongCatLiteConfig,
    tables: list[TableRows],
    base_model: str,
    base_sample: Mapping[str, torch.Tensor] | None = None,
):
    """Writes the changed rows of all tables, one entry for each table; the file is never seen in part.

    Args:
        base_model (`str`): Name or folder of the model whose rows changed, for readers.
        base_sample (`Mapping[str, torch.Tensor]`, *optional*): From [`sample_base`], to recognise that model.
    """
    tensors = dict[str, torch.Tensor]()
    for i, (row_ids, rows) in enumerate(tables):
        if len(row_ids):
            tensors |= {f"table_{i}.row_ids": row_ids.contiguous(), f"table_{i}.rows": rows.contiguous()}
    metadata = {
        **hash_metadata(config),
        "subtable_width": str(config.subtable_width),
        "base_model": base_model,
        "format": "pt",
    }
    for part, values in (base_sample or {}).items():
        metadata[SAMPLE_PREFIX + part] = base64.b64encode(values.float().contiguous().numpy().tobytes()).decode()
    with whole_file(path) as beside:
        save_file(tensors, beside, metadata=metadata)
        sort_metadata(beside)


def sample_base(config: LongCatLiteConfig, read: Callable[[str, torch.Tensor], torch.Tensor | None]):
    """Some weights of a model without changed rows, to recognise it: a vector for the words and one for the tables.

    Args:
        read (`Callable`): Takes `"words"` or `"table_{i}"` and ids `[n]`; returns the rows `[n, any]`, or `None` if
            they cannot be read.
    """
    sizes = {"words": config.ngram_base_vocab_size}
    sizes |= {f"table_{i}": size for i, size in enumerate(config.subtable_sizes)}
    sampled: dict[str, list[torch.Tensor]] = {}
    for name, size in sizes.items():
        rows = read(name, ((torch.arange(SAMPLED_ROWS) + 0.5) * (size / SAMPLED_ROWS)).long())
        part = name if name == "words" else f"tables_{config.ngram_table_bits}_bits"
        if rows is not None:
            sampled.setdefault(part, []).append(rows[:, :SAMPLED_COLUMNS].float().cpu().flatten())
    return {part: torch.cat(pieces) for part, pieces in sampled.items()}


def other_base(path: str | os.PathLike, base_sample: Mapping[str, torch.Tensor]) -> str | None:
    """A warning if a delta was made from another model than a sample; `None` if nothing says so."""
    path = delta_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    for part, values in base_sample.items():
        stored = base64.b64decode(metadata.get(SAMPLE_PREFIX + part, ""))
        if len(stored) != 4 * len(values):
            continue  # written by an earlier version, or with another row format
        theirs = torch.frombuffer(bytearray(stored), dtype=torch.float32)
        # One of them may have been read in a dtype that rounds it.
        if not any(torch.equal(theirs.to(dtype), values.to(dtype)) for dtype in FLOATS):
            what = "word embedding" if part == "words" else "n-gram tables"
            return (
                f"{path} was made from another model, {metadata.get('base_model') or 'which it does not name'}: its "
                f"{what} had other values. Its rows do not fit these weights; load it with the model it was made from."
            )
    return None


def delta_file(path: str | os.PathLike) -> Path:
    """The path itself, or for a folder the file in it."""
    return Path(path) / ROW_DELTA_FILE if Path(path).is_dir() else Path(path)


def _read_tensors(path: str | os.PathLike, what: str) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a file; a `ValueError` that names it if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a file of {what} ({error})") from error


def find_row_delta(delta: str | os.PathLike, **hub_arguments) -> str | os.PathLike:
    """A file or folder as given; for a repository on the Hub, `user/name`, the downloaded file.

    Raises:
        `ValueError`: when there is no such file, folder or repository.
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
    """The changed rows of a file, or of the file in a folder: one entry for each table.

    Raises:
        `ValueError`: naming the file, and the field, table or row, when it does not belong to this config.
    """
    path = delta_file(path)
    metadata, tensors = _read_tensors(path, "changed rows")
    for field, expected in {**hash_metadata(config), "subtable_width": str(config.subtable_width)}.items():
        if metadata.get(field) != expected:
            raise ValueError(
                f"{path}: `{field}` is {metadata.get(field)}, but {expected} in the config: these rows belong to "
                "another model"
            )
    kinds = ("row_ids", "rows")
    known = {f"table_{i}.{kind}" for i in range(config.num_subtables) for kind in kinds}
    if tensors.keys() - known:
        raise ValueError(f"{path}: `{min(tensors.keys() - known)}` is not a tensor of changed rows")
    found: list[Any] = []
    for i, size in enumerate(config.subtable_sizes):
        row_ids, rows = (tensors.get(f"table_{i}.{kind}") for kind in kinds)
        if row_ids is None and rows is None:
            row_ids, rows = torch.empty(0, dtype=torch.int64), torch.empty(0, config.subtable_width)
        else:
            check_table(path, i, size, config.subtable_width, row_ids, rows)
        found.append((row_ids, rows))
    return found


def changed_rows_by_order(path: str | os.PathLike, config: LongCatLiteConfig) -> dict[int, int]:
    """How many rows a delta changes, by n-gram order. Raises as [`read_row_delta`]."""
    counts = [len(row_ids) for row_ids, _ in read_row_delta(path, config)]
    each = config.num_subtables_per_order
    begins = range(0, len(counts), each)
    return {order: sum(counts[begin : begin + each]) for order, begin in enumerate(begins, start=2)}


def check_table(
    path: Path, table: int, size: int, width: int, row_ids: torch.Tensor | None, rows: torch.Tensor | None
) -> None:
    """Raises a `ValueError` unless these can be rows of a table `[size, width]`."""
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
    not_finite = (~rows.isfinite().all(dim=1)).nonzero()
    if len(not_finite):
        raise ValueError(
            f"{name}.rows` has NaN or infinite numbers in row {int(row_ids[not_finite[0]])}: the training that wrote "
            "them diverged; take an earlier checkpoint of it"
        )


def hash_metadata(config: LongCatLiteConfig) -> dict[str, str]:
    """Everything that row ids depend on, as metadata of a safetensors file."""
    return {
        "model_type": config.model_type,
        "subtable_sizes": json.dumps(config.subtable_sizes),
        "max_ngram_order": str(config.max_ngram_order),
        "ngram_base_vocab_size": str(config.ngram_base_vocab_size),
        "ngram_eos_token_id": json.dumps(sorted(segment_ends(config))),
    }


def write_hot_rows(path: str | os.PathLike, config: LongCatLiteConfig, row_ids: torch.Tensor, count: int):
    """Writes the `count` most-read rows of each table, given reads `[S, T]` (from `ngram_row_ids`)."""
    tables = {}
    for i, reads in enumerate(row_ids):
        rows, counts = reads.unique(return_counts=True)
        tables[f"table_{i}"] = rows[counts.argsort(descending=True, stable=True)[:count]]
    with whole_file(path) as beside:
        save_file(tables, beside, metadata={**hash_metadata(config), "tokens_counted": str(row_ids.shape[1])})


def read_hot_rows(path: str | os.PathLike, config: LongCatLiteConfig) -> list[torch.Tensor]:
    """The row ids of each table, the most-read one first: S int64 tensors.

    Raises:
        `ValueError`: naming the file, and the field or tensor, when it does not belong to this config.
    """
    metadata, tables = _read_tensors(path, "hot rows")
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


__all__ = [
    "ROW_DELTA_FILE",
    "changed_rows_by_order",
    "delta_file",
    "find_row_delta",
    "hash_metadata",
    "other_base",
    "read_hot_rows",
    "read_row_delta",
    "sample_base",
    "write_hot_rows",
    "write_row_delta",
]
