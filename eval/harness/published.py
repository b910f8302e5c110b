# SPDX-License-Identifier: Apache-2.0
"""The numbers that the paper publishes, as data: `published_results.yaml`, read and checked."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

FILE = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True)
class PublishedScore:
    """One published number, in percent; `publicly_reported` where the paper took it from elsewhere (its asterisk)."""

    model: str
    value: float
    source: str
    publicly_reported: bool = False

    def __str__(self) -> str:
        return f"{self.value:.2f}{'*' if self.publicly_reported else ''}"


@dataclass(frozen=True)
class PublishedSuite:
    """A table of the paper: spoken names and scores by benchmark. `this_model` is its name for LongCat-Flash-Lite."""

    source: str
    this_model: str
    names: dict[str, str]
    scores: dict[str, dict[str, PublishedScore]]

    @property
    def models(self) -> list[str]:
        """All models of the table, this one first."""
        found = dict.fromkeys([self.this_model])
        for scores in self.scores.values():
            found |= dict.fromkeys(scores)
        return list(found)


@cache
def published_suites() -> dict[str, PublishedSuite]:
    """The suites of `published_results.yaml` by name: `base` and `chat`."""
    suites = {}
    for suite, table in yaml.safe_load(FILE.read_text(encoding="utf-8")).items():
        names, scores = {}, {}
        for benchmark, entry in table["benchmarks"].items():
            names[benchmark] = entry["name"]
            found = [PublishedScore(source=table["source"], **score) for score in entry["scores"]]
            scores[benchmark] = {score.model: score for score in found}
        suites[suite] = PublishedSuite(table["source"], table["this_model"], names, scores)
    return suites


__all__ = ["PublishedScore", "PublishedSuite", "published_suites"]
