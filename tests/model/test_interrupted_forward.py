# SPDX-License-Identifier: Apache-2.0
"""A forward that ends midway leaves a cache in which layers differ: it is refused by name, or goes on rightly.

Out of memory, a key pressed, an exception in somebody's hook: what a cache then holds is no prefix of the row.
"""

import copy

import pytest
import torch
from cache_argument import held, holding, keep_every_number
from conftest import randomize, tiny_config
from rows_alone import greedy, logits_of
from transformers import DynamicCache, QuantizedCache, StaticCache

from modeling_longcat_lite import LongCatLiteForCausalLM

ROW = [5, 9, 7, 5, 9, 11, 8]
KINDS = {
    "lazy": lambda config: DynamicCache(),
    "dynamic": lambda config: DynamicCache(config=config),
    "static": lambda config: StaticCache(config=config, max_cache_len=32),
    "quantized": lambda config: QuantizedCache("fp8", config),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
# Between the first sublayer that has taken tokens and the last that has not.
MIDWAY = ["layers.0.mlp", "layers.0.self_attn.1", "layers.1.self_attn.0", "layers.1.mlp", "layers.1.self_attn.1"]
REFUSED = r"(cache|past_key_values).*"


@pytest.fixture(autouse=True)
def quantized_caches_keep_every_number(monkeypatch):
    keep_every_number(monkeypatch)


@pytest.fixture(scope="module")
def model() -> LongCatLiteForCausalLM:
    return randomize(LongCatLiteForCausalLM(tiny_config())).eval()


class Interruption:
    """Fails when a module of the trunk is called for the `count`-th time."""

    def __init__(self, model, name: str, count: int = 1, error: type[BaseException] = torch.OutOfMemoryError):
        self.left, self.error = count, error
        self.handle = model.model.get_submodule(name).register_forward_pre_hook(self.fail)

    def fail(self, *_):
        self.left -= 1
        if self.left == 0:
            raise self.error("interrupted")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


@torch.no_grad()
def step(model, cache, begin: int, end: int) -> torch.Tensor:
    return model(torch.tensor([ROW[begin:end]]), **holding(cache)).logits[0]


def continued(model, cache, **options):
    ids = torch.tensor([ROW])
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, **options}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options, **holding(cache))[
        0, len(ROW) :
    ].tolist()


@every_kind
@pytest.mark.parametrize("name", MIDWAY)
@pytest.mark.parametrize("filled", [0, 4])
def test_the_cache_of_a_failed_forward_is_refused(model, kind, name, filled):
    cache = KINDS[kind](model.config)
    if filled:
        step(model, cache, 0, filled)
    with Interruption(model, name), pytest.raises(torch.OutOfMemoryError):
        step(model, cache, filled, 6)
    for attempt in (
        lambda: step(model, cache, filled, 6),
        lambda: step(model, cache, 6, 7),
        lambda: continued(model, cache),
        lambda: step(model, copy.deepcopy(cache), 6, 7),
    ):
        with pytest.raises(ValueError, match=REFUSED):
            attempt()


@every_kind
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_generating_that_was_interrupted(model, kind, error):
    cache = KINDS[kind](model.config)
    with Interruption(model, "layers.1.mlp", count=3, error=error), pytest.raises(error):
        continued(model, cache)
    with pytest.raises(ValueError, match=REFUSED):
        continued(model, cache)


@every_kind
def test_a_reset_cache_serves_again(model, kind):
    cache = KINDS[kind](model.config)
    with Interruption(model, "layers.0.mlp"), pytest.raises(torch.OutOfMemoryError):
        step(model, cache, 0, 6)
    cache.reset()
    assert continued(model, cache) == greedy(model, ROW, 3)[0]


@every_kind
@pytest.mark.parametrize("name", ["layers.0", "layers.0.self_attn.0"])
@pytest.mark.parametrize("filled", [0, 4])
def test_a_failure_before_any_layer_took_tokens(model, kind, name, filled):
    """The history of tokens may be ahead of the layers then: refused, or right; never wrong."""
    cache = KINDS[kind](model.config)
    if filled:
        step(model, cache, 0, filled)
    with Interruption(model, name), pytest.raises(torch.OutOfMemoryError):
        step(model, cache, filled, 6)
    try:
        found = step(model, cache, filled, 6)
    except ValueError as refusal:
        assert "cache" in str(refusal) or "past_key_values" in str(refusal)
    else:
        torch.testing.assert_close(found, logits_of(model, ROW[:6])[filled:], atol=2e-4, rtol=0)
        assert continued(model, cache) == greedy(model, ROW, 3)[0]


@every_kind
def test_a_failure_after_all_layers_took_tokens(model, kind):
    cache = KINDS[kind](model.config)
    with Interruption(model, "norm"), pytest.raises(torch.OutOfMemoryError):
        step(model, cache, 0, 6)
    torch.testing.assert_close(step(model, cache, 6, 7), logits_of(model, ROW)[6:], atol=2e-4, rtol=0)


@torch.no_grad()
def test_a_cache_that_was_cropped_or_reordered_is_not_taken_for_a_failed_one(model):
    cache = held(model(torch.tensor([ROW, ROW[::-1]]), use_cache=True))
    cache.crop(-3)
    cache.reorder_cache(torch.tensor([1, 0]))
    found = model(torch.tensor([ROW[::-1][4:6], ROW[4:6]]), **holding(cache)).logits
    torch.testing.assert_close(found[1], logits_of(model, ROW[:6])[4:], atol=2e-4, rtol=0)
    torch.testing.assert_close(found[0], logits_of(model, ROW[::-1][:6])[4:], atol=2e-4, rtol=0)
