# SPDX-License-Identifier: Apache-2.0
"""A sample of RULER, what may be chosen about it, and how an answer is scored."""

import re
from dataclasses import asdict, dataclass

NEVER_PRINTED = re.compile(r"[\x00-\x1f]")
KINDS = ("words", "numbers", "uuids")


@dataclass(frozen=True)
class RulerOptions:
    """What is RULER's by default and may be made easier for small models.

    Args:
        prose (`list[str]`): Sentences of the prose haystack.
        digits (`int`, defaults to 7): Of a magic number.
        key_type (`str`, *optional*): `words`, `numbers` or `uuids` for the keys of every needle task.
        value_type (`str`, *optional*): The same for the values.
        shots (`int`, defaults to 1): Worked examples in front of `vt` and `cwe`, 0 or 1.
        hops (`int`, defaults to 4): Assignments that follow the first in a chain of `vt`.
        variable_letters (`int`, defaults to 5): Of a variable of `vt`.
        common_words (`int`, defaults to 10): Words that `cwe` asks for.
        coded_letters (`int`, defaults to 6): Of a word of `fwe`.
    """

    prose: list[str]
    digits: int = 7
    key_type: str | None = None
    value_type: str | None = None
    shots: int = 1
    hops: int = 4
    variable_letters: int = 5
    common_words: int = 10
    coded_letters: int = 6

    def __post_init__(self):
        limits = (("digits", 1), ("hops", 1), ("variable_letters", 2), ("common_words", 1), ("coded_letters", 2))
        for name, least in limits:
            if getattr(self, name) < least:
                raise ValueError(f"`--{name.replace('_', '-')}` is {getattr(self, name)}, below {least}")
        if self.shots not in (0, 1):
            raise ValueError(f"`--shots` is {self.shots}, but a prompt has one worked example or none (1 or 0)")
        for name in ("key_type", "value_type"):
            if getattr(self, name) not in (None, *KINDS):
                raise ValueError(f"`--{name.replace('_', '-')}` is {getattr(self, name)}, not one of {KINDS}")

    def described(self) -> dict:
        """All but the text."""
        return {name: value for name, value in asdict(self).items() if name != "prose"}


@dataclass(frozen=True)
class Sample:
    """A prompt in its parts, and the strings that a right answer holds."""

    task: str
    context: str
    question: str
    prefix: str  # how the answer begins; the model goes on
    answers: tuple[str, ...]
    example: str = ""  # a worked example, with the empty line behind it

    @property
    def said_by_user(self) -> str:
        """Everything but the beginning of the answer."""
        return f"{self.example}{self.task}\n{self.context}\n{self.question}"


def matched(text: str, answers: tuple[str, ...]) -> float:
    """RULER's `string_match_all` of one sample: share of `answers` that `text` holds, upper and lower case alike."""
    said = NEVER_PRINTED.sub("\n", text.strip()).strip().lower()
    return sum(answer.lower() in said for answer in answers) / len(answers)


def matched_any(text: str, answers: tuple[str, ...]) -> float:
    """RULER's `string_match_part` of one sample: 1 if `text` holds any of `answers`, else 0."""
    return float(matched(text, answers) > 0)


__all__ = ["KINDS", "RulerOptions", "Sample", "matched", "matched_any"]
