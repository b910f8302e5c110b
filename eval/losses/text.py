# SPDX-License-Identifier: Apache-2.0
"""Loss of a model on whole documents, every token of which is scored once.

A document is cut into windows. Each is read behind one token more: the last of the window before, or, for the first,
the token that ends a segment, so that n-grams start afresh. Bits per byte then divide by the bytes of the documents.

    document a b c d e, windows of 2     reads  . a | b c | d      . the end of a segment
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


@dataclass(frozen=True)
class Documents:
    """Whole documents as tokens `[T]`, and their bytes in UTF-8."""

    tokens: list[torch.Tensor]
    names: list[str]
    num_bytes: int


def tokenize_documents(tokenizer, documents: Iterable[tuple[str, str]], count: int) -> Documents:
    """(name, text) documents until they have `count` tokens; the last one is whole too.

    Raises:
        `ValueError`: naming the documents, when they are too short to measure anything.
    """
    tokens: list[torch.Tensor] = []
    names: list[str] = []
    found = num_bytes = 0
    for name, text in documents:
        tokens.append(torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]))
        names.append(name)
        num_bytes += len(text.encode())
        found += len(tokens[-1])
        if found >= count:
            break
    check_length(found, names)
    return Documents(tokens, names, num_bytes)


def longest_window(config: LongCatLiteConfig) -> int:
    """Tokens that a model may read at once: its positions, or as many as sparse attention leaves dense."""
    return min(config.max_position_embeddings, config.dense_attention_limit or config.max_position_embeddings)


def first_token(config: LongCatLiteConfig) -> int:
    """What stands before a document.

    Raises:
        `ValueError`: when the config names neither an end nor a beginning of a sequence.
    """
    ends = [*segment_ends(config), config.bos_token_id]
    if ends[0] is None:
        raise ValueError("`ngram_eos_token_id` and `bos_token_id` are both none: no token can stand before a document")
    return ends[0]


@torch.no_grad()
def losses_by_window(model, documents: Documents, window: int) -> list[torch.Tensor]:
    """Nats of every token of each window, float32 on the host: all documents, one after another."""
    begin = torch.tensor([first_token(model.config)])
    losses = []
    for tokens in track(documents.tokens, description="documents", transient=True):
        read = torch.cat([begin, tokens]).to(model.device)
        for place in range(0, len(tokens), window):
            targets = read[place + 1 : place + 1 + window]
            logits = model(read[None, place : place + len(targets)], use_cache=False).logits[0].float()
            losses.append(cross_entropy(logits, targets, reduction="none").cpu())
    return losses


FEWEST_TOKENS = 1000


def check_length(tokens: int, names: list[str]):
    """Raises a `ValueError` that names the documents if their tokens are too few to measure anything."""
    if tokens < FEWEST_TOKENS:
        named = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ValueError(f"{named}: {tokens} tokens, too short to measure; at least {FEWEST_TOKENS} are needed")


def plain_tokens(tokenizer, text: str) -> list[int]:
    """Tokens of `text` and no others; and no warning: longer texts are tried than the model reads."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


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
