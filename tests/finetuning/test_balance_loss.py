# SPDX-License-Identifier: Apache-2.0
"""The balance loss equals loops over tokens, and rests where routed and zero experts have their shares."""

import pytest
import torch
from conftest import tiny_config

from training.routers.balance_loss import balance_loss, gradient_share
from training.routers.hooks import RouterForward

TARGET = 1.8


def random_forward(config, padded: bool) -> RouterForward:
    torch.manual_seed(0)
    experts = config.n_routed_experts + config.zero_expert_num
    logits = [torch.randn(11, experts, requires_grad=True) for _ in range(config.num_layers)]
    expert_ids = [of_layer.topk(config.moe_topk).indices for of_layer in logits]
    return RouterForward(torch.rand(11) < 0.7 if padded else None, logits, expert_ids)


def group_of(expert: int, config, groups: int) -> int:
    """Groups of routed experts are neighbours; zero experts are the last group."""
    return expert * groups // config.n_routed_experts if expert < config.n_routed_experts else groups


def plain_terms(seen, layer: int, config, groups: int) -> tuple[list[float], list[list[float]]]:
    """f of each group, and the groups' probabilities for each token that counts."""
    tokens = [t for t in range(11) if seen.counted is None or seen.counted[t]]
    frequencies, probabilities = [0.0] * (groups + 1), []
    for token in tokens:
        for expert in seen.expert_ids[layer][token].tolist():
            frequencies[group_of(expert, config, groups)] += 1 / len(tokens)
        of_token = [0.0] * (groups + 1)
        for expert, probability in enumerate(seen.logits[layer][token].softmax(-1).tolist()):
            of_token[group_of(expert, config, groups)] += probability
        probabilities.append(of_token)
    target = TARGET if config.zero_expert_num else config.moe_topk
    for group in range(groups):
        frequencies[group] *= groups / target
    frequencies[groups] /= config.moe_topk - target or 1
    return frequencies, probabilities


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("zero_experts", [3, 0])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_loss_and_its_gradient_equal_loops(groups, zero_experts, padded):
    config = tiny_config(zero_expert_num=zero_experts)
    seen = random_forward(config, padded)
    loss = balance_loss(seen, config, TARGET if zero_experts else config.moe_topk, groups)
    loss.backward()
    expected = 0.0
    for layer, logits in enumerate(seen.logits):
        frequencies, probabilities = plain_terms(seen, layer, config, groups)
        products = [sum(f * p for f, p in zip(frequencies, of_token, strict=True)) for of_token in probabilities]
        expected += sum(products) / len(products) / config.num_layers
        rows = range(11) if seen.counted is None else seen.counted.nonzero().flatten().tolist()
        for row, product in zip(rows, products, strict=True):
            for expert, p in enumerate(logits[row].softmax(-1).tolist()):
                wanted = p * (frequencies[group_of(expert, config, groups)] - product) / len(products)
                assert logits.grad[row, expert].item() == pytest.approx(wanted / config.num_layers, abs=1e-6)
        if seen.counted is not None:
            assert logits.grad[~seen.counted].abs().max() == 0
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_it_rests_at_one_where_the_load_is_as_wanted(groups):
    config = tiny_config(num_layers=1)
    logits = torch.randn(3, 9, requires_grad=True)
    seen = RouterForward(None, [logits], [torch.tensor([[0, 1, 6], [2, 3, 6], [4, 5, 8]])])  # K_e = 2 of K = 3
    loss = balance_loss(seen, config, 2, groups)
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-6)
    assert logits.grad.abs().max() < 1e-7


def test_the_gradient_share_is_a_quotient_of_norms():
    weights = [torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)]
    balance, loss = (weights[0] * torch.tensor([3.0, 4.0])).sum() * 0.1, 2 * weights[0].sum() + weights[1].sum()
    assert gradient_share(balance, loss, weights).item() == pytest.approx(0.5 / 3)
    loss.backward()  # graphs are kept, and nothing was accumulated
    assert weights[0].grad.tolist() == [2.0, 2.0]
