# SPDX-License-Identifier: Apache-2.0
"""Rows of every form: the tokens that are trained are the assistant's, and what cannot be trained on is named."""

import json
from pathlib import Path

import pytest
from tiny_chat import chat_rows, write_rows, write_tiny_chat

from tokenization.chat_templates import load_chat_template
from training import sft

END = "</longcat_s>"
QUESTION = {"role": "user", "content": "What does it do?"}
ANSWER = {"role": "assistant", "content": "Sort the list."}
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"name": "sort", "times": 2}}}
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "description": "Look up.", "parameters": {"type": "object", "properties": {}}},
}
CALLED = (
    "<longcat_tool_call>look_up\n<longcat_arg_key>name</longcat_arg_key>\n<longcat_arg_value>sort</longcat_arg_value>\n"
    "<longcat_arg_key>times</longcat_arg_key>\n<longcat_arg_value>2</longcat_arg_value>\n</longcat_tool_call>"
)
WITH_A_TOOL = [
    {"role": "system", "content": "Be brief."},
    QUESTION,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "sort: sorts"},
    ANSWER,
]
ASSISTANT_ONLY = ("--assistant_only_loss", "--chat_template_path", "tokenization/chat_template_training.jinja")


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("chat"))


def run(chat: Path, data: Path, *options: str):
    arguments = ["--model_name_or_path", str(chat / "model"), "--dataset_name", str(data), "--use_cpu"]
    arguments += ["--output_dir", str(data.parent / "out"), "--bf16", "false", "--report_to", "none"]
    arguments += ["--disable_tqdm", "true", "--save_strategy", "no", "--max_steps", "1", "--max_length", "512"]
    return sft.main(*sft.make_parser().parse_args_and_config([*arguments, *options]))


def trained_text(chat: Path, folder: Path, rows: list[dict], *options: str) -> list[str]:
    """The text of each run of tokens that has labels, over the whole of one batch."""
    write_rows(folder / "data" / "train.jsonl", rows)
    trainer = run(chat, folder / "data", "--per_device_train_batch_size", str(len(rows)), *options)
    batch = next(iter(trainer.get_train_dataloader()))
    pieces: list[list[int]] = []
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        before = -100
        for token, label in zip(ids, labels, strict=True):
            assert label in (-100, token)
            if label != -100:
                if before == -100:
                    pieces.append([])
                pieces[-1].append(token)
            before = label
    return [trainer.processing_class.decode(piece) for piece in pieces]


@pytest.mark.parametrize("packing", [(), ("--packing",)], ids=["padded", "packed"])
def test_of_a_chat_the_assistant_turns_are_trained(chat, tmp_path, packing):
    rows = [{"messages": [QUESTION, ANSWER, QUESTION, {"role": "assistant", "content": "No."}]}, *chat_rows(1)]
    trained = trained_text(chat, tmp_path, rows, *ASSISTANT_ONLY, *packing)
    assert sorted(trained) == sorted([f"Sort the list.{END}", f"No.{END}", f"Return the length.{END}"])


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])], ids=["list", "json"])
def test_of_a_chat_with_tools_calls_are_trained_and_results_are_not(chat, tmp_path, tools):
    rows = [{"messages": WITH_A_TOOL, "tools": tools}]
    trained = trained_text(chat, tmp_path, rows, *ASSISTANT_ONLY)
    assert trained == [f"{CALLED}{END}", f"Sort the list.{END}"]


def test_tools_are_declared_in_the_prompt(chat, tmp_path):
    rows = [{"messages": WITH_A_TOOL, "tools": [TOOL]}]
    write_rows(tmp_path / "data" / "train.jsonl", rows)
    trainer = run(chat, tmp_path / "data", *ASSISTANT_ONLY)
    text = trainer.processing_class.decode(next(iter(trainer.get_train_dataloader()))["input_ids"][0])
    expected = trainer.processing_class.apply_chat_template(
        WITH_A_TOOL, tools=[TOOL], tokenize=False, chat_template=load_chat_template()
    )
    assert text == expected
    assert "### Tool name: look_up" in text and "sort: sorts" in text


def test_of_prompt_and_completion_the_completion_is_trained(chat, tmp_path):
    rows = [{"prompt": "Question: what?", "completion": " An answer."}]
    assert trained_text(chat, tmp_path, rows) == [f" An answer.{END}"]


def test_of_prompt_and_completion_messages_the_completion_is_trained(chat, tmp_path):
    rows = [{"prompt": [QUESTION, ANSWER, QUESTION], "completion": [ANSWER]}]
    assert trained_text(chat, tmp_path, rows) == [f"Sort the list.{END}"]


