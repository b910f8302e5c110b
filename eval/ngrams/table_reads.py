# SPDX-License-Identifier: Apache-2.0
"""Text to the rows that a model reads of its n-gram tables: a function of tokenizer and config, without weights.

Shapes: T tokens, S tables.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from rich.progress import Progress

from eval.losses.text import check_length
from modeling_longcat_lite import LongCatLiteConfig, ngram_row_ids


@dataclass(frozen=True)
class TokenStream:
    """Tokens `[T]` of documents one after the other, and what was read for them."""

    tokens: np.ndarray
    names: tuple[str, ...]  # of the documents, the last of which may be cut
    characters: int


def vocabulary_digest(tokenizer) -> str:
    """First digits of a hash of all tokens with their ids, which tells one vocabulary from another."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def read_tokens(tokenizer, documents: Iterable[tuple[str, str]], ends: list[int], count: int) -> TokenStream:
    """The first `count` tokens of (name, text) documents, each closed by the first token of `ends`, if there is one.

    Raises:
        `ValueError`: naming the documents, when they are too short to measure anything.
    """
    pieces: list[np.ndarray] = []
    names: list[str] = []
    characters = found = 0
    with Progress(transient=True) as progress:
        task = progress.add_task("tokens", total=count)
        for name, text in documents:
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] + ends[:1]
            pieces.append(np.array(ids[: count - found], dtype=np.int64))
            names.append(name)
            # Of a cut document, its share: a token has no exact place in the text when bytes are merged.
            characters += round(len(text) * len(pieces[-1]) / len(ids))
            found += len(pieces[-1])
            progress.update(task, completed=found)
            if found == count:
                break
    check_length(found, names)
    return TokenStream(np.concatenate(pieces), tuple(names), characters)


def table_rows(config: LongCatLiteConfig, tokens: np.ndarray) -> np.ndarray:
    """The row that each token reads of each table: `[T, S]` int64 from `[T]`."""
    return ngram_row_ids(config, torch.from_numpy(tokens)[None])[:, 0].T.contiguous().numpy()


def row_bytes(config: LongCatLiteConfig) -> int:
    """Bytes of a table row in the dtype of the config; bfloat16, as released, where it names none."""
    dtype = config.dtype or torch.bfloat16
    return config.subtable_width * (getattr(torch, dtype) if isinstance(dtype, str) else dtype).itemsize


__all__ = ["TokenStream", "read_tokens", "row_bytes", "table_rows", "vocabulary_digest"]
