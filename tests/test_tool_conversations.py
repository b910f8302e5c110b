# SPDX-License-Identifier: Apache-2.0
"""Conversations with tools: nothing held out is trained on, every call runs, only the assistant is trained."""

import json
from itertools import chain

import pytest
from datasets import load_dataset
from tiny_chat import write_rows

from tokenization.chat_templates import load_chat_template
from tokenization.tool_calls import parse_tool_calls
from tokenization.train_tokenizer import train_tokenizer
from training.chat_rows import check_rows
from training.tool_conversations import (
    TOOLS,
    add,
    conversations,
    documentation,
    lookup,
    names,
    numbers,
    row,
)
from training.tool_demo import texts_without_digits

END = "</longcat_s>"
TRAIN = list(conversations(60, "train", seed=0))
HELD_OUT = list(conversations(60, "held-out", seed=0))


def arguments(sides) -> set:
    """All arguments of all calls."""
    calls = [exchange.call["function"]["arguments"] for exchange in chain.from_iterable(sides) if exchange.call]
    return set(chain.from_iterable(call.values() for call in calls))


def test_the_same_seed_gives_the_same_conversations():
    assert list(conversations(60, "train", seed=0)) == TRAIN
    assert list(conversations(60, "train", seed=1)) != TRAIN


def test_no_argument_stands_on_both_sides():
    assert not set(names("train")) & set(names("held-out")) and not set(numbers("train")) & set(numbers("held-out"))
    assert arguments(TRAIN) <= {*names("train"), *numbers("train")}
    assert arguments(HELD_OUT) <= {*names("held-out"), *numbers("held-out")}
    assert len(names("held-out")) >= 20 and len(numbers("held-out")) >= 100


def test_of_held_out_names_both_parts_are_known():
    parts = set(chain.from_iterable(name.split(".") for name in names("train")))
    assert set(chain.from_iterable(name.split(".") for name in names("held-out"))) <= parts


def test_calls_give_the_results_that_the_rows_have():
    tools = {"lookup": lookup, "add": add}
    called = set()
    for exchange in chain.from_iterable([*TRAIN, *HELD_OUT]):
        if exchange.call is None:
            assert exchange.result is None
            continue
        function = exchange.call["function"]
        assert str(tools[function["name"]](**function["arguments"])) == exchange.result
        assert exchange.result in exchange.answer
        called.add(function["name"])
    assert called == {"lookup", "add"}


def test_an_unknown_name_is_named():
    assert documentation()["str.join"] == lookup("str.join")
    with pytest.raises(ValueError, match=r"no documentation of str\.joint"):
        lookup("str.joint")


def test_rows_can_be_trained_on_and_come_back_from_the_file(tmp_path):
    rows = [row(exchanges) for exchanges in TRAIN]
    write_rows(tmp_path / "train.jsonl", rows)
    read = load_dataset("json", data_files=str(tmp_path / "train.jsonl"), cache_dir=str(tmp_path / "cache"))["train"]
    check_rows(read, "train")
    # No argument of the one tool turns up, empty, in a call of the other.
    assert [one["messages"] for one in read] == [one["messages"] for one in rows]
    assert json.dumps(read[0]["tools"]) == json.dumps(rows[0]["tools"])


def test_only_calls_and_answers_are_trained():
    tokenizer = train_tokenizer(texts_without_digits([row(exchanges) for exchanges in TRAIN[:20]]), 600)
    template = load_chat_template("training")
    for exchanges in TRAIN[:20]:
        one = row(exchanges)
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
    tokenizer = train_tokenizer(texts_without_digits([row(exchanges) for exchanges in TRAIN]), 2048)
    assert tokenizer.tokenize("Add 482 and 17.") == ["Add", "Ġ", "4", "8", "2", "Ġand", "Ġ", "1", "7", "."]


def test_tools_are_declared_with_their_types():
    parameters = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row([])["tools"]}
    assert parameters["lookup"]["properties"]["name"]["type"] == "string"
    assert {value["type"] for value in parameters["add"]["properties"].values()} == {"integer"}
    assert len(TOOLS) == 2
