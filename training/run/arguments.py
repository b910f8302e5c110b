# SPDX-License-Identifier: Apache-2.0
"""TRL's parser, with a second file for the options that are ours.

A recipe holds TRL's own keys, so that `trl sft --config RECIPE` runs it too. What only this repository's scripts know
(draft head, merged output, ...) lies in a file beside it:

    python -m training.sft --config RECIPE.yaml --longcat_config RECIPE.longcat.yaml

An option on the command line overrides both.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser

OPTION = "--longcat_config"


class LongCatParser(TrlParser):
    """[`~trl.TrlParser`] that also reads `--longcat_config FILE`, a YAML mapping.

    Args:
        trl_types (`Iterable[type]`): Dataclasses of TRL and transformers, read from `--config`.
        own_types (`Iterable[type]`): Dataclasses of this repository, read from `--longcat_config`.

    Raises:
        `ValueError`: the file is no mapping, or has a key that no dataclass of ours has; the key is named.
    """

    def __init__(self, trl_types: Iterable[Any], own_types: Iterable[Any], **kwargs):
        super().__init__([*trl_types, *own_types], **kwargs)
        self.own_keys = {field.name for own in own_types for field in fields(own)}

    def parse_args_and_config(self, args: Iterable[str] | None = None, *rest, **options):
        args = list(sys.argv[1:] if args is None else args)
        if OPTION in args:
            place = args.index(OPTION)
            if place + 1 == len(args):
                raise ValueError(f"`{OPTION}` names no file")
            path = Path(args[place + 1])
            # As if written first on the command line: values are checked alike, and what follows overrides them.
            args = [*self.own_options(path), *args[:place], *args[place + 2 :]]
        return super().parse_args_and_config(args, *rest, **options)

    def own_options(self, path: Path) -> list[str]:
        """The file's keys and values as command-line options."""
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"{path} is not a YAML mapping of options to values")
        options = []
        for key, value in values.items():
            if key not in self.own_keys:
                raise ValueError(
                    f"`{key}` in {path} is not an option of ours, choose from {', '.join(sorted(self.own_keys))}; "
                    "TRL's own belong into the file of `--config`"
                )
            if value is not None:
                typed = as_arguments(value)
                # In one with its value, which may begin with a dash.
                options += [f"--{key}={typed[0]}"] if len(typed) == 1 else [f"--{key}", *typed]
        return options


def as_arguments(value: Any) -> list[str]:
    """A YAML value as it would be typed."""
    if isinstance(value, list):
        return [str(item) for item in value]
    return [json.dumps(value) if isinstance(value, bool | dict) else str(value)]


__all__ = ["LongCatParser"]
