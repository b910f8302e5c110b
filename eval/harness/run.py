# SPDX-License-Identifier: Apache-2.0
"""Benchmarks run one after another by lm-eval, each kept when it is finished, so that a rerun goes on.

    outputs/harness/{model}-{weights}-{config}-{settings}/
        mmlu.json             a finished benchmark: a result file of the model, with times and examples
        requests/gsm8k.db     answers to the requests of a benchmark that was interrupted: lm-eval's own cache

The folder is named after weights, config, and what else changes a score: tokenizer, dtype, tables, seed, number of
questions. Cached answers do not say whose they are; a finished benchmark does, and is not taken for another's.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.model import CachingLM
from transformers import set_seed

from eval.harness.external import ExternalBenchmark
from eval.harness.suites import Benchmark
from eval.reports.results import read_results, result_file
from modeling_longcat_lite.whole_files import write_whole

EXAMPLES = 3  # of generated answers, kept for the report
NOT_METRICS = {"alias", "name", "sample_len", "sample_count"}


@dataclass(frozen=True)
class Settings:
    """What changes a score, besides the model's weights.

    Args:
        seed (`int`): Of examples drawn for prompts, and of sampling.
        limit (`int`, *optional*): Only so many questions of each task.
        dtype (`str`): As on the command line.
        ablation (`str`): Of the n-gram tables, see `eval/ngrams/ablation/ablated.py`.
        tokenizer_sha256 (`str`): Of the tokenizer and the chat template.
        data_sha256 (`str`): Of data made here; empty for data of the Hub.
    """

    seed: int
    limit: int | None
    dtype: str
    tokenizer_sha256: str
    data_sha256: str = ""
    ablation: str = "on"

    def as_dict(self) -> dict[str, Any]:
        """With the version of lm-eval, which decides on prompts and metrics."""
        return {**vars(self), "lm_eval": lm_eval.__version__}

    @property
    def key(self) -> str:
        """Eight hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:8]


class FinishedBenchmarks:
    """The folder of finished benchmarks, and of caches of unfinished ones.

    Args:
        work (`Path`): In which the folder is.
        model (`Path`): Folder of the model.
        identity (`dict`): Its [`model_identity`].
        settings (`Settings`): What else changes a score.
    """

    def __init__(self, work: Path, model: Path, identity: dict[str, str], settings: Settings):
        self.model, self.identity, self.settings = model, identity, settings
        hashes = (identity["weights_sha256"][:8], identity["config_sha256"][:8], settings.key)
        self.folder = work / "-".join((identity["name"], *hashes))

    def forget(self, benchmark: Benchmark | ExternalBenchmark) -> None:
        """Remove what is kept of a benchmark, finished or not."""
        self.file(benchmark).unlink(missing_ok=True)
        self.cache(benchmark).unlink(missing_ok=True)

    def file(self, benchmark: Benchmark | ExternalBenchmark) -> Path:
        """Where the benchmark is kept when it is finished; `mmlu` as chat and as text are two files."""
        as_chat = isinstance(benchmark, Benchmark) and benchmark.as_chat
        return self.folder / f"{benchmark.name}{'.chat' if as_chat else ''}.json"

    def cache(self, benchmark: Benchmark | ExternalBenchmark) -> Path:
        """Where lm-eval keeps answers while the benchmark runs."""
        return self.folder / "requests" / f"{self.file(benchmark).stem}.db"

    def read(self, benchmark: Benchmark | ExternalBenchmark) -> dict[str, Any] | None:
        """A finished benchmark, or `None`.

        Raises:
            `ValueError`: naming the file, if it is broken or of another model.
        """
        path = self.file(benchmark)
        return read_results(path, self.identity) if path.exists() else None

    def write(
        self,
        benchmark: Benchmark | ExternalBenchmark,
        results: list[dict],
        num_fewshot: int | None = None,
        seconds: float = 0.0,
        examples: list[dict[str, str]] | None = None,
    ) -> dict[str, Any]:
        """Keep a finished benchmark and drop its cache; returns what was written."""
        entry = result_file(
            self.model,
            "harness",
            results,
            settings=self.settings.as_dict(),
            num_fewshot=num_fewshot,
            seconds=seconds,
            examples=examples or [],
        )
        write_whole(self.file(benchmark), json.dumps(entry, indent=2, ensure_ascii=False) + "\n")
        self.cache(benchmark).unlink(missing_ok=True)
        return entry


