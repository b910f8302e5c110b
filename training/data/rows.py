# SPDX-License-Identifier: Apache-2.0
"""The rows of a data set: loaded by name or as a mixture, and checked before training starts.

    {"messages": [...]}                          a chat                       training.sft
    {"prompt": ..., "completion": ...}           text or messages, each       training.sft
    {"text": "..."}                              plain text                   training.sft
    {"input_ids": [...], "labels": [...]}        token ids                    training.sft
    {"prompt": ..., "chosen": ..., "rejected": ...}                           training.dpo
    {"prompt": ...}                              plus the reward's columns    training.grpo

Any row may have a `tools` column: a list of function schemas, or that list as JSON. Messages may have OpenAI's form:
the role `developer`, and the arguments of a tool call as JSON text.
"""

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, Json, List, load_dataset
from datasets.exceptions import DatasetGenerationError
from trl import get_dataset

from tokenization.chat_messages import normalized_messages

ROLES = ("system", "developer", "user", "assistant", "tool")
PARTS = ("text", "input_text", "output_text")  # types of a part of a message's content
# Columns that make a row complete, by task; the first set that a data set has counts.
FORMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "sft": (("messages",), ("prompt", "completion"), ("text",), ("input_ids",)),
    "dpo": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "grpo": (("prompt",),),
}
# Columns by which TRL would take a row for one of another form.
OTHER_FORMS = ("prompt", "completion", "chosen", "rejected", "input_ids")
ANSWERS = ("messages", "completion", "chosen", "rejected")
WITH_MESSAGES = ("messages", "prompt", "completion", "chosen", "rejected")


def problem_of_text(name: str, value: str) -> str | None:
    """What is wrong with plain text, or `None`. It is not allowed in `messages`, and answers must not be empty."""
    if name == "messages":
        return "`messages` is a string, must be a list of messages"
    return f"`{name}` is empty, so nothing in it would be learned" if name in ANSWERS and not value else None


def problem_of_content(content: Any) -> str | None:
    """What in a message's content a chat template cannot write, or `None`."""
    if content is None or isinstance(content, str):
        return None
    if not isinstance(content, list):
        return type(content).__name__
    for part in content:
        is_text = isinstance(part, dict) and part.get("type") in (None, *PARTS) and isinstance(part.get("text"), str)
        if not is_text:
            return f"a part {part!r}"
    return None


def problem_of_messages(name: str, messages: Any) -> str | None:
    """What is wrong with a list of messages, or `None`."""
    if name == "text":
        return f"`text` must be a string, found {type(messages).__name__}"
    if not isinstance(messages, list) or not messages:
        return f"`{name}` must be {'' if name == 'messages' else 'text or '}a list with at least one message"
    for turn, message in enumerate(messages):
        if not isinstance(message, dict):
            return f"`{name}[{turn}]` must have `role` and `content`, found {type(message).__name__}"
        role = message.get("role")
        if role not in ROLES:
            return f"`{name}[{turn}].role` is {role!r}, choose from {', '.join(ROLES)}"
        content = message.get("content")
        # An assistant turn may consist of tool calls alone.
        if content is None and not message.get("tool_calls"):
            return f"`{name}[{turn}].content` is missing"
        problem = problem_of_content(content)
        if problem:
            return f"`{name}[{turn}].content` must be text or a list of text parts, found {problem}"
    try:
        normalized_messages(messages, name)
    except ValueError as error:
        return str(error)
    if name in ANSWERS and all(message["role"] != "assistant" for message in messages):
        return f"`{name}` has no assistant turn, so nothing in it would be learned"
    return None


