# SPDX-License-Identifier: Apache-2.0
"""A cache or a choice of assistance that does not fit is refused by name, and the cache stays as it was."""

import copy

import pytest
import torch
from conftest import randomize, tiny_config
from transformers import DynamicCache, EncoderDecoderCache, QuantizedCache, StaticCache

from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.transformers_versions import CACHE

IDS = torch.randint(4, 64, (3, 9), generator=torch.Generator().manual_seed(3))
KINDS = {
    "dynamic": lambda config: DynamicCache(config=config),
    "lazy dynamic": lambda config: DynamicCache(),
    "static": lambda config: StaticCache(config=config, max_cache_len=16),
    "quantized": lambda config: QuantizedCache("fp8", config),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
ASSISTANCE = {
    "use_mtp": lambda: {"use_mtp": True},
    "prompt_lookup": lambda: {"prompt_lookup_num_tokens": 2},
    "assistant": lambda: {"assistant_model": make_model(num_layers=1)},
}


def make_model(**overrides) -> LongCatLiteForCausalLM:
    return randomize(LongCatLiteForCausalLM(tiny_config(**overrides))).eval()


@torch.no_grad()
def filled(kind: str, rows: int = 2, length: int = 5, **overrides):
    cache = KINDS[kind](tiny_config(**overrides))
    make_model(**overrides)(IDS[:rows, :length], past_key_values=cache)
    return cache


def state(value):
    """All that a cache holds, with tensors as lists."""
    if isinstance(value, torch.Tensor):
        return value.tolist() if value.dtype != torch.float8_e4m3fn else value.float().tolist()
    if isinstance(value, dict):
        return {name: state(part) for name, part in value.items() if name != "_is_user_defined"}
    if isinstance(value, (list, tuple)):
        return [state(part) for part in value]
    return (type(value), state(vars(value))) if "__dict__" in dir(value) and not callable(value) else value


def check_refused(cache, reason: str, *calls):
    before = copy.deepcopy(state(cache))
    for call in calls:
        with torch.no_grad(), pytest.raises(ValueError, match=reason):
            call()
        assert state(cache) == before


@every_kind
@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"num_layers": 1}, "2 layers.*4 attention sublayers"),
        ({"num_layers": 3}, "6 layers.*4 attention sublayers"),
        ({"kv_lora_rank": 10}, "`kv_lora_rank` 10.*12"),
        ({"qk_rope_head_dim": 6}, "`qk_rope_head_dim` 6.*4"),
        ({"emb_neighbor_num": 3}, "`emb_neighbor_num` 3.*4"),
        ({"use_ngram_embedding": False}, "without the tokens"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_cache_from_another_model(kind, other, reason):
    model, cache = make_model(), filled(kind, **other)
    check_refused(
        cache,
        reason,
        lambda: model(IDS[:2, 5:6], past_key_values=cache),
        lambda: model.generate(IDS[:2], past_key_values=cache, max_new_tokens=2),
    )


def test_a_cache_that_another_model_returned():
    cache = make_model(kv_lora_rank=10)(IDS[:2], use_cache=True).past_key_values
    check_refused(cache, "`kv_lora_rank` 10.*12", lambda: make_model()(IDS[:2, :1], past_key_values=cache))


@pytest.mark.parametrize("kind", ["dynamic", "static", "quantized"])
def test_an_empty_cache_made_for_another_model(kind):
    model, cache = make_model(), KINDS[kind](tiny_config(num_layers=3))
    check_refused(
        cache,
        "6 layers.*4 attention sublayers",
        lambda: model(IDS, past_key_values=cache),
        lambda: model.generate(IDS, past_key_values=cache, max_new_tokens=2),
    )


@every_kind
def test_a_cache_of_another_batch_size(kind):
    model, cache = make_model(), filled(kind)
    check_refused(
        cache,
        "holds 2 rows but the input has 3",
        lambda: model(IDS[:, 5:6], past_key_values=cache),
        lambda: model.generate(IDS, past_key_values=cache, max_new_tokens=2),
    )
    many = [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}]
    for options in many:
        check_refused(
            cache,
            "holds 2 rows but the input has 4",
            lambda options=options: model.generate(IDS[:2], past_key_values=cache, max_new_tokens=2, **options),
        )


