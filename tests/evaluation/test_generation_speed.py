# SPDX-License-Identifier: Apache-2.0
"""The speed comparison runs from end to end, and what it compares is comparable."""

import json

import pytest
import torch
from drawn_figures import drawn_figures
from torch.utils.flop_counter import FlopCounterMode

from eval.speed.generation.__main__ import main, make_parser
from eval.speed.generation.moe_flops import measure_moe_flops
from eval.speed.generation.per_table_ngrams import PerTableNgramEmbedding
from eval.speed.generation.roofline import Forward, active_weights, expert_rows, roofline_functions, weight_products
from eval.speed.models import (
    EXPERTS,
    Shape,
    build_models,
    no_compiler_reason,
    our_decode_step,
    parse_shape,
    random_tokens,
)
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
    return build_models(parse_shape(SHAPE, Shape()), "fp32", seed=0)


def test_the_command_writes_json_markdown_and_a_chart(tmp_path):
    arguments = ["--quick", "--no-compile", "--repeats", "1", "--output", str(tmp_path), "--shape", *SHAPE]
    with drawn_figures() as figures:
        main(make_parser().parse_args(arguments))
    written = json.loads((tmp_path / "generation_speed.json").read_text())
    assert {"date", "torch", "transformers", "cpu", "cores", "threads"} <= written["machine"].keys()
    assert len(written["load_average"]["start"]) == len(written["load_average"]["end"]) == 3
    assert {row["section"] for row in written["rows"]} == {"prefill", "decode", "generation", "n-gram layer"}
    assert {row["dtype"] for row in written["rows"]} == {"fp32", "bf16"} == written["profiles"].keys()
    decode = next(row for row in written["rows"] if row["section"] == "decode")
    assert decode["ms"].keys() == {"in-tree", *(f"dynamic, {name}" for name in EXPERTS), "products", "reading"}
    assert decode["roofline_ms"] == max(decode["ms"]["products"], decode["ms"]["reading"])
    assert all(ratio > 0 for row in written["rows"] for ratio in row["ratios"].values())
    report = (tmp_path / "generation_speed.md").read_text()
    assert "Not compiled: `--no-compile` was given." in report
    assert f"{decode['ms']['in-tree']:.2f}" in report
    panel = figures["generation_speed.png"].panel("fp32")
    assert panel.x_label == "ms (median)" and panel.x_scale == "log"
    assert panel.labels == panel.legend == ["in-tree", "dynamic", "compiled", "roofline"]
    assert panel.y_ticks[-1] == "generation, 1 x 64 in, 8 out" and len(panel.y_ticks) == 6
    assert panel.series("in-tree").named["decode, 1 x 32"] == pytest.approx(decode["ms"]["in-tree"])
    dynamic = min(ms for name, ms in decode["ms"].items() if name.startswith("dynamic"))
    assert panel.series("dynamic").named["decode, 1 x 32"] == pytest.approx(dynamic)
    assert panel.series("roofline").named["decode, 1 x 32"] == pytest.approx(decode["roofline_ms"])


@torch.no_grad()
def test_the_loop_over_subtables_computes_the_same(models):
    model = models.ours["grouped_mm"]
    layer, order = model.model.ngram_embeddings, model.config.max_ngram_order
    loop = PerTableNgramEmbedding(model.config, layer.embedders, layer.post_proj)
    tokens = random_tokens(models.shape.vocab_size, 2, order - 1 + 20)
    tokens[0, 9] = tokens[1, 4] = tokens[1, -1] = model.config.eos_token_id
    words = model.model.embed_tokens(tokens[:, order - 1 :])
    torch.testing.assert_close(loop(words, tokens), layer(words, tokens))


