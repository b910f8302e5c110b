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
from pathlib import Path
from typing import Any

from eval.model_identity import model_identity

NEEDED = ("task", "metric", "value")


def result_file(folder: Path, evaluation: str, results: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What to write for the model in `folder`; `more` are further keys, such as `machine` and `seed`."""
    return {"model": model_identity(folder), "evaluation": evaluation, "results": results, **more}


def read_results(path: Path, model: dict[str, str] | None = None) -> dict[str, Any]:
    """Read and check a result file.

    Args:
        path (`Path`): A JSON file that an evaluation wrote.
        model (`dict`, *optional*): [`model_identity`] of the model that the numbers must belong to.

    Raises:
        `ValueError`: naming the file, and the key that is missing, the value that is no number, or which of the two
            hashes is of another model.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        identity, results = content["model"], content["results"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result file: {error!r}. Evaluations under eval/ write them.") from error
    for number, result in enumerate(results):
        missing = [key for key in NEEDED if key not in result]
        if missing:
            raise ValueError(f"{path}: results[{number}] lacks {', '.join(missing)}")
        if isinstance(result["value"], bool) or not isinstance(result["value"], int | float):
            raise ValueError(f"{path}: results[{number}].value is {result['value']!r}, not a number")
    for key in ("config_sha256", "weights_sha256"):
        if model is not None and identity.get(key) != model[key]:
            raise ValueError(
                f"{path} was measured on another model: its {key} is {identity.get(key)}, that of "
                f"{model['name']} is {model[key]}. Evaluate {model['name']} again."
            )
    return content


__all__ = ["read_results", "result_file"]
