# SPDX-License-Identifier: Apache-2.0
"""Fast decoding: attention to latents equals attention to heads, and compiled decoding is one graph."""

import shutil
from pathlib import Path

import generation_cases
import pytest
import torch
from conftest import PLAIN_ROPE, YARN_ROPE, randomize, tiny_config
from generation_cases import CACHES, CASES, MODES, left_padded, run
from safetensors.torch import load_file
from transformers import CompileConfig, DynamicCache, StaticCache

from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.mla import LongCatLiteMLA
from modeling_longcat_lite.rotary_embedding import LongCatLiteRotaryEmbedding

CONFORMANCE = Path(__file__).parents[1] / "conformance"

needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


def load(case: str, **kwargs):
    model = LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / case, dtype=torch.float32, **kwargs)
    return model, load_file(CONFORMANCE / case / "golden.safetensors")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("rope", [PLAIN_ROPE, YARN_ROPE], ids=["plain", "yarn"])
@pytest.mark.parametrize("new_tokens", [1, 4])
@torch.no_grad()
def test_attention_to_latents_equals_attention_to_heads(attention, rope, new_tokens, monkeypatch):
    config = tiny_config(rope_parameters=dict(rope), attn_implementation=attention)
    mla, rotary = randomize(LongCatLiteMLA(config, layer_idx=0)), LongCatLiteRotaryEmbedding(config)
    torch.manual_seed(0)
    states = torch.randn(3, 20 + new_tokens, config.hidden_size)
    positions = torch.arange(states.shape[1])[None]
    mask = torch.ones(new_tokens, states.shape[1]).tril(20).bool()[None, None]
    mask = mask if attention == "sdpa" else torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    outputs = {}
    for in_latents in (True, False):
        monkeypatch.setattr(LongCatLiteMLA, "_latents_are_cheaper", lambda *_: False)
        cache = DynamicCache()
        mla(states[:, :20], rotary(states, positions[:, :20]), None, cache)
        monkeypatch.setattr(LongCatLiteMLA, "_latents_are_cheaper", lambda *_, choice=in_latents: choice)
        outputs[in_latents], _ = mla(states[:, 20:], rotary(states, positions[:, 20:]), mask, cache)
    torch.testing.assert_close(outputs[True], outputs[False], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_decoding_expands_no_history(monkeypatch):
    model, golden = load("base")
    cache = model(golden["input_ids"], use_cache=True).past_key_values
    monkeypatch.setattr(LongCatLiteMLA, "_attend_to_heads", None)  # a call would raise
    model(golden["input_ids"][:, :1], past_key_values=cache)


@torch.no_grad()
def test_adapters_on_the_expanding_projection_take_effect_in_decoding():
    from peft import LoraConfig, get_peft_model

    model, golden = load("base")
    ids = golden["input_ids"]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["kv_b_proj"], init_lora_weights=False)).eval()
    full = adapted(ids).logits
    cache = adapted(ids[:, :20], use_cache=True).past_key_values
    pieces = [adapted(piece, past_key_values=cache).logits for piece in ids[:, 20:].split(1, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), full[:, 20:], atol=1e-4, rtol=0)


def compiled(backend: str) -> CompileConfig:
    config = CompileConfig(fullgraph=True, backend=backend, mode=None)
    config._compile_all_devices = True  # `generate` compiles by itself on accelerators only
    return config


def generate_compiled(model, prompts, backend: str, **kwargs) -> torch.Tensor:
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "cache_implementation": "static"}
    return model.generate(prompts, compile_config=compiled(backend), **options, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["base", "yarn", "bigram", "fractional", "released"])
@pytest.mark.parametrize("experts", ["grouped_mm", "batched_mm"])
def test_compiled_decoding_is_one_graph_without_a_second_compilation(case, experts):
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model, golden = load(case, experts_implementation=experts)
    assert torch.equal(generate_compiled(model, golden["prompts"], "aot_eager"), golden["greedy"])
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert torch.equal(generate_compiled(model, golden["prompts"], "aot_eager"), golden["greedy"])
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("mode", "cache", "padded"),
    [
        ("greedy", "static", True),
        ("greedy", "static_chunked", False),
        ("beam", "static", True),
        ("beam_returns_3", "static", False),
        ("sample_returns_3", "static", True),
    ],
)
def test_compilation_changes_no_token(case, mode, cache, padded):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, ids = generation_cases.load(case), generation_cases.prompts(case)
    mask = torch.ones_like(ids)
    if padded:
        ids, mask, _ = left_padded(ids)
    options = MODES[mode] | {"max_new_tokens": 6}
    expected = run(model, ids, mask, use_cache=False, **options)
    found = run(model, ids, mask, compile_config=compiled("aot_eager"), **options, **CACHES[cache])
    assert torch.equal(found, expected)
    # transformers does not compile its beam search: there, asking for it must do no harm.
    assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == ("beam" not in mode)


@needs_a_compiler
@pytest.mark.slow
@torch.no_grad()
def test_the_documented_way_on_a_cpu():
    torch._dynamo.reset()
    model, golden = load("base")
    assert torch.equal(generate_compiled(model, golden["prompts"], "inductor"), golden["greedy"])


def test_continuous_batching_is_refused_at_once():
    model, golden = load("base")
    with pytest.raises(NotImplementedError, match="Continuous batching"):
        model.generate_batch([row.tolist() for row in golden["prompts"]])


def test_a_static_cache_names_what_it_cannot_do():
    model, golden = load("base")
    cache = StaticCache(config=model.config, max_cache_len=48)
    with torch.no_grad():
        model(golden["input_ids"], past_key_values=cache)
    history = cache.token_history.clone()
    for call in (lambda: cache.crop(-1), lambda: cache.batch_repeat_interleave(2)):
        with pytest.raises(ValueError, match="dynamic cache"):
            call()
    assert torch.equal(cache.token_history, history)
