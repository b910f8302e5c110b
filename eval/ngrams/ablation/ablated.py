# SPDX-License-Identifier: Apache-2.0
"""A model without the knowledge in its n-gram tables, inside a `with` block.

    with ablated(model, "zeroed"):
        model.generate(...)

    "on"         unchanged, with or without tables
    "zeroed"     every row is 0; the word embedding is still divided by the number of terms
    "shuffled"   every row is another row of its table: the tables' statistics without their knowledge
    "int8"       the rows as `eval.checkpoints.quantize --bits 8` would store them; "int4" likewise
                 (to the bit, in the dtype of the checkpoint or a wider one)

The tables are neither copied nor changed. `"shuffled"` changes the ids, by `id -> (a id + c) mod rows`, which permutes
a table of any size; the others change the rows that a forward has gathered, each of which has its own scale. So all
ablations work with resident tables and with tables on the host or on disk, with n-gram drafts, and in any evaluation.

Shapes: B batch rows, T tokens, S sub-tables, W width of a table row.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from modeling_longcat_lite.ngram_quantization import dequantize_rows, quantize_rows, row_format

ABLATIONS = ("on", "zeroed", "shuffled", "int8", "int4")
BITS = {"int8": 8, "int4": 4}


def permutations(sizes: Sequence[int], seed: int) -> list[tuple[int, int]]:
    """Factor and summand for each table: `(factor * id + summand) % rows` permutes its ids."""
    draw = random.Random(seed)
    drawn = []
    for rows in sizes:
        factor = draw.randrange(1, rows)
        while math.gcd(factor, rows) > 1:
            factor = draw.randrange(1, rows)
        drawn.append((factor, draw.randrange(rows)))
    return drawn


def chosen_tables(config, orders: Sequence[int] | None) -> list[int]:
    """The tables of n-gram `orders`; all by default.

    Raises:
        `ValueError`: naming an order that the model does not have.
    """
    known = range(2, config.max_ngram_order + 1)
    unknown = [order for order in orders or () if order not in known]
    if unknown:
        raise ValueError(f"`orders` has {unknown[0]}, but the model's n-grams have orders {known[0]} to {known[-1]}")
    wanted = known if orders is None else orders
    per_order = config.num_subtables_per_order
    return [table for table in range(config.num_subtables) if 2 + table // per_order in wanted]


def check_ablation(name: str, config: LongCatLiteConfig):
    """Raises a `ValueError` if this ablation is not possible for a model of `config`; no weights are needed."""
    if name not in ABLATIONS:
        raise ValueError(f"`ablation` is {name!r}; known are {', '.join(ABLATIONS)}")
    if name != "on" and not config.use_ngram_embedding:
        raise ValueError(f"`ablation` {name!r}: the model has no n-gram tables (`use_ngram_embedding` is false)")
    if name in BITS and row_format(config.ngram_table_bits).is_packed:
        raise ValueError(f"`ablation` {name!r}: the tables have {config.ngram_table_bits} bits already; leave it out")


def row_filter(name: str, tables: list[int], count: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that zeroes or quantizes the rows `[B, T, S * W]` of `tables`, which are some of `count` tables."""

    def changed(rows: torch.Tensor) -> torch.Tensor:
        each = rows.unflatten(-1, (count, -1)).clone()  # [B, T, S, W]
        if name == "zeroed":
            each[..., tables, :] = 0
        else:
            chosen = each[..., tables, :]
            packed = quantize_rows(chosen.flatten(0, -2), BITS[name])
            each[..., tables, :] = dequantize_rows(packed, BITS[name], rows.dtype).view_as(chosen)
        return each.flatten(-2)

    return changed


def shuffling_hook(config, tables: list[int], seed: int) -> Callable[..., Any]:
    """A hook that passes the ids of other rows to the n-gram embedding, in place of the tokens."""
    drawn = permutations(config.subtable_sizes, seed)
    factors = torch.tensor([factor if table in tables else 1 for table, (factor, _) in enumerate(drawn)])
    summands = torch.tensor([summand if table in tables else 0 for table, (_, summand) in enumerate(drawn)])

    def shuffle(embedding, inputs: tuple) -> tuple:
        word_embeds, codes, *rest = inputs
        row_ids = embedding.ids(codes).movedim(0, -1) if codes is not None else rest[0]  # [B, T, S]
        sizes = embedding.sizes
        return word_embeds, None, (row_ids * factors.to(sizes) + summands.to(sizes)) % sizes

    return shuffle


@contextmanager
def ablated(
    model: LongCatLiteForCausalLM, name: str, *, orders: Sequence[int] | None = None, seed: int = 0
) -> Iterator[LongCatLiteForCausalLM]:
    """The model with its n-gram tables ablated; it is unchanged after the block, also after an error.

    Args:
        model (`LongCatLiteForCausalLM`): Or its trunk; tables in any placement.
        name (`str`): One of `ABLATIONS`.
        orders (`Sequence[int]`, *optional*): The n-gram orders whose tables are ablated; all by default.
        seed (`int`, *optional*, defaults to 0): Seed of the permutations of `"shuffled"`.

    Raises:
        `ValueError`: naming the unknown ablation or order; the model has no tables, or, for `"int8"` and `"int4"`, has
            quantized tables; or another ablation is active.
    """
    trunk: Any = model.base_model
    embedding, config = trunk.ngram_embeddings, model.config
    check_ablation(name, config)
    if name == "on":
        yield model
        return
    if embedding.row_filter is not None:
        raise ValueError(f"`ablation` {name!r}: the rows of this model are changed already")
    tables = chosen_tables(config, orders)
    hook = None
    try:
        if name == "shuffled":
            hook = embedding.register_forward_pre_hook(shuffling_hook(config, tables, seed))
        else:
            embedding.row_filter = row_filter(name, tables, config.num_subtables)
        yield model
    finally:
        if hook is not None:
            hook.remove()
        embedding.row_filter = None


__all__ = ["ABLATIONS", "ablated", "check_ablation"]
