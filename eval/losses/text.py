# SPDX-License-Identifier: Apache-2.0
"""Loss of a model on whole documents, every token of which is scored once.

A document is cut into windows. The model reads one more token before each: the last token of the previous window, or,
before the first window, the token that ends a segment, after which n-grams start anew. So bits per byte are a loss in
bits divided by the bytes of the documents.

    document a b c d e, windows of 2     reads  . a | b c | d      `.` ends a segment
                                         scores a b | c d | e

Shapes: T tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from rich.progress import track
from torch.nn.functional import cross_entropy

from modeling_longcat_lite import LongCatLiteConfig
from modeling_longcat_lite.configuration_longcat_lite import segment_ends

FEWEST_TOKENS = 1000


@dataclass(frozen=True)
class Documents:
    """Whole documents as tokens, `[T]` each, their names, and their bytes in UTF-8."""

    tokens: list[torch.Tensor]
    names: list[str]
    num_bytes: int


def check_length(tokens: int, names: list[str]) -> None:
    """Raise a `ValueError` that names the documents, if they have too few tokens to measure anything."""
    if tokens < FEWEST_TOKENS:
        named = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ValueError(f"{named}: {tokens} tokens, too short to measure; at least {FEWEST_TOKENS} are needed")


def plain_tokens(tokenizer, text: str) -> list[int]:
    """Tokens of `text` without special ones, and without a warning if it is longer than the model's context."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def tokenize_documents(tokenizer, documents: Iterable[tuple[str, str]], count: int) -> Documents:
    """Tokenize (name, text) documents until they have `count` tokens. The last one is whole too.

    Raises:
        `ValueError`: naming the documents, if they are too short to measure anything.
    """
    tokens: list[torch.Tensor] = []
    names: list[str] = []
    found = num_bytes = 0
    for name, text in documents:
        tokens.append(torch.tensor(plain_tokens(tokenizer, text)))
        names.append(name)
        num_bytes += len(text.encode())
        found += len(tokens[-1])
        if found >= count:
            break
    check_length(found, names)
    return Documents(tokens, names, num_bytes)


def longest_window(config: LongCatLiteConfig) -> int:
    """Tokens that a model can read at once: its positions, or fewer where attention would be sparse."""
    return min(config.max_position_embeddings, config.dense_attention_limit or config.max_position_embeddings)


def first_token(config: LongCatLiteConfig) -> int:
    """The token to read before a document.

    Raises:
        `ValueError`: if the config has neither an end nor a beginning of a sequence.
    """
    ends = [*segment_ends(config), config.bos_token_id]
    if ends[0] is None:
        raise ValueError("`ngram_eos_token_id` and `bos_token_id` are both unset: set one to read before documents")
    return ends[0]


@torch.no_grad()
def losses_by_window(model, documents: Documents, window: int) -> list[torch.Tensor]:
    """Loss of every token of each window in nats, float32 on the CPU: all documents, one after another."""
    begin = torch.tensor([first_token(model.config)])
    losses = []
    for tokens in track(documents.tokens, description="documents", transient=True):
        read = torch.cat([begin, tokens]).to(model.device)
        for place in range(0, len(tokens), window):
            targets = read[place + 1 : place + 1 + window]
            logits = model(read[None, place : place + len(targets)], use_cache=False).logits[0].float()
            losses.append(cross_entropy(logits, targets, reduction="none").cpu())
    return losses


__all__ = [
    "FEWEST_TOKENS",
    "Documents",
    "check_length",
    "first_token",
    "longest_window",
    "losses_by_window",
    "plain_tokens",
    "tokenize_documents",
]
