# SPDX-License-Identifier: Apache-2.0
"""RULER's needle tasks: what a magic number is, where it is, and what hides it (arXiv 2404.06654, table 2).

    One of the special magic numbers for blue-harbor is: 4821903.
    ...
    What is the special magic number for blue-harbor mentioned in the provided text?

| task | haystack | keys | values of a key | asked for |
|---|---|---|---|---|
| `niah_single_1` | one noise line, repeated | 1 word | 1 number | 1 |
| `niah_single_2` | prose | 1 word | 1 number | 1 |
| `niah_single_3` | prose | 1 word | 1 UUID | 1 |
| `niah_multikey_1` | prose | 4 words | 1 number | 1 |
| `niah_multikey_2` | other needles | words | 1 number | 1 |
| `niah_multikey_3` | other needles | UUIDs | 1 UUID | 1 |
| `niah_multivalue` | prose | 1 word | 4 numbers | 4 |
| `niah_multiquery` | prose | 4 words | 1 number | 4 |

The first needle asked for is at the given depth, the others are at random depths.
"""

import random
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from wonderwords import RandomWord

from eval.long_context.ruler.sample import RulerOptions, Sample

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
SENTENCE_WORDS = range(4, 41)  # of prose: shorter ones are headings, longer ones tables
DRAWS = 1000  # without a new value, after which there is none left
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class NeedleTask:
    """A row of the table above."""

    haystack: str  # "noise", "prose" or "needles"
    key_type: str = "words"
    value_type: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


NEEDLE_TASKS = {
    "niah_single_1": NeedleTask("noise"),
    "niah_single_2": NeedleTask("prose"),
    "niah_single_3": NeedleTask("prose", value_type="uuids"),
    "niah_multikey_1": NeedleTask("prose", keys=4),
    "niah_multikey_2": NeedleTask("needles"),
    "niah_multikey_3": NeedleTask("needles", key_type="uuids", value_type="uuids"),
    "niah_multivalue": NeedleTask("prose", values=4),
    "niah_multiquery": NeedleTask("prose", keys=4, queries=4),
}


@cache
def word_list(part: str) -> list[str]:
    """English `nouns`, `adjectives` or `verbs` of the wonderwords package, sorted, each a single word."""
    return sorted(set(RandomWord().filter(include_categories=[part], exclude_with_spaces=True)))


def prose(texts: Iterable[str], source: str) -> list[str]:
    """The sentences of `texts`, without headings, code and grammar, with white space collapsed.

    Raises:
        `ValueError`: naming `source`, if there is no such sentence.
    """
    sentences = []
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            if not paragraph.startswith((" ", "\t")):
                sentences += SENTENCE_END.split(" ".join(paragraph.split()))
    kept = [sentence for sentence in sentences if len(sentence.split()) in SENTENCE_WORDS and sentence[-1] in ".!?"]
    if not kept:
        raise ValueError(f"{source} has no sentence of 4 to 40 words that ends with a full stop: give prose")
    return kept


class Distinct:
    """Random keys and values, all different.

    Args:
        draw (`random.Random`): Draws them.
        digits (`int`): Digits of a number.
        taken (`Iterable[str]`): Values that must not be drawn.
    """

    def __init__(self, draw: random.Random, digits: int, taken: Iterable[str] = ()):
        self.draw, self.digits, self.taken = draw, digits, set(taken)

    def one(self, kind: str, keep: bool = True) -> str:
        """A new value of `kind`: `words` (adjective-noun), `numbers` or `uuids`. Without `keep` it may be drawn again.

        Raises:
            `ValueError`: if there are too few numbers of `digits` digits.
        """
        for _ in range(DRAWS):
            if kind == "words":
                token = f"{self.draw.choice(word_list('adjectives'))}-{self.draw.choice(word_list('nouns'))}"
            elif kind == "uuids":
                token = str(uuid.UUID(int=self.draw.getrandbits(128), version=4))
            else:
                token = str(self.draw.randrange(10 ** (self.digits - 1), 10**self.digits))
            if token not in self.taken:
                self.taken |= {token} if keep else set()
                return token
        count = 9 * 10 ** (self.digits - 1)
        raise ValueError(f"`--digits` {self.digits} gives {count} numbers, too few for one sample: give more digits")


