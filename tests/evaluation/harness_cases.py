# SPDX-License-Identifier: Apache-2.0
"""What the tests of the harness share: a tiny model, the command, few of lm-eval's tasks."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import lm_eval.tasks
import pytest
from conftest import randomize
from lm_eval.tasks import TaskManager
from tiny_chat import write_tiny_chat

import eval.harness.suites
from eval.harness import __main__ as harness
from eval.harness.suite import suites
from eval.reports.results import model_identity, read_results
from modeling_longcat_lite import LongCatLiteForCausalLM

LIMIT = "2"


def write_model(folder: Path) -> Path:
    """The folder of a tiny model with random weights, whose context holds the prompts of the smoke suite."""
    folder = write_tiny_chat(folder, max_position_embeddings=2048) / "model"
    randomize(LongCatLiteForCausalLM.from_pretrained(folder)).save_pretrained(folder)
    return folder


@contextmanager
def few_tasks_of_lm_eval() -> Iterator[None]:
    """Reading all 14,000 names of lm-eval takes seconds: its folders that the suites use, once for all tests."""
    names = ("aime", "bbh", "ceval", "cmmlu", "drop", "gpqa", "gsm8k", "minerva_math", "mmlu", "mmlu_pro")
    folders = [Path(lm_eval.tasks.__file__).parent / name for name in names]
    read = cache(partial(TaskManager, include_defaults=False))

    def manager(include_path, include_defaults):
        return read(include_path=tuple(folders)) if include_defaults else TaskManager(None, include_path, False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "TaskManager", manager)
        yield


def arguments_for(folder, output, suite, *options):
    common = ["--model", folder, "--suite", suite, "--output", output, "--work", output / "work"]
    return harness.make_parser().parse_args([str(option) for option in (*common, *options)])


@contextmanager
def added_suites(folder: Path) -> Iterator[None]:
    """The suites in `folder` along with those in `eval/harness/suites/`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval.harness.suites, "__path__", [*eval.harness.suites.__path__, str(folder)])
        suites.cache_clear()
        yield
    suites.cache_clear()
    for name in [name for name in sys.modules if name.startswith("eval.harness.suites.")]:
        if str(folder) in str(sys.modules[name].__file__):
            del sys.modules[name]


def run(folder, output, *options, suite="smoke", check=True):
    """The exit status, and the result file if there is one; with `check`, it must be that of the model."""
    status = harness.main(arguments_for(folder, output, suite, *options))
    path = output / f"harness_{suite}.json"
    return status, read_results(path, model_identity(folder) if check else None) if path.exists() else None


def values(results) -> dict[tuple[str, str], float]:
    return {(one["task"], one["metric"]): one["value"] for one in results["results"]}
