# SPDX-License-Identifier: Apache-2.0
"""RULER's tasks on whole texts (arXiv 2404.06654, sections 3.2 and 3.3): variable tracking, common and frequent words.

* `vt`: `VAR AB = 12345`, and further down `VAR CD = VAR AB`: which variables have the value 12345?
* `cwe`: a numbered list in which ten words occur more often than the others.
* `fwe`: made-up words whose counts fall with the square of their rank; the most frequent one is dots.

None has a depth: that argument is there because all tasks have the same.
"""

import random
import string
from functools import cache
from itertools import pairwise
from math import pi

from eval.long_context.ruler.needles import NOISE, word_list
from eval.long_context.ruler.sample import RulerOptions, Sample

EXAMPLE_NOISE = 5  # lines
LONG = 4096  # tokens: from this length on, `cwe` repeats words as often as in the paper
FEWEST_CODED = 27  # words of `fwe`: with fewer, the third word asked for would not occur


def vt_sample(size: int, length: int, depth: float | None, seed: str, options: RulerOptions) -> Sample:
    """Variable tracking: one chain of assignments in `size` lines of noise."""
    draw = random.Random(f"{seed} variables")
    letters = options.variable_letters
    names = distinct_words(2 * (options.hops + 1), string.ascii_uppercase, letters, draw, "--variable-letters")
    values = draw.sample(range(10000, 100000), 2)
    parts = [(names[: options.hops + 1], values[0], size), (names[options.hops + 1 :], values[1], EXAMPLE_NOISE)]
    texts = [tracked(*part, draw=random.Random(f"{seed} places {values}")) for part in parts]
    example = f"{texts[1].said_by_user} {texts[1].prefix} {' '.join(parts[1][0])}\n\n" if options.shots else ""
    return Sample(texts[0].task, texts[0].context, texts[0].question, texts[0].prefix, tuple(parts[0][0]), example)


def tracked(names: list[str], value: int, size: int, draw: random.Random) -> Sample:
    """One chain of assignments to `names`, in order, at lines drawn at random."""
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {name} = VAR {former}" for former, name in pairwise(names)]
    lines = [f"{NOISE}\n"] * size
    if size <= len(chain):  # a short text gets more places: between sentences
        lines = [f"{sentence}." for line in lines for sentence in line.strip().removesuffix(".").split(". ")]
    places = sorted(draw.choices(range(len(lines) + 1), k=len(chain)))
    for shift, (place, assignment) in enumerate(zip(places, chain, strict=True)):
        lines.insert(place + shift, assignment)
    return Sample(
        "Follow the chain of variable assignments that stands in the text below, and remember it.\n",
        " ".join(lines).replace("\n ", "\n").strip(),
        f"Question: Find all variables that are assigned the value {value} in the text above.",
        "Answer: According to the chain(s) of variable assignment in the text above, "
        f"{len(names)} variables are assigned the value {value}, they are:",
        tuple(names),
    )


@cache
def listed_words() -> list[str]:
    """The words from which `cwe` draws."""
    return sorted({word for part in ("nouns", "adjectives", "verbs") for word in word_list(part)})


def cwe_sample(size: int, length: int, depth: float | None, seed: str, options: RulerOptions) -> Sample:
    """Common words: `size` distinct words in a numbered list, some of which are repeated more often."""
    draw = random.Random(f"{seed} words")
    vocabulary = list(listed_words())
    draw.shuffle(vocabulary)
    count = options.common_words
    (example_size, *example_repeats), repeats = ((4, 10, 3), (30, 3)) if length >= LONG else ((2, 3, 1), (6, 1))
    example = ""
    if options.shots:
        shown = listed(vocabulary[-example_size * count :], count, example_repeats, draw)
        numbered = " ".join(f"{number}. {word}" for number, word in enumerate(shown.answers, start=1))
        example = f"{shown.said_by_user} {shown.prefix} {numbered}\n"
    asked = listed(vocabulary[:size], count, repeats, random.Random(f"{seed} order"))
    return Sample(asked.task, asked.context, asked.question, asked.prefix, asked.answers, example)


def listed(words: list[str], common: int, repeats: list[int] | tuple[int, ...], draw: random.Random) -> Sample:
    """The first `common` words repeated `repeats[0]` times and the others `repeats[1]` times, shuffled."""
    order = words[:common] * repeats[0] + words[common:] * repeats[1]
    draw.shuffle(order)
    return Sample(
        "The words of this numbered list do not all stand there equally often. Remember those that stand there most.",
        " ".join(f"{number}. {word}" for number, word in enumerate(order, start=1)),
        f"Question: What are the {common} most common words in the above list?",
        f"Answer: The top {common} words that appear most often in the list are:",
        tuple(words[:common]),
    )


def fwe_sample(size: int, length: int, depth: float | None, seed: str, options: RulerOptions) -> Sample:
    """Frequent words: about `size` made-up words; that of rank r occurs `size / (r ** 2 * zeta(2))` times."""
    draw = random.Random(f"{seed} words")
    words = distinct_words(
        max(5, length // 50), string.ascii_lowercase, options.coded_letters, draw, "--coded-letters"
    )
    words[0] = "..."  # noise
    while (counts := coded_counts(size, len(words)))[3] == counts[4]:  # the three would not be defined
        size -= 1
    text = [word for word, count in zip(words, counts, strict=True) for _ in range(count)]
    random.Random(f"{seed} order").shuffle(text)
    return Sample(
        "The text below is made of coded words. Count how often each coded word stands in it, and find the three most "
        "frequent coded words.",
        " ".join(text),
        "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
        "appeared words in the above coded text?",
        "Answer: According to the coded text above, the three most frequently appeared words are:",
        tuple(words[1:4]),
    )


def coded_counts(size: int, ranks: int) -> list[int]:
    """Occurrences of the words of rank 1 to `ranks`, by a zeta distribution of exponent 2."""
    return [int(size * 6 / (pi * rank) ** 2) for rank in range(1, ranks + 1)]


def distinct_words(count: int, alphabet: str, letters: int, draw: random.Random, option: str) -> list[str]:
    """Random strings, all different.

    Raises:
        `ValueError`: naming `option`, if so few letters do not give enough words.
    """
    if len(alphabet) ** letters < 2 * count:
        raise ValueError(f"`{option}` is {letters}, which gives too few words: {count} are needed")
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(draw.choices(alphabet, k=letters))] = None
    return list(words)


__all__ = ["FEWEST_CODED", "cwe_sample", "fwe_sample", "listed_words", "vt_sample"]
