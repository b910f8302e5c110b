# SPDX-License-Identifier: Apache-2.0
"""The measured cases: one placement of the tables under one state of the page cache, or several placements in turns.

Each is meant for a fresh process, so that memory is the case's own. States of the page cache:

    warm      holds the whole checkpoint before it is loaded; tables that are parameters have been touched
    cold      holds nothing when the checkpoint is loaded, and nothing of the tables when a run begins
    evicted   holds nothing of the tables when a token begins: less than any limit on memory would leave

A cold token or prompt is paired with a warm one, whose rows were read into the page cache just before. The two take
turns in being first, so that their difference is what the placement adds, without what a processor's caches keep from
one to the next. Each pair is compared with drive reads: as many other rows, cold too, read without a model.

Shapes: T tokens, S sub-tables.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers.utils import logging

from eval.speed.models import FIRST_PLAIN_TOKEN, filled, random_tokens
from eval.speed.paired_timing import time_paired
from eval.speed.placement.large_tables import DTYPE, table_files
from eval.speed.placement.linux import (
    PeakMemory,
    bytes_read,
    cached_share,
    evict,
    memory,
    random_rows,
    read_in,
    time_drive_reads,
)
from modeling_longcat_lite import LongCatLiteDynamicCache, LongCatLiteForCausalLM, ngram_row_ids
from training.data.local_text import documents

PAGE_VALUES = 2048  # bfloat16 numbers in a page of the smallest size


@dataclass(frozen=True)
class Workload:
    """How much a case computes: tokens at batch 1, after a context that costs attention and no computation."""

    decode_repeats: int = 9
    decode_tokens: int = 64
    context: int = 128
    prefill_repeats: int = 7
    prefill_tokens: int = 4096


def text_tokens(length: int) -> Iterator[torch.Tensor]:
    """`[1, T]` tokens of Python's standard library, a byte each, one stretch after another."""
    stretch = bytearray()
    for _, text in documents():
        stretch += text.encode()
        while len(stretch) >= length:
            yield torch.tensor(list(stretch[:length]))[None] + FIRST_PLAIN_TOKEN
            del stretch[:length]


def load(folder: Path, ngram_tables: str) -> LongCatLiteForCausalLM:
    return LongCatLiteForCausalLM.from_pretrained(folder, ngram_tables=ngram_tables, dtype=DTYPE).eval()


def touch(model: LongCatLiteForCausalLM, tables: bool):
    """Reads a number of every page of the backbone, and of `tables` that are parameters, so that all are mapped."""
    for name, parameter in model.named_parameters():
        if tables or "embedders" not in name:
            parameter.detach().view(-1)[::PAGE_VALUES].sum()


