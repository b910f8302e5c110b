# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts with zero-computation experts (arXiv 2509.01322, section on zero-computation experts).

    MoE(x) = sum over the selected experts e of g_e(x) * E_e(x)

`g` is the softmax over routed and zero experts together, times `routed_scaling_factor`. The `moe_topk` experts are
selected by `g` plus a bias, which is not part of the weight. Routed experts are MLPs; a zero expert returns its input.

An example with 4 routed experts (ids 0 to 3), 2 zero experts (4 and 5) and `moe_topk` 3, for one token x:

    selected ids     2     5     4          (2 is a routed expert, 5 and 4 are zero experts)
    weights g        0.5   0.3   0.1
    MoE(x)         = 0.5 E_2(x) + (0.3 + 0.1) x

Shapes: B batch rows, T tokens, M = B T tokens together, D hidden size, F width of an expert, E routed experts,
Z zero experts, k experts that a token selects.
"""

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.activations import ACT2FN
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, use_experts_implementation

from .configuration_longcat_lite import LongCatLiteConfig

GROUPED_ALIGNMENT = 16  # bytes, of a row of a matrix: `torch.nn.functional.grouped_mm` asks for it


class Float32Linear(nn.Linear):
    """A linear layer computed in float32, whatever dtype its weights are stored in.

    It is called as a module, and its weight is not read from outside, so that offloading hooks and LoRA take effect.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(x.device.type, enabled=False):  # autocast would compute it in bfloat16
            return nn.functional.linear(x.float(), self.weight.float(), bias)


class LongCatLiteRouter(nn.Module):
    """Selects `moe_topk` of the routed and zero experts for each token."""

    e_score_correction_bias: torch.Tensor

    def __init__(self, config: LongCatLiteConfig):
        super().__init__()
        self.top_k = config.moe_topk
        self.routed_scaling_factor = config.routed_scaling_factor
        self.norm_topk_prob = config.norm_topk_prob
        experts = config.n_routed_experts + config.zero_expert_num
        # Created in float32 under any default dtype, which is all that casts a model that is not loaded.
        self.classifier = Float32Linear(config.hidden_size, experts, bias=config.router_bias, dtype=torch.float32)
        self.register_buffer("e_score_correction_bias", torch.zeros(experts, dtype=torch.float32))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`[M, D]` states to float32 logits `[M, E + Z]`, gate weights `[M, k]` and expert ids `[M, k]`."""
        logits = self.classifier(hidden_states)
        probabilities = logits.softmax(dim=-1)
        biased = probabilities.detach() + self.e_score_correction_bias
        expert_ids = biased.topk(self.top_k, dim=-1, sorted=False).indices
        weights = probabilities.gather(1, expert_ids)
        if self.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return logits, weights * self.routed_scaling_factor, expert_ids


@use_experts_implementation
class StackedExperts(nn.Module):
    """The routed experts as two stacked matrices. An id of `num_experts` or above selects nothing."""

    def __init__(self, config: LongCatLiteConfig):
        super().__init__()
        self.num_experts = config.n_routed_experts
        hidden, width = config.hidden_size, config.expert_ffn_hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, hidden, width))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor):
        """`[M, D]` states, `[M, k]` ids and weights to `[M, D]`, one expert at a time: the plain form."""
        output = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            if expert >= self.num_experts:
                continue
            tokens, slots = torch.where(top_k_index == expert)
            gate, up = nn.functional.linear(hidden_states[tokens], self.gate_up_proj[expert]).chunk(2, dim=-1)
            result = nn.functional.linear(self.act_fn(gate) * up, self.down_proj[expert])
            weighted = result * top_k_weights[tokens, slots, None]
            output.index_add_(0, tokens, weighted.to(output.dtype))
        return output


class LongCatLiteExperts(StackedExperts):
    """[`StackedExperts`] that fall back to an implementation which can take their weights."""

    config: LongCatLiteConfig

    def forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor):
        """`[M, D]` states, `[M, k]` ids and weights to `[M, D]`."""
        weights = (self.gate_up_proj, self.down_proj)
        if any(is_traceable_wrapper_subclass(w.data) and not isinstance(w.data, DTensor) for w in weights):
            # Quantized by torchao: the other implementations index a weight, or pass it to a kernel as it is.
            return StackedExperts.forward.__wrapped__(  # type: ignore[attr-defined]
                self, hidden_states, top_k_index, top_k_weights
            )
        is_aligned = all(weight.shape[-1] * weight.itemsize % GROUPED_ALIGNMENT == 0 for weight in weights)
        if self.config._experts_implementation == "grouped_mm" and not is_aligned:
            return ALL_EXPERTS_FUNCTIONS["batched_mm"](self, hidden_states, top_k_index, top_k_weights)
        return super().forward(hidden_states, top_k_index, top_k_weights)


class LongCatLiteMoE(nn.Module):
    """Router, routed experts, and the zero experts as one weighted copy of the input."""

    def __init__(self, config: LongCatLiteConfig):
        super().__init__()
        # From the config and not from the experts, whose count expert parallelism changes to the local one.
        self.n_routed_experts = config.n_routed_experts
        self.zero_experts_add_input = config.zero_expert_type == "identity"
        self.zero_weight_divisor = 1.0 if config.scale_zero_experts else config.routed_scaling_factor
        self.router = LongCatLiteRouter(config)
        self.experts = LongCatLiteExperts(config)
        # Makes the grouped and batched implementations skip ids above the last routed expert, which are zero experts
        # here; under expert parallelism they are experts of other processes. The decorator sets it to False when the
        # experts are created, so it is set afterwards.
        self.experts._is_expert_parallel = True  # type: ignore[assignment]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, T, D]` to `[B, T, D]`."""
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])  # [M, D]
        _, weights, expert_ids = self.router(tokens)
        is_zero = expert_ids >= self.n_routed_experts
        output = self._routed(tokens, expert_ids, weights, is_zero)
        if self.zero_experts_add_input:
            share = (weights * is_zero).sum(-1, keepdim=True) / self.zero_weight_divisor  # [M, 1] float32
            output = output + (share * tokens).to(output.dtype)
        return output.view_as(hidden_states)

    def _routed(self, tokens, expert_ids, weights, is_zero):
        """What the routed experts add, `[M, D]`."""
        # The first of its modules that is one: adapters wrap it.
        experts = next(module for module in self.experts.modules() if isinstance(module, StackedExperts))
        if experts.num_experts == self.n_routed_experts:
            routed_ids = expert_ids.masked_fill(is_zero, self.n_routed_experts)
            return self.experts(tokens, routed_ids, weights.masked_fill(is_zero, 0.0))
        # Expert parallelism: every id has to name an expert of some process.
        if torch.is_grad_enabled():
            # In training, tokens are sent to their experts: one pair each, and none for a zero expert.
            rows, slots = torch.where(~is_zero)  # one entry per pair
            results = self.experts(tokens[rows], expert_ids[rows, slots, None], weights[rows, slots, None])
            return torch.zeros_like(tokens).index_add(0, rows, results)
        # In inference tokens mostly stay, and graphs are captured: no shape may depend on the selection. A zero expert
        # is replaced by a routed one that the token selected anyway, with weight 0, so that no other expert is read.
        stand_in = expert_ids.masked_fill(is_zero, 0).amax(-1, keepdim=True)
        return self.experts(tokens, torch.where(is_zero, stand_in, expert_ids), weights.masked_fill(is_zero, 0.0))


__all__ = ["Float32Linear", "LongCatLiteExperts", "LongCatLiteMoE", "LongCatLiteRouter"]
