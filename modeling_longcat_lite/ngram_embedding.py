# SPDX-License-Identifier: Apache-2.0
"""N-gram embedding: word row and one row per sub-table, projected and averaged (arXiv 2601.21204, equation 3).

    e = ( word + sum_i W_i table_i[id_i] ) / (1 + S)

Shapes: B batch, T tokens, D hidden, S sub-tables, W = D / S sub-table width, N highest n-gram order.
"""

import torch
from torch import nn

from .configuration_longcat_lite import LongCatLiteConfig
from .ngram_hashing import ngram_contexts, ngram_ids, power_residues
from .ngram_kernels import gather_ngram_rows, kernel_applies


class NgramEmbedding(nn.Module):
    """Sub-tables and their projections. The projections are one matrix, `[D, S * W]`, the columns table by table."""

    residues: torch.Tensor
    sizes: torch.Tensor

    def __init__(self, config: LongCatLiteConfig):
        super().__init__()
        self.max_ngram_order = config.max_ngram_order
        self.num_terms = config.num_subtables + 1
        eos = config.ngram_eos_token_id
        self.eos_token_ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        width = config.subtable_width
        self.embedders = nn.ModuleList([nn.Embedding(rows, width) for rows in config.subtable_sizes])
        self.post_proj = nn.Linear(config.num_subtables * width, config.hidden_size, bias=False)
        for name, values in self.hash_constants(config).items():
            self.register_buffer(name, values, persistent=False)

    @staticmethod
    def hash_constants(config: LongCatLiteConfig) -> dict[str, torch.Tensor]:
        """`residues` `[N - 1, S]` and `sizes` `[S]`, int64: what [`ngram_ids`] needs of the config."""
        residues = power_residues(config.ngram_base_vocab_size, config.subtable_sizes, config.max_ngram_order)
        return {"residues": torch.tensor(residues), "sizes": torch.tensor(config.subtable_sizes)}

    def ids(self, codes: torch.Tensor) -> torch.Tensor:
        """Encoded history and tokens `[B, N - 1 + T]` (see `ngram_hashing`) to sub-table rows `[S, B, T]`."""
        contexts = ngram_contexts(codes, self.max_ngram_order, self.eos_token_ids)
        return ngram_ids(contexts, self.residues, self.sizes)

    def forward(self, word_embeds: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """`[B, T, D]` word rows and `[B, N - 1 + T]` codes to `[B, T, D]`."""
        device = word_embeds.device
        # An adapter in a table's place computes more than a row of its weight.
        tables = [table.weight for table in self.embedders if type(table) is nn.Embedding]
        if len(tables) == len(self.embedders) and kernel_applies(codes, tables):
            rows = gather_ngram_rows(codes, tables, self.residues, self.sizes, self.eos_token_ids).to(device)
        else:
            # One lookup a table: as separate tensors they stay memory-mapped, without a copy of 58 GiB.
            # `to`: a device map may spread the tables over devices, and leaves each result where its table is.
            each = [table(ids).to(device) for table, ids in zip(self.embedders, self.ids(codes).unbind(), strict=True)]
            rows = torch.cat(each, dim=-1)  # [B, T, S * W]
        projected = self.post_proj(rows).to(device)
        return (projected + word_embeds).div_(self.num_terms)  # [B, T, D]


class EmbeddingAmplification(nn.Module):
    """Lifts the embedding to the scale of the first attention output (paper, section 3.2.4).

    `"none"`: `e`; `"sqrt_d"`: `e * sqrt(D)`; `"layer_norm"`: `LayerNorm(e)`. Keeps `[B, T, D]`.
    """

    def __init__(self, config: LongCatLiteConfig):
        super().__init__()
        self.factor = config.hidden_size**0.5 if config.embedding_amplification == "sqrt_d" else 1.0
        self.norm = (
            nn.LayerNorm(config.hidden_size, eps=config.rms_norm_eps)
            if config.embedding_amplification == "layer_norm"
            else None
        )

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        if self.norm is not None:
            return self.norm(embeds)
        return embeds * self.factor if self.factor != 1.0 else embeds


__all__ = ["EmbeddingAmplification", "NgramEmbedding"]
