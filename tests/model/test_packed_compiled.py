# SPDX-License-Identifier: Apache-2.0
"""Packed documents stay apart, compiled or not: with no mask, of ones, with padding or holes, with or without a cache.

Backend "eager": the graphs are captured, without a compiler for them.
"""

import pytest
import torch
from conftest import randomize, tiny_config
from naive_ngram import naive_ngram_ids
from rows_alone import logits_of

from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.configuration_longcat_lite import segment_ends

DOCUMENTS = [[5, 9, 7, 5, 9], [8, 8, 6], [11, 12, 13, 14, 15, 16, 17, 18]]
HOW = ["plain", pytest.param("compiled", marks=pytest.mark.slow)]
MASKS = ["none", "ones", "trailing", "leading", "holes"]


def few_in_the_fast_suite(fast: list[str]):
    """All masks; capturing a graph takes seconds."""
    return pytest.mark.parametrize(
        "mask", [pytest.param(mask, marks=[] if mask in fast else [pytest.mark.slow]) for mask in MASKS]
    )


@pytest.fixture(scope="module")
def model() -> LongCatLiteForCausalLM:
    return randomize(LongCatLiteForCausalLM(tiny_config(num_layers=1, emb_neighbor_num=3, emb_split_num=2))).eval()


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def packed(documents: list[list[int]], mask: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, positions and mask of one row, `[1, T]` each."""
    columns = [(token, place, 1) for document in documents for place, token in enumerate(document)]
    hidden = {"trailing": [len(columns)] * 3, "leading": [0, 0], "holes": [2, 7, 7, len(columns) + 3]}.get(mask, [])
    for place in hidden:  # it repeats the position before it, and a token that would matter
        columns.insert(place, (9, columns[place - 1][1] if place else 0, 0))
    ids, places, visible = torch.tensor(columns).t()[:, None]
    return ids, places, visible


@torch.no_grad()
def check_apart(call, model, documents: list[list[int]], mask: str, **options):
    ids, places, visible = packed(documents, mask)
    shown = {} if mask == "none" else {"attention_mask": visible}
    found = call(ids, position_ids=places, **shown, **options).logits[visible.bool()]
    torch.testing.assert_close(found, torch.cat([logits_of(model, each) for each in documents]), atol=2e-4, rtol=0)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("use_cache", [False, True])
def test_plain(model, mask, use_cache):
    check_apart(model, model, DOCUMENTS, mask, use_cache=use_cache)


@few_in_the_fast_suite(["ones", "holes"])
def test_one_graph(model, mask):
    check_apart(torch.compile(model, backend="eager", fullgraph=True), model, DOCUMENTS, mask, use_cache=False)


@few_in_the_fast_suite(["trailing"])
def test_compiled_with_a_cache(model, mask):
    check_apart(torch.compile(model, backend="eager"), model, DOCUMENTS, mask, use_cache=True)


def test_one_graph_serves_rows_that_are_packed_differently(model):
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    one = [token for document in DOCUMENTS for token in document]
    rows = [DOCUMENTS, [one], [DOCUMENTS[2], DOCUMENTS[0], DOCUMENTS[1]], [[token] for token in range(4, 20)]]
    counters = torch._dynamo.utils.counters
    counters.clear()
    for documents in rows:  # of one shape: what a graph was captured with must not stay in it
        check_apart(compiled, model, documents, "ones", use_cache=False)
    assert counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
@pytest.mark.parametrize("how", HOW)
def test_batches_of_rows_that_are_packed_differently(model, how):
    call = model if how == "plain" else torch.compile(model, backend="eager", fullgraph=True)
    rows = [DOCUMENTS, [DOCUMENTS[2], DOCUMENTS[0], DOCUMENTS[1]]]
    ids, places, visible = (torch.cat(parts) for parts in zip(*(packed(row, "trailing") for row in rows), strict=True))
    found = call(ids, position_ids=places, attention_mask=visible, use_cache=False).logits[:, :16]
    for row, logits in zip(rows, found, strict=True):
        torch.testing.assert_close(logits, torch.cat([logits_of(model, each) for each in row]), atol=2e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("how", HOW)
def test_skipped_positions_under_a_mask_of_ones_are_one_document(model, how):
    """Training on positions that skip (PoSE) passes a mask, which says that the tokens belong together."""
    call = model if how == "plain" else torch.compile(model, backend="eager", fullgraph=True)
    config, row = model.config, DOCUMENTS[0] + DOCUMENTS[2]
    ids, places = torch.tensor([row]), torch.tensor([[0, 1, 2, 40, 41, 42, 43, 44, 45, 90, 91, 92, 93]])
    rows = naive_ngram_ids(
        row, config.subtable_sizes, config.ngram_base_vocab_size, config.max_ngram_order, segment_ends(config)
    )
    causal = torch.tril(torch.ones(1, 1, 13, 13)).bool()
    wanted = model(
        ids, attention_mask=causal, position_ids=places, ngram_row_ids=torch.tensor(rows).t()[None], use_cache=False
    ).logits
    found = call(ids, attention_mask=torch.ones_like(ids), position_ids=places, use_cache=False).logits
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)
