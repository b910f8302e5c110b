# SPDX-License-Identifier: Apache-2.0
"""What a card says that no training run can know: one YAML file per model, such as `model_cards/facts/demo.yaml`.

name: LongCat-Lite demo
license: apache-2.0                  # as the Hub names it, or `other` with `license_name` and `license_link`
language: [en]
summary: ...                         # one paragraph
training_data: ...
intended_use: ...
limits: [...]                        # one sentence or more each
base_model: [owner/name]             # these and the rest may be left out
base_model_relation: finetune        # or adapter, merge, quantized
repo_id: owner/name                  # what the code in the card loads; the folder itself if left out
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Facts:
    """The facts about one model. Text is Markdown; ids are those of the Hub.

    `question` is what the card's first example asks. `tool_calls` is printed above the example of tool calls and says
    what the model has learned about them. `evaluation` is printed above the results and says what their tasks ask.
    `citation` is BibTeX. `limits` is `None` without a facts file; the card then says that nobody has stated any.
    """

    name: str
    license: str | None
    language: list[str] | None
    summary: str | None
    training_data: str | None
    intended_use: str | None
    limits: list[str] | None
    license_name: str | None = None
    license_link: str | None = None
    base_model: list[str] | None = None
    base_model_relation: str | None = None
    datasets: list[str] | None = None
    tags: list[str] | None = None
    repo_id: str | None = None
    question: str = "What can you do?"
    tool_calls: str | None = None
    evaluation: str | None = None
    citation: str | None = None


LISTS = ("language", "limits", "base_model", "datasets", "tags")


def no_facts(name: str, license: str | None = None) -> Facts:
    """Facts of a model without a facts file."""
    return Facts(name, license, None, None, None, None, None)


def read_facts(path: Path) -> Facts:
    """Read and check a facts file.

    Raises:
        `ValueError`: naming the file, and the key that is missing, unknown, empty or of the wrong type.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"`facts` {path} cannot be read as YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"`facts` {path} has no keys; model_cards/facts/demo.yaml shows which it needs")
    known = [field.name for field in fields(Facts)]
    needed = [field.name for field in fields(Facts) if field.default is MISSING]
    for problem, keys in (
        ("lacks", [key for key in needed if key not in content]),
        ("has unknown keys", [str(key) for key in content if key not in known]),
    ):
        if keys:
            raise ValueError(f"`facts` {path} {problem}: {', '.join(keys)}")
    return Facts(**{key: checked(path, key, value) for key, value in content.items()})


def checked(path: Path, key: str, value: Any) -> Any:
    """The value without surrounding whitespace: a text or, for `LISTS`, a list of texts."""
    kind = "a list of texts" if key in LISTS else "text"
    values = value if key in LISTS else [value]
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise ValueError(f"`facts` {path}: `{key}` must be {kind}, but is {value!r}")
    stripped = [text.strip() for text in values]
    if key == "name" and "\n" in stripped[0]:
        raise ValueError(f"`facts` {path}: `name` must be one line, but is {value!r}")
    return stripped if key in LISTS else stripped[0]


__all__ = ["Facts", "no_facts", "read_facts"]
