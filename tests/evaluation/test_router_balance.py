# SPDX-License-Identifier: Apache-2.0
"""The figures of router control: what they summarize, what the command writes, and what the committed ones show."""

import json
from pathlib import Path

import pytest
from drawn_figures import drawn_figures

from eval.studies import router_balance
from training.data.token_rows import TextSettings


def entries(means: list[float], spread: float, share: float | None = None) -> list[dict[str, float]]:
    shared = {"loss": 2.0, "experts/load_spread": spread}
    if share is not None:
        shared |= {"balance_loss": 1.0, "balance_gradient_share": share}
    return [{"step": step, "experts/mean": mean, **shared} for step, mean in enumerate(means)]


def test_the_summary_is_of_the_second_half():
    logged = {
        "selection bias": entries([2.6, 2.3, 1.95, 2.05], 0.4),
        "balance loss": [*entries([2.6] * 2, 0.3, 0.2), *entries([2.6, 2.2], 0.2, 0.05)],
    }
    summary = router_balance.summarize(logged, 2.0)
    assert summary["selection bias"] == pytest.approx(
        {"loss": 2.0, "experts/mean": 2.0, "experts/load_spread": 0.4, "furthest_from_target": 0.025}
    )
    assert summary["balance loss"]["experts/mean"] == pytest.approx(2.4)
    assert summary["balance loss"]["experts/load_spread"] == pytest.approx(0.2)
    assert summary["balance loss"]["furthest_from_target"] == pytest.approx(0.3)
    assert summary["balance loss"]["largest_gradient_share"] == 0.2  # of the whole training


def test_the_committed_figures_show_that_control_works():
    results = json.loads(Path("eval/results/router_balance.json").read_text())
    rows = results["second_half"]
    assert router_balance.summarize(results["logged"], results["target_experts"]) == rows
    assert rows["selection bias"]["furthest_from_target"] <= 0.05 < rows["watched"]["furthest_from_target"]
    assert rows["balance loss"]["experts/load_spread"] < rows["watched"]["experts/load_spread"]
    assert rows["balance loss"]["largest_gradient_share"] < 0.1


def test_the_command_writes_its_report(tmp_path):
    files = [tmp_path / f"document{number}.txt" for number in range(12)]
    for number, file in enumerate(files):
        file.write_text(" ".join(f"word{(number * 7 + place * place) % 23}" for place in range(400)))
    text = TextSettings(300, 128, held_out_percent=20, files=list(map(str, files)), standard_library=False)
    options = ["--begin", "2", "--steps", "4", "--every", "2", "--text", str(tmp_path / "text")]
    options += ["--output", str(tmp_path)]
    with drawn_figures() as figures:
        router_balance.main(router_balance.make_parser().parse_args(options), text)
    results = json.loads((tmp_path / "router_balance.json").read_text())
    logged = results["logged"]
    assert {name: len(entries) for name, entries in logged.items()} == dict.fromkeys(router_balance.CONTROLS, 2)
    assert "| selection bias |" in (tmp_path / "router_balance.md").read_text()
    left, right = figures["router_balance.png"].panels
    assert (left.y_label, right.y_label) == ("routed experts per token", "spread of their load")
    assert left.labels == [*router_balance.CONTROLS, "target"] and right.labels == list(router_balance.CONTROLS)
    for name, entries in logged.items():
        assert left.series(name).x == [2, 4]
        assert left.series(name).y == [entry["experts/mean"] for entry in entries]
        assert right.series(name).y == [entry["experts/load_spread"] for entry in entries]
