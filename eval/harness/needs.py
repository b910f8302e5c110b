# SPDX-License-Identifier: Apache-2.0
"""What a benchmark needs that this machine lacks, in words, and the commands to run where it is there."""

import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from huggingface_hub import constants

from eval.harness.external import ExternalBenchmark
from eval.harness.suites import Benchmark

SERVER_TIMEOUT = 2.0  # seconds


@dataclass(frozen=True)
class NotRun:
    """A benchmark without a score: why, and what to run where that is mended."""

    task: str
    needs: tuple[str, ...]
    commands: tuple[str, ...]

    def as_text(self) -> str:
        """For the terminal: a line for each need, then the commands."""
        lines = [f"{self.task} needs:", *(f"  - {need}" for need in self.needs), "  Run there:"]
        return "\n".join([*lines, *(f"    {command}" for command in self.commands)])


def harness_command(benchmark: Benchmark, suite: str, model: str) -> str:
    """The command of this harness for one benchmark."""
    extra = " --allow-code-execution" if benchmark.runs_code else ""
    return f"python -m eval.harness --model {shlex.quote(model)} --suite {suite} --tasks {benchmark.name}{extra}"


def needs_of_data(benchmark: Benchmark, error: Exception) -> tuple[str, ...]:
    """Needs, from what loading the data of `benchmark` ran into."""
    if isinstance(error, ImportError):
        package = f"a Python package that is not installed ({first_line(error)})"
        return (package, f"the data set {benchmark.dataset} of the Hub")
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else first_line(error)
    needs = [f"the data set {benchmark.dataset} of the Hub, which is not in the cache here ({reason})"]
    if benchmark.gated:
        page = f"https://huggingface.co/datasets/{benchmark.dataset}"
        needs.append(f"access to it, asked for at {page}, and `hf auth login`")
    if benchmark.runs_code:
        needs.append("the metric code_eval of the Hub (`evaluate.load`)")
    return tuple(needs)


def load_or_need(manager, benchmark: Benchmark, suite: str, model: str, allow_code: bool) -> dict[str, Any] | NotRun:
    """Load the tasks of a benchmark, which loads its data.

    Args:
        manager (`lm_eval.tasks.TaskManager`): That knows the tasks.
        benchmark (`Benchmark`): What to load.
        suite (`str`): Its suite, for the command.
        model (`str`): The model's folder, for the command.
        allow_code (`bool`): Whether code that a model wrote may run here.

    Returns:
        What `TaskManager.load` returns, or a [`NotRun`] that says what is missing.
    """
    command = harness_command(benchmark, suite, model)
    if benchmark.runs_code:
        if not allow_code:
            need = "leave to run code that the model writes: in a container, with --allow-code-execution"
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


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).strip().partition("\n")[0]


def server_answers(server: str) -> bool:
    """Whether a server of OpenAI's protocol lists its models at `server`, such as `http://127.0.0.1:30000/v1`."""
    try:
        with urlopen(f"{server.rstrip('/')}/models", timeout=SERVER_TIMEOUT) as answer:
            return answer.status == 200
    except (URLError, OSError, ValueError):
        return False


def external_needs(benchmark: ExternalBenchmark, model: Path, name: str, server: str) -> NotRun:
    """What the other program needs and how it is run; no number of it comes from here.

    Args:
        benchmark (`ExternalBenchmark`): Run by a program of its own.
        model (`Path`): The model's folder; commands have it whole, since they run elsewhere.
        name (`str`): Its name at the server.
        server (`str`): Address of a server of OpenAI's protocol.
    """
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
        needs.append(benchmark.also.replace("{server}", server).replace("{name}", name))
    return NotRun(
        benchmark.name, tuple(needs), tuple(benchmark.filled_commands(shlex.quote(str(model.resolve())), name, server))
    )


__all__ = ["NotRun", "external_needs", "harness_command", "load_or_need", "needs_of_context", "server_answers"]
