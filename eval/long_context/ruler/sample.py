# SPDX-License-Identifier: Apache-2.0
"""A sample of RULER, the options that can make it easier, and the score of an answer."""

import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tokenization.number_options import check_number

NEVER_PRINTED = re.compile(r"[\x00-\x1f]")
KINDS = ("words", "numbers", "uuids")


def option(default: Any, help: str, choices: tuple[str, ...] | None = None, **bounds: int) -> Any:
    """A field that is also an option of the command, with the bounds of [`check_number`] or with choices."""
    return field(default=default, metadata={"help": help, **({"choices": choices} if choices else {"bounds": bounds})})


@dataclass(frozen=True)
class RulerOptions:
    """What can be made easier for small models; the defaults are RULER's. `prose` has the haystack's sentences.

    Raises:
        `ValueError`: naming the option that is out of bounds.
    """

    prose: list[str]
    digits: int = option(7, "digits of a magic number", least=1)
    key_type: str | None = option(None, "type of all keys; the task's own if left out", KINDS)
    value_type: str | None = option(None, "type of all values; the task's own if left out", KINDS)
    shots: int = option(1, "worked examples before vt and cwe, 0 or 1", least=0, most=1)
    hops: int = option(4, "assignments in a chain of vt, after the first", least=1)
    variable_letters: int = option(5, "letters of a variable of vt", least=2)
    common_words: int = option(10, "words that cwe asks for", least=1)
    coded_letters: int = option(6, "letters of a word of fwe", least=2)

    def __post_init__(self):
        for one in fields(self):
            if bounds := one.metadata.get("bounds"):
                check_number(f"--{one.name.replace('_', '-')}", getattr(self, one.name), **bounds)

    def described(self) -> dict:
        """All options, without the text."""
        return {name: value for name, value in asdict(self).items() if name != "prose"}

    @classmethod
    def unusual(cls, settings: dict[str, Any]) -> list[str]:
        """What in `settings` is not RULER's default, in words."""
        return [
            f"{one.name.replace('_', ' ')} {settings[one.name]}"
            for one in fields(cls)
            if one.metadata and settings[one.name] != one.default
        ]


@dataclass(frozen=True)
class Sample:
    """The parts of a prompt, and the strings that a right answer contains."""

    task: str
    context: str
    question: str
    prefix: str  # the beginning of the answer, which the model continues
    answers: tuple[str, ...]
    example: str = ""  # a worked example and an empty line

    @property
    def said_by_user(self) -> str:
        """Everything before the answer."""
        return f"{self.example}{self.task}\n{self.context}\n{self.question}"


def matched(text: str, answers: tuple[str, ...]) -> float:
    """RULER's `string_match_all` of one sample: the share of `answers` in `text`, regardless of case."""
    said = NEVER_PRINTED.sub("\n", text.strip()).strip().lower()
    return sum(answer.lower() in said for answer in answers) / len(answers)


def matched_any(text: str, answers: tuple[str, ...]) -> float:
    """RULER's `string_match_part` of one sample: 1 if any of `answers` is in `text`, else 0."""
    return float(matched(text, answers) > 0)


__all__ = ["KINDS", "RulerOptions", "Sample", "matched", "matched_any"]
