# SPDX-License-Identifier: Apache-2.0
"""Rows laid over tables, beside a dictionary; their gradient beside that of an embedding."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_longcat_lite.ngram_row_store import RowOverlay

WIDTH = 3


@settings(max_examples=40, deadline=None)
@given(
    puts=st.lists(st.lists(st.integers(0, 30), unique=True, max_size=12), max_size=6),
    wanted=st.sets(st.integers(0, 30)),
)
def test_what_was_put_last_is_found(puts, wanted):
    overlay, reference = RowOverlay(WIDTH, torch.float32), {}
    for time, keys in enumerate(puts):
        rows = torch.randn(len(keys), WIDTH, generator=torch.Generator().manual_seed(time))
        overlay.put(torch.tensor(keys, dtype=torch.int64), rows)
        reference |= dict(zip(keys, rows, strict=True))
    assert overlay.keys.tolist() == sorted(reference) and len(overlay) == len(reference)
    for key, row in zip(*overlay.by_key(), strict=True):
        assert torch.equal(row, reference[int(key)])
    keys = torch.tensor(sorted(wanted), dtype=torch.int64)
    below = torch.full((len(keys), WIDTH), 7.0)
    for key, row in zip(keys.tolist(), copy.deepcopy(overlay).over(keys, below), strict=True):
        assert torch.equal(row, reference.get(key, torch.full((WIDTH,), 7.0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lookup_gives_the_gradient_of_an_embedding(dtype):
    torch.manual_seed(0)
    table = torch.randn(20, WIDTH).to(dtype)
    ids, upstream = torch.randint(20, (50,)), torch.randn(50, WIDTH).to(dtype)
    keys, places = ids.unique(return_inverse=True)
    overlay = RowOverlay(WIDTH, dtype)
    trained = overlay.train(12 << 40)  # as tall as 12 tables, and no memory
    looked_up = overlay.look_up(table[keys], places, keys)
    assert torch.equal(looked_up, table[ids])
    looked_up.backward(upstream)
    gradient = trained.grad.coalesce()
    assert torch.equal(gradient.indices()[0], keys)
    plain = table.double().requires_grad_()
    torch.nn.functional.embedding(ids, plain).backward(upstream.double())
    torch.testing.assert_close(gradient.values(), plain.grad[keys].to(dtype))
    with torch.no_grad():
        assert not overlay.look_up(table[keys], places, keys).requires_grad
    assert copy.deepcopy(overlay).trained is None
