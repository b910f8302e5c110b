# SPDX-License-Identifier: Apache-2.0
"""A prompt given as embeddings, with its tokens for the n-grams, goes on as the same prompt given as ids."""

import pytest
import torch
from conftest import randomize, tiny_config

from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.transformers_versions import CACHE

IDS = torch.tensor([[5, 6, 7, 8, 9, 2, 11, 12], [21, 5, 6, 7, 30, 31, 7, 8]])
OPTIONS = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def model() -> LongCatLiteForCausalLM:
    return randomize(LongCatLiteForCausalLM(tiny_config())).eval()


@pytest.mark.parametrize("name", ["input_ids", "ngram_input_ids"])
@pytest.mark.parametrize("num_cached", [0, 1, 3, 7])
@torch.no_grad()
def test_a_filled_cache_goes_on_from_embeddings(name, num_cached, model):
    mask = torch.ones_like(IDS)
    expected = model.generate(IDS, attention_mask=mask, **OPTIONS)[:, IDS.shape[1] :]
    cache = {CACHE: model(IDS[:, :num_cached], use_cache=True)[CACHE]} if num_cached else {}
    embeds = model.get_input_embeddings()(IDS)
    found = model.generate(inputs_embeds=embeds, attention_mask=mask, **{name: IDS}, **cache, **OPTIONS)
    assert torch.equal(found[:, -5:], expected)
    if cache:  # the last token has not been read
        assert cache[CACHE].get_seq_length() == IDS.shape[1] + OPTIONS["max_new_tokens"] - 1


@torch.no_grad()
def test_embeddings_of_other_words_are_read_beside_the_tokens(model):
    """The embeddings count, not the words of the tokens: a soft prompt."""
    embeds = model.get_input_embeddings()(IDS).flip(1)
    found = model(inputs_embeds=embeds, ngram_input_ids=IDS).logits
    assert not torch.allclose(found, model(IDS).logits, atol=1e-3)
    both_ways = [
        model.generate(inputs_embeds=embeds, **{name: IDS}, **OPTIONS)[:, -5:]
        for name in ("input_ids", "ngram_input_ids")
    ]
    assert torch.equal(*both_ways)
    assert torch.equal(both_ways[0][:, 0], found[:, -1].argmax(-1))