class Decoding:
    """Decoding of given tokens `[1, T]` at batch 1, a token a call, after the first `context` of them."""

    def __init__(self, model: LongCatLiteForCausalLM, tokens: torch.Tensor, context: int):
        self.model, self.tokens = model, tokens[:, context:].split(1, dim=1)
        self.cache = filled(LongCatLiteDynamicCache(config=model.config), model.config, tokens[:, :context], DTYPE)

    def step(self, place: int) -> float:
        """Seconds for one token; the cache grows by it."""
        begin = time.perf_counter()
        self.model(input_ids=self.tokens[place], past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - begin

    def all_steps(self) -> list[float]:
        return [self.step(place) for place in range(len(self.tokens))]


def prefill(model: LongCatLiteForCausalLM, tokens: torch.Tensor) -> float:
    """Seconds for a forward of `[1, T]` tokens into an empty cache."""
    begin = time.perf_counter()
    model(input_ids=tokens, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - begin


class Case:
    """A loaded model and the files that it reads, under one state of the page cache."""

    def __init__(self, folder: Path, placement: str, state: str, workload: Workload, seed: int):
        self.state, self.workload = state, workload
        files = sorted(folder.glob("*.safetensors"))
        self.tables = table_files(folder)
        self.table_paths = [Path(table.path) for table in self.tables]
        self.generator = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.at_start = memory()
        (read_in if state == "warm" else evict)(files)
        self.load: dict[str, object] = {"cached_share": cached_share(self.table_paths)}
        read, begin = bytes_read(), time.perf_counter()
        with PeakMemory() as peak:
            self.model = load(folder, placement)
            self.load["seconds"] = time.perf_counter() - begin
        self.load |= {"bytes_read": bytes_read() - read, "memory": self.growth(peak)}
        touch(self.model, tables=state == "warm")
        self.decoding(self.random(workload.context + 4)).all_steps()  # what is made once is made here

    def growth(self, peak: PeakMemory) -> dict[str, int]:
        """Bytes of each kind of memory over those of the process before it loaded anything."""
        return {kind: most - self.at_start[kind] for kind, most in peak.bytes.items()}

    def random(self, length: int) -> torch.Tensor:
        return random_tokens(self.model.config.vocab_size, 1, length)

    def chill(self):
        """Makes the tables cold, unless the case is a warm one."""
        if self.state != "warm":
            evict(self.table_paths)

    def decoding(self, tokens: torch.Tensor) -> Decoding:
        return Decoding(self.model, tokens, self.workload.context)

    def drive_reads(self, batches: list[list[int]]) -> list[float]:
        """Seconds for each batch of so many random rows of each table, cold, without a model."""
        rows = [random_rows(self.tables, counts, self.generator) for counts in batches]
        evict(self.table_paths)
        return time_drive_reads(self.tables, rows)

    def bring_in(self, ids: torch.Tensor):
        """Reads rows `[S, T]` from the files into the page cache, without the model."""
        time_drive_reads(self.tables, [[in_table.unique().numpy() for in_table in ids]])

    def pair(self, cold: Callable[[], float], warm: Callable[[], float], warm_first: bool) -> dict:
        """Seconds of a cold and of a warm computation next to each other, and what the drive delivered to the cold."""
        times = {}
        for is_warm in (warm_first, not warm_first):
            if is_warm:
                times["warm_seconds"] = warm()
            else:
                read = bytes_read()
                times["seconds"] = cold()
                times["bytes_read"] = bytes_read() - read
        return times | {"added_seconds": times["seconds"] - times["warm_seconds"]}

    def decode_run(self) -> dict:
        """Medians over the tokens of a run, in seconds; cold tokens take turns with others whose rows are cached."""
        length, config = self.workload.context + self.workload.decode_tokens, self.model.config
        run = self.decoding(self.random(length))
        if self.state == "warm":
            read, seconds = bytes_read(), run.all_steps()
            return {"seconds": median(seconds), "bytes_read": (bytes_read() - read) // len(seconds)}
        warm_tokens = self.random(length)
        twin = self.decoding(warm_tokens)
        ids = ngram_row_ids(config, warm_tokens)[:, 0, self.workload.context :]  # [S, T]
        self.chill()
        if self.state == "cold":
            self.bring_in(ids)

        def cold_step(place: int) -> float:
            if self.state == "evicted":
                self.chill()
            return run.step(place)

        def warm_step(place: int) -> float:
            if self.state == "evicted":
                self.chill()  # here too, so that both suffer alike from what evicting does to the processor's caches
                self.bring_in(ids[:, place, None])
            return twin.step(place)

        places = range(self.workload.decode_tokens)
        pairs = [self.pair(partial(cold_step, i), partial(warm_step, i), i % 2 == 1) for i in places]
        drive = self.drive_reads([[1] * len(self.tables)] * len(pairs))
        measured = {name: median(pair[name] for pair in pairs) for name in pairs[0]}
        measured["bytes_read"] = sum(pair["bytes_read"] for pair in pairs) // len(pairs)
        p90 = float(np.percentile([pair["added_seconds"] for pair in pairs], 90))
        return measured | {"added_seconds_p90": p90, "drive_seconds": median(drive)}

    def prefill_run(self, tokens: torch.Tensor, others: torch.Tensor, place: int) -> dict:
        """Seconds, bytes and rows of a forward of `[1, T]` tokens; a cold one is paired with one of cached rows."""
        ids, other_ids = (ngram_row_ids(self.model.config, each)[:, 0] for each in (tokens, others))  # [S, T]
        counts = [len(in_table.unique()) for in_table in ids]
        rows = {"rows": ids.numel(), "distinct_rows": sum(counts)}
        if self.state == "warm":
            read, seconds = bytes_read(), prefill(self.model, tokens)
            return rows | {"seconds": seconds, "bytes_read": bytes_read() - read}

        def cold() -> float:
            self.chill()
            return prefill(self.model, tokens)

        def warm() -> float:
            self.bring_in(other_ids)
            return prefill(self.model, others)

        measured = self.pair(cold, warm, place % 2 == 1)
        (drive,) = self.drive_reads([counts])
        return rows | measured | {"drive_seconds": drive}

    def prefill_runs(self, prompts: Iterator[torch.Tensor]) -> list[dict]:
        """One run for every two prompts."""
        return [self.prefill_run(next(prompts), next(prompts), i) for i in range(self.workload.prefill_repeats)]

    def memory_in_use(self) -> dict[str, int]:
        """Peaks over a decode run and a prefill that are not timed."""
        tokens = self.random(self.workload.context + self.workload.decode_tokens)
        with PeakMemory() as peak:
            self.chill()
            self.decoding(tokens).all_steps()
            self.chill()
            prefill(self.model, self.random(self.workload.prefill_tokens))
        return self.growth(peak)


@torch.no_grad()
def measure_case(folder: Path, placement: str, state: str, workload: Workload, seed: int) -> dict:
    """Load, decode, prefill and memory of one placement; times in seconds, those of decoding per token."""
    case = Case(folder, placement, state, workload, seed)
    # Memory before times: many runs and the drive reads leave memory in the heap that the placement does not need.
    memory_in_use = case.memory_in_use()
    measured: dict = {"placement": placement, "state": state, "load": case.load, "memory": memory_in_use}
    measured["decode"] = [case.decode_run() for _ in range(workload.decode_repeats)]
    if state != "evicted":
        prefill(case.model, case.random(workload.prefill_tokens // 8))
        measured["prefill"] = case.prefill_runs(case.random(workload.prefill_tokens) for _ in count())
    if (placement, state) == ("disk", "cold"):
        measured["text_prefill"] = case.prefill_runs(text_tokens(workload.prefill_tokens))
    return measured


def next_call(calls: Iterator[Callable[[], object]]):
    """Makes the next of prepared calls, so that none of them is timed while it is prepared."""
    next(calls)()


@torch.no_grad()
def measure_in_turns(folder: Path, placements: tuple[str, ...], workload: Workload, seed: int) -> dict:
    """Decode and prefill of several placements in one process, warm: seconds, and ratios against the first one."""
    torch.manual_seed(seed)
    read_in(folder.glob("*.safetensors"))
    models = {placement: load(folder, placement) for placement in placements}
    for model in models.values():
        touch(model, tables=True)
    vocab_size = models[placements[0]].config.vocab_size

    def in_turns(length: int, repeats: int, ready: Callable[..., Callable[[], object]]) -> dict:
        prompts = [random_tokens(vocab_size, 1, length) for _ in range(repeats + 1)]  # the first is for warming up
        calls = {name: iter([ready(model, tokens) for tokens in prompts]) for name, model in models.items()}
        times = time_paired({name: partial(next_call, each) for name, each in calls.items()}, repeats)
        ratios = {name: times.ratio(name, placements[0]) for name in placements[1:]}
        return {"seconds": times.seconds, "ratios": ratios}

    decoding = in_turns(
        workload.context + workload.decode_tokens,
        workload.decode_repeats,
        lambda model, tokens: Decoding(model, tokens, workload.context).all_steps,
    )
    for seconds in decoding["seconds"].values():
        seconds[:] = [each / workload.decode_tokens for each in seconds]
    prefilling = in_turns(workload.prefill_tokens, workload.prefill_repeats, lambda m, t: lambda: prefill(m, t))
    return {"placements": placements, "decode": decoding, "prefill": prefilling}


def prepare_process(threads: int | None):
    """Settings of a process that measures."""
    logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)


def in_fresh_process(threads: int | None, function: Callable[..., dict], *arguments: object) -> dict:
    """What `function` returns in a process that runs nothing else.

    A started process does not import the `__main__` of `python -m`: the function, and this file, are in other modules.

    Raises:
        `ValueError`: if the system kills the process. An exception of the function is raised as it is.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), prepare_process, (threads,)) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise ValueError(
                "A process that measured was killed, probably because memory ran out: choose fewer `--gigabytes`."
            ) from error


__all__ = ["Workload", "in_fresh_process", "measure_case", "measure_in_turns"]
