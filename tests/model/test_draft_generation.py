# SPDX-License-Identifier: Apache-2.0
"""Drafting with the checkpoint's head: the same tokens as without, and as many drafts accepted as deserve it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import StoppingCriteria, StoppingCriteriaList

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from modeling_longcat_lite.ngram_hashing import HIDDEN

CONFORMANCE = Path(__file__).parents[1] / "conformance"
GREEDY = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": None}
PROMPTS = load_file(CONFORMANCE / "released" / "golden.safetensors")["prompts"]

every_embedding = pytest.mark.parametrize("ngram_drafts", [False, True], ids=["word_drafts", "ngram_drafts"])


def load(**overrides) -> LongCatLiteForCausalLM:
    return LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "released", dtype=torch.float32, **overrides)


def make_drafts_right(model, monkeypatch, right_per_cycle: int):
    """Has the head draft what the trunk will say for the first drafts of a cycle, then nonsense."""
    generator = model._get_candidate_generator

    def with_oracle(*args, **kwargs):
        made = generator(*args, **kwargs)
        draft, choose, drafted = made.get_candidates, made._processed_logits, []

        def new_cycle(*args, **kwargs):
            drafted.clear()
            return draft(*args, **kwargs)

        def oracle(candidates, states):
            likely = model(candidates).logits[:, -1].argmax()
            wanted = likely if len(drafted) < right_per_cycle else (likely + 1) % model.config.vocab_size
            drafted.append(wanted)
            return torch.zeros_like(choose(candidates, states)).index_fill_(1, wanted, 1.0)

        monkeypatch.setattr(made, "get_candidates", new_cycle)
        monkeypatch.setattr(made, "_processed_logits", oracle)
        return made

    monkeypatch.setattr(model, "_get_candidate_generator", with_oracle)


@every_embedding
def test_drafting_changes_no_token(ngram_drafts):
    model = load(mtp_use_ngram_embedding=ngram_drafts)
    for prompt in PROMPTS:
        expected = model.generate(prompt[None], **GREEDY)
        assert torch.equal(model.generate(prompt[None], use_mtp=True, **GREEDY), expected)
        assert model.draft_statistics.cycles > 0


@every_embedding
@pytest.mark.parametrize("right_per_cycle", [0, 1, 2, 3])
def test_right_drafts_are_accepted_and_counted(ngram_drafts, right_per_cycle, monkeypatch):
    model = load(mtp_use_ngram_embedding=ngram_drafts)
    expected = model.generate(PROMPTS[:1], **GREEDY)
    make_drafts_right(model, monkeypatch, right_per_cycle)
    assert torch.equal(model.generate(PROMPTS[:1], use_mtp=True, **GREEDY), expected)
    accepted = model.draft_statistics.accepted_per_cycle
    assert set(accepted[:-1]) == {right_per_cycle}  # the last cycle may be cut by the length


@every_embedding
def test_the_head_sees_true_states_after_every_cycle(ngram_drafts):
    # Whatever was drafted and rejected before, a draft must be what a head without any history of drafting gives.
    model = load(mtp_use_ngram_embedding=ngram_drafts)
    generators = []
    original = model._get_candidate_generator

    def keep(*args, **kwargs):
        generators.append(original(*args, **kwargs))
        return generators[-1]

    model._get_candidate_generator = keep
    tokens = model.generate(PROMPTS[:1], use_mtp=True, **GREEDY)
    (generator,) = generators
    generator.cache.crop(-generator.on_own_states)
    seen = generator.cache.get_seq_length()
    with torch.no_grad():
        states = model.model(tokens).last_hidden_state
        positions = torch.arange(seen)[None]
        embeds = None
        if ngram_drafts:
            embeds = model.model.embed_tokens_with_history(
                tokens, torch.nn.functional.pad(tokens, (3, 0), value=HIDDEN)
            )[:, 1 : seen + 1]
        fresh = type(generator.cache)()
        model.model.mtp(tokens[:, 1 : seen + 1], states[:, :seen], positions, None, fresh, embeds)
    for ours, theirs in zip(generator.cache.layers, fresh.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.values, theirs.values, atol=1e-4, rtol=0)


@every_embedding
def test_sampling_with_drafts_is_seeded_and_stays_in_the_vocabulary(ngram_drafts):
    model = load(mtp_use_ngram_embedding=ngram_drafts)
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        runs.append(model.generate(PROMPTS[:1], use_mtp=True, do_sample=True, max_new_tokens=24, eos_token_id=None))
    assert torch.equal(*runs)
    assert runs[0].shape == (1, PROMPTS.shape[1] + 24)


def test_a_stop_in_the_middle_of_a_cycle():
    class StopAfter(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([input_ids.shape[1] >= 15])

    model = load()
    stop = StoppingCriteriaList([StopAfter()])
    plain = model.generate(PROMPTS[:1], stopping_criteria=stop, **GREEDY)
    drafted = model.generate(PROMPTS[:1], stopping_criteria=stop, use_mtp=True, **GREEDY)
    assert torch.equal(drafted[:, : plain.shape[1]], plain)


@pytest.mark.parametrize("new_tokens", [1, 2, 3, 4, 5])
def test_never_longer_than_asked(new_tokens):
    options = {**GREEDY, "max_new_tokens": new_tokens}
    model = load()
    assert torch.equal(model.generate(PROMPTS[:1], use_mtp=True, **options), model.generate(PROMPTS[:1], **options))


def test_a_left_padded_row():
    model = load()
    padded = torch.nn.functional.pad(PROMPTS[:1], (4, 0), value=3)
    mask = (torch.arange(padded.shape[1]) >= 4).long()[None]
    tokens = model.generate(padded, attention_mask=mask, use_mtp=True, **GREEDY)
    assert torch.equal(tokens[:, 4:], model.generate(PROMPTS[:1], **GREEDY))


def drafts_of(model, monkeypatch, ids, mask, **kwargs) -> list[list[int]]:
    """What the head proposes, cycle after cycle."""
    made, proposed = model._get_candidate_generator, []

    def spying(*args, **options):
        generator = made(*args, **options)
        draft = generator.get_candidates

        def spy(input_ids, *args, **options):
            candidates, logits = draft(input_ids, *args, **options)
            proposed.append(candidates[0, input_ids.shape[1] :].tolist())
            return candidates, logits

        monkeypatch.setattr(generator, "get_candidates", spy)
        return generator

    with monkeypatch.context() as patch:
        patch.setattr(model, "_get_candidate_generator", spying)
        model.generate(ids, attention_mask=mask, use_mtp=True, **GREEDY, **kwargs)
    return proposed


@pytest.mark.parametrize("filled", [0, 7], ids=["empty", "filled"])
def test_padding_changes_no_draft(filled, monkeypatch):
    model, ids = load(), PROMPTS[:1]
    padded, shown = torch.nn.functional.pad(ids, (4, 0), value=3), torch.ones_like(ids)
    mask = torch.nn.functional.pad(shown, (4, 0))
    caches: list[dict] = [{}, {}]
    if filled:
        with torch.no_grad():
            plain = model(ids[:, :filled], use_cache=True).past_key_values
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, : filled + 4]
            behind = model(padded[:, : filled + 4], mask[:, : filled + 4], positions, use_cache=True).past_key_values
        caches = [{"past_key_values": plain}, {"past_key_values": behind}]
    alone = drafts_of(model, monkeypatch, ids, shown, **caches[0])
    assert drafts_of(model, monkeypatch, padded, mask, **caches[1]) == alone


def test_without_a_draft_head_it_is_refused():
    model = LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "base")
    with pytest.raises(ValueError, match=r"model\.mtp"):
        model.generate(PROMPTS[:1], use_mtp=True, max_new_tokens=2)


def test_drafts_from_ngrams_need_tables():
    with pytest.raises(ValueError, match="`mtp_use_ngram_embedding`"):
        LongCatLiteConfig(use_ngram_embedding=False, mtp_use_ngram_embedding=True)
    assert not LongCatLiteConfig(mtp_use_ngram_embedding=True).to_vanilla().mtp_use_ngram_embedding


@pytest.mark.parametrize("assistance", [{"use_mtp": True}, {"prompt_lookup_num_tokens": 2}])
def test_a_static_cache_is_refused(assistance):
    with pytest.raises(ValueError, match="static"):
        load().generate(PROMPTS[:1], cache_implementation="static", max_new_tokens=2, **assistance)
