# SPDX-License-Identifier: Apache-2.0
"""The measured cases: prefill, decode, generation, the n-gram layer, and profiles of the operations in them.

A case gives a row. Its `ms` holds the median milliseconds of every alternative, its `ratios` medians over paired runs:
`"in-tree / x"` says how many times as fast as transformers' model `x` is, `"x / roofline"` how many times as long as
the roofline it takes.
"""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import CompileConfig

from eval.speed.generation.per_table_ngrams import PerTableNgramEmbedding
from eval.speed.generation.roofline import PARTS, Forward, active_weights, roofline_functions
from eval.speed.models import EXPERTS, Models, our_decode_step, random_tokens, their_decode_step
from eval.speed.paired_timing import PairedTimes, time_paired

THEIRS = "in-tree"
COMPILE_WARM_UP = 3  # the first call compiles, the second may compile another graph
NOT_BATCHED = ("grouped_mm", "eager")  # `batched_mm` copies an expert's weights for each token of a prompt


def make_row(
    section: str, models: Models, batch: int, tokens: int, times: PairedTimes, baseline: str = THEIRS
) -> dict:
    """Medians, and the ratios of `baseline` to the others and of all to the roofline, if that was timed."""
    names = [name for name in times.seconds if name not in PARTS]
    row: dict = {
        "section": section,
        "dtype": models.dtype,
        "batch": batch,
        "tokens": tokens,
        "ms": {name: times.median_ms(name) for name in times.seconds},
        "ratios": {f"{baseline} / {name}": times.ratio(baseline, name) for name in names if name != baseline},
        "seconds": times.seconds,
    }
    if PARTS[0] in times.seconds:
        largest = max(PARTS, key=times.median_ms)
        row |= {"roofline": largest, "roofline_ms": times.median_ms(largest)}
        row["ratios"] |= {f"{name} / roofline": times.ratio(name, largest) for name in names}
    return row


def prefill(model, tokens: torch.Tensor) -> Callable[[], object]:
    """A forward over a whole prompt that fills a cache and scores its last position, as `generate` runs it."""
    return lambda: model(input_ids=tokens, use_cache=True, logits_to_keep=1)


@torch.no_grad()
def measure_prefill(models: Models, batch: int, length: int, repeats: int) -> dict:
    """[`prefill`] of `batch` prompts of `length` tokens."""
    tokens = random_tokens(models.shape.vocab_size, batch, length)
    alternatives = {THEIRS: prefill(models.theirs, tokens)}
    alternatives |= {f"dynamic, {name}": prefill(models.ours[name], tokens) for name in NOT_BATCHED}
    forward, ours = Forward(batch, length), models.ours["grouped_mm"]
    times = time_paired(alternatives | roofline_functions(ours, forward), repeats)
    return make_row("prefill", models, batch, length, times) | {"active": active_weights(ours, forward)}


@torch.no_grad()
def measure_decode(
    models: Models, batch: int, context: int, repeats: int, calls: int, compiled_experts: tuple[str, ...]
) -> dict:
    """One more token after `context` ones: growing caches, and compiled, a static cache with room for these calls."""
    tokens = random_tokens(models.shape.vocab_size, batch, context)
    alternatives = {THEIRS: their_decode_step(models.theirs, tokens)}
    alternatives |= {f"dynamic, {name}": our_decode_step(models.ours[name], tokens) for name in EXPERTS}
    torch._dynamo.reset()
    capacity = context + COMPILE_WARM_UP + repeats * calls
    for name in compiled_experts:
        step = our_decode_step(models.ours[name], tokens, capacity)
        for _ in range(COMPILE_WARM_UP - 1):
            step()
        alternatives[f"compiled, {name}"] = step
    forward, ours = Forward(batch, 1, context), models.ours["grouped_mm"]
    times = time_paired(alternatives | roofline_functions(ours, forward), repeats, calls)
    return make_row("decode", models, batch, context, times) | {"active": active_weights(ours, forward)}


def fastest_experts(row: dict, kind: str, among: tuple[str, ...] = EXPERTS) -> str:
    """The experts implementation with the lowest median among a row's `kind` (`"dynamic"` or `"compiled"`) ones."""
    return min((name for name in among if f"{kind}, {name}" in row["ms"]), key=lambda n: row["ms"][f"{kind}, {n}"])


