# SPDX-License-Identifier: Apache-2.0
"""The smoke suite's rows: one right choice each, held-out answers that training never saw, the same every time."""

import json
from collections import Counter

import pytest

from eval.checkpoints.load import ModelFolder
from eval.harness.suite import suites
from eval.harness.suites.smoke.rows import REQUESTS, fresh_conversations, smoke_rows
from eval.harness.suites.smoke.tool_call_metrics import process_results
from modeling_longcat_lite import LongCatLiteConfig
from tokenization.tool_calls import parse_tool_calls, render_tool_call
from tokenization.train_tokenizer import train_tokenizer
from training.data.documentation import split, text_key


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["What does str.join do?"], vocab_size=280, model_max_length=256)


@pytest.fixture(scope="module")
def rows(tokenizer):
    return smoke_rows(tokenizer, seed=0)


def test_choices_hold_the_answer_once(rows):
    answers = {c.question: c.answer for c in fresh_conversations()}
    for task in ("pydoc_choice_core", "pydoc_choice_held_out"):
        for row in rows[task]:
            assert len(set(row["choices"])) == 4
            assert row["choices"][row["answer"]] == answers[row["question"]]
        places = Counter(row["answer"] for row in rows[task])
        assert min(places.values()) > len(rows[task]) / 8  # no place is the right one most of the time


def test_held_out_answers_are_not_trained_on(rows):
    trained = {text_key(conversation.answer) for conversation in split(fresh_conversations())[0]}
    for row in rows["pydoc_choice_held_out"]:
        assert trained.isdisjoint(map(text_key, row["choices"]))
    for row in rows["pydoc_choice_core"]:
        assert trained.issuperset(map(text_key, row["choices"]))
    assert trained.isdisjoint(text_key(row["text"]) for row in rows["pydoc_text_held_out"])


def test_wrong_tool_calls_differ_in_tool_or_subject(rows):
    tools = Counter()
    for row in rows["pydoc_tool_choice"]:
        calls = [parse_tool_calls(choice)[1][0]["function"] for choice in row["choices"]]
        right = calls.pop(row["answer"])
        tools[right["name"]] += 1
        assert REQUESTS[right["name"]].format(right["arguments"]["subject"]) in row["prompt"]
        assert all(f"### Tool name: {name}" in row["prompt"] for name in REQUESTS)
        differences = {(call["name"] != right["name"], call["arguments"] != right["arguments"]) for call in calls}
        assert differences == {(True, False), (False, True), (True, True)}
    assert set(tools) == set(REQUESTS)


RIGHT = render_tool_call("list_members", {"subject": "str"})


@pytest.mark.parametrize(
    ("text", "one_call", "right_tool", "right_call"),
    [
        (RIGHT, 1, 1, 1),
        (f"Of course.{RIGHT}", 1, 1, 1),
        (render_tool_call("list_members", {"subject": "int"}), 1, 1, 0),
        (render_tool_call("find_examples", {"subject": "str"}), 1, 0, 0),
        (RIGHT + RIGHT, 0, 0, 0),
        (RIGHT[:-5], 0, 0, 0),
        ("The members of str.", 0, 0, 0),
    ],
)
def test_what_a_written_call_is_worth(text, one_call, right_tool, right_call):
    expected = {"one_call": one_call, "right_tool": right_tool, "right_call": right_call}
    assert process_results({"call": RIGHT}, [text]) == expected


def test_the_same_seed_writes_the_same_files(tokenizer, tmp_path):
    LongCatLiteConfig().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model, prepare = ModelFolder(tmp_path / "model"), suites()["smoke"].prepare
    hashes = [prepare(tmp_path / str(n), model, seed) for n, seed in enumerate((0, 0, 1))]
    assert hashes[0] == hashes[1] != hashes[2]
    for path in (tmp_path / "0").glob("*.jsonl"):
        assert path.read_bytes() == (tmp_path / "1" / path.name).read_bytes()
        assert all(json.loads(line) for line in path.read_text().splitlines())
    assert len(list((tmp_path / "0").glob("*.yaml"))) == len(list((tmp_path / "0").glob("*.jsonl"))) == 7