def insert_at_depths(units: list[str], needles: Sequence[tuple[float, str]]) -> list[str]:
    """`units` with each needle at the boundary nearest to its depth: 0 is before all characters, 1 after them."""
    ends = [0]
    for unit in units:
        ends.append(ends[-1] + len(unit))
    places = [min(range(len(ends)), key=lambda end: abs(ends[end] - depth * ends[-1])) for depth, _ in needles]
    woven = list(units)
    # From the end, so that earlier places stay the same.
    for place, (_, needle) in sorted(zip(places, needles, strict=True), key=lambda pair: pair[0], reverse=True):
        woven.insert(place, needle)
    return woven


def haystack(task: NeedleTask, size: int, seed: str, taken: Iterable[str], options: RulerOptions) -> list[str]:
    """`size` lines of noise or of other needles, or words of prose. A larger haystack begins with the smaller one."""
    draw = random.Random(f"{seed} haystack")
    if task.haystack == "noise":
        return [NOISE] * size
    if task.haystack == "prose":
        sentences, cut = options.prose, []
        place = draw.randrange(len(sentences))
        while size > 0:
            words = sentences[place % len(sentences)].split()[:size]
            cut.append(" ".join(words))
            size, place = size - len(words), place + 1
        return cut
    others = Distinct(draw, options.digits, taken)
    key_type, value_type = options.key_type or task.key_type, options.value_type or task.value_type
    lines = []
    for _ in range(size):
        key = others.one(key_type)
        value = others.one(value_type, keep=False)  # two keys may have one value, but not that of the needle
        lines.append(NEEDLE.format(kind=value_type, key=key, value=value))
    return lines


def needle_sample(
    task: NeedleTask, size: int, length: int, depth: float | None, seed: str, options: RulerOptions
) -> Sample:
    """A sample whose haystack has `size` units. The same seed draws the same needles for every size and depth."""
    draw = random.Random(f"{seed} needles")
    tokens = Distinct(draw, options.digits)
    key_type, value_type = options.key_type or task.key_type, options.value_type or task.value_type
    keys = [tokens.one(key_type) for _ in range(task.keys)]
    pairs = [(key, tokens.one(value_type)) for key in keys for _ in range(task.values)]
    needles = [NEEDLE.format(kind=value_type, key=key, value=value) for key, value in pairs]
    asked = keys[: task.queries]
    answers = tuple(value for key, value in pairs if key in asked)
    depths = [draw.random() for _ in needles]
    if depth is not None:
        depths[0] = depth
    units = haystack(task, size, seed, tokens.taken, options)
    joint = " " if task.haystack == "prose" else "\n"
    context = joint.join(insert_at_depths(units, list(zip(depths, needles, strict=True))))
    spoken = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
    if len(answers) == 1:
        kind, number, verb, which = value_type.removesuffix("s"), "A", "is", ""
    else:
        kind, number, verb, which = value_type, "Some", "are", "all "
    stands = "stands" if len(answers) == 1 else "stand"
    return Sample(
        f"{number} special magic {kind} {stands} somewhere in the following text. Keep the {kind} in mind: I will ask "
        f"about the {kind} at the end.",
        context,
        f"What {verb} {which}the special magic {kind} for {spoken} mentioned in the provided text?",
        f"The special magic {kind} for {spoken} mentioned in the provided text {verb}",
        answers,
    )


__all__ = ["NEEDLE_TASKS", "NeedleTask", "insert_at_depths", "needle_sample", "prose", "word_list"]
