# SPDX-License-Identifier: Apache-2.0
"""Token history in every cache: whatever is done to the cache, it is the history of the keys and values beside it."""

import copy
import pickle

import pytest
import torch
from conftest import randomize, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, EncoderDecoderCache, QuantizedCache, StaticCache

from modeling_longcat_lite import (
    LongCatLiteDynamicCache,
    LongCatLiteForCausalLM,
    LongCatLiteQuantizedCache,
    LongCatLiteStaticCache,
)
from modeling_longcat_lite.ngram_cache import with_token_history
from modeling_longcat_lite.ngram_hashing import HIDDEN
from modeling_longcat_lite.transformers_versions import CACHE

CONFIG = tiny_config()
MAX_LENGTH = 24
STOCK = {
    "dynamic": lambda: DynamicCache(config=CONFIG),
    "lazy dynamic": DynamicCache,
    "static": lambda: StaticCache(config=CONFIG, max_cache_len=MAX_LENGTH),
    "quantized": lambda: QuantizedCache("fp8", CONFIG),
}
OURS = {
    "dynamic": (LongCatLiteDynamicCache, lambda: LongCatLiteDynamicCache(config=CONFIG)),
    "lazy dynamic": (LongCatLiteDynamicCache, LongCatLiteDynamicCache),
    "static": (LongCatLiteStaticCache, lambda: LongCatLiteStaticCache(CONFIG, MAX_LENGTH)),
    "quantized": (LongCatLiteQuantizedCache, lambda: LongCatLiteQuantizedCache("fp8", CONFIG)),
}
KINDS = list(OURS)
IDS = torch.randint(4, 64, (2, 9), generator=torch.Generator().manual_seed(3))


def make_model() -> LongCatLiteForCausalLM:
    return randomize(LongCatLiteForCausalLM(tiny_config())).eval()


class Mirror:
    """A cache beside the same history as lists, with keys and values that spell out the codes."""

    def __init__(self, cache, lookback: int, batch: int):
        self.cache, self.lookback = cache, lookback
        self.rows: list[list[int]] = [[] for _ in range(batch)]

    def append(self, codes: list[list[int]]):
        window = self.cache.append_tokens(torch.tensor(codes), self.lookback)
        for row, new in zip(self.rows, codes, strict=True):
            row.extend(new)
        states = torch.tensor(codes, dtype=torch.float64)[:, None, :, None]
        for layer in range(CONFIG.num_hidden_layers):
            self.cache.update(states, states, layer)
        width = self.lookback + len(codes[0])
        assert window.tolist() == [([HIDDEN] * self.lookback + row)[-width:] for row in self.rows]

    def check(self):
        length = len(self.rows[0])
        assert int(self.cache.get_seq_length()) == length
        if length:
            kept = self.cache.token_history[:, : self.lookback + length]
            assert kept.tolist() == [[HIDDEN] * self.lookback + row for row in self.rows]

    def check_keys(self):
        if self.rows[0]:
            keys = self.cache.layers[-1].keys[:, 0, : len(self.rows[0]), 0]
            assert keys.tolist() == torch.tensor(self.rows).double().tolist()


def draw_codes(data, batch: int, most: int) -> list[list[int]]:
    length = data.draw(st.integers(1, most))
    code = st.sampled_from([*range(-6, 6), HIDDEN])
    return [data.draw(st.lists(code, min_size=length, max_size=length)) for _ in range(batch)]


def draw_rows(data, batch: int, size: int) -> list[int]:
    return data.draw(st.lists(st.integers(0, batch - 1), min_size=size, max_size=size))


@settings(max_examples=150, derandomize=True, deadline=None)
@given(data=st.data())
def test_dynamic_history_follows_the_cache(data):
    lazy = data.draw(st.booleans())
    cache = LongCatLiteDynamicCache() if lazy else LongCatLiteDynamicCache(config=CONFIG)
    mirror = Mirror(cache, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3)))
    for _ in range(data.draw(st.integers(1, 8))):
        batch, length = len(mirror.rows), len(mirror.rows[0])
        # Rows of an empty cache are whatever comes next.
        known = ["append", "crop", "reorder", "repeat", "select", "reset"] if length else ["append", "reset"]
        match data.draw(st.sampled_from(known)):
            case "append":
                mirror.append(draw_codes(data, batch, 4))
            case "crop":
                removed = data.draw(st.integers(0, length))
                cache.crop(-removed)
                mirror.rows = [row[: length - removed] for row in mirror.rows]
            case "reorder":
                order = draw_rows(data, batch, batch)
                cache.reorder_cache(torch.tensor(order))
                mirror.rows = [list(mirror.rows[i]) for i in order]
            case "repeat":
                repeats = data.draw(st.integers(1, 2))
                cache.batch_repeat_interleave(repeats)
                mirror.rows = [list(row) for row in mirror.rows for _ in range(repeats)]
            case "select":
                chosen = draw_rows(data, batch, data.draw(st.integers(1, batch)))
                cache.batch_select_indices(data.draw(st.sampled_from([torch.tensor, list, tuple]))(chosen))
                mirror.rows = [list(mirror.rows[i]) for i in chosen]
            case "reset":
                cache.reset()
                mirror.rows = [[] for _ in range(data.draw(st.integers(1, 3)))]
        mirror.check()
        mirror.check_keys()


