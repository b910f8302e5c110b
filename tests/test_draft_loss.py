# SPDX-License-Identifier: Apache-2.0
"""The draft loss is the mean over drafting steps of what a plain loop over tokens gives, inside documents only."""

import pytest
import torch
from conftest import randomize, tiny_config
from transformers.cache_utils import DynamicCache

from modeling_longcat_lite import LongCatLiteForCausalLM
from training.draft_loss import draft_loss, summed_distillation


@pytest.fixture
def model() -> LongCatLiteForCausalLM:
    torch.manual_seed(0)
    model = LongCatLiteForCausalLM(tiny_config(num_nextn_predict_layers=1))
    return randomize(model).eval()


def plain_first_step(model, ids, states) -> list[float]:
    """Cross-entropy given (x[t+1], h[t]) against what h[t+1] says, pair after pair through the head's cache."""
    cache, losses = DynamicCache(), []
    for t in range(len(ids) - 2):
        state = model.model.mtp(ids[None, t + 1 : t + 2], states[None, t : t + 1], torch.tensor([[t]]), None, cache)
        logits = model.lm_head(state)[0, 0]
        wanted = model.lm_head(states[t + 1]).softmax(dim=-1)
        losses.append(-(wanted * logits.log_softmax(dim=-1)).sum().item())
    return losses


@torch.no_grad()
def test_one_step_equals_a_loop(model):
    model.config.num_draft_tokens = 1
    ids = torch.randint(4, 64, (1, 12))
    states = model.model(ids).last_hidden_state
    expected = plain_first_step(model, ids[0], states[0])
    found = draft_loss(model, states, ids, ids)
    assert found.item() == pytest.approx(sum(expected) / len(expected), abs=1e-5)


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
    torch.testing.assert_close(summed_distillation(model.lm_head, states[0], states[0]), entropy)
    assert summed_distillation(model.lm_head, states[0].flip(0), states[0]) > entropy
