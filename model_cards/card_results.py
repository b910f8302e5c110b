# SPDX-License-Identifier: Apache-2.0
"""Result files of a model (`eval/reports/results.py`) as a card shows them: `model-index`, `.eval_results`, a table.

`model-index` in the front matter has every result. `.eval_results/NAME.yaml` has the results on data sets of the Hub,
which its leaderboards read: one number per task, the first metric that the result file lists for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from eval.reports.results import read_results
from model_cards.card_metadata import is_repo_id

KEY = ("task", "metric", "dataset", "config", "split")


@dataclass(frozen=True)
class Measured:
    """One number of a result file, with what the file says about it.

    `source` is the file, `date` is in ISO 8601, and `unit` is that of value and standard error, such as
    `nats per token`.
    """

    source: Path
    evaluation: str
    task: str
    metric: str
    value: float
    stderr: float | None = None
    samples: int | None = None
    higher_is_better: bool | None = None
    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    unit: str | None = None
    date: str | None = None


def read_measured(paths: Sequence[Path], model: dict[str, str], respelled: str | None = None) -> list[Measured]:
    """Every result of `paths`, in their order.

    Args:
        paths (`Sequence[Path]`): Result files.
        model (`dict`): `eval.reports.results.model_identity` of the card's model.
        respelled (`str`, *optional*): `eval.reports.results.config_hash` of its config's other spelling.

    Raises:
        `ValueError`: naming the file that belongs to another model, was measured with changed tables or is broken, or
            two files with the same result.
    """
    found: dict[tuple, Measured] = {}
    names = [field.name for field in fields(Measured)]
    for path in paths:
        content = read_results(path, model, respelled)
        check_settings(path, content)
        date = content.get("date") or content.get("machine", {}).get("date")
        if not content["results"]:
            raise ValueError(f"{path} has no results")
        for number, result in enumerate(content["results"]):
            check_numbers(f"{path}: results[{number}]", result)
            known = {key: value for key, value in result.items() if key in names}
            measured = Measured(path, content.get("evaluation", path.stem), date=date, **known)
            key = tuple(getattr(measured, name) for name in KEY)
            if key in found:
                raise ValueError(f"{path} and {found[key].source} both have {measured.task}, {measured.metric}")
            found[key] = measured
    return list(found.values())


def check_settings(path: Path, content: dict[str, Any]) -> None:
    """Refuse numbers of an ablation, which are not the model's, and numbers from only a few questions."""
    settings = content.get("settings", {})
    ablation, limit = settings.get("ablation", "on"), settings.get("limit")
    if limit is not None:
        raise ValueError(f"{path} was measured with `--limit {limit}`: evaluate the model on all questions")
    if ablation != "on":
        raise ValueError(f"{path} was measured with n-gram tables {ablation}: evaluate the model without `--ablation`")


def check_numbers(where: str, result: dict[str, Any]) -> None:
    """Refuse values that are not finite numbers."""
    for key in ("value", "stderr", "samples"):
        value = result.get(key)
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise ValueError(f"{where}.{key} is {value!r}, not a finite number")


def model_index(measured: list[Measured]) -> list[EvalResult]:
    """Results for `ModelCardData(eval_results=...)`.

    That class groups results by data set, not by task. A metric's name therefore includes its task, and the task
    stands in for data that is not on the Hub.
    """
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=result.dataset if is_repo_id(result.dataset) else result.task,
            dataset_name=result.dataset or result.task,
            dataset_config=result.config,
            dataset_split=result.split,
            metric_type=result.metric,
            metric_name=f"{result.task}, {result.metric}",
            metric_value=result.value,
        )
        for result in measured
    ]


def hub_entries(measured: list[Measured]) -> dict[str, list[dict[str, Any]]]:
    """Content of `.eval_results/{name}.yaml`, by name of the evaluation."""
    entries: dict[str, list[EvalResultEntry]] = {}
    seen = set()
    for result in measured:
        if not is_repo_id(result.dataset) or (result.dataset, result.task) in seen:
            continue
        seen.add((result.dataset, result.task))
        notes = [result.metric]
        notes += [f"standard error {result.stderr}"] if result.stderr is not None else []
        notes += [f"{result.samples} samples"] if result.samples is not None else []
        entry = EvalResultEntry(result.dataset, result.task, result.value, date=result.date, notes=", ".join(notes))
        entries.setdefault(result.evaluation, []).append(entry)
    return {name: eval_result_entries_to_yaml(of_file) for name, of_file in entries.items()}


def figures(paths: Sequence[Path]) -> dict[str, Path]:
    """The PNG next to each result file, if there is one, by its name in the Hub folder.

    Raises:
        `ValueError`: two figures have the same name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        figure = path.with_suffix(".png")
        if figure.is_file() and found.setdefault(figure.name, figure) != figure:
            raise ValueError(f"{figure} and {found[figure.name]} have the same name; rename one with its result file")
    return found


__all__ = ["Measured", "figures", "hub_entries", "model_index", "read_measured"]
