# SPDX-License-Identifier: Apache-2.0
"""Rows that are kept: the same numbers, fewer reads, and the share of reads that they answer."""

import pytest
import torch
from conftest import CONFORMANCE
from safetensors.torch import load_file

from modeling_longcat_lite import LongCatLiteForCausalLM, ngram_row_ids, write_hot_rows

IDS = load_file(CONFORMANCE / "base" / "golden.safetensors")["input_ids"]


def load(placement: str = "disk") -> LongCatLiteForCausalLM:
    return LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "base", dtype=torch.float32, ngram_tables=placement)


@pytest.fixture
def hot_rows(tmp_path):
    config = load().config
    write_hot_rows(tmp_path / "hot.safetensors", config, ngram_row_ids(config, IDS[:1]).flatten(1), 1000)
    return tmp_path / "hot.safetensors"


@pytest.mark.parametrize("placement", ["host", "disk"])
@pytest.mark.parametrize("rows_per_table", [None, 3])
@torch.no_grad()
def test_kept_rows_change_no_logit(placement, rows_per_table, hot_rows):
    model = load(placement)
    cache = model.keep_ngram_rows(hot_rows, rows_per_table)
    assert cache.hit_rate == 0.0
    assert torch.equal(model(IDS).logits, load()(IDS).logits)
    reads = ngram_row_ids(model.config, IDS)  # [S, B, T]
    kept = model.model.ngram_embeddings.tables.kept.keys
    hits = sum(int(torch.isin(reads[i], kept[kept >> 40 == i] - (i << 40)).sum()) for i in range(len(reads)))
    assert 0 < cache.hit_rate == hits / reads.numel()
    if rows_per_table:
        assert len(kept) == 12 * rows_per_table


@torch.no_grad()
def test_kept_rows_are_read_no_more(hot_rows, monkeypatch):
    model = load()
    model.keep_ngram_rows(hot_rows)
    monkeypatch.setattr(model.model.ngram_embeddings.tables, "read", None)  # a call would raise
    model(IDS[:1])


def test_resident_tables_have_nothing_to_keep(hot_rows):
    with pytest.raises(ValueError, match="these tables are resident"):
        load("resident").keep_ngram_rows(hot_rows)
