# SPDX-License-Identifier: Apache-2.0
"""Text to the rows that a model reads of its n-gram tables: a function of tokenizer and config, without weights.

Shapes: T tokens, S tables.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from transformers import AutoTokenizer

from modeling_longcat_lite import LongCatLiteConfig, ngram_row_ids

FEWEST_TOKENS = 1000


@dataclass(frozen=True)
class TokenStream:
    """Tokens `[T]` of documents one after the other, and what was read for them."""

    tokens: np.ndarray
    names: tuple[str, ...]  # of the documents, the last of which may be cut
    characters: int


def load_config(model: str | None) -> LongCatLiteConfig:
    """The config of a folder or Hub name; the released model's by default.

    Raises:
        `ValueError`: when it has no n-gram tables.
    """
    config = LongCatLiteConfig.from_pretrained(model) if model else LongCatLiteConfig()
    if not config.use_ngram_embedding:
        raise ValueError(f"{model}: `use_ngram_embedding` is false, so that there is no table to read")
    return config


def load_tokenizer(folder: str, config: LongCatLiteConfig):
    """A tokenizer whose tokens the config has.

    Raises:
        `ValueError`: naming the folder, when it has more.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"{folder}: {len(tokenizer)} tokens, above `vocab_size` ({config.vocab_size}) of the model")
    return tokenizer


def vocabulary_digest(tokenizer) -> str:
    """First digits of a hash of all tokens with their ids, which tells one vocabulary from another."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def check_length(tokens: int, names: list[str]):
    """Raises a `ValueError` that names the documents if their tokens are too few to measure anything."""
    if tokens < FEWEST_TOKENS:
        named = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ValueError(f"{named}: {tokens} tokens, too short to measure; at least {FEWEST_TOKENS} are needed")


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


def spoken_path(path: str) -> str:
    """A path without what only one machine has: the last two names of an absolute one."""
    return "/".join(Path(path).parts[-2:]) if Path(path).is_absolute() else path


__all__ = [
    "FEWEST_TOKENS",
    "TokenStream",
    "check_length",
    "load_config",
    "load_tokenizer",
    "read_tokens",
    "row_bytes",
    "spoken_path",
    "table_rows",
    "vocabulary_digest",
]
