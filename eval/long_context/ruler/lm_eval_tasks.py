# SPDX-License-Identifier: Apache-2.0
"""lm-eval's own port of RULER on a loaded model: every task whose data is available.

lm-eval downloads prose haystacks (a data set on the Hub, and nltk's sentence splitter) and the question-answering data
(SQuAD, HotpotQA), and generates the rest. It reports the lengths below and no others, and its `vt` never ends at
lengths in which its example leaves no room. Missing tasks are named, with the reason.
"""

import argparse
import contextlib
import io
import random
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

LENGTHS = [4096, 8192, 16384, 32768, 65536, 131072]
NEEDLES = ("single_1", "single_2", "single_3", "multikey_1", "multikey_2", "multikey_3", "multiquery", "multivalue")
OTHERS = ("vt", "cwe", "fwe", "qa_squad", "qa_hotpot")
THEIR_TASKS = [*(f"niah_{name}" for name in NEEDLES), *(f"ruler_{name}" for name in OTHERS)]
SHOWN = 200  # characters of an error


@dataclass(frozen=True)
class LoadedRuler:
    """The tasks whose data is available, and why the others are missing."""

    manager: Any
    tasks: list[Any]
    missing: dict[str, str]
    metadata: dict[str, Any]


def load_ruler(model: Path, lengths: list[int], seed: int) -> LoadedRuler:
    """Load every task, which also makes its samples, and report those that are missing.

    Raises:
        `ValueError`: if none could be loaded.
    """
    from lm_eval.tasks import TaskManager

    metadata = {"max_seq_lengths": lengths, "tokenizer": str(model)}
    manager = TaskManager(metadata=metadata)
    tasks, missing = [], {}
    for name in THEIR_TASKS:
        random.seed(seed)  # they draw from the global generators
        np.random.seed(seed)
        try:
            # They print a line for every length that they try.
            with contextlib.redirect_stdout(io.StringIO()):
                loaded = list(manager.load([name])["tasks"].values())
            # Its `cwe` has neither words nor answers if a tokenizer leaves no room for the fewest words.
            if not all(document["outputs"] for task in loaded for document in task.eval_docs):
                raise ValueError(f"no room in {min(lengths)} tokens of this tokenizer")
            tasks += loaded
        except Exception as error:  # whatever a download, a parser or a generator raises: the task is missing
            missing[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:SHOWN]}"
    for name, reason in missing.items():
        print(f"lm-eval's {name} is left out. {reason}", file=sys.stderr)
    if not tasks:
        raise ValueError("`--lm-eval-ruler` finds the data of no task: run without it, or with a network")
    return LoadedRuler(manager, tasks, missing, metadata)


def run_ruler(loaded: LoadedRuler, model, tokenizer, arguments: argparse.Namespace) -> dict[str, Any]:
    """lm-eval's scores: `results` as in a result file, `version`, and `missing`, the reason for each missing task."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    language_model = HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=arguments.batch_size, max_length=max(arguments.lengths)
    )
    # `limit` would count the samples of all lengths, which follow each other, and could miss the last length.
    found = simple_evaluate(
        model=language_model,
        tasks=loaded.tasks,
        task_manager=loaded.manager,
        samples=chosen(loaded.tasks, arguments.samples),
        apply_chat_template=arguments.chat,
        metadata=loaded.metadata,
        bootstrap_iters=0,
    )
    results = [
        {
            "task": task,
            "metric": "string_match",
            "value": float(scores[f"{length},none"]),
            "samples": arguments.samples,
            "higher_is_better": True,
            "dataset": f"lm-eval {version('lm_eval')}, ruler",
            "config": f"{length} tokens",
        }
        for task, scores in found["results"].items()
        for length in arguments.lengths
    ]
    return {"results": results, "version": version("lm_eval"), "missing": loaded.missing}


def chosen(tasks: list[Any], samples: int) -> dict[str, list[int]]:
    """Row numbers of the first `samples` of each length, by task."""
    picked: dict[str, list[int]] = {}
    for task in tasks:
        rows: dict[int, list[int]] = {}
        for row, document in enumerate(task.eval_docs):
            rows.setdefault(document["max_length"], []).append(row)
        picked[task.config.task] = [row for of_length in rows.values() for row in of_length[:samples]]
    return picked


__all__ = ["LENGTHS", "LoadedRuler", "load_ruler", "run_ruler"]
