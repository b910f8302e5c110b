# SPDX-License-Identifier: Apache-2.0
"""The acceptance report runs on a tiny model and counts what its parts say."""

import json

import pytest
from tiny_chat import chat_rows, write_rows, write_tiny_chat

from eval import draft_acceptance


def run(model, rows, output):
    arguments = ["--model", str(model), "--rows", str(rows), "--count", "2", "--new-tokens", "8"]
    draft_acceptance.main(draft_acceptance.make_parser().parse_args([*arguments, "--output", str(output)]))


def test_the_report(tmp_path):
    chat = write_tiny_chat(tmp_path, num_nextn_predict_layers=1)
    run(chat / "model", chat / "data" / "test.jsonl", tmp_path / "results")
    results = json.loads((tmp_path / "results" / "draft_acceptance.json").read_text())
    free, forced = results["free"], results["teacher_forced"]
    assert free["answers"] == 2 and free["cycles"] >= 2
    assert 0 <= free["accepted_per_cycle"] <= 3
    assert free["tokens_per_cycle"] == 1 + free["accepted_per_cycle"]
    assert forced["places"] >= 2 and forced["distinct_answers"] == 2
    assert f"{free['speedup']:.2f}" in (tmp_path / "results" / "draft_acceptance.md").read_text()


def test_rows_without_an_answer_are_named(tmp_path):
    chat = write_tiny_chat(tmp_path, num_nextn_predict_layers=1)
    rows = chat_rows(2)
    rows[1]["messages"].pop()
    write_rows(tmp_path / "bad.jsonl", rows)
    with pytest.raises(ValueError, match="line 2"):
        run(chat / "model", tmp_path / "bad.jsonl", tmp_path / "results")
