# SPDX-License-Identifier: Apache-2.0
"""How loud the embedding is beside the first attention (arXiv 2601.21204, section 3.2.4 and figure 5).

The first attention adds its output to the embedding. In the paper's models without amplification that output came to
ten times the norm of the embedding, which it drowned; `config.embedding_amplification` is the remedy.

Shapes: B windows, T tokens, D hidden, S sub-tables.
"""

from typing import Any

import torch
from rich.progress import track

from modeling_longcat_lite import LongCatLiteForCausalLM


class NormSums:
    """Sums over tokens of L2 norms, filled by hooks on the model."""

    def __init__(self, model: LongCatLiteForCausalLM):
        self.sums: dict[str, float] = {}
        trunk: Any = model.base_model
        self.word_scale = trunk.ngram_embeddings.word_scale
        first = trunk.layers[0]
        self.hooks = [
            trunk.ngram_embeddings.register_forward_hook(self._see_terms),
            first.register_forward_pre_hook(lambda _, inputs: self._add("embedding", inputs[0])),
            first.self_attn[0].register_forward_hook(lambda _, inputs, output: self._add("attention", output[0])),
        ]

    def _add(self, name: str, states: torch.Tensor):
        self.sums[name] = self.sums.get(name, 0.0) + states.float().norm(dim=-1).sum().item()

    def _see_terms(self, module, inputs: tuple, output: torch.Tensor):
        words = inputs[0] * self.word_scale  # [B, T, D]
        self._add("word_term", words)
        self._add("ngram_terms", output - words)


@torch.no_grad()
def branch_norms(model: LongCatLiteForCausalLM, tokens: torch.Tensor, window: int) -> dict[str, float]:
    """Mean L2 norms over tokens `[T]`, which the model reads in windows of `window`.

    Returns:
        `dict`: `embedding`, what the first attention is added to, amplification included; `attention`, what it adds;
        `ratio` of the two; and before amplification `word_term` and `ngram_terms`, the two parts of the sum.
    """
    norms = NormSums(model)
    try:
        for part in track(tokens.split(window), description="norms", transient=True):
            model(part[None].to(model.device), use_cache=False, logits_to_keep=1)
    finally:
        for hook in norms.hooks:
            hook.remove()
    means = {name: total / len(tokens) for name, total in norms.sums.items()}
    return {**means, "ratio": means["attention"] / means["embedding"]}


__all__ = ["branch_norms"]
