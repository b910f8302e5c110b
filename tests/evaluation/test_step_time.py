# SPDX-License-Identifier: Apache-2.0
"""The comparison of training steps runs, and what it compares learns alike."""

import json

import pytest
import torch
from drawn_figures import drawn_figures

from eval.speed import step as step_time
from eval.speed.models import Shape, build_models, random_tokens

SMALL = ["hidden_size=48", "num_layers=1", "vocab_size=64", "ffn_hidden_size=32", "num_attention_heads=2"]


def test_the_command_writes_its_report(tmp_path):
    options = ["--shape", *SMALL, "--tokens", "16", "--repeats", "2", "--no-compile", "--output", str(tmp_path)]
    with drawn_figures() as figures:
        step_time.main(step_time.make_parser().parse_args(options))
    results = json.loads((tmp_path / "step_time.json").read_text())
    assert len(results["ms"]) == 7 and results["ms"].keys() == {"in-tree", *results["in_tree_over"]}
    report = (tmp_path / "step_time.md").read_text()
    assert f"| in-tree | {results['ms']['in-tree']:.1f} |  |" in report
    fastest = max(ratio for name, ratio in results["in_tree_over"].items() if "frozen" not in name)
    assert f"in-tree takes {fastest:.2f} times as long" in report
    assert "Not compiled: `--no-compile` was given." in report
    (panel,) = figures["step_time.png"].panels
    assert panel.x_label == "ms a step (median)"
    (bars,) = panel.of_kind("bars")
    assert bars.named == pytest.approx(results["ms"])


def test_every_way_to_train_lowers_the_loss():
    shape = Shape(hidden_size=48, num_layers=1, vocab_size=64, num_attention_heads=2)
    row = random_tokens(shape.vocab_size, 1, 24)
    for tables in step_time.TABLES:
        model = build_models(shape, "fp32", seed=0).ours["eager"]
        before = model.model.ngram_embeddings.embedders[0].weight.detach().clone()
        step = step_time.our_step(model, tables, row)
        first, *_, last = (step() for _ in range(8))
        assert last < first, tables
        assert torch.equal(before, model.model.ngram_embeddings.embedders[0].weight) == (tables == "frozen")
