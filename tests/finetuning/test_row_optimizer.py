# SPDX-License-Identifier: Apache-2.0
"""The row-wise optimizer: the numbers of the same rule applied to every row, at the cost of the rows touched."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from training.tables.optimizer import RowwiseAdamW, clip_gradients, sum_at_once, sum_rows, update_rows

ROWS, WIDTH = 40, 6


def every_row_each_step(table, gradients, lr, beta, eps):
    """The rule on dense gradients, one step after the other; nothing is lazy."""
    moments = torch.zeros(len(table), dtype=torch.float64)
    table = table.double()
    for step, gradient in enumerate(gradients, start=1):
        gradient = gradient.double()
        moments = beta * moments + (1 - beta) * gradient.square().mean(dim=1)
        table = table - lr * gradient / ((moments / (1 - beta**step)).sqrt() + eps)[:, None]
    return table, moments


def backward(table: nn.Embedding, ids: torch.Tensor, weights: torch.Tensor):
    (table(ids) * weights).sum().backward()


def dense_gradient(batches) -> torch.Tensor:
    gradient = torch.zeros(ROWS, WIDTH)
    for ids, weights in batches:
        gradient.index_add_(0, ids, weights)
    return gradient


def batches_of(seed: int, steps: int, micro_batches: int, spread: int):
    """`[steps][micro_batches]` of ids and upstream gradients; a small spread reads few rows, again and again."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            (torch.randint(spread, (8,), generator=generator), torch.randn(8, WIDTH, generator=generator))
            for _ in range(micro_batches)
        ]
        for _ in range(steps)
    ]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 12),
    micro_batches=st.integers(1, 3),
    spread=st.sampled_from([2, 10, ROWS]),
    beta=st.sampled_from([0.9, 0.95, 0.999]),
    at_once=st.booleans(),
)
def test_touched_rows_equal_the_dense_rule(seed, steps, micro_batches, spread, beta, at_once):
    torch.manual_seed(seed)
    table = nn.Embedding(ROWS, WIDTH, sparse=True)
    if at_once:
        sum_at_once(table.weight)
    before = table.weight.detach().clone()
    optimizer = RowwiseAdamW([{"params": table.parameters(), "rowwise": True, "lr": 0.1, "betas": (0.0, beta)}])
    batches = batches_of(seed, steps, micro_batches, spread)
    for of_step in batches:
        for ids, weights in of_step:
            backward(table, ids, weights)
        optimizer.step()
        optimizer.zero_grad()
    expected, moments = every_row_each_step(before, map(dense_gradient, batches), 0.1, beta, 1e-8)
    torch.testing.assert_close(table.weight.detach(), expected.float(), atol=1e-6, rtol=1e-6)
    state = optimizer.state[table.weight]
    faded = state["second_moment"] * beta ** (steps - state["stamp"]).double()
    torch.testing.assert_close(faded, moments, atol=1e-6, rtol=1e-5)
    untouched = torch.ones(ROWS, dtype=torch.bool)
    untouched[torch.cat([ids for of_step in batches for ids, _ in of_step])] = False
    assert torch.equal(table.weight[untouched], before[untouched])


@pytest.mark.parametrize("fused", [False, True])
def test_other_groups_are_those_of_adamw(fused):
    torch.manual_seed(0)
    ours, table = nn.Linear(5, 4), nn.Embedding(ROWS, 5, sparse=True)
    theirs = nn.Linear(5, 4)
    theirs.load_state_dict(ours.state_dict())
    options = {"lr": 1e-2, "betas": (0.8, 0.9), "weight_decay": 0.1, "fused": fused}
    mixed = RowwiseAdamW([{"params": table.parameters(), "rowwise": True}, {"params": ours.parameters()}], **options)
    plain = torch.optim.AdamW(theirs.parameters(), **options)
    for _ in range(6):
        rows = table(torch.randint(ROWS, (3,)))
        ours(rows).square().sum().backward()
        theirs(rows.detach()).square().sum().backward()
        for optimizer in (mixed, plain):
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_comes_back_as_it_was(dtype):
    def made():
        torch.manual_seed(0)
        table = nn.Embedding(ROWS, WIDTH, sparse=True, dtype=dtype)
        return table, RowwiseAdamW([{"params": table.parameters(), "rowwise": True, "lr": 0.1}])

    def run(table, optimizer, batches):
        for ((ids, weights),) in batches:
            backward(table, ids, weights.to(dtype))
            optimizer.step()
            optimizer.zero_grad()

    batches = batches_of(0, steps=8, micro_batches=1, spread=ROWS)
    whole, optimizer = made()
    run(whole, optimizer, batches)
    half, first = made()
    run(half, first, batches[:4])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed, second = made()
    resumed.load_state_dict(half.state_dict())
    second.load_state_dict(torch.load(file, weights_only=True))
    state = second.state[resumed.weight]
    assert state["second_moment"].dtype == torch.float32 and state["stamp"].dtype == torch.int32
    run(resumed, second, batches[4:])
    assert torch.equal(resumed.weight, whole.weight)
    assert sum(x.nbytes for name, x in state.items() if name != "step") == 8 * ROWS


