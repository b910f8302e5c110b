# SPDX-License-Identifier: Apache-2.0
"""Reading FP8 checkpoints (e4m3 values, `weight_scale_inv` for each block) on machines that do not compute in FP8.

transformers derives the block's size from the shape of the scales, which is right only where blocks divide a matrix.
Blocks of 128 do not divide the released `kv_a_proj_with_mqa`, `[576, 3072]`: its last row of blocks has 64 rows.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from transformers.core_model_loading import WeightConverter
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from .checkpoint_files import NO_TENSOR, Fault, Places
from .checkpoint_header import FLOAT_DTYPES, FP8
from .checkpoint_layout import SCALES
from .experts_quantization import block_grid


class BlockDequantize(Fp8Dequantize):
    """`value * scale of its block`; the last block of a row or column may be cut short.

    With blocks of 2 x 2, scales `[[a, b]]` of a matrix of 2 rows and 3 columns are spread to `[a, a, b]` in each row.
    """

    def _dequantize_one(self, quantized, scales, output_dtype=None):
        """Values `[..., rows, columns]` and scales `[..., ceil(rows / block), ceil(columns / block)]` to values."""
        rows, columns = quantized.shape[-2:]
        block_rows, block_columns = self.hf_quantizer.quantization_config.weight_block_size
        each = scales.float().repeat_interleave(block_rows, -2)[..., :rows, :]
        each = each.repeat_interleave(block_columns, -1)[..., :columns]  # [..., rows, columns]
        return (quantized.float() * each).to(output_dtype or torch.bfloat16)


def scale_faults(found: Places, block: Sequence[int]) -> Iterator[Fault]:
    """FP8 weights and scales of a checkpoint that do not fit each other or the block's size."""
    original = "Take the file from the original checkpoint."
    for name, (file, scales) in found.items():
        weight = name.removesuffix(SCALES)
        if weight == name:
            if scales.dtype == FP8 and name + SCALES not in found:
                fix = f"It holds the scales of `{name}`, which is stored as {FP8}. {original}"
                yield Fault(file, f"`{name}{SCALES}`", "one scale for each block", NO_TENSOR, fix)
            continue
        if weight not in found:
            yield Fault(file, f"`{name}`", f"its weight `{weight}` in the checkpoint", "none", original)
            continue
        stored = found[weight][1]
        if stored.dtype != FP8 or scales.dtype not in FLOAT_DTYPES:
            expected = f"dtype {' or '.join(FLOAT_DTYPES)}, for a weight of dtype {FP8}"
            dtypes = f"dtype {scales.dtype}, for a weight of dtype {stored.dtype}"
            yield Fault(file, f"`{name}`", expected, dtypes, original)
        grid = block_grid(stored.shape, block)
        if list(scales.shape) != grid or len(stored.shape) != len(block):
            weights = f"for a weight of shape {list(stored.shape)} in blocks of {list(block)}"
            fix = "Correct `weight_block_size` in `quantization_config` of config.json, or take the original file."
            yield Fault(file, f"`{name}`", f"shape {grid}", f"shape {list(scales.shape)}, {weights}", fix)


def read_cut_blocks(conversions: Iterable) -> bool:
    """Replaces transformers' operation by [`BlockDequantize`] in the conversions of a checkpoint.

    Returns:
        `bool`: whether there was one; the loaded model then has no FP8 weights.
    """
    found = False
    for conversion in conversions:
        operations = conversion.operations if isinstance(conversion, WeightConverter) else []
        for i, operation in enumerate(operations):
            if type(operation) is Fp8Dequantize:
                operations[i], found = BlockDequantize(operation.hf_quantizer), True
    return found


__all__ = ["BlockDequantize", "read_cut_blocks", "scale_faults"]
