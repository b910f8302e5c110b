# SPDX-License-Identifier: Apache-2.0
"""N-gram table rows in 8 or 4 bits, each with a scale of its own.

    value = scale * q        int8: q from -127 to 127;  int4: q from -7 to 7, two to a byte, the first in the low half

A row is stored as it is read, scale first, so that a lookup touches one place of a file:

    packed = | scale, 4 bytes of float32 | q, W bytes (int8) or W / 2 bytes (int4) |

    [0.6, -1.0, 0.25, 0.0] in 8 bits: scale 1 / 127, q = [76, -127, 32, 0]
    in 4 bits: scale 1 / 7, q = [4, -7, 2, 0], stored as q + 8 = [12, 1, 10, 8], bytes [0x1c, 0x8a]

Shapes: R rows, W row width, P bytes of a packed row.
"""

import torch
from torch import nn

SCALE_BYTES = 4
LARGEST = {8: 127, 4: 7}  # the largest |q|, by bits
OFFSET = 8  # what makes a 4-bit q unsigned


def packed_width(width: int, bits: int) -> int:
    """Bytes of a packed row of `width` values."""
    return SCALE_BYTES + width * bits // 8


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
    # A copy of its own: bytes are read as float32 only where they are aligned.
    scale = packed[..., :SCALE_BYTES].clone(memory_format=torch.contiguous_format).view(torch.float32)  # [..., 1]
    values = packed[..., SCALE_BYTES:]
    if bits == 4:
        values = torch.stack([values & 15, values >> 4], dim=-1).flatten(-2).view(torch.int8) - OFFSET
    else:
        values = values.view(torch.int8)
    return (values * scale).to(dtype)


class QuantizedTable(nn.Module):
    """A table of packed rows. A buffer, not a parameter: it is not trained, and no cast of the model reaches it."""

    packed: torch.Tensor

    def __init__(self, rows: int, width: int, bits: int):
        super().__init__()
        self.bits = bits
        self.register_buffer("packed", torch.zeros(rows, packed_width(width, bits), dtype=torch.uint8))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """`[...]` row ids to packed rows `[..., P]`, which [`dequantize_rows`] unpacks for all tables at once."""
        return torch.nn.functional.embedding(ids, self.packed)


__all__ = ["QuantizedTable", "dequantize_rows", "packed_width", "quantize_rows"]
