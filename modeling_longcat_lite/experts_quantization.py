# SPDX-License-Identifier: Apache-2.0
"""How the matrix of an expert, or of another linear layer, is stored: which tensors, of which dtypes and shapes.

    EXPERT_FORMATS["bfloat16"].tensors((1024, 3072))    {"weight": ("BF16", (1024, 3072))}
    EXPERT_FORMATS["fp8"].tensors((576, 3072))          {"weight": ("F8_E4M3", (576, 3072)),
                                                         "weight_scale_inv": ("F32", (5, 24))}

The last of the five rows of blocks is cut short: 576 = 4 * 128 + 64. Stacked experts have their number in front, in
every shape. `eval.fit` counts bytes by these tensors, and `checkpoint_fp8` checks files against them.
`eval/checkpoints/adding_an_expert_format.md` adds a format step by step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .checkpoint_header import BITS, FLOAT_DTYPES

BLOCK = (128, 128)  # `weight_block_size` where a config states none

Tensors = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class ExpertFormat:
    """A way to store a matrix.

    Args:
        name (`str`): As `eval.fit --experts` takes it.
        tensors (`Callable`): From the shape `[..., rows, columns]` of a matrix, the tensors that hold it: by the end
            of their names, dtype (as safetensors spells it) and shape.
    """

    name: str
    tensors: Callable[[Sequence[int]], Tensors]

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a matrix, or of a stack of them."""
        return sum(BITS[dtype] * math.prod(stored) // 8 for dtype, stored in self.tensors(shape).values())


def plain(name: str, dtype: str) -> ExpertFormat:
    """Floating-point values as they are."""
    return ExpertFormat(name, lambda shape: {"weight": (dtype, tuple(shape))})


def fp8_blocks(block: Sequence[int] = BLOCK) -> ExpertFormat:
    """FP8 values, with a float32 scale for every block of rows and columns; the last ones may be cut short."""

    def tensors(shape: Sequence[int]) -> Tensors:
        scales = (*shape[:-2], *block_grid(shape[-2:], block))
        return {"weight": ("F8_E4M3", tuple(shape)), "weight_scale_inv": ("F32", scales)}

    return ExpertFormat("fp8", tensors)


def block_grid(shape: Sequence[int], block: Sequence[int]) -> list[int]:
    """Blocks in each direction of a matrix: `[5, 24]` of 128 x 128 for `[576, 3072]`."""
    return [-(-size // width) for size, width in zip(shape, block, strict=False)]


# By name.
EXPERT_FORMATS = {
    known.name: known
    for known in (
        *(plain(str(torch_dtype).removeprefix("torch."), dtype) for dtype, torch_dtype in FLOAT_DTYPES.items()),
        fp8_blocks(),
    )
}


__all__ = ["BLOCK", "EXPERT_FORMATS", "ExpertFormat", "block_grid", "fp8_blocks"]
