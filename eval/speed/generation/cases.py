# SPDX-License-Identifier: Apache-2.0
"""The measured cases: prefill, decode, generation, the n-gram layer. Each gives one row of the table.

A row's `ms` holds the median milliseconds of every alternative, `ratios` medians over paired runs: `"in-tree / x"`
says how many times faster than transformers' model `x` is, `"x / floor"` how many times slower than the floor.
"""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import CompileConfig

from eval.speed.generation.floor import Work, active_weights, floor_functions
from eval.speed.generation.per_table_ngrams import PerTableNgramEmbedding
from eval.speed.models import EXPERTS, Models, no_compiler_reason, our_decode_step, random_tokens, their_decode_step
from eval.speed.paired_timing import PairedTimes, time_paired
from modeling_longcat_lite import LongCatLiteForCausalLM

THEIRS = "in-tree"
FLOOR_PARTS = ("products", "reading")
COMPILE_WARM_UP = 3  # the first call compiles; a second graph, if there is one, is compiled by the second call


def make_row(
    section: str, models: Models, batch: int, tokens: int, times: PairedTimes, baseline: str = THEIRS
) -> dict:
    """Medians, and the ratios of `baseline` to the others and of the others to the floor."""
    names = [name for name in times.seconds if name not in FLOOR_PARTS]
    row: dict = {
        "section": section,
        "dtype": models.dtype,
        "batch": batch,
        "tokens": tokens,
        "ms": {name: times.median_ms(name) for name in times.seconds},
        "ratios": {f"{baseline} / {name}": times.ratio(baseline, name) for name in names if name != baseline},
        "seconds": times.seconds,
    }
    if FLOOR_PARTS[0] in times.seconds:
        floor = max(FLOOR_PARTS, key=times.median_ms)
        row |= {"floor": floor, "floor_ms": times.median_ms(floor)}
        row["ratios"] |= {f"{name} / floor": times.ratio(name, floor) for name in names}
    return row


@torch.no_grad()
def measure_prefill(models: Models, batch: int, length: int, repeats: int) -> dict:
    """A forward over a whole prompt that fills a cache and scores its last position, as `generate` runs it."""
    tokens = random_tokens(models.shape, batch, length)

    def prefill(model) -> Callable[[], object]:
        return lambda: model(input_ids=tokens, use_cache=True, logits_to_keep=1)

    alternatives = {THEIRS: prefill(models.theirs), "dynamic, grouped_mm": prefill(models.ours["grouped_mm"])}
    # Not `batched_mm`, which copies the weights of an expert for every token that selects it.
    alternatives["dynamic, eager"] = prefill(models.ours["eager"])
    work = Work(batch, length)
    alternatives |= floor_functions(models.ours["grouped_mm"], work)
    row = make_row("prefill", models, batch, length, time_paired(alternatives, repeats))
    return row | {"active": active_weights(models.ours["grouped_mm"], work)}


@torch.no_grad()
def measure_decode(
    models: Models, batch: int, context: int, repeats: int, calls: int, compiled_experts: tuple[str, ...]
) -> dict:
    """One more token behind `context` ones. Growing caches; compiled, a static cache with room for the run alone."""
    tokens = random_tokens(models.shape, batch, context)
    alternatives = {THEIRS: their_decode_step(models.theirs, tokens)}
    alternatives |= {f"dynamic, {name}": our_decode_step(models.ours[name], tokens) for name in EXPERTS}
    torch._dynamo.reset()
    capacity = context + COMPILE_WARM_UP + repeats * calls
    for name in compiled_experts:
        step = our_decode_step(models.ours[name], tokens, capacity)
        for _ in range(COMPILE_WARM_UP - 1):
            step()
        alternatives[f"compiled, {name}"] = step
    work = Work(batch, 1, context)
    alternatives |= floor_functions(models.ours["grouped_mm"], work)
    row = make_row("decode", models, batch, context, time_paired(alternatives, repeats, calls))
    return row | {"active": active_weights(models.ours["grouped_mm"], work)}


def fastest_experts(row: dict, kind: str, among: tuple[str, ...] = EXPERTS) -> str:
    """The experts implementation with the lowest median among a row's `kind` (`"dynamic"` or `"compiled"`) ones."""
    return min((name for name in among if f"{kind}, {name}" in row["ms"]), key=lambda n: row["ms"][f"{kind}, {n}"])


def generation(model, tokens: torch.Tensor, new_tokens: int, compiled: bool = False) -> Callable[[], object]:
    """Greedy `generate`, to the full length whatever it says."""
    options: dict = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": None}
    if compiled:
        compile_config = CompileConfig(fullgraph=True, mode="default")
        compile_config._compile_all_devices = True  # type: ignore[assignment]  # `generate` compiles by itself on accelerators only
        options |= {"cache_implementation": "static", "compile_config": compile_config}
    return lambda: model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)


