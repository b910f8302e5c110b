# SPDX-License-Identifier: Apache-2.0
"""A cache or a tensor that arrives under a name that nobody reads raises by that name: never a silently wrong token.

transformers renamed `past_key_values` to `cache` in 5.24, and will rename again.
"""

import pytest
import torch
from cache_argument import CACHE, held, holding
from conftest import randomize, tiny_config
from rows_alone import greedy, logits_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import DynamicCache, PreTrainedTokenizerFast, StaticCache

from modeling_longcat_lite import LongCatLiteForCausalLM

IDS = torch.tensor([[5, 9, 7, 5, 9, 11]])
CALLS = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "static": {"cache_implementation": "static"},
    "chunks": {"prefill_chunk_size": 2},
    "lookup": {"prompt_lookup_num_tokens": 2},
    "mtp": {"use_mtp": True},
}


class Renamed(LongCatLiteForCausalLM):
    """As a transformers would make it that calls the cache `state` in what it hands to `forward`."""

    def prepare_inputs_for_generation(self, *args, **kwargs):
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        return {"state" if name in ("cache", "past_key_values") else name: value for name, value in inputs.items()}


class RenamedInGenerate(LongCatLiteForCausalLM):
    """As a transformers would make it that prepares the cache of `generate` as `state` from the beginning."""

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        for name in ("cache", "past_key_values"):
            if model_kwargs.get(name) is not None:
                model_kwargs["state"] = model_kwargs.pop(name)


def make_model(kind=LongCatLiteForCausalLM):
    return randomize(kind(tiny_config(num_nextn_predict_layers=1))).eval()


def generated(model, **options) -> list[int]:
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, **options}
    return model.generate(IDS, attention_mask=torch.ones_like(IDS), **options)[0, IDS.shape[1] :].tolist()


@pytest.mark.parametrize("mode", CALLS)
def test_a_cache_that_was_renamed_once_more(mode):
    with pytest.raises(ValueError, match="`state`"):
        generated(make_model(Renamed), **CALLS[mode])


@pytest.mark.parametrize("mode", ["greedy", "beams", "static"])  # the others look for a cache before they go on
def test_a_cache_that_was_prepared_under_another_name(mode):
    with pytest.raises(ValueError, match="`state`"):
        generated(make_model(RenamedInGenerate), **CALLS[mode])


def test_a_cache_of_the_users_own_that_was_renamed():
    model = make_model(Renamed)
    for cache in (DynamicCache(), StaticCache(config=model.config, max_cache_len=16)):
        with pytest.raises(ValueError, match="`state`"):
            generated(model, **holding(cache))


@pytest.mark.parametrize("kind", [Renamed, RenamedInGenerate])
def test_without_a_cache_there_is_nothing_to_rename(kind):
    model = make_model(kind)
    assert generated(model, use_cache=False) == greedy(make_model(), IDS[0].tolist(), 4)[0]


@pytest.mark.parametrize("trunk", [False, True], ids=["whole", "trunk"])
@torch.no_grad()
def test_a_forward_names_what_it_does_not_read(trunk):
    model = make_model().model if trunk else make_model()
    cache = held(model(IDS, use_cache=True))
    for name in ("state", "past_key_value", "kv_cache", "layer_past"):
        with pytest.raises(ValueError, match=f"`{name}`"):
            model(IDS[:, :1], **{name: cache})
    for name in ("attn_mask", "positions", "ngram_ids"):
        with pytest.raises(ValueError, match=f"`{name}`"):
            model(IDS, **{name: torch.ones_like(IDS)})


@torch.no_grad()
def test_both_names_of_a_cache_are_one_argument():
    model, outputs = make_model(), []
    for name in ("cache", "past_key_values"):
        cache = DynamicCache()
        model(IDS[:, :4], **{name: cache})
        outputs.append(model(IDS[:, 4:], **{name: cache}))
        assert held(outputs[-1]) is cache and CACHE in outputs[-1]
        torch.testing.assert_close(outputs[-1].logits[0], logits_of(model, IDS[0].tolist())[4:], atol=2e-4, rtol=0)
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    with pytest.raises(ValueError, match=r"`cache` and `past_key_values`"):
        model(IDS, cache=DynamicCache(), past_key_values=DynamicCache())


class Dropped(LongCatLiteForCausalLM):
    """As a wrapper makes it that hands on the inputs that it knows, and nothing else."""

    def __call__(self, input_ids=None, attention_mask=None, **others):
        return super().__call__(input_ids=input_ids, attention_mask=attention_mask)


@pytest.mark.parametrize("mode", CALLS)
def test_a_cache_that_was_dropped_with_all_that_tells_of_it(mode):
    with pytest.raises(ValueError, match=r"`generate` prepared a .*, but the model got another one"):
        generated(make_model(Dropped), **CALLS[mode])


def test_a_cache_is_used_unless_it_is_declined():
    model = make_model()
    assert generated(model, use_cache=None) == greedy(make_model(), IDS[0].tolist(), 4)[0]


@torch.no_grad()
def test_all_that_a_tokenizer_returns_may_be_handed_on():
    vocabulary = {f"w{number}": number for number in range(64)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="w0")))
    details = {
        f"return_{name}": True for name in ("special_tokens_mask", "offsets_mapping", "length", "token_type_ids")
    }
    model, inputs = make_model(), tokenizer("w7", return_tensors="pt", return_overflowing_tokens=True, **details)
    assert len(inputs) > 5
    assert torch.equal(model(**inputs).logits, model(inputs["input_ids"]).logits)
