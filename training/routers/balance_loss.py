# SPDX-License-Identifier: Apache-2.0
"""Device-level balance loss with a budget for zero experts (arXiv 2509.01322, load balance control).

    L_LB = alpha * sum over groups j = 1..J+1 of f_j * P_j

The routed experts form J groups of E / J neighbours, as expert parallelism places them on J devices; all zero experts
form group J + 1. The report says that the frequencies f_j are normalised so that the ratio of routed to zero experts
settles at k_e : (k - k_e). Here that is done as follows:

    c_j  selections in group j / all selections, k per token              sum over j is 1
    P_j  router probability of group j, summed over its experts, mean over tokens     sum over j is 1
    q_j  target share: k_e / (k J) for a routed group, (k - k_e) / k for the zero experts     sum over j is 1
    f_j = c_j / q_j

that is, f_j = J * selections / (k_e M) for a routed group and selections / ((k - k_e) M) for the zero experts. Counts
carry no gradient. With p the probabilities of a token and g(e) the group of expert e, the gradient at its logit is

    dL_LB / dlogit_e = alpha / M * p_e * (f_g(e) - sum over j of f_j P_j of that token)

It vanishes exactly if all f_j are equal. Since the c_j and the q_j both sum to 1, that means f_j = 1, c_j = q_j, and
routed : zero = k_e : (k - k_e). A group above its share has f_j > 1 and loses probability. At the fixed point the
loss is alpha, whatever k, J and the number of layers.

Shapes: M tokens, E routed experts, Z zero experts, k experts per token.
"""

from collections.abc import Sequence

import torch

from modeling_longcat_lite import LongCatLiteConfig
from training.routers.hooks import RouterForward


def balance_loss(seen: RouterForward, config: LongCatLiteConfig, target_experts: float, groups: int) -> torch.Tensor:
    """`sum of f_j P_j`, mean over layers: a scalar in float32, 1 if the load is on target.

    Tokens are those of this forward, without padding: one micro-batch of one rank.

    Args:
        target_experts (`float`): k_e, target number of routed experts per token.
        groups (`int`): J, a divisor of `n_routed_experts`.
    """
    target = target_shares(config, target_experts, groups)
    losses = []
    for logits, expert_ids in zip(seen.logits, seen.expert_ids, strict=True):
        counted = logits.new_ones(len(logits)) if seen.counted is None else seen.counted.to(logits)
        tokens = counted.sum().clamp(min=1)
        slots = counted.repeat_interleave(expert_ids.shape[1])  # [M k]
        selections = logits.new_zeros(logits.shape[1]).scatter_add_(0, expert_ids.flatten(), slots)  # [E + Z]
        frequencies = per_group(selections / (tokens * config.moe_topk), config, groups) / logits.new_tensor(target)
        probabilities = counted @ logits.softmax(dim=-1) / tokens  # [E + Z]
        losses.append((frequencies * per_group(probabilities, config, groups)).sum())
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()


def per_group(per_expert: torch.Tensor, config: LongCatLiteConfig, groups: int) -> torch.Tensor:
    """`[E + Z]` summed per group: `[J + 1]`, or `[J]` for a model without zero experts."""
    routed = per_expert[: config.n_routed_experts].view(groups, -1).sum(-1)
    if not config.zero_expert_num:
        return routed
    return torch.cat([routed, per_expert[config.n_routed_experts :].sum(0, keepdim=True)])


def target_shares(config: LongCatLiteConfig, target_experts: float, groups: int) -> list[float]:
    """q_j, in the order of [`per_group`]."""
    routed = target_experts / config.moe_topk
    return [routed / groups] * groups + ([1 - routed] if config.zero_expert_num else [])


def gradient_share(balance: torch.Tensor, loss: torch.Tensor, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """R_g: the gradient norm of `balance` over `parameters`, divided by that of `loss`. Graphs are kept."""

    def norm(of: torch.Tensor) -> torch.Tensor:
        gradients = torch.autograd.grad(of, parameters, retain_graph=True, materialize_grads=True)
        return torch.nn.utils.get_total_norm([gradient.float() for gradient in gradients])

    return norm(balance) / norm(loss).clamp(min=1e-20)


__all__ = ["balance_loss", "gradient_share"]