@pytest.mark.parametrize(
    "cache",
    [EncoderDecoderCache(DynamicCache(), DynamicCache()), 3, "static", [], ((torch.zeros(1), torch.zeros(1)),)],
    ids=lambda cache: type(cache).__name__,
)
def test_what_is_not_a_cache_for_this_model(cache):
    model, reason = make_model(), f"{CACHE}.*{type(cache).__name__}"
    check_refused(
        cache,
        reason,
        lambda: model(IDS, past_key_values=cache),
        lambda: model.generate(IDS, past_key_values=cache, max_new_tokens=2),
    )


@every_kind
@pytest.mark.parametrize("length", [0, 5])
def test_a_positive_crop(kind, length):
    cache = filled(kind)
    if not length:
        cache.reset()
    check_refused(cache, "positive|cannot be cropped", lambda: cache.crop(2))


@pytest.mark.parametrize(
    ("held", "call", "wanted"),
    [
        (0, lambda model, cache: model(IDS[:2].repeat(1, 2), past_key_values=cache), 18),
        (15, lambda model, cache: model(IDS[:2, :2], past_key_values=cache), 17),
        (16, lambda model, cache: model(IDS[:2, :1], past_key_values=cache), 17),
        (0, lambda model, cache: model.generate(IDS[:2], past_key_values=cache, max_new_tokens=9), 17),
    ],
    ids=["prompt", "several", "one", "generate"],
)
def test_more_tokens_than_a_static_cache_holds(held, call, wanted):
    model, cache = make_model(), StaticCache(config=tiny_config(), max_cache_len=16)
    if held:
        with torch.no_grad():
            model(IDS[:2].repeat(1, 2)[:, :held], past_key_values=cache)
    check_refused(cache, f"16 tokens.*`max_cache_len` of at least {wanted}", lambda: call(model, cache))


def test_a_static_cache_can_be_filled_to_the_last_token():
    model = make_model()
    expected = model.generate(IDS[:2], max_new_tokens=8, do_sample=False, eos_token_id=None)
    cache = StaticCache(config=tiny_config(), max_cache_len=16)
    found = model.generate(IDS[:2], max_new_tokens=8, do_sample=False, eos_token_id=None, past_key_values=cache)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["static", "quantized"])
@pytest.mark.parametrize("assistance", ASSISTANCE)
def test_assistance_needs_a_dynamic_cache(assistance, kind):
    model, options = make_model(num_nextn_predict_layers=1), ASSISTANCE[assistance]() | {"max_new_tokens": 2}
    cache = KINDS[kind](tiny_config())
    check_refused(cache, f"{kind}.*dynamic", lambda: model.generate(IDS[:1], past_key_values=cache, **options))
    options |= {"cache_implementation": kind, "cache_config": {"backend": "fp8"} if kind == "quantized" else None}
    check_refused(None, f"{kind}.*dynamic", lambda: model.generate(IDS[:1], **options))


@pytest.mark.parametrize("assistance", ASSISTANCE)
@pytest.mark.parametrize(
    ("rows", "options", "reason"),
    [(2, {}, "one row.*2"), (1, {"do_sample": True, "num_return_sequences": 2}, "num_return_sequences has to be 1")],
    ids=["batch", "return_sequences"],
)
def test_assistance_takes_one_row(assistance, rows, options, reason):
    model, cache = make_model(num_nextn_predict_layers=1), DynamicCache()
    options = options | ASSISTANCE[assistance]() | {"past_key_values": cache, "max_new_tokens": 2}
    check_refused(cache, reason, lambda: model.generate(IDS[:rows], **options))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_beams": 2}, "`num_beams=1`.*2"),
        ({"num_beams": 2, "num_return_sequences": 2}, "`num_beams=1`.*2"),
        ({"prompt_lookup_num_tokens": 2}, "`prompt_lookup_num_tokens`"),
        ({"assistant_model": "another"}, "`assistant_model`"),
    ],
    ids=["beams", "beams_return_2", "prompt_lookup", "assistant"],
)
def test_use_mtp_goes_with_nothing_else(options, reason):
    model, cache = make_model(num_nextn_predict_layers=1), DynamicCache()
    if "assistant_model" in options:
        options = {"assistant_model": make_model()}
    options = options | {"use_mtp": True, "past_key_values": cache, "max_new_tokens": 2}
    check_refused(cache, reason, lambda: model.generate(IDS[:1], **options))


def test_use_mtp_without_a_draft_head():
    model, cache = make_model(), DynamicCache()
    check_refused(cache, r"model\.mtp", lambda: model.generate(IDS[:1], use_mtp=True, past_key_values=cache))
