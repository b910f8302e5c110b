# SPDX-License-Identifier: Apache-2.0
"""N-gram embedding: word row and one row per sub-table, projected and averaged (arXiv 2601.21204, equation 3).

    e = ( word + sum_i W_i table_i[id_i] ) / (1 + S)

With `scale_word_embedding=False` the word row is added whole: `e = word + ( sum_i ... ) / (1 + S)`.

Shapes: B batch rows, T tokens, D hidden size, S sub-tables, W = D / S width of a table row, N highest n-gram order.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from .configuration_longcat_lite import LongCatLiteConfig, segment_ends
from .ngram_hashing import HIDDEN, encode_tokens, ngram_contexts, ngram_ids, power_residues
from .ngram_kernels import gather_ngram_rows, kernel_applies
from .ngram_quantization import row_format
from .ngram_tables import NgramTables, gather_rows
from .plain_weights import plain_weight


def lookup(tables: Iterable[nn.Module], ids: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
    """The rows `ids` `[S, B, T]` of each table, `[B, T, W]` on `device`; a device map may have spread the tables."""
    return [table(rows).to(device) for table, rows in zip(tables, ids.unbind(), strict=True)]


# `torch.compile` cannot trace a sparse gradient: these lookups run between two graphs.
lookup_by_rows = torch.compiler.disable(lookup)


class NgramEmbedding(nn.Module):
    """Sub-tables and their projections. The projections are one matrix, `[D, S * W]`, with the columns table by table.

    With a `placement` other than `"resident"` the tables are not parameters: loading a checkpoint opens `tables`, see
    [`NgramTables`]. A `row_filter` gets the rows of a forward, `[B, T, S * W]`, in every placement, and its result is
    projected instead: evaluations change rows with it, without a second copy of the tables.
    """

    residues: torch.Tensor
    sizes: torch.Tensor
    tables: NgramTables | None = None
    row_filter: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __init__(self, config: LongCatLiteConfig, placement: str = "resident"):
        super().__init__()
        self.placement = placement
        self.max_ngram_order = config.max_ngram_order
        self.num_terms = config.num_subtables + 1
        self.word_scale = 1 / self.num_terms if config.scale_word_embedding else 1.0
        self.eos_token_ids = segment_ends(config)
        self.row_format = row_format(config.ngram_table_bits)
        width = config.subtable_width
        resident = config.subtable_sizes if placement == "resident" else []
        self.embedders = nn.ModuleList([self.row_format.make_table(rows, width) for rows in resident])
        self.post_proj = nn.Linear(config.num_subtables * width, config.hidden_size, bias=False)
        for name, values in self.hash_constants(config).items():
            self.register_buffer(name, values, persistent=False)

    @staticmethod
    def hash_constants(config: LongCatLiteConfig) -> dict[str, torch.Tensor]:
        """`residues` `[N - 1, S]` and `sizes` `[S]`, int64: the constants of a config that [`ngram_ids`] needs."""
        residues = power_residues(config.ngram_base_vocab_size, config.subtable_sizes, config.max_ngram_order)
        return {"residues": torch.tensor(residues), "sizes": torch.tensor(config.subtable_sizes)}

    def ids(self, codes: torch.Tensor) -> torch.Tensor:
        """Encoded history and tokens `[B, N - 1 + T]` (see `ngram_hashing`) to sub-table rows `[S, B, T]`."""
        contexts = ngram_contexts(codes, self.max_ngram_order, self.eos_token_ids)
        return ngram_ids(contexts, self.residues, self.sizes)

    def forward(
        self, word_embeds: torch.Tensor, codes: torch.Tensor | None, row_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`[B, T, D]` word rows and `[B, N - 1 + T]` codes, or else `[B, T, S]` row ids, to `[B, T, D]`."""
        rows = self._rows(word_embeds, codes, row_ids)  # [B, T, S * W]
        if self.row_filter is not None:
            rows = self.row_filter(rows)
        if self._plain_weights([self.post_proj], word_embeds) is not None:
            scale, projection = 1 / self.num_terms, self.post_proj.weight.t()
            words = word_embeds.flatten(0, 1)  # [B T, D]
            added = torch.addmm(words, rows.flatten(0, 1), projection, beta=self.word_scale, alpha=scale)
            return added.view_as(word_embeds)
        projected = self.post_proj(rows).to(word_embeds.device)  # [B, T, D]
        if self.word_scale == 1.0:
            return torch.add(word_embeds, projected, alpha=1 / self.num_terms)
        return (projected + word_embeds).div_(self.num_terms)

    def prefetch(self, codes: torch.Tensor):
        """Asks for the rows of `[B, N - 1 + T]` codes without waiting for them, if the tables are on disk."""
        if self.tables is not None:
            self.tables.prefetch(self.ids(codes))

    def _rows(
        self, word_embeds: torch.Tensor, codes: torch.Tensor | None, row_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """The rows of all tables side by side, `[B, T, S * W]`."""
        resident = self.placement == "resident"
        tables = self._plain_weights(self.embedders._modules.values(), word_embeds) if resident else None
        if tables is not None and codes is not None and kernel_applies(codes, tables):
            return gather_ngram_rows(codes, tables, self.residues, self.sizes, self.eos_token_ids)
        if codes is None:
            assert row_ids is not None
            ids = row_ids.movedim(-1, 0)  # [S, B, T]
        else:
            ids = self.ids(codes)
        if not resident:
            return self._gathered(word_embeds, ids)
        if tables is None:
            by_rows = any(isinstance(table, nn.Embedding) and table.sparse for table in self.embedders)
            each = (lookup_by_rows if by_rows else lookup)(self.embedders, ids, word_embeds.device)
            return self.row_format.side_by_side(each, word_embeds.dtype)
        # One lookup for each table: as separate tensors they stay memory-mapped, without a copy of 58 GiB.
        return torch.cat(list(map(torch.embedding, tables, ids.unbind())), dim=-1)

    def _gathered(self, word_embeds: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        if self.tables is None:
            raise ValueError(
                f'`ngram_tables="{self.placement}"` reads the tables of a checkpoint: load one with `from_pretrained`.'
            )
        if torch.compiler.is_compiling():
            return gather_rows(ids, word_embeds, self.tables.handle)
        return self.tables.gather(ids, word_embeds.device, word_embeds.dtype)

    def _plain_weights(self, modules: Iterable[nn.Module], like: torch.Tensor) -> list[torch.Tensor] | None:
        """The weights of the modules if reading them equals calling the modules, which takes three times as long.

        `None` in training, and for weights on another device or of another dtype.
        """
        device, dtype = like.device, like.dtype
        if torch.is_grad_enabled() or torch.is_autocast_enabled(device.type):
            return None
        weights: list[torch.Tensor] = []
        for module in modules:
            weight = plain_weight(module)
            if weight is None or weight.device != device or weight.dtype != dtype:
                return None
            weights.append(weight)
        return weights

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.tables is not None:
            for i, table in enumerate(self.tables.tensors()):
                destination[f"{prefix}embedders.{i}.{self.row_format.suffix}"] = table

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        if self.placement != "resident":
            # The tables stay those of the checkpoint that was opened.
            for name in [name for name in state_dict if name.startswith(f"{prefix}embedders.")]:
                del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def ngram_tokens(
    config: LongCatLiteConfig, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """The n-gram of the highest order that ends with each token of whole sequences: `[B, N, T]` from `[B, T]`.

    Farthest first, the token itself last; 0 where a boundary hides a token. The last n of N are the n-gram of order n.
    """
    order = config.max_ngram_order
    codes = nn.functional.pad(encode_tokens(input_ids, position_ids), (order - 1, 0), value=HIDDEN)  # [B, N - 1 + T]
    return ngram_contexts(codes, order, segment_ends(config))


def ngram_row_ids(
    config: LongCatLiteConfig, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """The row of each sub-table that each token of whole sequences reads: `[S, B, T]` int64 from `[B, T]`.

    Depends on the config, the tokens and, where documents are packed, the positions; needs no table or weight.
    """
    return ngram_ids(ngram_tokens(config, input_ids, position_ids), **NgramEmbedding.hash_constants(config))


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


__all__ = ["EmbeddingAmplification", "NgramEmbedding", "ngram_row_ids", "ngram_tokens"]
