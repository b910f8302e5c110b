# SPDX-License-Identifier: Apache-2.0
"""Every mode of generate gives the tokens it gives without a cache, and each row those it gets alone."""

import copy
import itertools

import pytest
import torch
from generation_cases import CACHES, CASES, MODES, NEW_TOKENS, left_padded, load, prompts, run
from transformers import DynamicCache, StaticCache, TextStreamer

AXES = {
    "case": CASES,
    "mode": ["greedy", "beam", "beam_returns_3", "sample_returns_3", "prompt_lookup"],
    "cache": ["dynamic", "static", "dynamic_chunked", "static_chunked"],
    "attention": ["eager", "sdpa"],
    "experts": ["eager", "grouped_mm", "batched_mm"],
    "padding": ["none", "left"],
}


def is_possible(choice: dict) -> bool:
    """Assisted decoding takes one row, a cache that can be cropped, and no chunks."""
    return choice["mode"] != "prompt_lookup" or (choice["cache"] == "dynamic" and choice["padding"] == "none")


def every_choice() -> list[dict]:
    product = (dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values()))
    return [choice for choice in product if is_possible(choice)]


def pairwise_choice(choices: list[dict]) -> list[dict]:
    """A few choices in which every possible pair of values occurs: greedily the one with most new pairs."""
    pairs = {id(c): set(itertools.combinations(sorted(c.items()), 2)) for c in choices}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        chosen.append(max(choices, key=lambda c: len(pairs[id(c)] & missing)))
        missing -= pairs[id(chosen[-1])]
    return chosen


ALL_CHOICES = every_choice()
PAIRWISE = pairwise_choice(ALL_CHOICES)


every_case = pytest.mark.parametrize("case", CASES)


def name(choice: dict) -> str:
    return "-".join(choice.values())


def check_choice(choice: dict):
    model = load(choice["case"], attn_implementation=choice["attention"], experts_implementation=choice["experts"])
    ids = prompts(choice["case"])
    mask = torch.ones_like(ids)
    if choice["padding"] == "left":
        ids, mask, _ = left_padded(ids)
    if choice["mode"] == "prompt_lookup":
        ids, mask = ids[:1].repeat(1, 2), mask[:1].repeat(1, 2)  # a prompt that repeats itself, so that lookups hit
    mode = MODES[choice["mode"]]
    # Without a cache, prompt lookup is plain greedy decoding.
    reference = {} if choice["mode"] == "prompt_lookup" else mode
    expected = run(model, ids, mask, use_cache=False, **reference)
    assert torch.equal(run(model, ids, mask, **mode, **CACHES[choice["cache"]]), expected)


@pytest.mark.parametrize("choice", PAIRWISE, ids=name)
def test_a_cache_changes_no_token(choice):
    check_choice(choice)


@pytest.mark.full
@pytest.mark.parametrize("choice", ALL_CHOICES, ids=name)
def test_a_cache_changes_no_token_in_the_whole_product(choice):
    check_choice(choice)


def test_the_pairwise_choice_is_complete():
    def pairs(choices):
        return {pair for choice in choices for pair in itertools.combinations(sorted(choice.items()), 2)}

    assert pairs(PAIRWISE) == pairs(ALL_CHOICES)
    assert len(PAIRWISE) < 60


@pytest.mark.parametrize("cache", ["none", *CACHES])
@pytest.mark.parametrize("mode", ["greedy", "beam"])
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[] if case in ("base", "trained") else [pytest.mark.slow]) for case in AXES["case"]],
)
def test_left_padding_changes_no_token(case, mode, cache):
    model = load(case)
    ids, mask, rows = left_padded(prompts(case))
    options = MODES[mode] | ({"use_cache": False} if cache == "none" else CACHES[cache])
    together = run(model, ids, mask, **options)
    for row, tokens in zip(rows, together, strict=True):
        assert torch.equal(run(model, row[None], torch.ones_like(row[None]), **options)[0], tokens)


