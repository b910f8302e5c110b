# SPDX-License-Identifier: Apache-2.0
"""The result file: numbers measured on one model, as evaluations write and cards read it.

    {
      "model": {"name": "model", "config_sha256": "5f1c...", "weights_sha256": "90ab..."},
      "evaluation": "harness",
      "results": [
        {"task": "gsm8k", "metric": "exact_match", "value": 0.505, "stderr": 0.014, "samples": 1319,
         "higher_is_better": true, "dataset": "openai/gsm8k", "config": "main", "split": "test"}
      ],
      ...
    }

`task`, `metric` and `value` are there in every result; the rest where it means something. Whatever else an evaluation
has to say stands beside these three keys.
"""

import json
import re
from pathlib import Path
from typing import Any

from eval.model_identity import model_identity

NEEDED = ("task", "metric", "value")
FILE_NAME = re.compile(r"\w[\w.-]*")  # of an evaluation: cards name files after it


def result_file(folder: Path, evaluation: str, results: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What to write for the model in `folder`; `more` are further keys, such as `machine` and `seed`."""
    return {"model": model_identity(folder), "evaluation": evaluation, "results": results, **more}


def read_results(path: Path, model: dict[str, str] | None = None, respelled: str | None = None) -> dict[str, Any]:
    """Read and check a result file.

    Args:
        path (`Path`): A JSON file that an evaluation wrote.
        model (`dict`, *optional*): [`model_identity`] of the model that the numbers must belong to.
        respelled (`str`, *optional*): Another `config_sha256` of the same model, see [`config_hash`].

    Raises:
        `ValueError`: naming the file, and the key that is missing, the value that is no number, or which of the two
            hashes is of another model.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        identity, results = content["model"], content["results"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result file: {error!r}. Evaluations under eval/ write them.") from error
    check_form(path, content)
    for number, result in enumerate(results):
        check_result(f"{path}: results[{number}]", result)
    for key in ("config_sha256", "weights_sha256"):
        if model is not None and identity.get(key) not in (model[key], respelled):
            raise ValueError(
                f"{path} was measured on another model: its {key} is {identity.get(key)}, that of "
                f"{model['name']} is {model[key]}. Evaluate {model['name']} again."
            )
    return content


def check_form(path: Path, content: dict[str, Any]) -> None:
    """Raise a `ValueError` that names the key of a result file which holds something of another kind."""
    for key, kind, name in (
        ("model", dict, "an object"),
        ("results", list, "a list"),
        ("machine", dict, "an object"),
        ("settings", dict, "an object"),
    ):
        if key in content and not isinstance(content[key], kind):
            raise ValueError(f"{path}: `{key}` is {content[key]!r}, not {name}")
    evaluation = content.get("evaluation", "unnamed")
    if not isinstance(evaluation, str) or not FILE_NAME.fullmatch(evaluation):
        raise ValueError(f"{path}: `evaluation` is {evaluation!r}, not a name of letters, digits, - and _")


def check_result(where: str, result: Any) -> None:
    """Raise a `ValueError` that names what one entry of `results` lacks, or what in it is of another kind."""
    if not isinstance(result, dict):
        raise ValueError(f"{where} is {result!r}, not an object")
    missing = [key for key in NEEDED if key not in result]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    if isinstance(result["value"], bool) or not isinstance(result["value"], int | float):
        raise ValueError(f"{where}.value is {result['value']!r}, not a number")
    for key in ("task", "metric", "dataset", "config", "split", "unit"):
        if not isinstance(result.get(key) or "", str):
            raise ValueError(f"{where}.{key} is {result[key]!r}, not text")


__all__ = ["read_results", "result_file"]
