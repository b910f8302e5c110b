# SPDX-License-Identifier: Apache-2.0
"""Short and long documents without a download, in which pairs of a key and a value are repeated.

    fule fele fune kelo rint kola rent fete file fite kola rent fine kelo rint kola rent feme ...

Keys (`k...`) and values (`r...`) are paired anew in every document: only the text before a key says which value
follows. Between the pairs there is filler (`f...`), a walk over words that have two successors each. It is learned at
once, so the remaining loss shows how many values are found. A document to train on contains each of its pairs a few
times, at places drawn evenly over it, so that the distances between them are those of the whole document. A row to
measure with contains each pair once, one of them at a given depth, and ends by asking for that one.

The same seed gives the same documents.
"""

import itertools
import random

from transformers import PreTrainedTokenizerBase

KEYS = tuple("k" + "".join(letters) for letters in itertools.product("aeiou", "lmn", "ao"))
VALUES = tuple("r" + "".join(letters) for letters in itertools.product("aeiou", "lmn", "t"))
FILLER = tuple("f" + "".join(letters) for letters in itertools.product("aeiou", "lmnst", "e"))
SUCCESSORS = {word: random.Random(word).sample(FILLER, 2) for word in FILLER}
MENTIONS = 4  # of each pair, in a training document


def filler(words: int, draw: random.Random) -> list[str]:
    """A walk of `words` filler words."""
    walk = [draw.choice(FILLER)]
    while len(walk) < words:
        walk.append(draw.choice(SUCCESSORS[walk[-1]]))
    return walk[:words]


def woven(places: list[int], pairs: list[tuple[str, str]], words: list[str]) -> list[str]:
    """`words` with each pair in front of the word at its place."""
    woven: list[str] = []
    done = 0
    for place, pair in sorted(zip(places, pairs, strict=True), key=lambda placed: placed[0]):
        woven += [*words[done:place], *pair]
        done = place
    return woven + words[done:]


def as_text(words: list[str]) -> str:
    """The words, each with a space before it, the first too: a token is a word with its space."""
    return "".join(f" {word}" for word in words)


def recall_document(words: int, pairs: int, draw: random.Random) -> str:
    """A training document of `words` words that mentions each of `pairs` pairs `MENTIONS` times."""
    drawn = list(zip(draw.sample(KEYS, pairs), draw.choices(VALUES, k=pairs), strict=True)) * MENTIONS
    draw.shuffle(drawn)
    room = words - 2 * len(drawn)
    if room < 0:
        raise ValueError(f"`words` is {words}, but {MENTIONS} mentions of {pairs} pairs alone need {words - room}")
    places = [draw.randrange(room + 1) for _ in drawn]
    return as_text(woven(places, drawn, filler(room, draw)))


def needle_row(
    tokenizer: PreTrainedTokenizerBase, tokens: int, depth: float, distractors: int, draw: random.Random
) -> tuple[list[int], list[int]]:
    """A row of exactly `tokens` tokens that ends by asking for a pair, and the tokens of the answer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): One with a token for each of the words.
        tokens (`int`): Length of the row.
        depth (`float`): Place of the pair: 0 at the beginning, 1 right before the question.
        distractors (`int`): Number of other pairs, with other values, at random places.
    """
    count = distractors + 1
    pairs = list(zip(draw.sample(KEYS, count), draw.sample(VALUES, count), strict=True))
    room = tokens - 2 * count - 1
    if room < 0:
        raise ValueError(f"`tokens` is {tokens}, but {count} pairs and the question alone need {tokens - room}")
    places = [round(depth * room), *(draw.randrange(room + 1) for _ in range(distractors))]
    key, value = pairs[0]
    row = tokenizer(as_text([*woven(places, pairs, filler(room, draw)), key, value]))["input_ids"]
    if len(row) != tokens + 1:
        raise ValueError(f"`tokenizer` has no token for some of the words: {tokens + 1} of them are {len(row)} tokens")
    return row[:-1], row[-1:]


__all__ = ["FILLER", "KEYS", "VALUES", "needle_row", "recall_document"]