@pytest.mark.parametrize("capacity", [None, 12])
@torch.no_grad()
def test_a_filled_cache_serves_both_kinds_of_decoding(models, capacity, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    tokens = random_tokens(models.shape.vocab_size, 2, 9)
    step = our_decode_step(models.ours["eager"], tokens, capacity)
    first, second = step(), step()
    assert first.logits.shape == (2, 1, models.shape.vocab_size)
    assert int(second.past_key_values.get_seq_length()) == 11


def test_zero_experts_multiply_nothing(models):
    measured = measure_moe_flops(models, 64, repeats=1)
    assert measured["selected_zero"] > 0
    for name in ("ours, grouped_mm", "ours, eager", "in-tree"):
        assert measured["implementations"][name]["flops"] == measured["necessary_flops"]
        assert measured["implementations"][name]["largest_difference"] < 1e-5
    assert measured["implementations"]["ours, grouped_mm"]["calls_per_expert"] == 0


def test_the_roofline_counts_what_a_token_activates(models):
    config = models.ours["grouped_mm"].config
    # Of 2 selected experts of 6, 4 of them routed: 1.33 routed ones a token.
    assert expert_rows(config, 1) == [1] and expert_rows(config, 30) == [10, 10, 10, 10]
    parameters = dict(models.ours["grouped_mm"].named_parameters())
    matrices = [p.numel() for name, p in parameters.items() if p.ndim == 2 and "embed" not in name]
    projection = parameters["model.ngram_embeddings.post_proj.weight"].numel()
    expert = 3 * config.hidden_size * config.expert_ffn_hidden_size
    counted = active_weights(models.ours["grouped_mm"], Forward(batch=1, length=1, past=8))
    assert counted == {"count": sum(matrices) + projection + expert, "bytes": 4 * counted["count"]}


@pytest.mark.parametrize("forward", [Forward(2, 16), Forward(2, 1, past=8)], ids=["prefill", "decode"])
def test_the_roofline_multiplies_active_weights_and_attention(models, forward):
    model, config = models.ours["grouped_mm"], models.ours["grouped_mm"].config
    products = roofline_functions(model, forward)["products"]
    with FlopCounterMode(display=False) as counter:
        products()
    flops = counter.get_flop_counts()["Global"]
    if forward.past:
        keys, widths = forward.past + 1, 2 * config.kv_lora_rank + config.qk_rope_head_dim
    else:
        keys, widths = (forward.length + 1) // 2, config.qk_head_dim + config.v_head_dim
    attention = 2 * forward.batch * config.num_attention_heads * forward.length * keys * widths
    assert flops[torch.ops.aten.bmm] == config.num_hidden_layers * attention
    assert flops[torch.ops.aten.mm] == 2 * sum(
        weight.numel() * rows for weight, rows in weight_products(model, forward)
    )


def test_ratios_are_of_pairs():
    times = PairedTimes({"per-table loop": [4.0, 9.0, 40.0], "one pass": [1.0, 2.0, 10.0]})
    assert times.ratio("per-table loop", "one pass") == 4.0
    assert times.median_ms("one pass") == 2000


def test_fields_of_a_shape_are_read():
    changed = parse_shape(["hidden_size=96", "ngram_vocab_size_ratio=2", "zero_expert_num=0"], Shape())
    assert changed == Shape(hidden_size=96, ngram_vocab_size_ratio=2.0, zero_expert_num=0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("hiden_size=96", "`--shape` has no field `hiden_size`; its fields are vocab_size, hidden_size"),
        ("hidden_size", "`--shape hidden_size` is ``, but must be a whole number: write `hidden_size=VALUE`"),
        ("hidden_size=4.5", "`--shape hidden_size` is `4.5`, but must be a whole number"),
        ("hidden_size=-4", "`--shape hidden_size` is -4, but must be above 0"),
        ("zero_expert_num=-1", "`--shape zero_expert_num` is -1, but must be at least 0"),
        ("ngram_vocab_size_ratio=nan", "`--shape ngram_vocab_size_ratio` is nan, but must be a finite number"),
        ("ngram_vocab_size_ratio=x", "`--shape ngram_vocab_size_ratio` is `x`, but must be a number"),
    ],
)
def test_a_wrong_field_of_a_shape_is_named(change, problem):
    with pytest.raises(ValueError, match=problem):
        parse_shape([change], Shape())


def test_without_a_compiler_the_reason_is_given(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in no_compiler_reason()
