# SPDX-License-Identifier: Apache-2.0
"""Documents with needles, and what is measured on them."""

import itertools
import random

import pytest
import torch
from conftest import tiny_config

from eval.losses.positions import found, losses_by_position
from modeling_longcat_lite import LongCatLiteForCausalLM
from tokenization.train_tokenizer import train_tokenizer
from training.data.recall_documents import FILLER, KEYS, MENTIONS, VALUES, needle_row, recall_document


@pytest.fixture(scope="module")
def tokenizer():
    draw = random.Random(0)
    return train_tokenizer([recall_document(256, 16, draw) for _ in range(60)], 377, model_max_length=512)


def test_keys_values_and_filler_are_told_apart():
    assert len({*KEYS, *VALUES, *FILLER}) == len(KEYS) + len(VALUES) + len(FILLER)


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_needle_stands_at_its_depth(tokenizer, depth):
    row, answer = needle_row(tokenizer, 256, depth, 2, random.Random(0))
    words, (value,) = tokenizer.decode(row).split(), tokenizer.decode(answer).split()
    assert len(row) == len(words) == 256
    key = words[-1]
    assert key in KEYS and value in VALUES and words.count(key) == 2
    place = words.index(key)
    assert words[place + 1] == value
    assert abs(place - depth * 256) <= 6  # the pairs and the question
    assert needle_row(tokenizer, 256, depth, 2, random.Random(0)) == (row, answer)


def test_what_gives_no_row_is_named(tokenizer):
    with pytest.raises(ValueError, match="`tokens` is 8, but 4 pairs and the question alone need 9"):
        needle_row(tokenizer, 8, 0.5, 3, random.Random(0))
    with pytest.raises(ValueError, match="`words` is 16, but 4 mentions of 3 pairs alone need 24"):
        recall_document(16, 3, random.Random(0))
    with pytest.raises(ValueError, match="`tokenizer` has no token for some of the words"):
        needle_row(train_tokenizer(["fog"], 300), 64, 0.5, 3, random.Random(0))


def test_a_training_document_comes_back_to_its_pairs():
    words = recall_document(128, 4, random.Random(0)).split()
    said = [(key, value) for key, value in itertools.pairwise(words) if key in KEYS]
    assert len(words) == 128
    assert len(said) == 4 * MENTIONS
    assert len(set(said)) == len({key for key, _ in said}) == 4
    assert all(value in VALUES for _, value in said)


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
