# SPDX-License-Identifier: Apache-2.0
"""Loss on held-out answers: that of a plain forward, in a result file of the model."""

import json
import math

import pytest
import torch
from tiny_chat import write_rows, write_tiny_chat
from transformers import AutoTokenizer

from eval.checkpoints.load import ModelFolder
from eval.losses import __main__ as held_out_answers
from eval.reports.results import model_identity, read_results
from modeling_longcat_lite import LongCatLiteForCausalLM


def test_the_result_file_has_the_loss_of_the_answers(tmp_path, capsys):
    chat = write_tiny_chat(tmp_path)
    arguments = [
        "--model",
        str(chat / "model"),
        "--rows",
        str(chat / "data" / "test.jsonl"),
        "--output",
        str(tmp_path),
    ]
    held_out_answers.main(held_out_answers.make_parser().parse_args(arguments))
    content = read_results(tmp_path / "held_out_answers.json", model_identity(chat / "model"))
    loss, perplexity = content["results"]
    model = LongCatLiteForCausalLM.from_pretrained(chat / "model")
    tokenizer = AutoTokenizer.from_pretrained(chat / "model")
    total, count = 0.0, 0
    for line in (chat / "data" / "test.jsonl").read_text().splitlines():
        messages = json.loads(line)["messages"]
        whole = tokenizer.apply_chat_template(messages, return_dict=False)
        asked = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
        ids = torch.tensor([whole])
        labels = ids.clone()
        labels[:, : len(asked)] = -100
        with torch.no_grad():
            total += model(ids, labels=labels).loss.item() * (len(whole) - len(asked))
        count += len(whole) - len(asked)
    assert content["answer_tokens"] == count and loss["samples"] == 4
    assert loss["value"] == pytest.approx(total / count, rel=1e-5)
    assert perplexity["value"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert f"loss: {loss['value']:.4f}" in capsys.readouterr().out
    assert f"{loss['value']:.4f}" in (tmp_path / "held_out_answers.md").read_text()


def test_a_file_without_conversations(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [])
    with pytest.raises(ValueError, match=r"`--rows` .* has no conversation"):
        held_out_answers.measure(ModelFolder(tmp_path), tmp_path / "rows.jsonl")
