# SPDX-License-Identifier: Apache-2.0
"""The n-gram embedding as a loop over its sub-tables, which `NgramEmbedding` is timed against.

It works as the released model's own code does: tokens are shifted once per distance, within each segment between
end-of-sequence tokens; then each sub-table hashes, looks up and projects by itself.

Shapes: B batch rows, T tokens, D hidden size, N highest n-gram order, W width of a table row.
"""

import torch
from torch import nn

from modeling_longcat_lite import LongCatLiteConfig


def shifted_inside_segments(tokens: torch.Tensor, distance: int, eos_token_id: int) -> torch.Tensor:
    """`[B, T]` tokens moved right by `distance`; 0 where that would cross the end of a segment."""
    shifted = torch.zeros_like(tokens)
    for row, ends in enumerate((tokens == eos_token_id).unbind()):
        begin = 0
        for end in [*(ends.nonzero().flatten() + 1).tolist(), tokens.shape[1]]:
            if end - begin > distance:
                shifted[row, begin + distance : end] = tokens[row, begin : end - distance]
            begin = end
    return shifted


class PerTableNgramEmbedding(nn.Module):
    """The weights of an `NgramEmbedding`, one projection a sub-table, applied one sub-table after another."""

    def __init__(self, config: LongCatLiteConfig, embedders: nn.ModuleList, post_proj: nn.Linear):
        super().__init__()
        assert isinstance(config.ngram_eos_token_id, int)
        self.eos_token_id: int = config.ngram_eos_token_id
        self.order, self.per_order = config.max_ngram_order, config.num_subtables_per_order
        self.sizes = config.subtable_sizes
        self.embedders = embedders
        # Contiguous, as separate weights of a checkpoint are.
        self.projections = [part.contiguous() for part in post_proj.weight.split(config.subtable_width, dim=1)]
        base = config.ngram_base_vocab_size
        self.residues = [[pow(base, d, rows) for d in range(self.order)] for rows in self.sizes]

    def forward(self, word_embeds: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """`[B, T, D]` word embeddings and `[B, N - 1 + T]` tokens, of which the last T are theirs, to `[B, T, D]`."""
        length = word_embeds.shape[1]
        shifted = [tokens] + [shifted_inside_segments(tokens, d, self.eos_token_id) for d in range(1, self.order)]
        total = word_embeds.clone()
        for i, (table, projection) in enumerate(zip(self.embedders, self.projections, strict=True)):
            ids = tokens.clone()
            for distance in range(1, 2 + i // self.per_order):
                ids = ids + shifted[distance] * self.residues[i][distance]
            rows = table((ids % self.sizes[i])[:, -length:])  # [B, T, W]
            total = total + nn.functional.linear(rows, projection)
        return total / (1 + len(self.sizes))


__all__ = ["PerTableNgramEmbedding"]
