# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the optimizer's step runs, and writes what it found."""

import json

import pytest
from drawn_figures import drawn_figures

from eval.speed import row_optimizer as row_optimizer_speed


def test_the_benchmark_writes_its_report(tmp_path):
    options = ["--sizes", "5000", "10000", "--repeats", "2", "--output", str(tmp_path)]
    with drawn_figures() as figures:
        row_optimizer_speed.main(row_optimizer_speed.make_parser().parse_args(options))
    results = json.loads((tmp_path / "row_optimizer_speed.json").read_text())
    assert {(e["optimizer"], e["rows"]) for e in results["measured"]} == {
        (name, rows) for name in row_optimizer_speed.OPTIMIZERS for rows in (5000, 10000)
    }
    assert all(e["step_ms"] > 0 for e in results["measured"])
    by_rows = [e for e in results["measured"] if e["optimizer"] == row_optimizer_speed.ROWWISE]
    assert all(e["state_bytes_per_row"] == 8 for e in by_rows)
    assert "| row-wise AdamW | 10,000 |" in (tmp_path / "row_optimizer_speed.md").read_text()
    (panel,) = figures["row_optimizer_speed.png"].panels
    assert (panel.x_label, panel.y_label) == ("rows of the table", "ms a step")
    assert (panel.x_scale, panel.y_scale) == ("log", "log")
    assert panel.labels == panel.legend == list(row_optimizer_speed.OPTIMIZERS)
    line = panel.series(row_optimizer_speed.ROWWISE)
    assert line.x == [5000, 10000] and line.y == pytest.approx([e["step_ms"] for e in by_rows])
