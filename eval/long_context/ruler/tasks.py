# SPDX-License-Identifier: Apache-2.0
"""RULER's synthetic tasks by name, and samples of them that fill a length in tokens (arXiv 2404.06654).

Prompt and answer, with as many tokens as the task allows for it, have the wanted length or a few tokens less: the
haystack is about the largest that fits. A sample depends only on seed, task, length and number; its needles are the
same at every depth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from eval.long_context.ruler.needles import NEEDLE_TASKS, needle_sample
from eval.long_context.ruler.sample import RulerOptions, Sample
from eval.long_context.ruler.words import FEWEST_CODED, cwe_sample, fwe_sample, listed_words, vt_sample

FINENESS = 256  # the haystack is within a 256th of the largest that fits, or within one unit
PROBE = 64  # units that the first estimate of the size measures


@dataclass(frozen=True)
class RulerTask:
    """A task: how a sample is drawn, and how many tokens the answer may have.

    Args:
        build (`Callable`): Makes a sample from (size, length, depth, seed, options).
        new_tokens (`int`): Tokens that RULER allows for an answer.
        smallest (`Callable`): The smallest size with the given options.
        largest (`Callable`): The largest size.
        by_depth (`bool`): Whether a needle is put at a depth.
    """

    build: Callable[[int, int, float | None, str, RulerOptions], Sample]
    new_tokens: int
    smallest: Callable[[RulerOptions], int] = lambda options: 1
    largest: Callable[[], int] = lambda: 2**30
    by_depth: bool = False


RULER_TASKS = {
    **{name: RulerTask(partial(needle_sample, task), 128, by_depth=True) for name, task in NEEDLE_TASKS.items()},
    "vt": RulerTask(vt_sample, 30),
    "cwe": RulerTask(cwe_sample, 120, lambda options: 2 * options.common_words, lambda: len(listed_words())),
    "fwe": RulerTask(fwe_sample, 50, lambda options: FEWEST_CODED),
}


def largest_fitting(tokens_of: Callable[[int], int], room: int, smallest: int, largest: int) -> int | None:
    """The size that fills `room` tokens, to within `FINENESS`; `None` if even `smallest` is too large."""
    begin = tokens_of(smallest)
    if begin > room:
        return None
    low, high = smallest, largest + 1
    probe = min(smallest + PROBE, largest)
    tokens_a_unit = max(1, tokens_of(probe) - begin) / max(1, probe - smallest)
    place = min(max(smallest + int((room - begin) / tokens_a_unit), smallest + 1), largest)
    step = max(1, place // 64)
    while high - low > max(1, low // FINENESS):
        fits = tokens_of(place) <= room
        low, high = (place, high) if fits else (low, place)
        place += step if fits else -step
        step *= 2
        if not low < place < high:
            place = (low + high) // 2
    return low


class Sampler:
    """Samples whose length is counted in a model's tokens.

    Args:
        count_tokens (`Callable[[Sample], int]`): Counts the tokens of a sample as the model reads it.
        options (`RulerOptions`): What makes the tasks easier.
        seed (`int`): Another one gives other samples.
        new_tokens (`int`, *optional*): Tokens of every answer; the task's own number by default.
    """

    def __init__(
        self, count_tokens: Callable[[Sample], int], options: RulerOptions, seed: int, new_tokens: int | None = None
    ):
        self.count_tokens, self.options, self.seed, self.new_tokens = count_tokens, options, seed, new_tokens

    def answer_tokens(self, task: str) -> int:
        """Tokens that the model may write."""
        return RULER_TASKS[task].new_tokens if self.new_tokens is None else self.new_tokens

    def check(self, task: str, length: int, samples: int) -> None:
        """Refuse a length that is too short for the smallest prompt of a sample.

        Raises:
            `ValueError`: naming the task and the length that it needs.
        """
        smallest = RULER_TASKS[task].smallest(self.options)
        needed = max(self.count_tokens(self._build(task, length, 0.0, n)(smallest)) for n in range(samples))
        if needed + self.answer_tokens(task) > length:
            raise ValueError(
                f"`--lengths` has {length}, too short for {task}: its shortest prompt takes {needed} tokens, its "
                f"answer {self.answer_tokens(task)}. Give at least {needed + self.answer_tokens(task)}, or make it "
                "easier: --new-tokens, --shots 0, --digits, --key-type, --value-type, --common-words."
            )

    def sample(self, task: str, length: int, depth: float | None, number: int) -> Sample:
        """Sample `number` of a task that fills `length` tokens, answer included."""
        build = self._build(task, length, depth, number)
        smallest, largest = RULER_TASKS[task].smallest(self.options), RULER_TASKS[task].largest()
        room = length - self.answer_tokens(task)
        size = largest_fitting(lambda units: self.count_tokens(build(units)), room, smallest, largest)
        if size is None:
            raise ValueError(f"`--lengths` has {length}, too short for {task}")
        return build(size)

    def _build(self, task: str, length: int, depth: float | None, number: int) -> Callable[[int], Sample]:
        seed = f"{self.seed} {task} {length} {number}"
        depth = depth if RULER_TASKS[task].by_depth else None
        return lambda size: RULER_TASKS[task].build(size, length, depth, seed, self.options)


__all__ = ["RULER_TASKS", "RulerTask", "Sampler", "largest_fitting"]