def run_append_reorder_reset(data, cache, max_length: int) -> Mirror:
    mirror = Mirror(cache, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3)))
    for _ in range(data.draw(st.integers(1, 8))):
        batch, room = len(mirror.rows), max_length - len(mirror.rows[0])
        match data.draw(st.sampled_from(["append", "append", "reorder", "reset"])):
            case "append" if room:
                mirror.append(draw_codes(data, batch, min(room, 4)))
            case "reorder" if mirror.rows[0]:
                order = draw_rows(data, batch, batch)
                cache.reorder_cache(torch.tensor(order))
                mirror.rows = [list(mirror.rows[i]) for i in order]
            case "reset":
                cache.reset()
                mirror.rows = [[] for _ in mirror.rows]
        mirror.check()
    return mirror


@settings(max_examples=100, derandomize=True, deadline=None)
@given(data=st.data())
def test_static_history_follows_the_cache(data):
    run_append_reorder_reset(data, LongCatLiteStaticCache(CONFIG, 9), 9).check_keys()


@settings(max_examples=60, derandomize=True, deadline=None)
@given(data=st.data())
def test_quantized_history_is_exact(data):
    run_append_reorder_reset(data, LongCatLiteQuantizedCache("fp8", CONFIG), 100)


def test_static_history_keeps_its_memory():
    """A captured CUDA graph reads and writes fixed addresses."""
    cache = LongCatLiteStaticCache(CONFIG, 9)
    mirror = Mirror(cache, 3, 2)
    mirror.append([[5, 6], [7, 8]])
    history, count = cache.token_history, cache.token_count
    address = history.data_ptr()
    mirror.append([[1], [2]])
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.reset()
    assert cache.token_history is history
    assert cache.token_count is count
    assert history.data_ptr() == address
    assert (history == HIDDEN).all()  # nothing of one request is left to the next


def test_static_history_stops_at_its_end():
    cache = LongCatLiteStaticCache(CONFIG, 3)
    cache.append_tokens(torch.tensor([[4, 5]]), 3)
    with pytest.raises((IndexError, RuntimeError)):
        cache.append_tokens(torch.tensor([[6, 7]]), 3)
    assert int(cache.token_count) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_window_starts_before_the_sequence(kind):
    window = OURS[kind][1]().append_tokens(torch.tensor([[-5, 6], [-7, 8]]), 3)
    assert window.tolist() == [[HIDDEN, HIDDEN, HIDDEN, -5, 6], [HIDDEN, HIDDEN, HIDDEN, -7, 8]]


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_stock_cache_is_upgraded_in_place(kind):
    model, cache = make_model(), STOCK[kind]()
    with torch.no_grad():
        outputs = model(IDS, past_key_values=cache)
    assert outputs.past_key_values is cache
    assert type(cache) is OURS[kind][0]
    assert with_token_history(cache) is cache
    assert cache.token_history[:, 3:12].tolist() == IDS.tolist()


@pytest.mark.parametrize("kind", ["dynamic", "static", "quantized"])
def test_history_after_generate_is_what_was_fed(kind):
    arguments = {"cache_config": {"backend": "fp8"}} if kind == "quantized" else {}
    outputs = make_model().generate(
        IDS,
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        return_dict_in_generate=True,
        cache_implementation=kind,
        disable_compile=True,
        **arguments,
    )
    assert type(outputs.past_key_values) is OURS[kind][0]
    codes = outputs.past_key_values.token_history[:, 3 : 3 + 14]
    assert torch.equal(torch.where(codes < 0, ~codes, codes), outputs.sequences[:, :-1])


def fill(cache, batch: int = 2, length: int = 5):
    for layer in range(CONFIG.num_hidden_layers):
        states = torch.randn(batch, 1, length, 4, generator=torch.Generator().manual_seed(layer))
        cache.update(states, states, layer)


@pytest.mark.parametrize("kind", ["dynamic", "lazy dynamic", "static"])
@pytest.mark.parametrize("ours", [False, True], ids=["stock", "ours"])
def test_keys_without_history_are_refused_and_left_alone(kind, ours):
    cache = OURS[kind][1]() if ours else STOCK[kind]()
    fill(cache)
    before, cls = copy.deepcopy(cache), type(cache)
    with pytest.raises(ValueError, match=f"{CACHE}.*without the tokens"):
        make_model()(IDS[:, :1], past_key_values=cache)
    assert type(cache) is cls
    assert int(cache.get_seq_length()) == 5
    assert getattr(cache, "token_history", None) is None
    for layer, kept in zip(cache.layers, before.layers, strict=True):
        assert torch.equal(layer.keys, kept.keys)
        assert torch.equal(layer.values, kept.values)


