# SPDX-License-Identifier: Apache-2.0
"""The speed comparison runs from end to end, and what it compares is comparable."""

import json

import pytest
import torch

from eval.speed.generation import __main__ as generation_speed
from eval.speed.generation.expert_work import measure_expert_work
from eval.speed.generation.floor import Work, active_weights, expert_rows
from eval.speed.generation.per_table_ngrams import PerTableNgramEmbedding
from eval.speed.generation.targets import judge_all
from eval.speed.models import EXPERTS, Shape, build_models, no_compiler_reason, our_decode_step, random_tokens
from eval.speed.paired_timing import PairedTimes

SHAPE = [
    "vocab_size=256",
    "hidden_size=48",
    "num_layers=1",
    "num_attention_heads=2",
    "ffn_hidden_size=64",
    "expert_ffn_hidden_size=16",
    "q_lora_rank=24",
    "kv_lora_rank=16",
    "qk_nope_head_dim=8",
    "qk_rope_head_dim=8",
    "v_head_dim=8",
    "n_routed_experts=4",
    "zero_expert_num=2",
    "moe_topk=2",
    "max_position_embeddings=512",
]


@pytest.fixture(scope="module")
def models():
    return build_models(generation_speed.parse_shape(SHAPE), "fp32", seed=0)


def test_the_command_writes_json_markdown_and_a_chart(tmp_path):
    arguments = ["--quick", "--no-compile", "--repeats", "1", "--output", str(tmp_path), "--shape", *SHAPE]
    generation_speed.main(generation_speed.make_parser().parse_args(arguments))
    written = json.loads((tmp_path / "generation_speed.json").read_text())
    assert {"date", "torch", "transformers", "cpu", "cores", "threads"} <= written["machine"].keys()
    assert len(written["load_average"]["start"]) == len(written["load_average"]["end"]) == 3
    assert {row["section"] for row in written["rows"]} == {"prefill", "decode", "generation", "n-gram layer"}
    assert {row["dtype"] for row in written["rows"]} == {"fp32", "bf16"} == written["profiles"].keys()
    decode = next(row for row in written["rows"] if row["section"] == "decode")
    assert decode["ms"].keys() == {"in-tree", *(f"dynamic, {name}" for name in EXPERTS), "products", "reading"}
    assert decode["floor_ms"] == max(decode["ms"]["products"], decode["ms"]["reading"])
    assert all(ratio > 0 for row in written["rows"] for ratio in row["ratios"].values())
    report = (tmp_path / "generation_speed.md").read_text()
    assert "Not compiled: `--no-compile` was given." in report
    assert f"{decode['ms']['in-tree']:.2f}" in report
    assert (tmp_path / "generation_speed.png").read_bytes().startswith(b"\x89PNG")


@torch.no_grad()
def test_the_loop_over_subtables_computes_the_same(models):
    model = models.ours["grouped_mm"]
    layer, order = model.model.ngram_embeddings, model.config.max_ngram_order
    loop = PerTableNgramEmbedding(model.config, layer.embedders, layer.post_proj)
    tokens = random_tokens(models.shape, 2, order - 1 + 20)
    tokens[0, 9] = tokens[1, 4] = tokens[1, -1] = model.config.eos_token_id
    words = model.model.embed_tokens(tokens[:, order - 1 :])
    torch.testing.assert_close(loop(words, tokens), layer(words, tokens))


@pytest.mark.parametrize("capacity", [None, 12])
@torch.no_grad()
def test_a_filled_cache_serves_both_kinds_of_decoding(models, capacity, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    tokens = random_tokens(models.shape, 2, 9)
    step = our_decode_step(models.ours["eager"], tokens, capacity)
    first, second = step(), step()
    assert first.logits.shape == (2, 1, models.shape.vocab_size)
    assert int(second.past_key_values.get_seq_length()) == 11


def test_zero_experts_multiply_nothing(models):
    work = measure_expert_work(models, 64, repeats=1)
    assert work["selected_zero"] > 0
    for name in ("ours, grouped_mm", "ours, eager", "in-tree"):
        assert work["implementations"][name]["flops"] == work["necessary_flops"]
        assert work["implementations"][name]["largest_difference"] < 1e-5
    assert work["implementations"]["ours, grouped_mm"]["calls_per_expert"] == 0


def test_the_floor_counts_what_a_token_activates(models):
    config = models.ours["grouped_mm"].config
    # Of 2 selected experts of 6, 4 of them routed: 1.33 routed ones a token.
    assert expert_rows(config, 1) == [1] and expert_rows(config, 30) == [10, 10, 10, 10]
    parameters = dict(models.ours["grouped_mm"].named_parameters())
    matrices = [p.numel() for name, p in parameters.items() if p.ndim == 2 and "embed" not in name]
    projection = parameters["model.ngram_embeddings.post_proj.weight"].numel()
    expert = 3 * config.hidden_size * config.expert_ffn_hidden_size
    counted = active_weights(models.ours["grouped_mm"], Work(batch=1, length=1, history=8))
    assert counted == {"count": sum(matrices) + projection + expert, "bytes": 4 * counted["count"]}


def test_targets_are_judged_on_paired_ratios():
    times = PairedTimes({"per-table loop": [4.0, 9.0, 40.0], "one pass": [1.0, 2.0, 10.0]})
    assert times.ratio("per-table loop", "one pass") == 4.0
    ratios = {"per-table loop / one pass": 4.0}
    row = {"section": "n-gram layer", "dtype": "fp32", "batch": 1, "tokens": 1, "ms": {"one pass": 2.0}}
    (verdict,) = judge_all([row | {"ratios": ratios}])
    assert verdict["met"] and verdict["value"] == 4.0
    prefill = {"section": "prefill", "dtype": "bf16", "batch": 1, "tokens": 512, "ms": {"dynamic, eager": 3.0}}
    (verdict,) = judge_all([prefill | {"ratios": {"dynamic, eager / floor": 2.5, "in-tree / dynamic, eager": 9.0}}])
    assert not verdict["met"] and verdict["value"] == 2.5


def test_a_shape_names_the_field_it_does_not_know():
    assert generation_speed.parse_shape(["hidden_size=96"]) == Shape(hidden_size=96)
    with pytest.raises(ValueError, match="`hiden_size`"):
        generation_speed.parse_shape(["hiden_size=96"])


def test_without_a_compiler_the_reason_is_given(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in no_compiler_reason()
