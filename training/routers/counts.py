# SPDX-License-Identifier: Apache-2.0
"""How many routed experts the tokens of a training step select, and which.

Counts are integers, so their sum over micro-batches and ranks is the same in any order and on every rank.

Shapes: M tokens, E routed experts, k experts per token.
"""

import copy
from dataclasses import dataclass

import torch
from torch import distributed

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from training.routers.hooks import RouterForward, watch_routers


@dataclass
class ExpertTable:
    """Counts over some tokens: `[layers, E + 2]` int64. The last two columns are squares and tokens."""

    counts: torch.Tensor

    @property
    def selected(self) -> torch.Tensor:
        """Tokens that selected each routed expert, `[layers, E]`."""
        return self.counts[:, :-2]

    @property
    def squares(self) -> torch.Tensor:
        """Squared number of routed experts of a token, summed over tokens: `[layers]`."""
        return self.counts[:, -2]

    @property
    def tokens(self) -> torch.Tensor:
        """Tokens seen by each layer, `[layers]`."""
        return self.counts[:, -1]


class ExpertCounts:
    """Counts what a model's routers select. [`end_step`] ends a step, [`pop_metrics`] an interval of logging."""

    def __init__(self, model: LongCatLiteForCausalLM):
        self.config = model.config
        self.always_activated, self.activated_by_expert = activated_parameters(self.config)
        self._step = torch.zeros(self.config.num_layers, self.config.n_routed_experts + 2, dtype=torch.int64)
        self._logged = torch.zeros_like(self._step)
        watch_routers(model.model, self._add)

    @torch.no_grad()
    def _add(self, seen: RouterForward) -> None:
        routed = self.config.n_routed_experts
        self._step = self._step.to(seen.expert_ids[0].device)
        for layer, expert_ids in zip(self._step, seen.expert_ids, strict=True):
            expert_ids = expert_ids.to(layer.device)
            taken = (expert_ids < routed).long()  # [M, k]
            if seen.counted is None:
                layer[-1] += len(expert_ids)
            else:
                counted = seen.counted.to(layer.device).long()
                taken = taken * counted[:, None]
                layer[-1] += counted.sum()
            # Not `bincount`, which makes an accelerator synchronize. Zero experts add 0 to some routed one.
            layer[:routed].scatter_add_(0, expert_ids.clamp(max=routed - 1).flatten(), taken.flatten())
            layer[-2] += taken.sum(-1).square().sum()

    def begin_step(self) -> None:
        """Discards the counts of a step that was interrupted."""
        self._step = torch.zeros_like(self._step)

    def end_step(self) -> ExpertTable:
        """The step's counts, summed over all ranks if torch.distributed is initialised; a collective call."""
        step = self._step
        self._step = torch.zeros_like(step)
        if distributed.is_available() and distributed.is_initialized():
            # Ranks that share their tokens (tensor parallelism) count them several times; only ratios are used.
            distributed.all_reduce(step)
        self._logged = self._logged.to(step.device) + step
        return ExpertTable(step)

    def pop_metrics(self) -> dict[str, float]:
        """Metrics of the steps that ended since the last call; empty if there were none.

        `experts/layer_i`: number of routed experts that a token selects in layer i, mean over tokens.
        `experts/mean`: the mean of these over layers.
        `experts/std`: standard deviation of that number over the tokens of a layer, root mean square over layers.
        `experts/load_spread`: standard deviation of the tokens per routed expert of a layer, divided by their mean,
            mean over layers.
        `activated_parameters`: per token, as in [`activated_parameters`].
        """
        table = ExpertTable(self._logged.cpu().double())
        self._logged = torch.zeros_like(self._logged)
        if not table.tokens[0]:
            return {}
        means = table.selected.sum(-1) / table.tokens  # [layers]
        variances = (table.squares / table.tokens - means.square()).clamp(min=0)
        spreads = table.selected.std(-1, correction=0) / table.selected.mean(-1).clamp(min=1e-9)
        return {
            "experts/mean": means.mean().item(),
            "experts/std": variances.mean().sqrt().item(),
            "experts/load_spread": spreads.mean().item(),
            **{f"experts/layer_{layer}": mean for layer, mean in enumerate(means.tolist())},
            "activated_parameters": self.always_activated + self.activated_by_expert * means.sum().item(),
        }


def activated_parameters(config: LongCatLiteConfig) -> tuple[int, int]:
    """The number of parameters that multiply every token, and the number in one routed expert of one layer.

    The former are in attention, dense MLPs, norms, routers with their selection biases and the language-model head.
    Input embeddings (words and n-grams), zero experts and the draft head do not count.
    """
    plain = copy.deepcopy(config)
    plain.use_ngram_embedding = plain.mtp_use_ngram_embedding = False
    plain.num_nextn_predict_layers = 0
    with torch.device("meta"):
        tensors = LongCatLiteForCausalLM(plain).state_dict()
    always = sum(t.numel() for name, t in tensors.items() if ".experts." not in name and ".embed_tokens." not in name)
    return always, 3 * config.hidden_size * config.expert_ffn_hidden_size


__all__ = ["ExpertCounts", "ExpertTable", "activated_parameters"]
