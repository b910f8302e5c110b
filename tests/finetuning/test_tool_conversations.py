# SPDX-License-Identifier: Apache-2.0
"""Conversations with tools: nothing held out is trained on, every call runs, only the assistant is trained."""

from itertools import chain
from random import Random

from datasets import load_dataset
from tiny_chat import write_rows

from eval.studies.tools.__main__ import texts_without_digits
from tokenization.chat_templates import load_chat_template
from tokenization.tool_calls import parse_tool_calls
from tokenization.train_tokenizer import train_tokenizer
from training.data.rows import check_rows
from training.data.tool_conversations import (
    TOOLS,
    UNKNOWN,
    add,
    documentation,
    drawn_exchange,
    lookup,
    names,
    rows,
    sums,
)

END = "</longcat_s>"
TRAIN = list(rows(200, "train", seed=0, declared_share=0.3))
HELD_OUT = list(rows(200, "held-out", seed=0))


def arguments(side: list[dict]) -> set:
    """The arguments of all calls, each as a tuple."""
    calls = [message["tool_calls"][0] for one in side for message in one["messages"] if "tool_calls" in message]
    return {tuple(call["function"]["arguments"].values()) for call in calls}


def of_side(side: str) -> set:
    """The arguments that calls of a side may have."""
    return {*((name,) for name in names(side)), *sums(side)}


def test_the_same_seed_gives_the_same_conversations():
    assert list(rows(200, "train", seed=0, declared_share=0.3)) == TRAIN
    assert list(rows(200, "train", seed=1, declared_share=0.3)) != TRAIN


def test_some_rows_to_train_on_and_all_held_out_ones_declare_the_tools():
    declared = [one["tools"] is not None for one in TRAIN]
    assert 0.2 < sum(declared) / len(TRAIN) < 0.4
    assert all(one["tools"] for one in HELD_OUT)


def test_no_call_stands_on_both_sides():
    assert not of_side("train") & of_side("held-out")
    assert arguments(TRAIN) <= of_side("train") and arguments(HELD_OUT) <= of_side("held-out")
    assert len(names("held-out")) >= 20 and len(sums("held-out")) >= 1000


def test_of_held_out_names_both_parts_are_known():
    parts = set(chain.from_iterable(name.split(".") for name in names("train")))
    assert set(chain.from_iterable(name.split(".") for name in names("held-out"))) <= parts


def test_calls_give_the_results_that_the_rows_have():
    tools = {"lookup": lookup, "add": add}
    called = set()
    draw = Random(0)
    for exchange in [drawn_exchange(side, draw) for side in ("train", "held-out") for _ in range(60)]:
        if exchange.call is None:
            assert exchange.result is None
            continue
        function = exchange.call["function"]
        assert str(tools[function["name"]](**function["arguments"])) == exchange.result
        assert exchange.result in exchange.answer
        called.add(function["name"])
    assert called == {"lookup", "add"}


def test_a_name_without_documentation_is_answered_too():
    assert documentation()["str.join"] == lookup("str.join")
    assert lookup("str.joint") == UNKNOWN
    assert {name for name in names("train") if lookup(name) == UNKNOWN}
    assert UNKNOWN not in map(lookup, names("held-out"))


def test_rows_can_be_trained_on_and_come_back_from_the_file(tmp_path):
    write_rows(tmp_path / "train.jsonl", TRAIN)
    read = load_dataset("json", data_files=str(tmp_path / "train.jsonl"), cache_dir=str(tmp_path / "cache"))["train"]
    check_rows(read, "train")
    # No argument of the one tool turns up, empty, in a call of the other.
    assert [one["messages"] for one in read] == [one["messages"] for one in TRAIN]
    assert [one["tools"] for one in read] == [one["tools"] for one in TRAIN]


def test_only_calls_and_answers_are_trained():
    tokenizer = train_tokenizer(texts_without_digits(TRAIN[:20]), 600)
    template = load_chat_template("training")
    for one in [*TRAIN[:20], *HELD_OUT[:5]]:
        encoded = tokenizer.apply_chat_template(
            one["messages"],
            tools=one["tools"],
            chat_template=template,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        trained, before = [], 0
        for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True):
            if mask and not before:
                trained.append([])
            if mask:
                trained[-1].append(token)
            before = mask
        spoken = [parse_tool_calls(tokenizer.decode(turn)) for turn in trained]
        expected = [
            (message["content"], message.get("tool_calls", []))
            for message in one["messages"]
            if message["role"] == "assistant"
        ]
        assert spoken == expected
        assert all(tokenizer.decode(turn).endswith(END) for turn in trained)


def test_numbers_are_their_digits():
    tokenizer = train_tokenizer(texts_without_digits(TRAIN), 2048)
    assert tokenizer.tokenize("Add 482 and 17.") == ["Add", "Ġ", "4", "8", "2", "Ġand", "Ġ", "1", "7", "."]


def test_tools_are_declared_with_their_types():
    parameters = {tool["function"]["name"]: tool["function"]["parameters"] for tool in HELD_OUT[0]["tools"]}
    assert parameters["lookup"]["properties"]["name"]["type"] == "string"
    assert {value["type"] for value in parameters["add"]["properties"].values()} == {"integer"}
    assert len(TOOLS) == 2
