# SPDX-License-Identifier: Apache-2.0
"""Benchmarks that cannot be run here: what is missing, in words, and the commands to run elsewhere."""

import os
import shlex
import shutil
from dataclasses import dataclass
from typing import Any
from urllib.request import urlopen

from huggingface_hub import constants

from eval.checkpoints.load import ModelFolder
from eval.harness.suite import Benchmark, ExternalBenchmark

SERVER_TIMEOUT = 2.0  # seconds
SERVE = (
    "python -m sglang.launch_server --model-path {model} --served-model-name {name} --trust-remote-code --tp 2 --ep 2 "
    "--port 30000"
)


@dataclass(frozen=True)
class NotRun:
    """A benchmark without a score: what it needs, and the commands to run where that is available."""

    task: str
    needs: tuple[str, ...]
    commands: tuple[str, ...]

    def as_text(self) -> str:
        """For the terminal: a line for each need, then the commands."""
        lines = [f"{self.task} needs:", *(f"  - {need}" for need in self.needs), "  Run there:"]
        return "\n".join([*lines, *(f"    {command}" for command in self.commands)])


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).strip().partition("\n")[0]


def needs_of_data(benchmark: Benchmark, error: Exception) -> tuple[str, ...]:
    """What a benchmark needs, from the error that loading its data raised."""
    if isinstance(error, ImportError):
        package = f"a Python package that is not installed ({first_line(error)})"
        return (package, f"the data set {benchmark.dataset} of the Hub")
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else first_line(error)
    needs = [f"the data set {benchmark.dataset} of the Hub, which is not in the cache here ({reason})"]
    if benchmark.gated:
        page = f"https://huggingface.co/datasets/{benchmark.dataset}"
        needs.append(f"access to it, requested at {page}, and `hf auth login`")
    if benchmark.runs_code:
        needs.append("the metric code_eval of the Hub (`evaluate.load`)")
    return tuple(needs)


def load_or_need(manager, benchmark: Benchmark, command: str, allow_code: bool) -> dict[str, Any] | NotRun:
    """Load the tasks of a benchmark, and with them its data.

    Args:
        manager (`lm_eval.tasks.TaskManager`): Knows the tasks.
        benchmark (`Benchmark`): What to load.
        command (`str`): What runs it.
        allow_code (`bool`): Whether code that the model wrote may run here.

    Returns:
        What `TaskManager.load` returns, or a [`NotRun`] that says what is missing.
    """
    if benchmark.runs_code:
        if not allow_code:
            need = "permission to run code that the model writes: in a container, with --allow-code-execution"
            data = f"the data set {benchmark.dataset} and the metric code_eval of the Hub"
            return NotRun(benchmark.name, (need, data), (command,))
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    try:
        return manager.load([benchmark.task])
    # datasets and evaluate raise subclasses of OSError for what they cannot fetch, ValueError where the cache has
    # other parts of a data set, RuntimeError for one that is a script; tasks name missing packages.
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        return NotRun(benchmark.name, needs_of_data(benchmark, error), (command,))


def needs_of_context(benchmark: Benchmark, loaded: dict[str, Any], lm, command: str) -> NotRun | None:
    """What is missing if the model's context is too short for the answers that the tasks ask for."""
    lengths = [
        task.get_config("generation_kwargs").get("max_gen_toks", lm.max_gen_toks)
        for task in loaded["tasks"].values()
        if task.OUTPUT_TYPE == "generate_until"
    ]
    if not lengths or max(lengths) < lm.max_length:
        return None
    need = (
        f"a model whose context is longer than its answers of {max(lengths):,} tokens; this one's is {lm.max_length:,}"
    )
    return NotRun(benchmark.name, (need,), (command,))


def server_answers(server: str) -> bool:
    """Whether a server of OpenAI's protocol lists its models at `server`, for example `http://127.0.0.1:30000/v1`."""
    try:
        with urlopen(f"{server.rstrip('/')}/models", timeout=SERVER_TIMEOUT) as answer:
            return answer.status == 200
    except (OSError, ValueError):
        return False


def external_needs(benchmark: ExternalBenchmark, model: ModelFolder, server: str) -> NotRun:
    """What the other program needs, and the commands that run it.

    Args:
        benchmark (`ExternalBenchmark`): What it measures.
        model (`ModelFolder`): The model. Commands have its whole path, since they run elsewhere.
        server (`str`): Address of a server of OpenAI's protocol.
    """
    # Braces of JSON and of shells stay: only these three names are replaced.
    values = {"{model}": shlex.quote(str(model.path.resolve())), "{name}": model.identity["name"], "{server}": server}

    def filled(text: str) -> str:
        for key, value in values.items():
            text = text.replace(key, value)
        return text

    needs = []
    if not benchmark.program:
        needs.append(f"a checkout of {benchmark.repository}, in which the commands run")
    elif shutil.which(benchmark.program) is None:
        needs.append(f"`{benchmark.program}`, which is not installed here, from {benchmark.repository}")
    else:
        needs.append(f"`{benchmark.program}`, which is installed here")
    if benchmark.docker:
        needs.append(f"docker, which is {'' if shutil.which('docker') else 'not '}installed here")
    if benchmark.server:
        state = "where one answers" if server_answers(server) else "where nothing answers now (see --server)"
        needs.append(f"a server of the model that speaks OpenAI's protocol, at {server}, {state}")
    if benchmark.also:
        needs.append(filled(benchmark.also))
    commands = (SERVE, *benchmark.commands) if benchmark.server else benchmark.commands
    return NotRun(benchmark.name, tuple(needs), tuple(filled(command) for command in commands))


__all__ = ["NotRun", "external_needs", "load_or_need", "needs_of_context"]
