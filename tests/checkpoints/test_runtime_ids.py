# SPDX-License-Identifier: Apache-2.0
"""N-gram ids as SGLang, vLLM and mlx-lm compute them, against the reference's.

Their rules, written down as plain loops from what their files say (not copied, and none of the files is run here):

* SGLang, `python/sglang/kernels/ops/speculative/ngram_embedding.py` and the kernels beside it
* vLLM, `vllm/model_executor/models/longcat_flash_ngram.py` and `csrc/libtorch_stable/ngram_embedding_kernels.cu`
* mlx-lm, `mlx_lm/models/longcat_flash_ngram.py`; `tests/checkpoints/test_mlx.py` runs it
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

NOTHING_BEFORE = -1


def ids_by_walking(
    table: Sequence[int], begin: int, config: dict[str, Any], rows: Sequence[int], stops: Callable[[int, int], bool]
) -> list[list[int]]:
    """Ids of `table[begin:]`, `[sub-table][token]`: from each token backwards until `stops(token, steps back)`."""
    ids = []
    for i, size in enumerate(rows):
        order = 2 + i // config["emb_split_num"]
        powers = [pow(config["vocab_size"], back, size) for back in range(order)]
        column = []
        for t in range(begin, len(table)):
            total = 0
            for back in range(min(order, t + 1)):
                if stops(table[t - back], back):
                    break
                total += table[t - back] * powers[back] % size
            column.append(total % size)
        ids.append(column)
    return ids


def rows_of_tables(base: float, config: dict[str, Any]) -> list[int]:
    tables = config["emb_split_num"] * (config["emb_neighbor_num"] - 1)
    return [int(base + 2 * i + 1) for i in range(tables)]


def sglang_ids(tokens: Sequence[int], config: dict[str, Any]) -> list[list[int]]:
    """A row of the token table holds the whole request. EOS stops a walk that looks back on it, not its own."""
    rows = rows_of_tables(int(config["ngram_vocab_size_ratio"] * config["vocab_size"]), config)
    eos = config["eos_token_id"]
    return ids_by_walking(tokens, 0, config, rows, lambda token, back: token == eos and back > 0)


def vllm_ids(tokens: Sequence[int], config: dict[str, Any], pieces: Sequence[int]) -> list[list[int]]:
    """A request keeps its last N - 1 tokens from step to step. EOS is stored negated, and whatever is negative stops
    a walk: EOS's own before its first step."""
    rows = rows_of_tables(config["ngram_vocab_size_ratio"] * config["vocab_size"], config)
    kept = config["emb_neighbor_num"] - 1
    stored = [-token if token == config["eos_token_id"] else token for token in tokens]
    context, ids = [NOTHING_BEFORE] * kept, [[] for _ in rows]
    for piece in pieces:
        table, stored = context + stored[:piece], stored[piece:]
        step = ids_by_walking(table, kept, config, rows, lambda token, back: token < 0)
        ids = [before + new for before, new in zip(ids, step, strict=True)]
        context = table[-kept:]
    return ids


def mlx_ids(tokens: Sequence[int], config: dict[str, Any]) -> list[list[int]]:
    """The row shifted to the right, zeros from the left: nothing stops a walk but the beginning."""
    rows = rows_of_tables(config["ngram_vocab_size_ratio"] * config["vocab_size"], config)
    return ids_by_walking(tokens, 0, config, rows, lambda token, back: False)


@pytest.fixture
def case(conformance_folder) -> tuple[dict[str, Any], list[list[int]], torch.Tensor]:
    """Config as it lies on disk, rows of tokens, and the reference's ids `[B, S, T]`."""
    golden = load_file(Path(conformance_folder) / "golden.safetensors")
    config = json.loads((Path(conformance_folder) / "config.json").read_text())
    return config, golden["input_ids"].tolist(), golden["ngram_ids"].transpose(0, 1)


def test_sglang_computes_the_reference_ids(case):
    config, rows, expected = case
    assert sum(row.count(config["eos_token_id"]) for row in rows) > 3
    for tokens, ids in zip(rows, expected, strict=True):
        assert sglang_ids(tokens, config) == ids.tolist()


@pytest.mark.parametrize("pieces", [(40,), (7, 1, 7, 1, 16, 8), (1,) * 40], ids=["whole", "uneven", "one by one"])
def test_vllm_computes_the_reference_ids_but_for_eos_itself(case, pieces):
    """As read, vLLM embeds EOS by row 0 of every table, where the reference looks back from it."""
    config, rows, expected = case
    for tokens, ids in zip(rows, expected, strict=True):
        found = torch.tensor(vllm_ids(tokens, config, pieces))
        is_eos = torch.tensor(tokens) == config["eos_token_id"]
        assert torch.equal(found[:, ~is_eos], ids[:, ~is_eos])
        assert not found[:, is_eos].any()
        assert ids[:, is_eos].all()


def test_mlx_computes_the_reference_ids_through_the_first_eos(case):
    config, rows, expected = case
    for tokens, ids in zip(rows, expected, strict=True):
        found = torch.tensor(mlx_ids(tokens, config))
        same = [*tokens, config["eos_token_id"]].index(config["eos_token_id"]) + 1
        assert torch.equal(found[:, :same], ids[:, :same])
        if same < len(tokens):
            assert (found[:, same] != ids[:, same]).all()
