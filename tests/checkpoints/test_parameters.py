# SPDX-License-Identifier: Apache-2.0
"""The parameter report gives the paper's counts for the released model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from eval.checkpoints.parameters import report
from modeling_longcat_lite import LongCatLiteConfig

ROOT = Path(__file__).parents[2]


def test_the_released_model():
    counts = report(LongCatLiteConfig())
    assert counts["total"] == 68_562_465_024
    assert counts["selection_biases"] == 5_376
    assert counts["ngram"] == 31_416_422_400
    assert round(100 * counts["ngram_share"], 1) == 45.8
    activated = {k: round(count / 1e9, 2) for k, count in counts["activated_by_routed_experts"].items()}
    assert activated == {"0": 2.92, "4": 3.45, "8": 3.98, "12": 4.51}
    assert counts["mean_routed_experts_if_balanced"] == 8


def test_the_draft_head_is_counted_apart():
    counts = report(LongCatLiteConfig(num_nextn_predict_layers=1))
    assert counts["draft_head"] == 510_870_528
    assert counts["total"] == 68_562_465_024


def test_the_vanilla_twin():
    model, twin = report(LongCatLiteConfig()), report(LongCatLiteConfig().to_vanilla())
    assert twin["ngram"] == 0
    assert twin["total"] == pytest.approx(model["total"], rel=0.005)
    assert twin["mean_routed_experts_if_balanced"] == pytest.approx(8, rel=0.001)
    for k in ("4", "8", "12"):
        ours, theirs = (counts["activated_by_routed_experts"][k] for counts in (model, twin))
        assert theirs == pytest.approx(ours, rel=0.005)


@pytest.mark.slow  # a process of its own
def test_the_command_writes_json_and_markdown(tmp_path):
    command = [sys.executable, "-m", "eval.checkpoints.parameters", "--output", tmp_path]
    command += ["--model", ROOT / "tests" / "conformance" / "base"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "vanilla twin" in printed and "Activated" in printed
    written = json.loads((tmp_path / "parameter_report.json").read_text())
    assert written["model"] == report(LongCatLiteConfig.from_pretrained(ROOT / "tests" / "conformance" / "base"))
    assert f"{written['model']['total']:,}" in (tmp_path / "parameter_report.md").read_text()
