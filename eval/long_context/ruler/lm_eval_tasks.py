# SPDX-License-Identifier: Apache-2.0
"""lm-eval's own port of RULER on a loaded model, task by task, as far as the data of each can be had.

lm-eval downloads prose haystacks (a data set on the Hub, and nltk's sentence splitter) and the question-answering data
(SQuAD, HotpotQA); the rest it generates. It reports the lengths below and no others, and its `vt` goes on for ever at
lengths in which its example leaves no room. What is missing is named, with the reason.
"""

import argparse
import contextlib
import io
import random
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

LENGTHS = [4096, 8192, 16384, 32768, 65536, 131072]
NEEDLES = ("single_1", "single_2", "single_3", "multikey_1", "multikey_2", "multikey_3", "multiquery", "multivalue")
THEIR_TASKS = [*(f"niah_{name}" for name in NEEDLES)]
THEIR_TASKS += [f"ruler_{name}" for name in ("vt", "cwe", "fwe", "qa_squad", "qa_hotpot")]
SHOWN = 200  # characters of an error


@dataclass(frozen=True)
class LoadedRuler:
    """Tasks whose data was there, and why the others are missing."""

    manager: Any
    tasks: list[Any]
    missing: dict[str, str]
    metadata: dict[str, Any]


def load_ruler(model: Path, lengths: list[int], seed: int) -> LoadedRuler:
    """Loads every task, which makes its samples too; tells what is missing.

    Raises:
        `SystemExit`: with a message, when lm-eval is not installed or nothing could be loaded.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise SystemExit(f"--lm-eval-ruler needs lm-eval ({error}): install the `eval` extra") from None
    metadata = {"max_seq_lengths": lengths, "tokenizer": str(model)}
    manager = TaskManager(metadata=metadata)
    tasks, missing = [], {}
    for name in THEIR_TASKS:
        random.seed(seed)  # they draw from the generators that everybody shares
        np.random.seed(seed)
        try:
            # They print a line for every length tried.
            with contextlib.redirect_stdout(io.StringIO()):
                loaded = list(manager.load([name])["tasks"].values())
            # Its `cwe` has neither words nor answers where a tokenizer leaves no room for the fewest words.
            if not all(document["outputs"] for task in loaded for document in task.eval_docs):
                raise ValueError(f"no room in {min(lengths)} tokens of this tokenizer")
            tasks += loaded
        except Exception as error:  # whatever a download, a parser or a generator raises: the task is not there
            missing[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:SHOWN]}"
    console = Console(stderr=True)
    for name, reason in missing.items():
        console.print(f"lm-eval's {name} is left out. {reason}", soft_wrap=True, markup=False)
    if not tasks:
        raise SystemExit("--lm-eval-ruler: the data of no task could be had; run without it, or with a network")
    return LoadedRuler(manager, tasks, missing, metadata)


def run_ruler(loaded: LoadedRuler, model, tokenizer, arguments: argparse.Namespace) -> dict[str, Any]:
    """lm-eval's scores: `results` as in a result file, `version`, and `missing`: task to reason."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    language_model = HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=arguments.batch_size, max_length=max(arguments.lengths)
    )
    # `limit` counts the samples of all lengths, which come one length after the other: too few would miss the last.
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
    """The first `samples` of each length, per task."""
    picked: dict[str, list[int]] = {}
    for task in tasks:
        seen: dict[int, int] = {}
        picked[task.config.task] = []
        for row, document in enumerate(task.eval_docs):
            seen[document["max_length"]] = seen.get(document["max_length"], 0) + 1
            if seen[document["max_length"]] <= samples:
                picked[task.config.task].append(row)
    return picked


__all__ = ["LENGTHS", "LoadedRuler", "load_ruler", "run_ruler"]
