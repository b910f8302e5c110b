# SPDX-License-Identifier: Apache-2.0
"""Documents with needles, and what is measured on them."""

import random

import pytest
import torch
from conftest import tiny_config
from tiny_chat import ANSWERS

from modeling_longcat_lite import LongCatLiteForCausalLM
from tokenization.train_tokenizer import train_tokenizer
from training.context_measures import found, losses_by_position
from training.long_documents import KEYS, VALUES, library_documents, needle_row, recall_document, statement

TEXTS = ["def first():\n    return 1\n" * 30, "import os\n\nprint(os.name)\n" * 30]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*ANSWERS, *TEXTS], vocab_size=300, model_max_length=512)


def test_keys_and_values_are_told_apart():
    assert len({*KEYS, *VALUES}) == len(KEYS) + len(VALUES)


def test_no_file_is_on_both_sides():
    train, held_out = library_documents(held_out=False), library_documents(held_out=True)
    assert len(train) > 5 * len(held_out) > 50
    assert train == library_documents(held_out=False)
    assert len({*train} & {*held_out}) < 3  # files of the same text, `__init__.py` of a line


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_needle_stands_at_its_depth(tokenizer, depth):
    row, answer = needle_row(TEXTS, tokenizer, 256, depth, 2, random.Random(0))
    assert len(row) == 256
    text, value = tokenizer.decode(row), tokenizer.decode(answer).strip()
    key = text.split()[-1]
    assert key in KEYS and value in VALUES
    assert text.endswith(f"Key {key}") and text.count(f"Key {key}") == 2
    before = text[: text.index(statement(key, value))]
    pairs = 3 * len(tokenizer(statement(key, value) + "\n")["input_ids"])
    assert abs(len(tokenizer(before)["input_ids"]) - depth * 256) <= pairs
    assert needle_row(TEXTS, tokenizer, 256, depth, 2, random.Random(0)) == (row, answer)


def test_a_row_too_short_for_its_needles_is_named(tokenizer):
    with pytest.raises(ValueError, match="`tokens` is 16"):
        needle_row(TEXTS, tokenizer, 16, 0.5, 3, random.Random(0))


def test_a_training_document_comes_back_to_its_pairs():
    text = recall_document(TEXTS, 900, 4, random.Random(0))
    stated = [line for line in text.splitlines() if line.startswith("Key ")]
    assert len(set(stated)) == len({line.split()[1] for line in stated}) == 4
    assert len(stated) > 8
    assert 900 <= len(text) < 1000


def test_measures_are_those_of_plain_loops():
    torch.manual_seed(0)
    model = LongCatLiteForCausalLM(tiny_config()).eval()
    rows = torch.randint(4, 64, (6, 12))
    losses = losses_by_position(model, rows)
    for position in range(11):
        with torch.no_grad():
            logits = model(rows[:, : position + 1], use_cache=False).logits[:, -1]
        expected = torch.nn.functional.cross_entropy(logits, rows[:, position + 1])
        torch.testing.assert_close(losses[position], expected)
    said = model.generate(
        rows, attention_mask=torch.ones_like(rows), do_sample=False, max_new_tokens=2, eos_token_id=None
    )
    answers = said[:, 12:].tolist()
    answers[1][1] += 1
    answers[4] = answers[4][:1]
    assert found(model, rows, answers) == [True, False, True, True, True, True]