def run_benchmark(
    lm, loaded: dict[str, Any], benchmark: Benchmark, finished: FinishedBenchmarks, allow_code: bool
) -> dict[str, Any]:
    """Run a benchmark, or what is left of it, and keep it.

    Args:
        lm (`lm_eval.api.model.LM`): The model.
        loaded (`dict`): Tasks and groups, as `TaskManager.load` returns them.
        benchmark (`Benchmark`): What they measure.
        finished (`FinishedBenchmarks`): Where results are kept.
        allow_code (`bool`): Whether code that the model writes may run.

    Returns:
        The result file of the benchmark: its metrics first, the one that stands for it before the others.
    """
    settings, begin = finished.settings, time.perf_counter()
    for task in loaded["tasks"].values():
        shots = task.get_config("num_fewshot") if benchmark.num_fewshot is None else benchmark.num_fewshot
        task.set_config("num_fewshot", shots or 0)
        task.set_fewshot_seed(settings.seed)
    set_seed(settings.seed)
    cached = CachingLM(lm, str(finished.cache(benchmark)))
    try:
        evaluated = lm_eval.evaluate(
            cached,
            loaded,
            limit=settings.limit,
            apply_chat_template=benchmark.as_chat,
            fewshot_as_multiturn=benchmark.as_chat,
            confirm_run_unsafe_code=allow_code,
        )
    finally:
        cached.dbdict.close()
    return finished.write(
        benchmark,
        metrics_of(benchmark, evaluated),
        num_fewshot=max(evaluated["n-shot"].values()),
        seconds=round(time.perf_counter() - begin, 1),
        examples=examples_of(evaluated),
    )


def metrics_of(benchmark: Benchmark, evaluated: dict[str, Any]) -> list[dict[str, Any]]:
    """The numbers of lm-eval as results of a result file; the benchmark's own metric first."""
    numbers = evaluated["results"][benchmark.task]
    direction = evaluated["higher_is_better"].get(benchmark.task, {})
    samples = sum(count["effective"] for count in evaluated["n-samples"].values())
    first = f"{benchmark.metric},{benchmark.filter}"
    if first not in numbers:
        raise ValueError(f"lm-eval's {benchmark.task} has no {first!r}, only {', '.join(numbers)}")
    results = []
    for key in sorted(numbers, key=lambda key: key != first):
        metric, _, filtered = key.partition(",")
        if key in NOT_METRICS or metric.endswith("_stderr") or not isinstance(numbers[key], int | float):
            continue
        error = numbers.get(f"{metric}_stderr,{filtered}")
        results.append(
            {
                "task": benchmark.name,
                "metric": metric if filtered == benchmark.filter else f"{metric}, {filtered}",
                "value": float(numbers[key]),
                **({"stderr": float(error)} if isinstance(error, int | float) and isfinite(error) else {}),
                "samples": samples,
                "higher_is_better": direction.get(metric, True),
                "dataset": benchmark.dataset,
            }
        )
    return results


def examples_of(evaluated: dict[str, Any]) -> list[dict[str, str]]:
    """The first few generated answers, each with the one that was wanted; none for what is only scored."""
    examples: list[dict[str, str]] = []
    for samples in evaluated["samples"].values():
        for sample in samples:
            answer = sample["resps"][0][0]
            if isinstance(answer, str) and len(examples) < EXAMPLES:
                examples.append({"answer": answer, "wanted": str(sample["target"])})
    return examples


__all__ = ["FinishedBenchmarks", "Settings", "run_benchmark"]