@torch.no_grad()
def test_a_padding_mask_alone_hides_padding_from_ngrams():
    # lm-eval and plain forwards pass a mask but no positions; attention is relative, so only n-grams could differ.
    model = load("base")
    ids, mask, rows = left_padded(prompts("base"))
    logits = model(ids, attention_mask=mask).logits
    for row, together in zip(rows, logits, strict=True):
        torch.testing.assert_close(together[-len(row) :], model(row[None]).logits[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("cache", [*CACHES, "none"])
@pytest.mark.parametrize("hole", [1, 2, 5])
def test_a_hole_in_the_mask_hides_a_token_in_every_cache(cache, hole):
    model, ids = load("base"), prompts("base")[:1]
    mask = torch.ones_like(ids)
    mask[0, hole] = 0
    options = {"use_cache": False} if cache == "none" else CACHES[cache]
    expected = run(model, ids, mask)
    assert torch.equal(run(model, ids, mask, **options), expected)
    # What stands in the hole has no say.
    assert torch.equal(run(model, ids.index_fill(1, torch.tensor([hole]), 77), mask, **options), expected)


@every_case
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_continuing_from_a_returned_cache(case, cache):
    model, ids = load(case), prompts(case)
    mask = torch.ones_like(ids)
    expected = run(model, ids, mask, use_cache=False)
    options = {} if cache == "dynamic" else {"past_key_values": StaticCache(config=model.config, max_cache_len=40)}
    first = model.generate(
        ids,
        max_new_tokens=4,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        attention_mask=mask,
        **options,
    )
    rest = run(
        model,
        first.sequences,
        torch.ones_like(first.sequences),
        past_key_values=first.past_key_values,
        max_new_tokens=NEW_TOKENS - 4,
    )
    assert torch.equal(rest, expected[:, 4:])


@every_case
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_one_prefix_serves_many_continuations(case, kind):
    model, ids = load(case), prompts(case)[:1]
    is_static = kind == "static"
    prefix = StaticCache(model.config, max_cache_len=40) if is_static else DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, past_key_values=prefix)
    for tail in ([7, 8], [9, 2, 10], [5]):
        whole = torch.cat([ids, torch.tensor([tail])], dim=1)
        mask = torch.ones_like(whole)
        expected = run(model, whole, mask, use_cache=False)
        assert torch.equal(run(model, whole, mask, past_key_values=copy.deepcopy(prefix)), expected)


@every_case
@pytest.mark.parametrize("kind", ["lazy", "dynamic", "static"])
def test_a_cache_of_the_users_own_is_filled_and_reused_after_reset(case, kind):
    model, ids = load(case), prompts(case)
    cache = {
        "lazy": DynamicCache,
        "dynamic": lambda: DynamicCache(config=model.config),
        "static": lambda: StaticCache(config=model.config, max_cache_len=40),
    }[kind]()
    mask = torch.ones_like(ids)
    expected = run(model, ids, mask, use_cache=False)
    for _ in range(2):
        assert torch.equal(run(model, ids, mask, past_key_values=cache), expected)
        cache.reset()


@every_case
def test_a_quantized_cache_keeps_the_tokens_exactly(case):
    model, ids = load(case), prompts(case)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        eos_token_id=None,
        cache_implementation="quantized",
        cache_config={"backend": "fp8"},
        return_dict_in_generate=True,
    )
    history = output.past_key_values.token_history[:, -(output.sequences.shape[1] - 1) :]
    history = torch.where(history < 0, ~history, history)  # a negative code is the first token of a document
    assert torch.equal(history, output.sequences[:, :-1])


def test_generating_from_embeddings_with_their_tokens():
    model, ids = load("base"), prompts("base")
    expected = run(model, ids, torch.ones_like(ids))
    embeds = model.get_input_embeddings()(ids)
    tokens = model.generate(
        inputs_embeds=embeds, ngram_input_ids=ids, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
    )
    assert torch.equal(tokens, expected)


@every_case
@pytest.mark.parametrize("cache", CACHES)
def test_streaming_sees_every_token(case, cache):
    class Collector(TextStreamer):
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            pass

    model, ids = load(case), prompts(case)[:1]
    collector = Collector()
    tokens = run(model, ids, torch.ones_like(ids), streamer=collector, **CACHES[cache])
    assert torch.equal(tokens, run(model, ids, torch.ones_like(ids), use_cache=False))
    assert collector.tokens == [*ids[0].tolist(), *tokens[0].tolist()]


def test_embeddings_without_their_tokens_are_refused():
    model, ids = load("base"), prompts("base")
    embeds = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match="ngram_input_ids"):
        model(inputs_embeds=embeds)
    with pytest.raises(ValueError, match="ngram_input_ids"):
        model.generate(inputs_embeds=embeds, max_new_tokens=2)
    with pytest.raises(ValueError, match="ngram_input_ids"):
        model(inputs_embeds=embeds, ngram_input_ids=ids[:, 1:])


@pytest.mark.parametrize("bad", [-1, 256])
def test_tokens_outside_the_vocabulary_are_named(bad):
    model = load("base")
    ids = torch.tensor([[5, 6], [7, bad]])
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=rf"input_ids\[1, 1\].* {bad}"):
            call(ids)


def test_a_cache_without_tokens_is_refused():
    model, ids = load("base"), prompts("base")
    stranger = DynamicCache()
    for layer in range(model.config.num_hidden_layers):
        stranger.update(torch.zeros(4, 1, 5, 24), torch.zeros(4, 1, 5, 8), layer)
    with pytest.raises(ValueError, match="without the tokens"):
        model(ids, past_key_values=stranger)
    assert type(stranger) is DynamicCache
    with pytest.raises(ValueError, match="without the tokens"):
        model.generate(ids, past_key_values=stranger, max_new_tokens=2)