def problem_of_tools(tools: Any) -> str | None:
    """What is wrong with the `tools` column, or `None`."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            return f"`tools` is not JSON: {error}"
    if tools is None:
        return None
    if not isinstance(tools, list):
        return f"`tools` must be a list of function schemas, found {type(tools).__name__}"
    for index, tool in enumerate(tools):
        schema = (tool.get("function") or tool) if isinstance(tool, dict) else {}
        if not schema.get("name"):
            return f"`tools[{index}]` has no name"
    return None


def problem_of(row: dict[str, Any], form: Iterable[str]) -> str | None:
    """Why a row cannot be trained on, or `None`."""
    kinds = set()
    for name in form:
        value = row[name]
        if name == "input_ids":
            if not isinstance(value, list) or not value or not all(isinstance(token, int) for token in value):
                return "`input_ids` must be a list of token ids"
            continue
        kinds.add(type(value))
        problem = problem_of_text(name, value) if isinstance(value, str) else problem_of_messages(name, value)
        if problem:
            return problem
    if len(kinds) > 1:
        return f"{' and '.join(f'`{name}`' for name in form)} must all be text, or all lists of messages"
    return problem_of_tools(row.get("tools"))


def with_normalized_messages(row: dict[str, Any], index: int, split: str) -> dict[str, Any]:
    """The columns of a row that contain messages, as the chat template reads them."""
    columns = {name: row[name] for name in WITH_MESSAGES if isinstance(row.get(name), list)}
    try:
        return {name: normalized_messages(messages, name) for name, messages in columns.items()}
    except ValueError as error:
        raise ValueError(f"row {index} of `{split}`: {error}") from error


def check_rows(rows: Dataset | IterableDataset, split: str, task: str = "sft") -> Dataset | IterableDataset:
    """Check rows, and return them with messages as the chat template reads them (`tokenization/chat_messages.py`).

    Args:
        rows (`Dataset` or `IterableDataset`): The data set.
        split (`str`): Its name, for the error message.
        task (`str`, *optional*, defaults to `"sft"`): `"sft"`, `"dpo"` or `"grpo"`.

    Raises:
        `ValueError`: naming the first row that cannot be trained on. In a stream only tool calls are checked, when
            their row is read; TRL checks the rest.
    """
    read_messages = partial(with_normalized_messages, split=split)
    if not isinstance(rows, Dataset):
        return rows.map(read_messages, with_indices=True)
    form = next((form for form in FORMS[task] if set(form) <= set(rows.column_names)), None)
    if form is None:
        wanted = ", or ".join(" and ".join(f"`{name}`" for name in form) for form in FORMS[task])
        raise ValueError(f"`{split}` has the columns {', '.join(rows.column_names)}; training.{task} reads {wanted}")
    foreign = [name for name in rows.column_names if name in OTHER_FORMS and name not in form]
    if task == "sft" and foreign and form != ("input_ids",):
        both = " and ".join(f"`{name}`" for name in (*form, *foreign))
        raise ValueError(
            f"`{split}` has {both}, columns of two forms of rows: keep those of one form, in `datasets` with "
            f"`columns: [{', '.join(form)}]`"
        )
    read = [name for name in (*form, "tools") if name in rows.column_names]
    is_normal = True
    for index, row in enumerate(rows.select_columns(read)):
        problem = problem_of(row, form)
        if problem:
            raise ValueError(f"row {index} of `{split}`: {problem}")
        is_normal = is_normal and all(row[name] == value for name, value in read_messages(row, index).items())
    if is_normal:
        return rows
    # Arguments differ between calls; one Arrow structure would give every call the names of all arguments.
    lists = {name: List(Json()) for name in WITH_MESSAGES if isinstance(rows.features.get(name), List)}
    return rows.map(read_messages, with_indices=True, features=Features({**rows.features, **lists}))


def check_labels(rows: Dataset | IterableDataset, max_length: int | None) -> None:
    """Raise a `ValueError` if no tokenized row has a trainable token; stops at the first row that has one."""
    if not isinstance(rows, Dataset):
        return
    if len(rows) and "labels" not in rows.column_names:
        return
    labels = rows.select_columns("labels") if len(rows) else []
    if all(label == -100 for row in labels for label in row["labels"]):
        raise ValueError(
            f"no row has a trainable token within `max_length` {max_length}: every answer starts after it"
        )


def read_dataset(script_args: Any, dataset_args: Any) -> Any:
    """A data set by name or folder, or a mixture: splits by name."""
    if dataset_args.datasets:
        return get_dataset(dataset_args)
    return load_dataset(
        script_args.dataset_name, name=script_args.dataset_config, streaming=script_args.dataset_streaming
    )


def local_json_files(script_args: Any, dataset_args: Any) -> Iterator[Path]:
    """The JSON and JSON Lines files on this machine that are the source of a data set."""
    sources: list[Any] = [script_args.dataset_name] if script_args.dataset_name else []
    for part in dataset_args.datasets or []:
        files = part.data_files if isinstance(part.data_files, list | dict) else [part.data_files]
        sources += [part.path, *(files.values() if isinstance(files, dict) else files)]
    for path in (Path(source) for source in sources if isinstance(source, str)):
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (file for file in found if file.is_file() and file.suffix in (".json", ".jsonl"))


def check_json(path: Path) -> None:
    """Raise a `ValueError` with file and line for a line that is not JSON, or a value of another type than before.

    A `.json` file may hold one list of rows or, like a `.jsonl` file, one row per line.
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


def load_rows(script_args: Any, training_args: Any, dataset_args: Any, task: str) -> tuple[Any, Any]:
    """The checked rows to train on, and those to evaluate on, or `None`.

    Args:
        script_args ([`~trl.ScriptArguments`]): Name, configuration and splits of the data set.
        training_args ([`~transformers.TrainingArguments`]): Says whether there is an evaluation.
        dataset_args ([`~trl.DatasetMixtureConfig`]): A mixture, instead of a name.
        task (`str`): Key of [`~training.data.rows.FORMS`].

    Raises:
        `ValueError`: if no data set or two are given, a split is missing, a line is not JSON, or a row cannot be
            trained on.
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
                f"`dataset_name` {script_args.dataset_name}: `datasets` reads brackets in a path as a pattern and "
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


__all__ = ["FORMS", "check_labels", "check_rows", "load_rows", "read_dataset"]
