# SPDX-License-Identifier: Apache-2.0
"""TRL's parser, with a second file for the options that TRL does not have.

A recipe holds TRL's own keys, so that `trl sft --config RECIPE` runs it too. Options of this repository (draft head,
n-gram tables, routers, merging) may be in a file next to it:

    python -m training.sft --config RECIPE.yaml --longcat_config RECIPE.longcat.yaml

An option on the command line overrides both.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from trl import DatasetMixtureConfig, ModelConfig, TrlParser

OPTION = "--longcat_config"


@dataclass
class OutputArguments:
    """What is written besides TRL's output."""

    merge_adapter: bool = field(
        default=False,
        metadata={"help": "Also write the model with the adapter merged into it, to `merged` in the output folder."},
    )


class LongCatParser(TrlParser):
    """[`~trl.TrlParser`] that also reads `--longcat_config FILE`, a YAML mapping.

    Args:
        trl_types (`Iterable[type]`): Dataclasses of TRL and transformers, read from `--config`.
        own_types (`Iterable[type]`): Dataclasses of this repository, read from `--longcat_config`.

    Raises:
        `ValueError`: if the file is not a mapping, or has a key that is in none of our dataclasses; the key is named.
    """

    def __init__(self, trl_types: Iterable[Any], own_types: Iterable[Any], **options: Any):
        super().__init__([*trl_types, *own_types], **options)
        self.own_keys = {field.name for own in own_types for field in fields(own)}

    def parse_args_and_config(self, args: Iterable[str] | None = None, *rest, **options):
        args = list(sys.argv[1:] if args is None else args)
        if OPTION in args:
            place = args.index(OPTION)
            if place + 1 == len(args):
                raise ValueError(f"`{OPTION}` names no file")
            path = Path(args[place + 1])
            # First on the command line: values are checked alike, and the options after them override them.
            args = [*self.own_options(path), *args[:place], *args[place + 2 :]]
        if "--debug" in args:
            place = args.index("--debug")
            if place + 1 == len(args) or args[place + 1].startswith("-"):
                # Without a value it is not the Trainer's: `run_command` reads it, and shows the traceback of an error.
                del args[place]
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
                # One value is joined with `=`, because it may begin with a dash.
                options += [f"--{key}={typed[0]}"] if len(typed) == 1 else [f"--{key}", *typed]
        return options


def as_arguments(value: Any) -> list[str]:
    """A YAML value as it would be typed."""
    if isinstance(value, list):
        return [str(item) for item in value]
    return [json.dumps(value) if isinstance(value, bool | dict) else str(value)]


def training_parser(module: str, about: str, script_type: Any, config_type: Any, *own_types: Any) -> LongCatParser:
    """The parser of a training script.

    Args:
        module (`str`): As in `python -m`.
        about (`str`): One sentence for `--help`.
        script_type (`type`): TRL's arguments of the script, for example [`~trl.ScriptArguments`].
        config_type (`type`): TRL's arguments of the trainer, for example [`~trl.SFTConfig`].
        own_types (`type`): Dataclasses of this repository. `parse_args_and_config` returns all of them in this order,
            after [`~trl.ModelConfig`] and [`~trl.DatasetMixtureConfig`].
    """
    trl_types = (script_type, config_type, ModelConfig, DatasetMixtureConfig)
    return LongCatParser(trl_types, own_types, prog=f"python -m {module}", description=about)


__all__ = ["LongCatParser", "OutputArguments", "training_parser"]