def generation(model, tokens: torch.Tensor, new_tokens: int, compiled: bool = False) -> Callable[[], object]:
    """Greedy `generate` of exactly `new_tokens` tokens."""
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
    """`generate` from end to end, batch 1.

    Its roofline is that of the prefill plus `new_tokens - 1` times that of a decode step at half of the new tokens.
    """
    tokens = random_tokens(models.shape.vocab_size, 1, prompt)
    alternatives = {
        THEIRS: generation(models.theirs, tokens, new_tokens),
        f"dynamic, {dynamic_experts}": generation(models.ours[dynamic_experts], tokens, new_tokens),
    }
    for model in (models.theirs, models.ours[dynamic_experts]):
        generation(model, tokens, 2)()
    if compiled_experts:
        torch._dynamo.reset()
        compiled = generation(models.ours[compiled_experts], tokens, new_tokens, compiled=True)
        compiled()  # warmed up at full length: the graph is made for a cache of that size
        alternatives[f"compiled, {compiled_experts}"] = compiled
    row = make_row("generation", models, 1, prompt, time_paired(alternatives, repeats, warm_up=0))
    roofline_ms = 0.0
    for forward, times in ((Forward(1, prompt), 1), (Forward(1, 1, prompt + new_tokens // 2), new_tokens - 1)):
        parts = time_paired(roofline_functions(models.ours["grouped_mm"], forward), repeats + 2)
        roofline_ms += times * max(parts.median_ms(part) for part in PARTS)
    row |= {"new_tokens": new_tokens, "roofline": "products and reading", "roofline_ms": roofline_ms}
    row["ratios"] |= {f"{name} / roofline": row["ms"][name] / roofline_ms for name in alternatives}
    return row


def ngram_layers(models: Models, length: int) -> dict[str, Callable[[], torch.Tensor]]:
    """`NgramEmbedding` and the loop over sub-tables, on the same `length` tokens of one row."""
    ours = models.ours["grouped_mm"]
    layer = ours.model.ngram_embeddings
    assert layer is not None
    loop = PerTableNgramEmbedding(ours.config, layer.embedders, layer.post_proj)
    tokens = random_tokens(models.shape.vocab_size, 1, ours.config.max_ngram_order - 1 + length)
    words = ours.model.embed_tokens(tokens[:, -length:])
    return {"per-table loop": lambda: loop(words, tokens), "one pass": lambda: layer(words, tokens)}


@torch.no_grad()
def measure_ngram_layer(models: Models, length: int, repeats: int, compiled: bool) -> dict:
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
    times = time_paired(layers, repeats, calls=max(1, 64 // length), warm_up=3)
    return make_row("n-gram layer", models, 1, length, times, baseline="per-table loop")


@torch.no_grad()
def profile_cases(models: Models, context: int, length: int, compiled: bool) -> dict:
    """Operations of our decode step, prefill and n-gram layer, and of transformers' decode step."""
    model = models.ours["grouped_mm"]
    tokens, prompt = (random_tokens(models.shape.vocab_size, 1, tokens) for tokens in (context, length))
    cases: dict[str, Callable[[], object]] = {
        f"in-tree decode at {context}": their_decode_step(models.theirs, tokens),
        f"dynamic decode at {context}": our_decode_step(model, tokens),
        f"prefill of {length}": prefill(model, prompt),
        "n-gram layer, 1 token": ngram_layers(models, 1)["one pass"],
        f"n-gram layer, {length} tokens": ngram_layers(models, length)["one pass"],
    }
    if compiled:
        torch._dynamo.reset()
        cases[f"compiled decode at {context}"] = our_decode_step(model, tokens, context + 16)
    return {name: profile_operations(function) for name, function in cases.items()}


def profile_operations(function: Callable[[], object], calls: int = 5, top: int = 10) -> dict:
    """Profiles `calls` calls of `function`, after two that warm up.

    The profiler slows every operation by microseconds: read the shares, and take times from the tables.

    Returns:
        `operations`, the `top` ones by their own time: name, calls and milliseconds per call of `function`, share of
        the time of all operations; `operation_calls` and `operation_ms`, all operations of one call of `function`.
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
    "NOT_BATCHED",
    "fastest_experts",
    "measure_decode",
    "measure_generation",
    "measure_ngram_layer",
    "measure_prefill",
    "profile_cases",
]