def test_of_text_everything_but_the_first_token_is_trained(chat, tmp_path):
    text = "Print to the standard stream."
    (trained,) = trained_text(chat, tmp_path, [{"text": text}], "--packing")
    assert (text + END).endswith(trained) and len(trained) > len(text) - 3 + len(END)


MESSAGES = [QUESTION, ANSWER]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"prompt": "P", "completion": ""}], "row 0 of `train`: `completion` is empty"),
        ([{"prompt": [QUESTION], "completion": [QUESTION]}], "row 0 of `train`: `completion` has no assistant turn"),
        (
            [{"prompt": "P", "completion": [ANSWER]}],
            "row 0 of `train`: `prompt` and `completion` must all be text, or",
        ),
        ([{"prompt": 3, "completion": "C"}], "row 0 of `train`: `prompt` must be text or a list"),
        ([{"text": "T"}, {"text": None}], "row 1 of `train`: `text` must be a string, found NoneType"),
        ([{"messages": json.dumps(MESSAGES)}], "row 0 of `train`: `messages` is a string, must be a list"),
        ([{"messages": ["Q", "A"]}], r"row 0 of `train`: `messages\[0\]` must have `role` and `content`, found str"),
        ([{"messages": MESSAGES, "tools": "[{"}], "row 0 of `train`: `tools` is not JSON"),
        ([{"messages": MESSAGES, "tools": '{"name": "f"}'}], "row 0 of `train`: `tools` must be a list"),
        ([{"messages": MESSAGES, "tools": [{"function": {"names": "f"}}]}], r"`tools\[0\]` has no name"),
        (
            [{"messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": 4}]}],
            r"row 0 of `train`: `messages\[0\].content` must be text or a list of text parts, found int",
        ),
        (
            [{"messages": [{"role": "user", "content": ["Q"]}, {"role": "assistant", "content": ["A"]}]}],
            r"row 0 of `train`: `messages\[0\].content` must be text or a list of text parts, found a part",
        ),
        ([{"input_ids": "Q"}], "row 0 of `train`: `input_ids` must be a list of token ids"),
        ([{"messages": MESSAGES, "prompt": "P"}], r"`train` has `messages` and `prompt`.*`columns: \[messages\]`"),
        ([{"messages": MESSAGES, "input_ids": [5]}], "`train` has `messages` and `input_ids`"),
        ([{"chat": MESSAGES}], r"`train` has the columns chat; training\.sft reads `messages`, or `prompt` and"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(chat, tmp_path, rows, problem):
    write_rows(tmp_path / "data" / "train.jsonl", rows)
    with pytest.raises(ValueError, match=problem):
        run(chat, tmp_path / "data")


LINES = [json.dumps(row) for row in chat_rows(3)]


@pytest.mark.parametrize(
    ("name", "lines", "problem"),
    [
        ("train.jsonl", [*LINES, LINES[0][:-9]], "train.jsonl, line 4: not JSON"),
        ("train.jsonl", [LINES[0], "{'messages': []}", LINES[1]], "train.jsonl, line 2: not JSON"),
        ("train.json", ["[", LINES[0] + ",", LINES[1], LINES[2], "]"], "train.json, line 4: not JSON"),
        (
            "train.jsonl",
            [LINES[0], '{"messages": 7}'],
            "(line 2: `messages` is a int|row 1 of `train`: `messages` must)",
        ),
    ],
)
def test_broken_json_is_named_with_file_and_line(chat, tmp_path, name, lines, problem):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=problem):
        run(chat, tmp_path / "data")


def test_text_parts_and_columns_that_are_not_read_are_no_mistake(chat, tmp_path):
    parts = [{"role": role, "content": [{"type": "text", "text": "Sort."}]} for role in ("user", "assistant")]
    assert trained_text(chat, tmp_path, [{"messages": parts, "source": "a", "id": 3}], *ASSISTANT_ONLY) == [
        "Sort." + END
    ]


def test_a_broken_file_of_a_mixture_is_named(chat, tmp_path):
    write_rows(tmp_path / "data" / "train.jsonl", chat_rows(2))
    (tmp_path / "broken.jsonl").write_text(LINES[0] + "\n{\n")
    mixture = {
        "datasets": [
            {"path": "json", "data_files": str(tmp_path / name)} for name in ("data/train.jsonl", "broken.jsonl")
        ]
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(mixture))
    with pytest.raises(ValueError, match=r"broken\.jsonl, line 2: not JSON"):
        run(chat, tmp_path / "data", "--dataset_name", "", "--config", str(tmp_path / "recipe.yaml"))


