# SPDX-License-Identifier: Apache-2.0
"""One launch from encoded tokens to sub-table rows, for CUDA (arXiv 2601.21204, sections 2 and 4).

The plain path of `ngram_embedding` launches about ten small integer kernels and one lookup per sub-table. At one token
per step that costs more than reading the rows. Here one program computes one id and copies its row into place:

    rows[b, t, i * W : (i + 1) * W] = table_i[id_i[b, t]]

The ids are those of `ngram_hashing` and the rows are copies, so both paths are bit-equal. A code below 0 is `~token`
and begins a segment.

Shapes: B batch, T tokens, N highest n-gram order, S sub-tables, W width of a table row.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # Triton does not exist for every platform
    triton = None

if triton is not None:

    @triton.jit
    def ngram_rows_kernel(
        codes,  # [B, N - 1 + T] int64
        addresses,  # [S] int64: where each sub-table `[rows_i, W]` begins
        residues,  # [N - 1, S] int64
        sizes,  # [S] int64
        rows,  # [B, T, S * W]
        length,  # T
        NUM_TABLES: tl.constexpr,
        ORDER: tl.constexpr,
        EOS: tl.constexpr,  # tuple of token ids
        WIDTH: tl.constexpr,
        BLOCK: tl.constexpr,  # WIDTH, up to the next power of two
        ALIGNMENT: tl.constexpr,  # bytes, of every address
    ):
        position = tl.program_id(0).to(tl.int64)  # of B * T
        table = tl.program_id(1)
        # Every row of codes up to this one is ORDER - 1 longer than its row of tokens.
        here = codes + position + (position // length + 1) * (ORDER - 1)

        code = tl.load(here)
        total = code ^ (code >> 63)  # ~token back to token
        reachable = code >= 0
        for distance in tl.static_range(1, ORDER):
            code = tl.load(here - distance)
            token = code ^ (code >> 63)
            for i in tl.static_range(len(EOS)):
                reachable = reachable & (token != EOS[i])
            residue = tl.load(residues + (distance - 1) * NUM_TABLES + table)
            total += tl.where(reachable, token, 0) * residue
            reachable = reachable & (code >= 0)  # a first token may be seen, but nothing before it
        row = total % tl.load(sizes + table)

        # Without this hint, rows at an address that was read from memory would load one element at a time.
        source = tl.load(addresses + table).to(tl.pointer_type(rows.dtype.element_ty))
        source = tl.multiple_of(source, ALIGNMENT) + row * WIDTH
        target = rows + (position * NUM_TABLES + table) * WIDTH
        column = tl.arange(0, BLOCK)
        inside = column < WIDTH
        tl.store(target + column, tl.load(source + column, mask=inside), mask=inside)


def kernel_applies(codes: torch.Tensor, tables: Sequence[torch.Tensor]) -> bool:
    """Whether [`gather_ngram_rows`] can replace the plain path.

    Not under `torch.compile`, which fuses the plain path itself, and not where a table needs a gradient.
    """
    if torch.compiler.is_compiling() or triton is None or not codes.is_cuda or not tables:
        return False
    if type(codes) is not torch.Tensor or codes.dtype != torch.int64 or not codes.is_contiguous():
        return False
    device, dtype, width = codes.device, tables[0].dtype, tables[0].shape[-1]
    needs_grad = torch.is_grad_enabled()
    return dtype in (torch.float32, torch.bfloat16, torch.float16) and all(
        # The pointer of a subclass (sharded, quantized) may not point to rows.
        type(table) in (torch.Tensor, torch.nn.Parameter)
        and table.device == device
        and table.dtype == dtype
        and table.ndim == 2
        and table.shape[1] == width
        and table.is_contiguous()
        and not (needs_grad and table.requires_grad)
        for table in tables
    )


@lru_cache(maxsize=64)
def address_tensor(addresses: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """`[S]` int64. Cached, because a copy to the device in every step takes time and forbids CUDA graphs."""
    return torch.tensor(addresses, dtype=torch.int64, device=device)


def gather_ngram_rows(
    codes: torch.Tensor,
    tables: Sequence[torch.Tensor],
    residues: torch.Tensor,
    sizes: torch.Tensor,
    eos_token_ids: Sequence[int],
) -> torch.Tensor:
    """Rows of all sub-tables side by side: `[B, T, S * W]`, of the tables' dtype.

    Args:
        codes (`torch.Tensor` of shape `[B, N - 1 + T]`, int64): History, then tokens, as `ngram_hashing` encodes them.
        tables (`Sequence[torch.Tensor]` of shape `[rows_i, W]`): The sub-tables, each an allocation of its own.
        residues (`torch.Tensor` of shape `[N - 1, S]`, int64): `V**d mod rows_i`.
        sizes (`torch.Tensor` of shape `[S]`, int64): Rows per sub-table.
        eos_token_ids (`Sequence[int]`): Tokens that close a segment.
    """
    lookback, num_tables = residues.shape
    batch, length, width = codes.shape[0], codes.shape[1] - lookback, tables[0].shape[1]
    rows = tables[0].new_empty(batch, length, num_tables * width)
    addresses = tuple(table.data_ptr() for table in tables)
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(codes):  # Triton launches on the current device
        ngram_rows_kernel[(batch * length, num_tables)](
            codes,
            address_tensor(addresses, codes.device),
            residues.contiguous(),
            sizes.contiguous(),
            rows,
            length,
            NUM_TABLES=num_tables,
            ORDER=lookback + 1,
            EOS=tuple(eos_token_ids),
            WIDTH=width,
            BLOCK=block,
            ALIGNMENT=math.gcd(16, *addresses),  # 16 bytes: the widest load
            num_warps=min(4, max(1, block // 256)),
        )
    return rows


__all__ = ["gather_ngram_rows", "kernel_applies"]