def test_a_common_norm_clips_dense_and_sparse_gradients():
    torch.manual_seed(0)
    found = []
    for sparse in (True, False):
        torch.manual_seed(1)
        table, head = nn.Embedding(ROWS, WIDTH, sparse=sparse), nn.Linear(WIDTH, 3)
        for _ in range(2):
            head(table(torch.randint(5, (20,)))).square().sum().backward()
        if sparse:
            table.weight.grad = sum_rows(table.weight.grad)
            norm = clip_gradients([table.weight.grad._values(), *(p.grad for p in head.parameters())], 0.5)
        else:
            norm = nn.utils.clip_grad_norm_([table.weight, *head.parameters()], 0.5)
        found.append([norm, table.weight.grad.to_dense(), *(p.grad for p in head.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("width", [3, 4, 64, 256])
@pytest.mark.parametrize("at_once", [1, 7, 33])
def test_a_row_has_the_same_bits_whatever_rows_it_is_updated_with(width, at_once):
    generator = torch.Generator().manual_seed(0)
    rows, gradients = (torch.randn(100, width, generator=generator) for _ in range(2))
    moments = torch.rand(100, generator=generator)
    stamps = torch.randint(500, (100,), generator=generator, dtype=torch.int32)
    whole = update_rows(rows, gradients, moments, stamps, step=500, lr=0.1)
    pieces = zip(*(x.split(at_once) for x in (rows, gradients, moments, stamps)), strict=True)
    for found, expected in zip(
        zip(*(update_rows(*x, step=500, lr=0.1) for x in pieces), strict=True), whole, strict=True
    ):
        assert torch.equal(torch.cat(found), expected)


def test_a_small_step_is_lost_in_bfloat16_and_counts_in_float32():
    gradient, moments, stamps = torch.ones(1, 4), torch.zeros(1), torch.zeros(1, dtype=torch.int32)
    for dtype, moves in ((torch.bfloat16, False), (torch.float32, True)):
        rows = torch.ones(1, 4, dtype=dtype)
        new, second_moments = update_rows(rows, gradient, moments, stamps, step=1, lr=1e-3)
        assert new.dtype == dtype and bool((new != rows).all()) == moves
        assert second_moments.item() == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("group", "problem"), [({"betas": (0.9, 0.95)}, "betas.*first must be 0"), ({"weight_decay": 0.1}, "weight_decay")]
)
def test_what_tables_cannot_have_is_named(group, problem):
    with pytest.raises(ValueError, match=problem):
        RowwiseAdamW([{"params": nn.Embedding(4, 2, sparse=True).parameters(), "rowwise": True, **group}])


def test_a_dense_gradient_of_a_table_is_named():
    table = nn.Embedding(4, 2)
    optimizer = RowwiseAdamW([{"params": table.parameters(), "rowwise": True}])
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"\[4, 2\].*dense gradient.*sparse=True"):
        optimizer.step()


def test_hooks_of_a_step_run_once_whatever_optimizers_were_there_before():
    torch.optim.AdamW([nn.Parameter(torch.ones(1))])  # torch wraps a class's `step` when its first optimizer is made
    optimizer = RowwiseAdamW([nn.Parameter(torch.ones(1))])
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step()
    assert calls == ["before", "after"]
