# SPDX-License-Identifier: Apache-2.0
"""Reading FP8 checkpoints (e4m3 values, `weight_scale_inv` for each block) where no accelerator computes in FP8.

transformers takes the block's size from the shape of the scales, which is right only where blocks divide a matrix.
Those of the released `kv_a_proj_with_mqa`, `[576, 3072]` in blocks of 128, do not: its last row of blocks has 64 rows.
"""

from collections.abc import Iterable, Sequence

import torch
from transformers.core_model_loading import WeightConverter
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from .checkpoint_files import Places
from .checkpoint_header import FLOAT_DTYPES, StoredTensor
from .experts_quantization import BLOCK, block_grid

SCALES = "_scale_inv"
FP8 = "F8_E4M3"


class BlockDequantize(Fp8Dequantize):
    """`value * scale of its block`; the last block of a row or column may be cut short.

    With blocks of 2 x 2, scales `[[a, b]]` belong to a matrix of 1 or 2 rows and 3 or 4 columns: `[a, a, b]`.
    """

    def _dequantize_one(self, quantized, scales, output_dtype=None):
        """`[..., R, C]` values and `[..., ceil(R / block), ceil(C / block)]` scales to `[..., R, C]`."""
        rows, columns = quantized.shape[-2:]
        block_rows, block_columns = self.hf_quantizer.quantization_config.weight_block_size
        each = scales.float().repeat_interleave(block_rows, -2)[..., :rows, :]
        each = each.repeat_interleave(block_columns, -1)[..., :columns]  # [..., R, C]
        return (quantized.float() * each).to(output_dtype or torch.bfloat16)


def check_scales(found: Places, block: Sequence[int]) -> dict[str, tuple[str, StoredTensor]]:
    """Compares scales and FP8 weights of a checkpoint with each other and with the block's size.

    Returns:
        `dict[str, tuple[str, StoredTensor]]`: the tensors that are not scales.

    Raises:
        `ValueError`: naming the tensor whose scales are missing, belong to blocks of another size, or to a weight of
            another dtype.
    """
    for name, (path, scales) in found.items():
        weight = name.removesuffix(SCALES)
        if weight == name:
            if scales.dtype == FP8 and name + SCALES not in found:
                raise ValueError(
                    f"`{name}` in {path} is stored as {FP8}, but the checkpoint lacks its `{name}{SCALES}`."
                )
            continue
        if weight not in found:
            raise ValueError(f"`{name}` in {path} belongs to `{weight}`, which the checkpoint lacks.")
        stored = found[weight][1]
        if stored.dtype != FP8 or scales.dtype not in FLOAT_DTYPES:
            raise ValueError(
                f"`{name}` in {path} is stored as {scales.dtype}, for a weight of {stored.dtype}; scales are "
                f"{' or '.join(FLOAT_DTYPES)}, for a weight of {FP8}."
            )
        shape = list(scales.shape)
        grid = block_grid(stored.shape, block)
        if shape != grid or len(stored.shape) != len(block):
            raise ValueError(
                f"`{name}` in {path} has shape {shape}, but a weight of shape {list(stored.shape)} in blocks of "
                f"{list(block)} (`weight_block_size`) asks for {grid}."
            )
    return {name: where for name, where in found.items() if not name.endswith(SCALES)}


def read_cut_blocks(conversions: Iterable) -> bool:
    """Puts [`BlockDequantize`] in place of transformers' operation in the conversions of a checkpoint.

    Returns:
        `bool`: whether there was one, so that the model will hold no FP8 weight.
    """
    found = False
    for conversion in conversions:
        operations = conversion.operations if isinstance(conversion, WeightConverter) else []
        for i, operation in enumerate(operations):
            if type(operation) is Fp8Dequantize:
                operations[i], found = BlockDequantize(operation.hf_quantizer), True
    return found


__all__ = ["BLOCK", "FP8", "BlockDequantize", "check_scales", "read_cut_blocks"]