@torch.no_grad()
def measure_generation(
    models: Models, prompt: int, new_tokens: int, repeats: int, dynamic_experts: str, compiled_experts: str | None
) -> dict:
    """`generate` from end to end, batch 1. Its floor: that of the prefill, and of `new_tokens` steps at mid-length."""
    tokens = random_tokens(models.shape, 1, prompt)
    alternatives = {
        THEIRS: generation(models.theirs, tokens, new_tokens),
        f"dynamic, {dynamic_experts}": generation(models.ours[dynamic_experts], tokens, new_tokens),
    }
    for model in (models.theirs, models.ours[dynamic_experts]):
        generation(model, tokens, 2)()
    if compiled_experts:
        torch._dynamo.reset()
        compiled = generation(models.ours[compiled_experts], tokens, new_tokens, compiled=True)
        compiled()  # warmed up at full length, which the graph's cache is made for
        alternatives[f"compiled, {compiled_experts}"] = compiled
    row = make_row("generation", models, 1, prompt, time_paired(alternatives, repeats, warm_up=0))
    row["new_tokens"] = new_tokens
    floor_ms = 0.0
    for work, times in ((Work(1, prompt), 1), (Work(1, 1, prompt + new_tokens // 2), new_tokens - 1)):
        floors = time_paired(floor_functions(models.ours["grouped_mm"], work), repeats + 2)
        floor_ms += times * max(floors.median_ms(part) for part in FLOOR_PARTS)
    row |= {"floor": "products and reading", "floor_ms": floor_ms}
    row["ratios"] |= {f"{name} / floor": row["ms"][name] / floor_ms for name in alternatives}
    return row


def ngram_layers(models: Models, length: int) -> dict[str, Callable[[], torch.Tensor]]:
    """`NgramEmbedding` and the loop over sub-tables, on the same `length` tokens of one row."""
    ours = models.ours["grouped_mm"]
    layer = ours.model.ngram_embeddings
    assert layer is not None
    loop = PerTableNgramEmbedding(ours.config, layer.embedders, layer.post_proj)
    tokens = random_tokens(models.shape, 1, ours.config.max_ngram_order - 1 + length)
    words = ours.model.embed_tokens(tokens[:, -length:])
    return {"per-table loop": lambda: loop(words, tokens), "one pass": lambda: layer(words, tokens)}


@torch.no_grad()
def measure_ngram_layer(models: Models, length: int, repeats: int, calls: int, compiled: bool) -> dict:
    """The n-gram layer alone: hash, look up, project and average `length` tokens.

    `compiled` adds the layer as compiled decoding has it. The loop cannot be compiled: it asks where sequences end.
    """
    layers = ngram_layers(models, length)
    if compiled:
        torch._dynamo.reset()
        layers["one pass, compiled"] = torch.compile(layers["one pass"], fullgraph=True, dynamic=False)
    looped, *at_once = (function().float() for function in layers.values())
    for result in at_once:
        # One order of summation against another: bfloat16 keeps 8 bits of each of 13 terms.
        torch.testing.assert_close(looped, result, atol=2e-3, rtol=2e-2)
    times = time_paired(layers, repeats, calls, warm_up=3)
    return make_row("n-gram layer", models, 1, length, times, baseline="per-table loop")


@torch.no_grad()
def profile_cases(models: Models, context: int, length: int, with_compiled: bool) -> dict:
    """Operations of our decode step, prefill and n-gram layer, and of transformers' decode step."""
    model: LongCatLiteForCausalLM = models.ours["grouped_mm"]
    tokens, prompt = random_tokens(models.shape, 1, context), random_tokens(models.shape, 1, length)
    cases: dict[str, Callable[[], object]] = {
        f"in-tree decode at {context}": their_decode_step(models.theirs, tokens),
        f"dynamic decode at {context}": our_decode_step(model, tokens),
        f"prefill of {length}": lambda: model(input_ids=prompt, use_cache=True, logits_to_keep=1),
        "n-gram layer, 1 token": ngram_layers(models, 1)["one pass"],
        f"n-gram layer, {length} tokens": ngram_layers(models, length)["one pass"],
    }
    if with_compiled and no_compiler_reason() is None:
        torch._dynamo.reset()
        cases[f"compiled decode at {context}"] = our_decode_step(model, tokens, context + 16)
    return {name: profile_operations(function) for name, function in cases.items()}


def profile_operations(function: Callable[[], object], calls: int = 5, top: int = 10) -> dict:
    """Profiles `calls` calls of `function`, after two that warm up.

    Returns:
        `operations`, the `top` ones by their own time: name, calls and milliseconds per call of `function`, share of
        the time of all operations; `operation_calls` and `operation_ms`, all operations of one call of `function`. The
        profiler slows every operation by microseconds: read the shares, and take times from the tables.
    """
    for _ in range(2):
        function()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(calls):
            function()
    events = sorted(profiler.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
    total = sum(event.self_cpu_time_total for event in events)
    operations = [
        {
            "name": event.key,
            "calls": event.count / calls,
            "ms": event.self_cpu_time_total / calls / 1000,
            "share": event.self_cpu_time_total / total,
        }
        for event in events[:top]
    ]
    return {
        "operations": operations,
        "operation_calls": sum(event.count for event in events) / calls,
        "operation_ms": total / calls / 1000,
    }


__all__ = [
    "fastest_experts",
    "measure_decode",
    "measure_generation",
    "measure_ngram_layer",
    "measure_prefill",
    "profile_cases",
    "profile_operations",
]
