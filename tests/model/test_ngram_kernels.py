# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel of n-gram rows, on a CPU: in Triton's interpreter bit-equal to the plain path, and compiled."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_ngram import naive_ngram_ids

from modeling_longcat_lite import LongCatLiteModel, ngram_kernels
from modeling_longcat_lite.ngram_hashing import encode_tokens, ngram_contexts, ngram_ids, power_residues

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

BASE = 16
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module", autouse=True)
def interpreted():
    """The kernel as the interpreter runs it. `TRITON_INTERPRET` would have to be set before Triton is imported."""
    from triton.runtime.interpreter import InterpretedFunction

    with pytest.MonkeyPatch.context() as patch:
        compiled = ngram_kernels.ngram_rows_kernel
        patch.setattr(ngram_kernels, "ngram_rows_kernel", InterpretedFunction(compiled.fn))
        yield compiled


def make_tables(sizes: list[int], width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Random bits of every kind but NaN, which equals nothing."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, width, generator=generator).to(dtype) for rows in sizes]


def run_both(codes, sizes, base, order, eos, width, dtype):
    residues, rows = torch.tensor(power_residues(base, sizes, order)), torch.tensor(sizes)
    tables = make_tables(sizes, width, dtype)
    ids = ngram_ids(ngram_contexts(codes, order, eos), residues, rows)
    plain = torch.cat([table[i] for table, i in zip(tables, ids, strict=True)], dim=-1)
    return ngram_kernels.gather_ngram_rows(codes, tables, residues, rows, eos), plain, tables


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_bit_equal_to_the_plain_path(data):
    batch, length, order, splits, width = (
        data.draw(st.integers(low, high), name)
        for name, low, high in [("B", 1, 3), ("T", 1, 9), ("N", 2, 5), ("K", 1, 2), ("W", 1, 9)]
    )
    dtype, eos = data.draw(st.sampled_from(DTYPES)), data.draw(st.lists(st.integers(0, 5), max_size=3, unique=True))
    sizes = [BASE * 3 + 2 * i + 1 for i in range((order - 1) * splits)]
    row = st.lists(st.integers(-8, 7), min_size=order - 1 + length, max_size=order - 1 + length)
    codes = torch.tensor(data.draw(st.lists(row, min_size=batch, max_size=batch)))
    found, plain, _ = run_both(codes, sizes, BASE, order, eos, width, dtype)
    assert found.dtype == dtype and torch.equal(found, plain)


@pytest.mark.parametrize("eos", [[], [2], [2, 5]], ids=str)
@pytest.mark.parametrize("length", [1, 40])
def test_agrees_with_the_definition(length, eos):
    order, sizes = 4, [51, 53, 55, 57, 59, 61]
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(0, 8, (2, length), generator=generator)
    positions = torch.arange(length).expand(2, -1) % 13
    visible = torch.arange(length) >= torch.tensor([[0], [length // 4]])
    codes = encode_tokens(tokens, positions, visible)
    codes = torch.nn.functional.pad(codes, (order - 1, 0), value=-1)
    found, _, tables = run_both(codes, sizes, BASE, order, eos, 5, torch.float32)
    for b in range(2):
        ids = naive_ngram_ids(tokens[b].tolist(), sizes, BASE, order, eos, positions[b].tolist(), visible[b].tolist())
        expected = torch.cat([table[i] for table, i in zip(tables, ids, strict=True)], dim=-1)
        assert torch.equal(found[b], expected)


def test_released_arithmetic():
    """Rows of 12 tables of ten million without the tables: every row of an expanded table is one and the same."""
    base, order = 131072, 4
    sizes = [10223617 + 2 * i for i in range(12)]
    tokens = torch.randint(base - 50, base, (1, 6), generator=torch.Generator().manual_seed(0))
    codes = torch.nn.functional.pad(tokens, (order - 1, 0), value=-1)
    residues, rows = torch.tensor(power_residues(base, sizes, order)), torch.tensor(sizes)
    expected = torch.tensor(naive_ngram_ids(tokens[0].tolist(), sizes, base, order, {2}))  # [S, T]
    assert torch.equal(ngram_ids(ngram_contexts(codes, order, [2]), residues, rows)[:, 0], expected)
    # A table that begins so far ahead of a small one that exactly the expected row of token t falls into it.
    for t in range(6):
        small = torch.arange(12.0).reshape(12, 1)
        tables = [Shifted(row, -int(i)) for row, i in zip(small.split(1), expected[:, t], strict=True)]
        window = codes[:, t : t + order]
        found = ngram_kernels.gather_ngram_rows(window, tables, residues, rows, [2])
        assert found.flatten().tolist() == list(range(12))


class Shifted:
    """One row of a table `[rows, 1]` of which there is no more: where the whole would begin."""

    def __init__(self, row: torch.Tensor, offset: int):
        self.row, self.offset = row, offset
        self.shape, self.new_empty = row.shape, row.new_empty

    def data_ptr(self) -> int:
        return self.row.data_ptr() + self.offset * self.row.element_size()


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "fp32"), (torch.bfloat16, "bf16")], ids=str)
def test_compiles_for_a_gpu(interpreted, dtype, name):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tensors = dict.fromkeys(("codes", "addresses", "residues", "sizes"), "*i64") | {"rows": f"*{name}"}
    fixed = {"NUM_TABLES": 12, "ORDER": 4, "EOS": (2, 5), "WIDTH": 256, "BLOCK": 256, "ALIGNMENT": 16}
    source = ASTSource(
        fn=interpreted,
        signature={**tensors, "length": "i32", **dict.fromkeys(fixed, "constexpr")},
        constexprs=fixed,
        attrs={(i,): [["tt.divisibility", 16]] for i in range(5)},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    assert compiled.asm["cubin"]
    assert "ld.global.v4" in compiled.asm["ptx"] and "st.global.v4" in compiled.asm["ptx"]  # 16 bytes at a time


def test_the_embedding_takes_it_where_it_applies(monkeypatch):
    model = LongCatLiteModel(tiny_config()).eval()
    tokens = torch.tensor([[7, 50, 2, 9, 0, 63, 8, 8, 2, 2, 5]])
    with torch.no_grad():
        expected = model(tokens, output_hidden_states=True).hidden_states[0]
    called = []

    def applies(codes, tables):
        called.append(len(tables))
        return True

    monkeypatch.setitem(type(model.ngram_embeddings).forward.__globals__, "kernel_applies", applies)
    with torch.no_grad():
        assert torch.equal(model(tokens, output_hidden_states=True).hidden_states[0], expected)
    assert called


def test_does_not_apply_on_a_cpu():
    assert not ngram_kernels.kernel_applies(torch.zeros(1, 4, dtype=torch.int64), [torch.zeros(5, 2)])


@pytest.mark.slow  # a process of its own
def test_imports_without_triton():
    code = "import sys; sys.modules['triton'] = None; import modeling_longcat_lite.ngram_kernels as k, torch; "
    code += "assert k.triton is None and not k.kernel_applies(torch.zeros(1, 4).long(), [torch.zeros(5, 2)])"
    subprocess.run([sys.executable, "-c", code], check=True)
