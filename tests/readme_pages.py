# SPDX-License-Identifier: Apache-2.0
"""Every command and every block of Python in the READMEs and how-to pages of this repository."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Reports are written by commands, cards by `model_cards` (tests/hub/test_card_code.py runs their code), and the
# changelog names commands of the past.
LEFT_OUT = ("eval/results/*", "model_cards/card_*.md", "CHANGELOG.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`((?:python3? -m|make|accelerate|trl|pip) [^`]+)`(?!`)")


@dataclass(frozen=True)
class Command:
    """One command of a page; `named_only` if the text leaves out its arguments, as in "`python -m eval.fit` says"."""

    page: str
    words: tuple[str, ...]
    named_only: bool = False

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"

    @property
    def module(self) -> str | None:
        """The module of `python -m`."""
        is_python = Path(self.words[0]).name in ("python", "python3") and self.words[1:2] == ("-m",)
        return self.words[2] if is_python else None


@dataclass(frozen=True)
class Block:
    """The Python block number `index` of a page."""

    page: str
    index: int
    code: str

    def __str__(self) -> str:
        return f"{self.page}: block {self.index}"


def pages() -> dict[str, str]:
    """Text of each page by its path in the repository."""
    found = {}
    for path in sorted(ROOT.rglob("*.md")):
        name = path.relative_to(ROOT)
        hidden = [part for part in name.parts if part.startswith(".") or part in ("outputs", "build", "dist")]
        if not hidden and not any(name.match(pattern) for pattern in LEFT_OUT):
            found[name.as_posix()] = path.read_text(encoding="utf-8")
    return found


def split_commands(text: str) -> Iterator[tuple[str, ...]]:
    """The commands of a shell block, without comments and variables; continued lines are joined."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            yield tuple(words)


def commands() -> list[Command]:
    """All commands, each once: those of shell blocks, then those in tables and running text."""
    found: dict[tuple[str, ...], Command] = {}
    for page, text in pages().items():
        for language, block in FENCE.findall(text):
            if language in ("bash", "sh", "shell", "console"):
                for words in split_commands(block):
                    found.setdefault(words, Command(page, words))
        prose = FENCE.sub("", text)
        tables = "\n".join(line for line in prose.splitlines() if line.startswith("|"))
        for where in (tables, prose):
            for quoted in INLINE.findall(where):
                for words in split_commands(" ".join(quoted.split())):
                    is_bare = words[0].startswith("python") and len(words) == 3
                    named_only = where is prose and (is_bare or words[-1] == "--config")
                    if words not in found or found[words].named_only:
                        found[words] = Command(page, words, named_only)
    return list(found.values())


def blocks() -> list[Block]:
    """All blocks of Python."""
    return [
        Block(page, index, code)
        for page, text in pages().items()
        for index, code in enumerate(block for language, block in FENCE.findall(text) if language == "python")
    ]
