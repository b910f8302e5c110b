# SPDX-License-Identifier: Apache-2.0
"""The file of most used rows: what is written comes back, what is not of the model is refused."""

import random
from collections import Counter

import pytest
import torch
from conftest import tiny_config
from safetensors.torch import save_file

from modeling_longcat_lite import ngram_row_ids, read_hot_rows, write_hot_rows

EOS = 2


def stream(length: int) -> list[int]:
    draw = random.Random(0)
    return [draw.randrange(3, 12) for _ in range(length)]


def row_ids(config, tokens: list[int]) -> torch.Tensor:
    return ngram_row_ids(config, torch.tensor([tokens])).flatten(1)


def test_hot_rows_come_back(tmp_path):
    config, tokens = tiny_config(), stream(1500)
    path = tmp_path / "new folder" / "hot.safetensors"
    rows = row_ids(config, tokens)
    write_hot_rows(path, config, rows, 20)
    tables = read_hot_rows(path, config)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert len(tables) == 12
    for table, column in zip(tables, rows.tolist(), strict=True):
        ordered = sorted(Counter(column).items(), key=lambda item: (-item[1], item[0]))
        assert table.dtype == torch.int64
        assert table.tolist() == [row for row, _ in ordered[:20]]
    # What trainers rewrite does not change an id.
    read_hot_rows(path, tiny_config(eos_token_id=5, ngram_eos_token_id=EOS))


@pytest.mark.parametrize(
    ("field", "overrides"),
    [
        ("subtable_sizes", {"ngram_vocab_size_ratio": 3.7}),
        ("subtable_sizes", {"emb_split_num": 2}),
        ("max_ngram_order", {"emb_neighbor_num": 5, "emb_split_num": 3}),
        ("ngram_base_vocab_size", {"ngram_base_vocab_size": 66, "ngram_vocab_size_ratio": 3.2}),
        ("ngram_eos_token_id", {"ngram_eos_token_id": [2, 3]}),
    ],
)
def test_hot_rows_of_another_config_are_refused(tmp_path, field, overrides):
    path = tmp_path / "hot.safetensors"
    write_hot_rows(path, tiny_config(), row_ids(tiny_config(), stream(200)), 5)
    with pytest.raises(ValueError, match=rf"hot\.safetensors: `{field}`"):
        read_hot_rows(path, tiny_config(**overrides))


def test_damaged_hot_rows_are_named(tmp_path):
    config, path = tiny_config(), tmp_path / "hot.safetensors"
    with pytest.raises(ValueError, match=r"hot\.safetensors"):
        read_hot_rows(path, config)
    path.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match=r"hot\.safetensors"):
        read_hot_rows(path, config)
    save_file({"table_0": torch.zeros(1, dtype=torch.int64)}, path)
    with pytest.raises(ValueError, match=r"hot\.safetensors: `model_type`"):
        read_hot_rows(path, config)
    write_hot_rows(path, config, torch.full((12, 3), 10_000), 5)
    with pytest.raises(ValueError, match=r"hot\.safetensors: `table_0`"):
        read_hot_rows(path, config)
    write_hot_rows(path, config, torch.zeros(11, 3, dtype=torch.int64), 5)
    with pytest.raises(ValueError, match=r"hot\.safetensors: .*table_11"):
        read_hot_rows(path, config)
