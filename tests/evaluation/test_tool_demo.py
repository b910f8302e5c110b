# SPDX-License-Identifier: Apache-2.0
"""The parts of the tools demo that need no training: its model, its questions, what counts as right, its report."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from eval.studies.tools import __main__ as tool_demo
from eval.studies.tools import questions as tool_questions
from modeling_longcat_lite import LongCatLiteForCausalLM
from training.data.tool_conversations import add_exchange, lookup_exchange, names, plain_exchange, sums


@pytest.fixture
def draw():
    return random.Random(0)


def test_the_model_has_the_shape_of_the_demo(tmp_path):
    lesson = replace(tool_demo.LESSONS[1], conversations=40)
    tool_demo.write_untrained_model(tmp_path, tool_demo.write_conversations(tmp_path, lesson))
    config = LongCatLiteForCausalLM.from_pretrained(tmp_path / "untrained").config
    assert (config.hidden_size, config.num_layers, config.max_ngram_order) == (192, 2, 4)
    assert len((tmp_path / "data" / "declared" / "train.jsonl").read_text().splitlines()) == 40


def test_questions_are_drawn_alike_each_time_and_their_arguments_are_held_out():
    questions = tool_questions.held_out_questions(0)
    assert questions == tool_questions.held_out_questions(0) != tool_questions.held_out_questions(1)
    called = [exchange.call["function"] for exchange in questions]
    assert [function["name"] for function in called].count("add") == 50 == len(called) / 2
    assert {function["name"] for function in called[: tool_questions.DRAWN]} == {"add", "lookup"}
    unseen = {*((name,) for name in names("held-out")), *sums("held-out")}
    assert {tuple(function["arguments"].values()) for function in called} <= unseen


def conversation(exchange, calls=None, answer=None):
    """What the loop returns where the model made these calls and gave this answer; by default the right ones."""
    asked, *said = exchange.messages()
    if calls is not None:
        said[0] = {"role": "assistant", "content": "", "tool_calls": calls}
    if answer is not None:
        said[-1] = {"role": "assistant", "content": answer}
    return [asked, *said]


def test_a_call_is_right_with_its_name_and_all_its_arguments(draw):
    exchange = add_exchange("held-out", draw)
    assert tool_questions.judged(exchange, conversation(exchange)) | {"question": ""} == {
        "question": "",
        "expected": [exchange.call["function"]],
        "called": [exchange.call["function"]],
        "call_right": True,
        "result": exchange.result,
        "answer": exchange.answer,
        "answer_right": True,
    }
    other = lookup_exchange("held-out", draw).call
    as_text = {"type": "function", "function": {"name": "add", "arguments": {"a": "1", "b": "2"}}}
    for calls in ([other], [exchange.call, exchange.call], [as_text]):
        assert not tool_questions.judged(exchange, conversation(exchange, calls))["call_right"]
    wrong = tool_questions.judged(exchange, conversation(exchange, answer="That is."))
    assert wrong["call_right"] and not wrong["answer_right"]


def test_a_malformed_call_is_neither_a_call_nor_an_answer(draw):
    malformed = [{"role": "assistant", "content": "<longcat_tool_call>"}, {"role": "tool", "content": "Error: ..."}]
    for exchange in (plain_exchange(draw), add_exchange("held-out", draw)):
        judged = tool_questions.judged(exchange, [*exchange.messages()[:1], *malformed])
        assert not judged["call_right"] and not judged["answer_right"]
    assert tool_questions.judged(plain := plain_exchange(draw), plain.messages())["call_right"]


@pytest.mark.parametrize("right", [8, 7])
def test_the_report_counts_calls_and_answers(tmp_path, capsys, right):
    exchanges = tool_questions.held_out_questions(0)
    held_out = [
        tool_questions.judged(exchange, conversation(exchange, None if index < right or index > 9 else []))
        for index, exchange in enumerate(exchanges)
    ]
    history = [{"eval_loss": 7.0}, {"loss": 1.0, "num_tokens": 1000.0}, {"eval_loss": 0.5}]
    for name in ("undeclared", "model"):
        (tmp_path / name).mkdir()
        state = {"log_history": history, "global_step": 9}
        (tmp_path / name / "trainer_state.json").write_text(json.dumps(state))
    report = tool_questions.training_figures([tmp_path / "undeclared", tmp_path / "model"])
    report |= tool_questions.summarize({"held_out": held_out, "plain": []}) | {"seconds": {"fine-tuning": 61.0}}
    assert (report["training_steps"], report["training_tokens"], report["heldout_loss_after"]) == (18, 2000, 0.5)
    assert report["drawn_right_calls"] == right
    assert (report["right_calls"], report["right_answers"]) == (90 + right, 100)
    tool_questions.write_results(tmp_path / "results", report)
    written = json.loads((tmp_path / "results" / "tool_demo.json").read_text())
    assert report == {key: value for key, value in written.items() if key != "machine"}
    text = (tmp_path / "results" / "tool_demo.md").read_text()
    assert f"| right calls, ten questions drawn by seed | {right} of 10 |" in text and exchanges[0].question in text
    printed = capsys.readouterr().out
    assert f"{right} of 10" in printed and f"{90 + right} of 100" in printed and "tool_demo.md" in printed


def test_the_committed_model_calls_its_tools():
    results = json.loads(Path("eval/results/tool_demo.json").read_text(encoding="utf-8"))
    assert tool_questions.summarize(results["answers"]).items() <= results.items()
    assert results["drawn_right_calls"] >= 8 and results["plain_without_call"] == results["plain_questions"]