def test_a_template_that_marks_nothing_is_named(chat, tmp_path):
    write_rows(tmp_path / "data" / "train.jsonl", chat_rows(2))
    plain = tmp_path / "plain.jinja"
    plain.write_text(load_chat_template())
    for options in ([], ["--chat_template_path", str(plain)]):
        with pytest.raises(ValueError, match=r"chat template of .* marks nothing; set `chat_template_path"):
            run(chat, tmp_path / "data", "--assistant_only_loss", *options)


IN_OPENAI_FORM = [
    {**WITH_A_TOOL[0], "role": "developer"},
    QUESTION,
    {
        **WITH_A_TOOL[2],
        "content": None,
        "tool_calls": [
            {
                "id": "1",
                "type": "function",
                "function": {"name": "look_up", "arguments": '{"name": "sort", "times": 2}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": [{"type": "input_text", "text": "sort: sorts"}]},
    ANSWER,
]


@pytest.mark.parametrize("how", [(), ("--dataset_streaming",)], ids=["read", "streamed"])
def test_openai_messages_are_trained_as_the_template_writes_them(chat, tmp_path, how):
    plain = trained_text(chat, tmp_path / "plain", [{"messages": WITH_A_TOOL, "tools": [TOOL]}], *ASSISTANT_ONLY, *how)
    rows = [{"messages": IN_OPENAI_FORM, "tools": [TOOL]}]
    assert trained_text(chat, tmp_path / "openai", rows, *ASSISTANT_ONLY, *how) == plain
    assert plain == [CALLED + END, ANSWER["content"] + END]


def test_forms_may_differ_from_row_to_row(chat, tmp_path):
    rows = [{"messages": [QUESTION, ANSWER]}, {"messages": WITH_A_TOOL}, {"messages": IN_OPENAI_FORM}]
    pieces = trained_text(chat, tmp_path, rows, *ASSISTANT_ONLY)
    assert sorted(pieces) == sorted([ANSWER["content"] + END] * 3 + [CALLED + END] * 2)


def with_call(function) -> list[dict]:
    return [{"messages": MESSAGES}, {"messages": [QUESTION, {"role": "assistant", "tool_calls": [function]}]}]


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ({"function": {"name": "f", "arguments": "{'a': 1}"}}, r"arguments` is text that is not JSON: Expecting"),
        (
            {"function": {"name": "f", "arguments": "[1]"}},
            r"arguments` must be an object or the JSON text of one, found li",
        ),
        (
            {"function": {"name": "f", "arguments": 3}},
            r"arguments` must be an object or the JSON text of one, found int",
        ),
        (
            {"function": {"name": "f", "arguments": '{"a": NaN}'}},
            "tool call 'f': .*argument 'a' is not JSON|'a' is not",
        ),
        ({"function": {"name": "<f>", "arguments": "{}"}}, "tool call '<f>': the name must be one line"),
        ({"function": {"name": None, "arguments": "{}"}}, "must have a `function` with `name` and `arguments`"),
        ("f()", "must have a `function` with `name` and `arguments`"),
    ],
)
def test_calls_that_cannot_be_written_are_named_with_their_row(chat, tmp_path, call, problem):
    write_rows(tmp_path / "data" / "train.jsonl", with_call(call))
    with pytest.raises(ValueError, match=rf"row 1 of `train`: `messages\[1\].tool_calls\[0\].*({problem})"):
        run(chat, tmp_path / "data")


def test_a_streamed_call_that_cannot_be_written_is_named_with_its_row(chat, tmp_path):
    write_rows(tmp_path / "data" / "train.jsonl", with_call({"function": {"name": "f", "arguments": "{"}}))
    with pytest.raises(ValueError, match=r"row 1 of `train`: `messages\[1\].tool_calls\[0\].function.arguments`"):
        trainer = run(chat, tmp_path / "data", "--dataset_streaming", "--per_device_train_batch_size", "2")
        list(trainer.get_train_dataloader())


def test_brackets_in_a_folder_of_data_are_named(chat, tmp_path):
    write_rows(tmp_path / "data [v1]" / "train.jsonl", chat_rows(2))
    with pytest.raises(ValueError, match=r"`dataset_name` .*data \[v1\]: .*brackets.*rename the folder"):
        run(chat, tmp_path / "data [v1]")
