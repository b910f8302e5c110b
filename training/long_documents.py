# SPDX-License-Identifier: Apache-2.0
"""Long and short documents without a download: sources of Python's standard library, and needles hidden in them.

A needle is a sentence that pairs a key with a value, `Key alder oak.`; behind `Key alder` the text before says what
comes, and nothing else does. Keys and values are drawn anew for every document. Training documents state some pairs
and come back to them later, at distances from a few lines to the whole document:

    import os                Key alder oak.        def main():        Key plum fir.      ...      Key alder oak.

A document to measure with states a few pairs, one of them at a given depth, and ends where that one is asked for. The
others are there so that a model which finds just any value is right only as often as chance.

The same Python and the same seed give the same documents.
"""

import random
import sysconfig
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from transformers import PreTrainedTokenizerBase

# Short, and each as common as the others.
KEYS = (
    *("alder", "amber", "apple", "arrow", "ash", "badge", "basil", "bell", "birch", "blade", "bone", "brick"),
    *("cedar", "chalk", "clay", "clover", "coal", "copper", "coral", "cork", "daisy", "dune", "eagle", "ember"),
    *("fern", "flint", "frost", "garnet"),
)
VALUES = (
    *("ginger", "glass", "grape", "hazel", "heron", "holly", "iron", "ivory", "jade", "jasmine", "kelp", "lava"),
    *("lemon", "lilac", "lotus", "maple", "marble", "mint", "moss", "oak", "olive", "onyx", "opal", "otter"),
    *("pearl", "pine", "plum", "quartz"),
)
HELD_OUT_PERCENT = 10
RECALL_SHARE = 0.6  # of the lines of a training document with needles
# Test data and generated tables are not written by people, and some distributions leave them out.
SKIPPED_FOLDERS = frozenset({"__pycache__", "encodings", "idlelib", "lib2to3", "site-packages", "test", "tests"})
SKIPPED_FOLDERS |= {"dist-packages", "turtledemo", "pydoc_data"}


def library_documents(held_out: bool) -> list[str]:
    """Source files of the standard library, sorted by path, of one side; the side depends on the path alone."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    kept = []
    for name in sorted(paths):
        parts = set(Path(name).parts)
        is_built = "_sysconfigdata" in name or any(part.startswith("config-") for part in parts)
        on_side = (int(sha256(name.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT) == held_out
        if on_side and not is_built and SKIPPED_FOLDERS.isdisjoint(parts):
            kept.append(paths[name].read_text(encoding="utf-8", errors="ignore"))
    return [text for text in kept if text.strip()]


def library_lines(documents: list[str], draw: random.Random) -> Iterator[str]:
    """Lines of the documents without end, each document from a line drawn at random."""
    while True:
        lines = draw.choice(documents).splitlines()
        begin = draw.randrange(len(lines))
        yield from (line for line in lines[begin : begin + 40] if line.strip())


def statement(key: str, value: str) -> str:
    """The sentence of a pair."""
    return f"Key {key} {value}."


def recall_document(documents: list[str], characters: int, pairs: int, draw: random.Random) -> str:
    """A training document of at least `characters` characters that states pairs and comes back to them.

    They are stated over its first half. Most other lines come back to one of them, drawn evenly: all distances
    occur.
    """
    drawn = list(zip(draw.sample(KEYS, pairs), draw.choices(VALUES, k=pairs), strict=True))
    places = [0.0, *sorted(draw.uniform(0, characters / 2) for _ in range(pairs - 1))]
    lines: list[str] = []
    length, stated = 0, 0
    for line in library_lines(documents, draw):
        if stated < pairs and length >= places[stated]:
            line, stated = statement(*drawn[stated]), stated + 1
        elif draw.random() < RECALL_SHARE:
            line = statement(*drawn[draw.randrange(stated)])
        lines.append(line)
        length += len(line) + 1
        if length > characters:
            break
    return "\n".join(lines)


def needle_row(
    documents: list[str],
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    depth: float,
    distractors: int,
    draw: random.Random,
) -> tuple[list[int], list[int]]:
    """A row of exactly `tokens` tokens that ends by asking for a pair, and the tokens of the answer.

    Args:
        documents (`list[str]`): Where the text around comes from.
        tokens (`int`): Length of the row.
        depth (`float`): Where the pair stands: 0 at the beginning, 1 right before the question.
        distractors (`int`): Other pairs, at places drawn at random.
    """
    keys, values = draw.sample(KEYS, distractors + 1), draw.sample(VALUES, distractors + 1)
    sentences = [tokenizer(statement(*pair) + "\n")["input_ids"] for pair in zip(keys, values, strict=True)]
    question = tokenizer(f"Key {keys[0]}")["input_ids"]
    answer = tokenizer(statement(keys[0], values[0]))["input_ids"][len(question) : -1]
    room = tokens - len(question) - sum(map(len, sentences))
    if room < 0:
        raise ValueError(
            f"`tokens` is {tokens}, but {distractors + 1} pairs and the question alone need {tokens - room}"
        )
    filler: list[int] = []
    for line in library_lines(documents, draw):
        filler += tokenizer(line + "\n")["input_ids"]
        if len(filler) > room:
            break
    places = [round(depth * room), *(draw.randrange(room + 1) for _ in range(distractors))]
    row: list[int] = []
    done = 0
    for place, sentence in sorted(zip(places, sentences, strict=True)):
        row += filler[done:place] + sentence
        done = place
    return row + filler[done:room] + question, answer


__all__ = ["library_documents", "needle_row", "recall_document", "statement"]
