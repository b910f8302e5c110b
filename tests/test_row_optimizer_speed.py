# SPDX-License-Identifier: Apache-2.0
"""The benchmark of optimizer steps runs, and writes what it measured."""

import json

from training import row_optimizer_speed


def test_writes_json_markdown_and_chart(tmp_path, capsys):
    row_optimizer_speed.main(["--sizes", "5000", "10000", "--repeats", "2", "--output", str(tmp_path)])
    results = json.loads((tmp_path / "row_optimizer_speed.json").read_text())
    state = {entry["optimizer"]: entry["state_bytes_per_row"] for entry in results["measured"]}
    assert state == {"row-wise AdamW": 8, "SparseAdam": 2 * 64 * 4, "fused AdamW": 2 * 64 * 4}
    assert [entry["rows"] for entry in results["measured"]] == 3 * [5000, 10000]
    assert results["verdicts"][-1]["met"]
    assert (tmp_path / "row_optimizer_speed.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "row_optimizer_speed.png").stat().st_size > 1000
