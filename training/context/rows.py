# SPDX-License-Identifier: Apache-2.0
"""Documents to blocks of rows: long rows of one document each, and short rows with as many tokens in total.

A block is what one forward reads, `[B, T]` tokens. For a stage with rows of 8 tokens and an original length of 4:

    a long block     [1, 8]    a window of one document, with continuous positions
    a short block    [2, 4]    windows of short documents, joined by the end token, which n-grams do not cross

Nothing is padded and nothing is packed: packing gives every document positions from 0, so short documents would never
train a long position, and its mask has T x T entries, 64 GiB at T = 262,144.

Shapes: B batch rows of a block, T tokens of a row.
"""

import random
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from training.context.stages import Stage


def tokenized(documents: Dataset, tokenizer: PreTrainedTokenizerBase, text_field: str, split: str) -> Dataset:
    """`input_ids` of each document, with the end token appended; documents that have `input_ids` are not changed.

    Raises:
        `ValueError`: naming the split if it has neither column, or the row that has no text.
    """
    if "input_ids" in documents.column_names:
        return documents.select_columns("input_ids")
    if text_field not in documents.column_names:
        raise ValueError(
            f"`{split}` has neither a column `{text_field}` (`dataset_text_field`) nor `input_ids`, "
            f"it has {', '.join(documents.column_names)}"
        )

    def tokenize(batch: dict, indices: list[int]) -> dict:
        for index, text in zip(indices, batch[text_field], strict=True):
            if not isinstance(text, str) or not text:
                raise ValueError(f"row {index} of `{split}`: `{text_field}` has no text")
        ids = tokenizer(batch[text_field], add_special_tokens=False)["input_ids"]
        return {"input_ids": [[*document, tokenizer.eos_token_id] for document in ids]}

    return documents.map(tokenize, batched=True, with_indices=True, remove_columns=documents.column_names)


def long_rows(documents: Dataset, length: int) -> Dataset:
    """Windows of `length` tokens, each of one document; the rest of a document, and short documents, are dropped."""

    def cut(batch: dict) -> dict:
        return {"input_ids": [window for ids in batch["input_ids"] for window in windows(ids, length)]}

    return documents.map(cut, batched=True)


def short_rows(documents: Dataset, length: int) -> Dataset:
    """Windows of `length` tokens of the concatenated documents."""

    def cut(batch: dict) -> dict:
        return {"input_ids": windows([token for ids in batch["input_ids"] for token in ids], length)}

    return documents.map(cut, batched=True)


def windows(ids: list[int], length: int) -> list[list[int]]:
    """Whole windows of `length` tokens, from the beginning."""
    return [ids[begin : begin + length] for begin in range(0, len(ids) - length + 1, length)]


def check_rows(rows: Dataset, documents: Dataset, length: int, field: str):
    """Raise a `ValueError` that names `field` if no document gave a row of `length` tokens."""
    if len(rows) == 0:
        longest = max(map(len, documents["input_ids"]), default=0)
        raise ValueError(
            f"`{field}` is {length}, but no document is that long: the longest has {longest} tokens with its end"
        )


def stage_blocks(
    long: Dataset | None, short: Dataset | None, stage: Stage, original_length: int, count: int, seed: int
) -> Dataset:
    """`count` blocks, of which `long_share` are long, in mixed order: `input_ids` of `[B, T]` each.

    Every row is drawn once before any is drawn again.
    """
    draw = random.Random(seed)
    long_count = round(count * stage.long_share)
    per_block = stage.max_length // original_length
    rounds = {
        "long": drawn(long, long_count, draw),
        "short": drawn(short, (count - long_count) * per_block, draw),
    }
    blocks = [("long", [index]) for index in rounds["long"]]
    blocks += [
        ("short", rounds["short"][begin : begin + per_block]) for begin in range(0, len(rounds["short"]), per_block)
    ]
    draw.shuffle(blocks)
    return lazy_blocks(blocks, {"long": long, "short": short})


def evaluation_blocks(rows: Dataset, per_block: int) -> Dataset:
    """All rows, `per_block` to a block."""
    indices = list(range(len(rows)))
    blocks = [("short", indices[begin : begin + per_block]) for begin in range(0, len(rows), per_block)]
    return lazy_blocks(blocks, {"short": rows})


def drawn(rows: Dataset | None, count: int, draw: random.Random) -> list[int]:
    """`count` indices into `rows`, in shuffled rounds."""
    indices: list[int] = []
    while len(indices) < count:
        assert rows is not None
        indices += draw.sample(range(len(rows)), len(rows))
    return indices[:count]


def lazy_blocks(blocks: list[tuple[str, list[int]]], sources: dict[str, Any]) -> Dataset:
    """A data set that fetches the rows of a block when the block is read."""

    def fetch(batch: dict) -> dict:
        found: Any = [
            sources[name][rows]["input_ids"] for name, rows in zip(batch["source"], batch["rows"], strict=True)
        ]
        return {"input_ids": found}

    columns = {"source": [name for name, _ in blocks], "rows": [rows for _, rows in blocks]}
    return Dataset.from_dict(columns).with_transform(fetch)


def collate_block(rows: list[dict]) -> dict[str, torch.Tensor]:
    """A batch from one block: `input_ids`, `labels` and `position_ids`, `[B, T]` each."""
    (block,) = rows
    input_ids = torch.tensor(block["input_ids"])
    positions = torch.arange(input_ids.shape[1]).repeat(len(input_ids), 1)
    return {"input_ids": input_ids, "labels": input_ids.clone(), "position_ids": positions}


__all__ = [
    "check_rows",
    "collate_block",
    "evaluation_blocks",
    "long_rows",
    "short_rows",
    "stage_blocks",
    "tokenized",
    "windows",
]
