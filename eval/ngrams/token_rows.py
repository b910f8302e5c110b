# SPDX-License-Identifier: Apache-2.0
"""Text to the table rows that its tokens read: a function of tokenizer and config, without weights.

Shapes: T tokens, S sub-tables.
"""

import hashlib
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from eval.losses.text import check_length, plain_tokens
from eval.reports.files import portable_path
from modeling_longcat_lite import LongCatLiteConfig, ngram_row_ids


@dataclass(frozen=True)
class TokenStream:
    """Tokens `[T]` of consecutive documents, the names of these (the last one may be cut), and their characters."""

    tokens: np.ndarray
    names: tuple[str, ...]
    characters: int


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
            ids = plain_tokens(tokenizer, text) + ends[:1]
            pieces.append(np.array(ids[: count - found], dtype=np.int64))
            names.append(name)
            # For a cut document, its share: where bytes are merged, a token has no exact place in the text.
            characters += round(len(text) * len(pieces[-1]) / len(ids))
            found += len(pieces[-1])
            progress.update(task, completed=found)
            if found == count:
                break
    check_length(found, names)
    return TokenStream(np.concatenate(pieces), tuple(names), characters)


def token_rows(config: LongCatLiteConfig, tokens: np.ndarray) -> np.ndarray:
    """The row that each token reads from each sub-table: `[T, S]` int64 from `[T]`."""
    return ngram_row_ids(config, torch.from_numpy(tokens)[None])[:, 0].T.contiguous().numpy()


def row_bytes(config: LongCatLiteConfig) -> int:
    """Bytes of a table row in the dtype of the config; bfloat16, as released, if it names none."""
    dtype = config.dtype or torch.bfloat16
    return config.subtable_width * (getattr(torch, dtype) if isinstance(dtype, str) else dtype).itemsize


def curve_points(tokens: int) -> list[int]:
    """Where curves over the text have points: 100, 200, 500, 1,000, ... tokens, and all of them."""
    steps = (digit * 10**power for power in range(2, len(str(tokens))) for digit in (1, 2, 5))
    return [step for step in steps if step < tokens] + [tokens]


def vocabulary_digest(tokenizer) -> str:
    """First digits of a hash of all tokens and their ids, which tells one vocabulary from another."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def describe(
    config: LongCatLiteConfig, tokenizer, stream: TokenStream, model: str | None, tokenizer_name: str, given: bool
) -> dict[str, Any]:
    """What the numbers of a report belong to: date, model, tokenizer and text.

    Args:
        config, tokenizer, stream: What was read with what.
        model (`str`, *optional*): As the user named it; the released model if left out.
        tokenizer_name (`str`): As the user named it.
        given (`bool`): Whether the user gave the text, instead of the standard library.
    """
    return {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "model": {
            "name": portable_path(model) if model else "LongCat-Flash-Lite as released",
            "vocab_size": config.vocab_size,
            "ngram_base_vocab_size": config.ngram_base_vocab_size,
            "max_ngram_order": config.max_ngram_order,
            "tables": config.num_subtables,
            "rows": sum(config.subtable_sizes),
            "row_bytes": row_bytes(config),
        },
        "tokenizer": {
            "name": portable_path(tokenizer_name),
            "tokens": len(tokenizer),
            "digest": vocabulary_digest(tokenizer),
        },
        "text": {
            "source": "given files" if given else f"standard library of Python {platform.python_version()}",
            "documents": len(stream.names),
            "first": stream.names[0],
            "last": stream.names[-1],
            "characters": stream.characters,
            "tokens": len(stream.tokens),
        },
    }


__all__ = ["TokenStream", "curve_points", "describe", "read_tokens", "row_bytes", "token_rows"]
