# SPDX-License-Identifier: Apache-2.0
"""The draft loss is the mean over drafting steps of what a plain loop over tokens gives, inside documents only."""

import itertools

import pytest
import torch
from conftest import randomize, tiny_config
from torch import nn
from transformers.cache_utils import DynamicCache

from modeling_longcat_lite import LongCatLiteForCausalLM
from training.run.draft_loss import draft_loss, drafted_states, summed_cross_entropy


@pytest.fixture
def model() -> LongCatLiteForCausalLM:
    torch.manual_seed(0)
    model = LongCatLiteForCausalLM(tiny_config(num_nextn_predict_layers=1))
    return randomize(model).eval()


def plain_drafts(model, ids, states, start: int, steps: int, embeds=None) -> list[torch.Tensor]:
    """States `[D]` of a cycle's steps, drafting as generation does: true pairs up to `start`, then its own."""
    cache, drafts = DynamicCache(), []
    first, last = 1, start + 2
    history, positions = states[:, : start + 1], torch.arange(start + 1)[None]
    for step in range(1, steps + 1):
        read = None if embeds is None else embeds[:, first:last]
        history = model.model.mtp(ids[:, first:last], history, positions, None, cache, read)[:, -1:]
        drafts.append(history[0, 0])
        first, last, positions = start + step + 1, start + step + 2, torch.tensor([[start + step]])
    return drafts


@pytest.mark.parametrize("from_ngrams", [False, True])
@torch.no_grad()
def test_every_position_drafts_as_a_cycle_of_generation_would(model, from_ngrams):
    ids = torch.randint(4, 64, (1, 9))
    outputs = model.model(ids, output_hidden_states=True)
    states, embeds = outputs.last_hidden_state, outputs.hidden_states[0] if from_ngrams else None
    drafts = drafted_states(model.model.mtp, states, ids, torch.arange(9)[None], token_embeds=embeds)
    at_once = list(itertools.islice(drafts, 3))
    for start in range(4):
        for step, plain in enumerate(plain_drafts(model, ids, states, start, 3, embeds)):
            torch.testing.assert_close(at_once[step][0, start], plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("distill", [False, True])
@torch.no_grad()
def test_the_loss_equals_a_loop(model, distill):
    ids = torch.randint(4, 64, (1, 12))
    states = model.model(ids).last_hidden_state
    losses: list[list[float]] = [[], [], []]
    for start in range(10):
        steps = min(3, 10 - start)
        for step, draft in enumerate(plain_drafts(model, ids, states, start, steps)):
            target = start + step + 2
            wanted = model.lm_head(states[0, target - 1]).softmax(-1) if distill else ids[0, target]
            losses[step].append(nn.functional.cross_entropy(model.lm_head(draft), wanted).item())
    expected = sum(sum(of_step) / len(of_step) for of_step in losses) / 3
    assert draft_loss(model, states, ids, ids, distill=distill).item() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_packed_documents_give_the_sum_of_their_own_losses(model):
    documents = [torch.randint(4, 64, (1, length)) for length in (9, 5, 12)]
    packed = torch.cat(documents, dim=1)
    positions = torch.cat([torch.arange(d.shape[1]) for d in documents])[None]
    states = model.model(packed, position_ids=positions).last_hidden_state
    together = draft_loss(model, states, packed, packed, position_ids=positions, num_items=1)
    ones = torch.ones_like(packed)
    assert draft_loss(model, states, packed, packed, positions, ones, num_items=1) == together
    apart = sum(draft_loss(model, model.model(d).last_hidden_state, d, d, num_items=1) for d in documents)
    assert together.item() == pytest.approx(apart.item(), rel=1e-5)


@torch.no_grad()
def test_masked_labels_are_not_learned(model):
    ids = torch.randint(4, 64, (2, 10))
    states = model.model(ids).last_hidden_state
    assert draft_loss(model, states, ids, torch.full_like(ids, -100)).item() == 0
    labels = torch.where(torch.arange(10) < 6, -100, ids)
    partly = draft_loss(model, states, ids, labels, num_items=1)
    assert 0 < partly < draft_loss(model, states, ids, ids, num_items=1)


def test_its_gradient_reaches_head_and_trunk(model):
    model.train().model.mtp.requires_grad_(True)
    ids = torch.randint(4, 64, (4, 24))
    draft_loss(model, model.model(ids).last_hidden_state, ids, ids).backward()
    for name, parameter in model.model.mtp.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert model.model.layers[0].self_attn[0].q_a_proj.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_a_head_that_says_what_the_trunk_says_loses_only_its_entropy(model):
    states = torch.randn(1, 8, model.config.hidden_size)
    probabilities = model.lm_head(states).softmax(dim=-1)
    entropy = -(probabilities * probabilities.log()).sum()
    torch.testing.assert_close(summed_cross_entropy(model.lm_head, states[0], states[0]), entropy)
    assert summed_cross_entropy(model.lm_head, states[0].flip(0), states[0]) > entropy