def test_quantized_keys_without_history_are_refused():
    cache = STOCK["quantized"]()
    fill(cache)
    with pytest.raises(ValueError, match=r"QuantizedCache.*without the tokens"):
        make_model()(IDS[:, :1], past_key_values=cache)
    assert type(cache) is QuantizedCache
    assert cache.get_seq_length() == 5


class UnknownCache(DynamicCache):
    """A cache of somebody else."""


@pytest.mark.parametrize("cache", [UnknownCache(), EncoderDecoderCache(DynamicCache(), DynamicCache())], ids=repr)
def test_an_unknown_cache_is_refused(cache):
    cls = type(cache)
    with pytest.raises(ValueError, match=cls.__name__):
        make_model()(IDS, past_key_values=cache)
    with pytest.raises(ValueError, match=cls.__name__):
        make_model().generate(IDS, past_key_values=cache, max_new_tokens=1)
    assert type(cache) is cls
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("dynamic", "positive"),
        ("lazy dynamic", "positive"),
        ("quantized", "dynamic cache"),
        ("static", "dynamic cache"),
    ],
)
def test_positive_crop_is_refused(kind, reason):
    model, cache = make_model(), OURS[kind][1]()
    with torch.no_grad():
        model(IDS, past_key_values=cache)
    history = cache.token_history.clone()
    with pytest.raises(ValueError, match=reason):
        cache.crop(4)
    assert int(cache.get_seq_length()) == 9
    assert torch.equal(cache.token_history, history)


def test_cropping_more_than_there_is_empties_the_cache():
    """As it does the keys and values: the cache can be filled again."""
    model, cache = make_model(), OURS["dynamic"][1]()
    with torch.no_grad():
        expected = model(IDS, past_key_values=LongCatLiteDynamicCache(config=CONFIG)).logits
        model(IDS, past_key_values=cache)
        cache.crop(-11)
        assert cache.get_seq_length() == 0
        torch.testing.assert_close(model(IDS, past_key_values=cache).logits, expected, atol=1e-5, rtol=0)


def test_what_a_static_cache_cannot_do_is_said():
    cache = LongCatLiteStaticCache(CONFIG, 9)
    with pytest.raises(ValueError, match="static cache cannot be cropped"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="fixed batch size"):
        cache.batch_repeat_interleave(2)
    with pytest.raises(ValueError, match="fixed batch size"):
        cache.batch_select_indices(torch.tensor([0]))


@pytest.mark.parametrize("kind", ["dynamic", "lazy dynamic"])
def test_nothing_happens_to_an_empty_cache(kind):
    cache = OURS[kind][1]()
    cache.crop(-1)
    cache.crop(0)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0]))
    cache.reset()
    assert cache.token_history is None
    assert cache.get_seq_length() == 0


def pickled(cache):
    return pickle.loads(pickle.dumps(cache))


# torch cannot pickle float8 storage.
@pytest.mark.parametrize(("kind", "twin_of"), [(k, copy.deepcopy) for k in KINDS] + [(k, pickled) for k in KINDS[:-1]])
def test_a_copy_continues_as_the_original_and_apart_from_it(kind, twin_of):
    model, cache = make_model(), OURS[kind][1]()
    with torch.no_grad():
        model(IDS[:, :5], past_key_values=cache)
        twin = twin_of(cache)
        assert type(twin) is type(cache)
        other = model(IDS[:, :2], past_key_values=twin)
        expected = model(IDS[:, 5:], past_key_values=twin_of(cache)).logits
        found = model(IDS[:, 5:], past_key_values=cache)
    assert torch.equal(found.logits, expected)
    assert other.past_key_values.token_history[:, 8:10].tolist() == IDS[:, :2].tolist()
    assert found.past_key_values.token_history[:, 8:12].tolist() == IDS[:, 5:].tolist()


def test_an_upgraded_cache_can_be_copied():
    model, cache = make_model(), DynamicCache(config=CONFIG)
    with torch.no_grad():
        model(IDS, past_key_values=cache)
    for twin in (copy.deepcopy(cache), pickled(cache)):
        assert type(twin) is LongCatLiteDynamicCache
        assert torch.equal(twin.token_history, cache.token_history)


def test_a_model_without_ngrams_takes_any_cache():
    model = randomize(LongCatLiteForCausalLM(tiny_config(use_ngram_embedding=False)))
    cache = UnknownCache()
    with torch.no_grad():
        assert model(IDS, past_key_values=cache).past_key_values is cache
    assert cache.get_seq_length() == 9
