# SPDX-License-Identifier: Apache-2.0
"""`eval.fit` counts bytes: against the tensors of loaded models and of forwards, and the memory of a process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import randomize, tiny_config
from fit_measurement import prefill
from live_tensors import LiveTensors

from eval.fit.activations import Workload, activation_bytes, cache_bytes, latents_are_cheaper, stage_bytes
from eval.fit.placement import PLACEMENTS, Machine, Model, plan
from eval.fit.weights import TABLES, read_checkpoint, weigh
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM

ROOT = Path(__file__).parents[2]
GB = 10**9


def test_the_released_model():
    released = Model.of(read_checkpoint(None), bits=None)
    parts = {p: sum(unit.parts.get(p, 0) for unit in released.units["resident"]) for p in (TABLES, "routed experts")}
    assert parts[TABLES] == released.tables["disk"] == 2 * 256 * sum(LongCatLiteConfig().subtable_sizes)
    assert parts["routed experts"] == 2 * 33_822_867_456
    draft_head = sum(unit.parts.get("draft head", 0) for unit in released.units["resident"])
    assert draft_head - 64 * 4 == 2 * 510_870_528  # less its two rotary buffers
    one_token = cache_bytes(LongCatLiteConfig(), Workload(context=1), torch.bfloat16)
    assert one_token == 28 * (512 + 64) * 2 + 4 * 8


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_tables_of_few_bits(bits):
    checkpoint = read_checkpoint(None)
    rows = sum(checkpoint.config.subtable_sizes)
    row = {16: 512, 8: 256 + 4, 4: 128 + 4}[bits]
    for placement in PLACEMENTS:
        assert sum(unit.parts.get(TABLES, 0) for unit in weigh(checkpoint, placement, bits)) == rows * row


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(
    "overrides",
    [
        {"num_nextn_predict_layers": 1},
        {"embedding_amplification": "layer_norm", "router_bias": True, "attention_bias": True},
        {"tie_word_embeddings": True, "emb_neighbor_num": 3},
    ],
    ids=["draft head", "biases", "tied"],
)
def test_every_byte_of_a_loaded_model(tmp_path, overrides, placement, dtype):
    config = tiny_config(**overrides)
    randomize(LongCatLiteForCausalLM(config)).to(torch.float16).save_pretrained(tmp_path)
    # As in a released checkpoint, where the draft head is found in the files alone.
    written = json.loads((tmp_path / "config.json").read_text())
    written.pop("num_nextn_predict_layers", None)
    (tmp_path / "config.json").write_text(json.dumps(written))

    model = LongCatLiteForCausalLM.from_pretrained(tmp_path, dtype=dtype, ngram_tables=placement)
    weighed = Model.of(read_checkpoint(str(tmp_path), dtype), bits=None)
    tensors = [*model.parameters(), *model.buffers()]
    assert sum(unit.size for unit in weighed.units[placement]) == sum(t.numel() * t.itemsize for t in tensors)
    if placement == "host":
        rows = model.model.ngram_embeddings.tables.rows
        assert weighed.tables["host"] == sum(table.numel() for table in rows)

    output = model.generate(torch.full((2, 9), 7), max_new_tokens=4, return_dict_in_generate=True, pad_token_id=3)
    cache = output.past_key_values
    held = [t for layer in cache.layers for t in (layer.keys, layer.values)] + [cache.token_history]
    run = Workload(context=held[0].shape[2], batch=2)
    assert cache_bytes(config, run, model.dtype) == sum(t.numel() * t.itemsize for t in held)


# Shape, placement, context, rows, chunk: in each another part of the memory is the largest.
SMALL = {
    "vocab_size": 4096,
    "hidden_size": 384,
    "num_attention_heads": 4,
    "ffn_hidden_size": 512,
    "expert_ffn_hidden_size": 128,
    "q_lora_rank": 128,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 16,
    "zero_expert_num": 8,
    "moe_topk": 4,
    "max_position_embeddings": 16384,
    "ngram_vocab_size_ratio": 3.3,
}
MEASURED = {
    "tables": ({"ngram_vocab_size_ratio": 36.3}, "resident", 256, 1, 256),
    "tables on the host": ({"ngram_vocab_size_ratio": 70.3}, "host", 256, 1, 256),
    "experts": ({"n_routed_experts": 192, "ngram_vocab_size_ratio": 20.3}, "disk", 256, 1, 256),
    "outputs of experts": ({"moe_topk": 8}, "disk", 2048, 2, 2048),
    "cache and chunks": ({"kv_lora_rank": 512, "num_attention_heads": 8}, "disk", 3072, 3, 512),
    "attention": ({"num_attention_heads": 16, "moe_topk": 1}, "resident", 3000, 1, 3000),
}


# Shape, context, rows, chunk; the stage of a forward that is the largest.
STAGES = {
    "experts": ({"moe_topk": 8}, 512, 2, 512),
    "attention": ({"num_attention_heads": 16, "moe_topk": 1}, 900, 1, 900),
    "dense MLP": ({"ffn_hidden_size": 4096, "moe_topk": 1}, 512, 1, 512),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stage", STAGES)
def test_tensors_that_live_during_a_prefill(stage, dtype):
    overrides, context, batch, chunk = STAGES[stage]
    run = Workload(context, batch, chunk)
    model = LongCatLiteForCausalLM(tiny_config(**SMALL | overrides)).to(dtype).eval()
    stages = stage_bytes(model.config, run, dtype)
    assert max(stages, key=lambda name: stages[name]) == stage
    with LiveTensors([*model.parameters(), *model.buffers()]) as tensors:
        prefill(model, context, batch, chunk)
    expected = activation_bytes(model.config, run, dtype) + cache_bytes(model.config, run, dtype)
    assert expected == pytest.approx(tensors.peak, rel=0.05)


def test_tensors_that_live_behind_a_history():
    config = tiny_config(**SMALL | {"num_attention_heads": 8, "moe_topk": 1})
    run, model = Workload(2048, 1, 256), LongCatLiteForCausalLM(config).eval()
    with LiveTensors([*model.parameters(), *model.buffers()]) as tensors:
        prefill(model, run.context, run.batch, run.chunk)
    expected = activation_bytes(config, run, model.dtype) + cache_bytes(config, run, model.dtype)
    assert expected == pytest.approx(tensors.peak, rel=0.05)


@pytest.mark.slow  # a process of its own, and models of up to 280 MB
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="measures with /proc")
@pytest.mark.parametrize("name", MEASURED)
def test_memory_of_a_process(tmp_path, name):
    overrides, placement, context, batch, chunk = MEASURED[name]
    LongCatLiteForCausalLM(tiny_config(**SMALL | overrides)).to(torch.bfloat16).save_pretrained(tmp_path)
    weighed, run = Model.of(read_checkpoint(str(tmp_path), "float32"), None), Workload(context, batch, chunk)
    held = plan(weighed, run, Machine(gpus=0, gpu_memory=0, host_memory=64 * GB), placement).host

    command = [
        sys.executable,
        Path(__file__).with_name("fit_measurement.py"),
        tmp_path,
        placement,
        context,
        batch,
        chunk,
    ]
    # Freed memory goes back at once, so that what is there is what is used.
    settings = {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=os.environ | settings, check=True, capture_output=True, text=True
    )
    measured = json.loads(done.stdout.splitlines()[-1])

    weights = sum(unit.size for unit in weighed.units[placement])
    on_host = weighed.tables["host"] if placement == "host" else 0
    assert measured["weights"] == weights and measured["tables"] == on_host
    assert measured["cache"] == held["KV cache"]
    estimated = sum(held.values()) - held["reserve"]
    assert weights + on_host == pytest.approx(measured["loaded"], rel=0.05)
    assert estimated == pytest.approx(measured["peak"], rel=0.05)


@pytest.mark.parametrize(("chunk", "context"), [(1, 9), (2, 9), (3, 40), (9, 9), (8, 300), (40, 300)])
def test_attention_in_latents_or_heads_is_decided_as_the_model_does(chunk, context):
    config = tiny_config(kv_lora_rank=32)
    attention = LongCatLiteForCausalLM(config).eval().model.layers[0].self_attn[0]
    query, latent = torch.zeros(1, 2, chunk, 12), torch.zeros(1, 1, context, 32)
    mask = None if chunk == context else torch.ones(1, 1, chunk, context, dtype=torch.bool)
    run = Workload(context, 1, chunk)
    assert latents_are_cheaper(config, run) == attention._latents_are_cheaper(query, latent, mask)


def test_shorter_chunks_hold_less():
    config = LongCatLiteConfig()
    held = [activation_bytes(config, Workload(chunk=chunk), torch.bfloat16) for chunk in (512, 2048, 8192, 32768)]
    assert held == sorted(held) and held[-1] > 14 * GB


def test_a_damaged_file_is_named(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        read_checkpoint(str(tmp_path))
