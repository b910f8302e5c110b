# SPDX-License-Identifier: Apache-2.0
"""Prompt lookup, a smaller model and the draft head give the tokens of plain greedy decoding, on every checkpoint."""

import pytest
import torch
from generation_cases import CASES, load, prompts, run

from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.transformers_versions import CACHE

every_case = pytest.mark.parametrize("case", CASES)
padding = pytest.mark.parametrize("padded", [0, 4], ids=["none", "left"])


def one_row(case: str, padded: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A prompt that repeats itself, so that lookups hit; with padding before it."""
    ids = prompts(case)[:1].repeat(1, 2)
    mask = torch.nn.functional.pad(torch.ones_like(ids), (padded, 0))
    return torch.nn.functional.pad(ids, (padded, 0), value=3), mask


def with_draft_head(case: str, ngram_drafts: bool) -> LongCatLiteForCausalLM:
    model = load(case)
    if model.model.mtp is None:
        torch.manual_seed(0)
        model.add_draft_head()
    model.config.mtp_use_ngram_embedding = ngram_drafts
    return model


@every_case
@padding
def test_prompt_lookup(case, padded):
    model, inputs = load(case), one_row(case, padded)
    assert torch.equal(run(model, *inputs, prompt_lookup_num_tokens=3), run(model, *inputs, use_cache=False))


@every_case
@padding
def test_a_smaller_model(case, padded):
    # Of the same vocabulary, but with another number of layers and another n-gram order.
    assistant = load("fractional" if case == "fractional" else "bigram")
    model, inputs = load(case), one_row(case, padded)
    assert torch.equal(run(model, *inputs, assistant_model=assistant), run(model, *inputs, use_cache=False))


@every_case
@padding
@pytest.mark.parametrize("ngram_drafts", [False, True], ids=["word_drafts", "ngram_drafts"])
def test_the_draft_head(case, padded, ngram_drafts):
    model, inputs = with_draft_head(case, ngram_drafts), one_row(case, padded)
    assert torch.equal(run(model, *inputs, use_mtp=True), run(model, *inputs, use_cache=False))
    assert model.draft_statistics.cycles > 0


def test_a_trained_draft_head_is_right_often():
    model, accepted = with_draft_head("trained", ngram_drafts=False), []
    for row in prompts("trained"):
        inputs = row[None], torch.ones_like(row[None])
        expected = run(model, *inputs, use_cache=False, max_new_tokens=24)
        assert torch.equal(run(model, *inputs, use_mtp=True, max_new_tokens=24), expected)
        accepted += model.draft_statistics.accepted_per_cycle
    assert sum(accepted) > len(accepted) / 4
    assert 0 in accepted  # and drafts are rejected, too


@every_case
@padding
@pytest.mark.parametrize("kind", ["mtp", "lookup", "assistant"])
def test_going_on_from_a_filled_cache(case, padded, kind):
    model, (ids, mask) = with_draft_head(case, ngram_drafts=False), one_row(case, padded)
    assistance = {
        "mtp": {"use_mtp": True},
        "lookup": {"prompt_lookup_num_tokens": 3},
        "assistant": {"assistant_model": load("fractional" if case == "fractional" else "bigram")},
    }[kind]
    first = model.generate(
        ids, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=None, return_dict_in_generate=True
    )
    mask = torch.nn.functional.pad(mask, (0, 4), value=1)
    expected = run(model, first.sequences, mask, use_cache=False)
    assert torch.equal(
        run(model, first.sequences, mask, past_key_values=first.past_key_values, **assistance), expected
    )


@every_case
@pytest.mark.parametrize("assistance", [{"use_mtp": True}, {"prompt_lookup_num_tokens": 3}], ids=["mtp", "lookup"])
def test_the_history_after_rejected_drafts(case, assistance):
    model, (ids, mask) = with_draft_head(case, ngram_drafts=False), one_row(case, 0)
    output = model.generate(
        ids, attention_mask=mask, max_new_tokens=10, eos_token_id=None, return_dict_in_generate=True, **assistance
    )
    lookback, cache = model.config.max_ngram_order - 1, output.past_key_values
    history = cache.token_history[:, lookback:]
    assert history.shape[1] == cache.get_seq_length()
    assert torch.equal(torch.where(history < 0, ~history, history), output.sequences[:, : history.shape[1]])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_mtp": True}, "use_mtp"),
        ({"prompt_lookup_num_tokens": 2, "input_ids": True}, "input_ids"),
        ({"prompt_lookup_num_tokens": 2, "attention_mask": True}, "attention_mask"),
        ({"prompt_lookup_num_tokens": 2, "cache": True}, "cache"),
        ({"assistant_model": True}, "assistant_model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@torch.no_grad()
def test_embeddings_that_assisted_decoding_would_misplace(options, reason):
    model, ids = load("released"), prompts("released")[:1]
    given = {
        "input_ids": ids,
        "attention_mask": torch.arange(ids.shape[1])[None] > 0,
        "cache": model(ids[:, :3], use_cache=True)[CACHE],
        "assistant_model": model,
    }
    options = {name: given.get(name, value) for name, value in options.items()}
    with pytest.raises(ValueError, match=f"`inputs_embeds` but not with.*{reason}"):
        model.generate(
            inputs_embeds=model.get_input_embeddings()(ids), ngram_input_ids=ids, max_new_tokens=3, **options
        )
