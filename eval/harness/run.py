# SPDX-License-Identifier: Apache-2.0
"""Benchmarks run by lm-eval on our model, each kept when it is finished, so that the same command can go on.

    outputs/harness/{model}-{weights}-{config}-{settings}/
        mmlu.json             a finished benchmark: a result file of the model, with times and examples
        requests/gsm8k.db     answers of an interrupted benchmark: lm-eval's own cache

The folder is named after weights, config and whatever else changes a score: tokenizer, dtype, tables, seed, number of
questions. Cached answers do not say which model gave them, so that only the folder's name keeps them apart; a finished
benchmark does, and is refused for another model.
"""

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from transformers import set_seed

from eval.checkpoints.load import ModelFolder
from eval.harness.suite import Benchmark, ExternalBenchmark
from eval.losses.text import longest_window
from eval.reports.results import read_results
from modeling_longcat_lite.whole_files import write_whole

EXAMPLES = 3  # generated answers that the report shows
NOT_METRICS = {"alias", "name", "sample_len", "sample_count"}


class LongCatLiteLM(HFLM):
    """`HFLM` without the progress bar that it draws for every batch of rolling windows.

    Scoring pads on the right without a mask, which a causal model does not see; generation pads on the left with a
    mask, after which the n-gram history begins. So no answer depends on the batch.
    """

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
        return super()._loglikelihood_tokens(
            requests, disable_tqdm=disable_tqdm or override_bs is not None, override_bs=override_bs
        )


def load_model(
    folder: ModelFolder, batch_size: int, device: str = "auto", dtype: str = "auto", ngram_tables: str = "resident"
) -> LongCatLiteLM:
    """Load a model for lm-eval.

    Args:
        folder (`ModelFolder`): The model and its tokenizer.
        batch_size (`int`): Sequences in a forward pass.
        device (`str`): For example `cpu` or `cuda:1`; `auto` uses all accelerators, or the CPU if there are none.
        dtype (`str`): `bfloat16` or `float32`; `auto` is the checkpoint's.
        ngram_tables (`str`): `resident`, `host` or `disk`.
    """
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    model = folder.load(dtype=dtype, ngram_tables=ngram_tables, device_map=None if on_cpu else device)
    lm = LongCatLiteLM(
        pretrained=model,
        backend="causal",
        tokenizer=folder.tokenizer,
        batch_size=batch_size,
        max_length=longest_window(model.config),
        softmax_dtype="float32",  # log-likelihoods in bfloat16 are too coarse to compare
    )
    # Silent until here, where it warns that it was given a model; from here on it reports prompts that it cuts.
    logging.getLogger(HFLM.__module__).setLevel(logging.WARNING)
    return lm


@dataclass(frozen=True)
class Settings:
    """What changes a score, apart from the model's weights.

    Args:
        seed (`int`): Of examples drawn for prompts, and of sampling.
        limit (`int`, *optional*): Questions of each task; all if not given.
        dtype (`str`): As on the command line.
        tokenizer_sha256 (`str`): Hash of the tokenizer and the chat template.
        data_sha256 (`str`): Hash of data that the suite made; empty for data from the Hub.
        ablation (`str`): Of the n-gram tables, see `eval/ngrams/ablation/ablated.py`.
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
        work (`Path`): Where the folder is.
        model (`ModelFolder`): The model.
        settings (`Settings`): What else changes a score.
    """

    def __init__(self, work: Path, model: ModelFolder, settings: Settings):
        self.model, self.settings = model, settings
        identity = model.identity
        hashes = (identity["weights_sha256"][:8], identity["config_sha256"][:8], settings.key)
        self.folder = work / "-".join((identity["name"], *hashes))

    def file(self, benchmark: Benchmark | ExternalBenchmark) -> Path:
        """Where the benchmark is kept when it is finished."""
        return self.folder / f"{benchmark.file_stem}.json"

    def cache(self, benchmark: Benchmark | ExternalBenchmark) -> Path:
        """Where lm-eval keeps answers while the benchmark runs."""
        return self.folder / "requests" / f"{benchmark.file_stem}.db"

    def forget(self, benchmark: Benchmark | ExternalBenchmark) -> None:
        """Remove what is kept of a benchmark, finished or not."""
        self.file(benchmark).unlink(missing_ok=True)
        self.cache(benchmark).unlink(missing_ok=True)

    def read(self, benchmark: Benchmark | ExternalBenchmark) -> dict[str, Any] | None:
        """A finished benchmark, or `None`.

        Raises:
            `ValueError`: naming the file, if it is broken or belongs to another model.
        """
        path = self.file(benchmark)
        return read_results(path, self.model.identity) if path.exists() else None

    def write(self, benchmark: Benchmark | ExternalBenchmark, results: list[dict], **measured: Any) -> dict[str, Any]:
        """Keep a finished benchmark and remove its cache; returns what was written."""
        about = {"num_fewshot": None, "seconds": 0.0, "examples": [], **measured}
        entry = self.model.result_file("harness", results, settings=self.settings.as_dict(), **about)
        write_whole(self.file(benchmark), json.dumps(entry, indent=2, ensure_ascii=False) + "\n")
        self.cache(benchmark).unlink(missing_ok=True)
        return entry


def run_benchmark(
    lm, loaded: dict[str, Any], benchmark: Benchmark, finished: FinishedBenchmarks, allow_code: bool
) -> dict[str, Any]:
    """Run a benchmark, or the rest of an interrupted one, and keep it.

    Args:
        lm (`lm_eval.api.model.LM`): The model.
        loaded (`dict`): Tasks and groups, as `TaskManager.load` returns them.
        benchmark (`Benchmark`): What they measure.
        finished (`FinishedBenchmarks`): Where results are kept.
        allow_code (`bool`): Whether code that the model writes may run.

    Returns:
        `dict`: The result file of the benchmark, whose own metric comes first.
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
    """lm-eval's numbers as entries of a result file, the benchmark's own metric first."""
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
    """The first few generated answers and the expected ones; none if answers are only scored."""
    examples: list[dict[str, str]] = []
    for samples in evaluated["samples"].values():
        for sample in samples:
            answer = sample["resps"][0][0]
            if isinstance(answer, str) and len(examples) < EXAMPLES:
                examples.append({"answer": answer, "wanted": str(sample["target"])})
    return examples


__all__ = ["FinishedBenchmarks", "LongCatLiteLM", "Settings", "load_model", "run_benchmark"]
