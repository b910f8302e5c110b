# SPDX-License-Identifier: Apache-2.0
"""How a row of an n-gram table is stored: as floating-point values, or packed into 8 or 4 bits a value.

A [`RowFormat`] knows its dtype, its columns for a row of W values, how to pack and unpack a row, and the name of its
tensor. `ngram_table_bits` in the config chooses one of [`ROW_FORMATS`], and every other file asks that one object:

    row_format(config.ngram_table_bits).unpack(stored, torch.bfloat16)

The packed formats here hold integers and one scale a row:

    value = scale * q        int8: q from -127 to 127;  int4: q from -7 to 7, two to a byte, the first in the low half

A row is stored as it is read, scale first, so that a lookup touches one place of a file:

    packed = | scale, 4 bytes of float32 | q, W bytes (int8) or W / 2 bytes (int4) |

    [0.6, -1.0, 0.25, 0.0] in 8 bits: scale 1 / 127, q = [76, -127, 32, 0]
    in 4 bits: scale 1 / 7, q = [4, -7, 2, 0], stored as q + 8 = [12, 1, 10, 8], bytes [0x1c, 0x8a]

`eval/checkpoints/adding_a_row_format.md` adds another one step by step.

Shapes: R rows of a table, W width of a table row, P stored columns (values, or the bytes of a packed row), S
sub-tables.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from .checkpoint_header import FLOAT_DTYPES

SCALE_BYTES = 4
LARGEST = {8: 127, 4: 7}  # the largest |q|, by bits
OFFSET = 8  # makes a 4-bit q unsigned


class RowFormat:
    """Rows as floating-point values of any dtype: the table is an `nn.Embedding`, and its rows can be trained.

    Attributes:
        bits (`int` or `str`): The value of `ngram_table_bits` that chooses this format.
        suffix (`str`): The last part of the tensor's name, as in `ngram_embeddings.embedders.0.weight`.
        dtypes (`Mapping[str, torch.dtype]`): What a table may be stored in: name in safetensors, and torch's dtype.
        is_packed (`bool`): Whether rows are bytes that only `unpack` can read. Their tables are not trained or cast.
    """

    bits: int | str = 16
    suffix: str = "weight"
    dtypes: Mapping[str, torch.dtype] = FLOAT_DTYPES
    is_packed: bool = False

    def check_width(self, width: int):
        """Raises a `ValueError` if a row of `width` values cannot be stored."""

    def columns(self, width: int) -> int:
        """P of a row of `width` values."""
        return width

    def row_bytes(self, width: int, dtype: torch.dtype) -> int:
        """Bytes of a row in a table of `dtype`, which packed rows ignore."""
        return self.columns(width) * dtype.itemsize

    def make_table(self, rows: int, width: int) -> nn.Module:
        """A module for a resident table: `[...]` row ids to stored rows `[..., P]`."""
        return nn.Embedding(rows, width)

    def pack(self, rows: torch.Tensor) -> torch.Tensor:
        """`[R, W]` rows of any float dtype to stored ones `[R, P]`."""
        return rows

    def unpack(self, stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`[..., P]` stored rows to `[..., W]` of `dtype`."""
        return stored.to(dtype)

    def side_by_side(self, stored: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """One token's rows of all S tables, `[..., P]` each, to `[..., S * W]`; packed ones become `dtype`."""
        return torch.cat(list(stored), dim=-1)

    def describe(self, dtype: torch.dtype | str | None) -> str:
        """For a reader, as in "tables in bfloat16" or "tables in 8 bits"."""
        return str(dtype).removeprefix("torch.")


class PackedRows(RowFormat):
    """Rows as bytes. A format of this kind defines `bits`, `columns`, `pack` and `unpack`.

    Bytes whatever they mean, because no cast of a model changes them; and one suffix for all of them, because the
    config says what the bytes mean.
    """

    suffix = "packed"
    dtypes: Mapping[str, torch.dtype] = {"U8": torch.uint8}
    is_packed = True

    def row_bytes(self, width: int, dtype: torch.dtype = torch.uint8) -> int:
        return self.columns(width)

    def make_table(self, rows: int, width: int) -> nn.Module:
        return PackedTable(rows, self.columns(width))

    def side_by_side(self, stored: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        return self.unpack(torch.stack(list(stored), dim=-2), dtype).flatten(-2)  # all tables at once

    def describe(self, dtype: torch.dtype | str | None) -> str:
        return f"{self.bits} bits" if isinstance(self.bits, int) else self.bits


class IntegerRows(PackedRows):
    """Integers of 8 or 4 bits, with one float32 scale a row."""

    def __init__(self, bits: int):
        self.bits: int = bits

    def check_width(self, width: int):
        if width * self.bits % 8:
            raise ValueError(f"`ngram_table_bits` of {self.bits} packs pairs, but a table row has {width} values.")

    def columns(self, width: int) -> int:
        return SCALE_BYTES + width * self.bits // 8

    def pack(self, rows: torch.Tensor) -> torch.Tensor:
        return quantize_rows(rows, self.bits)

    def unpack(self, stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return dequantize_rows(stored, self.bits, dtype)


def quantize_rows(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """`[R, W]` rows of any float dtype to packed ones `[R, P]` uint8: each scaled by its largest value.

    Raises:
        `ValueError`: if a row holds a value that is not finite, or `bits` is neither 8 nor 4.
    """
    if bits not in LARGEST:
        raise ValueError(f"`bits` must be 8 or 4, got {bits!r}.")
    rows = rows.float()
    scale = rows.abs().amax(dim=1, keepdim=True) / LARGEST[bits]  # [R, 1]
    if not scale.isfinite().all():
        raise ValueError(f"Row {int((~scale.isfinite()).nonzero()[0, 0])} holds a value that is not finite.")
    # A row of zeros has scale 0, and any q would do.
    values = (rows / scale.where(scale > 0, 1.0)).round().to(torch.int8)  # [R, W]
    if bits == 4:
        first, second = (values + OFFSET).view(torch.uint8).unflatten(1, (-1, 2)).unbind(-1)
        values = first | (second << 4)
    return torch.cat([scale.view(torch.uint8), values.view(torch.uint8)], dim=1)


def dequantize_rows(packed: torch.Tensor, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """`[..., P]` packed rows to `[..., W]` of `dtype`; computed in float32, so that every dtype rounds once."""
    # A copy of the scale, because bytes are read as float32 only where they are aligned.
    scale = packed[..., :SCALE_BYTES].clone(memory_format=torch.contiguous_format).view(torch.float32)  # [..., 1]
    values = packed[..., SCALE_BYTES:]
    if bits == 4:
        values = torch.stack([values & 15, values >> 4], dim=-1).flatten(-2).view(torch.int8) - OFFSET
    else:
        values = values.view(torch.int8)
    return (values * scale).to(dtype)


class PackedTable(nn.Module):
    """A table of packed rows. A buffer, not a parameter: it is not trained."""

    packed: torch.Tensor

    def __init__(self, rows: int, columns: int):
        super().__init__()
        self.register_buffer("packed", torch.zeros(rows, columns, dtype=torch.uint8))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """`[...]` row ids to packed rows `[..., P]`."""
        return torch.nn.functional.embedding(ids, self.packed)


# By `ngram_table_bits`.
ROW_FORMATS: dict[int | str, RowFormat] = {
    known.bits: known for known in (RowFormat(), IntegerRows(8), IntegerRows(4))
}


def row_format(bits: int | str) -> RowFormat:
    """The format that `ngram_table_bits` names.

    Raises:
        `ValueError`: if there is none of that name.
    """
    if type(bits) not in (int, str) or bits not in ROW_FORMATS:  # 16.0 is equal to 16
        raise ValueError(f"`ngram_table_bits` must be one of {tuple(ROW_FORMATS)}, got {bits!r}.")
    return ROW_FORMATS[bits]


__all__ = [
    "ROW_FORMATS",
    "IntegerRows",
    "PackedRows",
    "RowFormat",
    "dequantize_rows",
    "quantize_rows",
    "row_format",
]
