# SPDX-License-Identifier: Apache-2.0
"""The acceptance report runs on a tiny model and counts what its parts say."""

import json

import pytest
import torch
from drawn_figures import drawn_figures
from tiny_chat import chat_rows, write_rows, write_tiny_chat

from eval.drafts import __main__ as draft_acceptance


def run(model, rows, output):
    arguments = ["--model", str(model), "--rows", str(rows), "--count", "2", "--new-tokens", "8"]
    draft_acceptance.main(draft_acceptance.make_parser().parse_args([*arguments, "--output", str(output)]))


def test_the_report(tmp_path):
    chat = write_tiny_chat(tmp_path, num_nextn_predict_layers=1)
    with drawn_figures() as figures:
        run(chat / "model", chat / "data" / "test.jsonl", tmp_path / "results")
    results = json.loads((tmp_path / "results" / "draft_acceptance.json").read_text())
    free, forced = results["free"], results["teacher_forced"]
    assert free["answers"] == 2 and free["cycles"] >= 2
    assert 0 <= free["accepted_per_cycle"] <= 3
    assert free["tokens_per_cycle"] == 1 + free["accepted_per_cycle"]
    assert forced["places"] >= 2 and forced["distinct_answers"] == 2
    assert sum(free["cycles_with_accepted"].values()) == free["cycles"]
    report = (tmp_path / "results" / "draft_acceptance.md").read_text()
    assert f"| plain decoding time / time with drafts | {free['speedup']:.2f} |" in report
    (panel,) = figures["draft_acceptance.png"].panels
    assert (panel.x_label, panel.y_label) == ("drafts accepted", "share of cycles, %")
    assert panel.title == f"Drafts from {results['drafts_from']}"
    assert panel.x_ticks == ["0", "1", "2", "3"] and panel.labels == ["own answers", "after true text"]
    for label, counted in (("own answers", free), ("after true text", forced)):
        cycles = counted["cycles_with_accepted"]
        shares = {accepted: 100 * number / sum(cycles.values()) for accepted, number in cycles.items()}
        assert panel.series(label).named == pytest.approx(shares)


def test_rows_without_an_answer_are_named(tmp_path):
    chat = write_tiny_chat(tmp_path, num_nextn_predict_layers=1)
    rows = chat_rows(2)
    rows[1]["messages"].pop()
    write_rows(tmp_path / "bad.jsonl", rows)
    with pytest.raises(ValueError, match="line 2"):
        run(chat / "model", tmp_path / "bad.jsonl", tmp_path / "results")


def test_cycles_after_the_end_of_an_answer_are_not_inside_it():
    # One token from the prompt, then cycles of 3, 1 and 2 tokens; the fifth token, an end, begins the second cycle.
    tokens = torch.tensor([5, 6, 7, 8, 2, 9, 2])
    assert draft_acceptance.before_the_end([2, 0, 1], tokens, eos_token_id=2) == [2]
    assert draft_acceptance.before_the_end([2, 0, 1], tokens, eos_token_id=9) == [2, 0]
    assert draft_acceptance.before_the_end([2, 0, 1], tokens, eos_token_id=99) == [2, 0, 1]
