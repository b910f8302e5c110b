# SPDX-License-Identifier: Apache-2.0
"""The rows to train and to evaluate on, checked, for `training.sft`, `training.dpo` and `training.grpo`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import load_dataset
from datasets.exceptions import DatasetGenerationError
from trl import get_dataset

from training.chat_rows import check_rows


def load_rows(script_args: Any, training_args: Any, dataset_args: Any, task: str) -> tuple[Any, Any]:
    """The checked rows to train on, and those to evaluate on or `None`.

    Args:
        script_args ([`~trl.ScriptArguments`]): Name, configuration and splits of the data set.
        training_args ([`~transformers.TrainingArguments`]): Says whether there is an evaluation.
        dataset_args ([`~trl.DatasetMixtureConfig`]): A mixture, in place of a name.
        task (`str`): Key of [`~training.chat_rows.FORMS`].

    Raises:
        `ValueError`: no data set or two, no such split, a line that is not JSON, or a row that cannot be trained on.
    """
    if not dataset_args.datasets and not script_args.dataset_name:
        raise ValueError("`dataset_name` or `datasets` must be given")
    if dataset_args.datasets and script_args.dataset_name:
        raise ValueError("`dataset_name` and `datasets` are both given, choose one")
    try:
        dataset = read_dataset(script_args, dataset_args)
    except DatasetGenerationError as error:
        for path in local_json_files(script_args, dataset_args):
            check_json(path)
        raise ValueError(f"the data set cannot be read: {error.__cause__ or error}") from error
    except FileNotFoundError as error:
        if "[" in str(script_args.dataset_name):
            raise ValueError(
                f"`dataset_name` {script_args.dataset_name}: `datasets` takes brackets in a path for a pattern, and "
                "finds no file; rename the folder"
            ) from error
        raise
    evaluated = training_args.eval_strategy != "no" or training_args.eval_on_start
    splits = [script_args.dataset_train_split] + evaluated * [script_args.dataset_test_split]
    for split in splits:
        if split not in dataset:
            raise ValueError(f"the data set has no split `{split}`, it has {', '.join(dataset)}")
    checked = [check_rows(dataset[split], split, task) for split in splits]
    return checked[0], checked[-1] if evaluated else None


def read_dataset(script_args: Any, dataset_args: Any) -> Any:
    """A data set by name or folder, or a mixture: splits by name."""
    if dataset_args.datasets:
        return get_dataset(dataset_args)
    return load_dataset(
        script_args.dataset_name, name=script_args.dataset_config, streaming=script_args.dataset_streaming
    )


def local_json_files(script_args: Any, dataset_args: Any) -> Iterator[Path]:
    """The JSON and JSON Lines files on this machine that a data set is read from."""
    sources: list[Any] = [script_args.dataset_name] if script_args.dataset_name else []
    for part in dataset_args.datasets or []:
        files = part.data_files if isinstance(part.data_files, list | dict) else [part.data_files]
        sources += [part.path, *(files.values() if isinstance(files, dict) else files)]
    for path in (Path(source) for source in sources if isinstance(source, str)):
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (file for file in found if file.is_file() and file.suffix in (".json", ".jsonl"))


def check_json(path: Path) -> None:
    """Raise a `ValueError` with file and line for what is not JSON, or not a row beside the first one.

    A `.json` file may hold one list of rows, or, as a `.jsonl` file, a row a line.
    """
    text = path.read_text(encoding="utf-8")
    pieces = [text] if text.lstrip().startswith("[") else text.split("\n")
    kinds: dict[str, tuple[type, int]] = {}
    for number, line in enumerate(pieces, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number + error.lineno - 1}: not JSON, {error.msg}") from error
        for name, value in row.items() if isinstance(row, dict) else ():
            if value is None:
                continue
            kind, first = kinds.setdefault(name, (type(value), number))
            if kind is not type(value) and {kind, type(value)} != {int, float}:
                raise ValueError(
                    f"{path}, line {number}: `{name}` is a {type(value).__name__}, in line {first} a {kind.__name__}"
                )


__all__ = ["load_rows"]
