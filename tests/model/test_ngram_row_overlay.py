# SPDX-License-Identifier: Apache-2.0
"""Rows in an overlay against a dictionary, and their gradient against that of an embedding."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_longcat_lite.ngram_row_store import RowCache, RowOverlay

WIDTH = 3


def test_the_example_of_the_docstring():
    def rows(*values: float) -> torch.Tensor:
        return torch.tensor(values)[:, None]

    overlay = RowOverlay(1, torch.float32)
    assert overlay.put(torch.tensor([9, 5]), rows(9.1, 5.1)).tolist() == [0, 1]
    assert overlay.keys.tolist() == [5, 9] and overlay.slots.tolist() == [1, 0]
    overlay.put(torch.tensor([7, 9]), rows(7.2, 9.2))
    assert overlay.keys.tolist() == [5, 7, 9] and overlay.slots.tolist() == [1, 2, 0]
    assert torch.equal(overlay.rows, rows(9.2, 5.1, 7.2))
    keys = torch.tensor([3, 5, 7, 9])
    assert torch.equal(overlay.over(keys, rows(3.0, 5.0, 7.0, 9.0)), rows(3.0, 5.1, 7.2, 9.2))
    asked = []
    cache = RowCache(torch.tensor([5, 9]), rows(5.0, 9.0))
    found = cache.complete(
        torch.tensor([3, 5, 9]), torch.arange(3), lambda keys: asked.append(keys.tolist()) or rows(3.0)
    )
    assert asked == [[3]] and torch.equal(found, rows(3.0, 5.0, 9.0)) and cache.hit_rate == 2 / 3


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
