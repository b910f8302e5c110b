# SPDX-License-Identifier: Apache-2.0
"""The released checkpoint layout as one table: names, shapes, dtypes and parameters of every tensor.

[`LAYOUT`] has a line for each tensor of meituan-longcat/LongCat-Flash-Lite. Loading, saving, verification, merging,
quantizing and the expectations of other runtimes (`eval/checkpoints/`) all read it. To add a tensor, add a line; for a
new way to store one, add a kind to [`KINDS`].

    a line of LAYOUT                                        expanded for the released model
    model.layers.{layer}.self_attn.{half}.o_proj.weight     28 tensors, from model.layers.0.self_attn.0.o_proj.weight
    hidden_size, num_attention_heads*v_head_dim             [3072, 4096]
    linear                                                  F32, F16 or BF16; in an FP8 checkpoint F8_E4M3

Reading converts released names to this package's parameters, writing converts back (`checkpoint_names.py`).
LongCat-Flash-Lite-Sparse and LongCat-2.0 call some tensors differently (`aliases`); those names are read and never
written.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from transformers.core_model_loading import Concatenate, ConversionOps, MergeModulelist

from .checkpoint_header import FLOAT_DTYPES, FP8
from .configuration_longcat_lite import LongCatLiteConfig
from .ngram_quantization import row_format

DRAFT_HEAD_PREFIX = "model.mtp."
SCALES = "_scale_inv"  # after the name of an FP8 weight: that of its scales, one for each block of values


class Kind(NamedTuple):
    """Dtypes that a tensor may be stored in, by their names in safetensors.

    `released`: as published. `also_read`: what loading accepts beyond that. `fp8`: whether a released FP8 checkpoint
    stores it in FP8, with scales next to it.
    """

    released: tuple[str, ...]
    also_read: tuple[str, ...] = ()
    fp8: bool = False


FLOATS = tuple(FLOAT_DTYPES)
KINDS = {
    "float": Kind(FLOATS, ("F64", FP8)),
    "linear": Kind(FLOATS, ("F64", FP8), fp8=True),
    "router": Kind(("F32",), (*FLOATS, "F64", FP8)),  # rounding would change which experts it selects
    "packed": Kind(("U8",)),
}

# Which models have a tensor, by the names in a line's `when`.
CONDITIONS: dict[str, Callable[[LongCatLiteConfig], bool]] = {
    "n-grams": lambda config: config.use_ngram_embedding,
    "float tables": lambda config: not row_format(config.ngram_table_bits).is_packed,
    "packed tables": lambda config: row_format(config.ngram_table_bits).is_packed,
    "attention_bias": lambda config: config.attention_bias,
    "router_bias": lambda config: config.router_bias,
    "normed embedding": lambda config: config.embedding_amplification == "layer_norm",
    "untied head": lambda config: not config.tie_word_embeddings,
    "draft head": lambda config: bool(config.num_nextn_predict_layers),
    "indexer": lambda config: False,  # of sparse attention, which this package does not compute
}


class Tensors(NamedTuple):
    """A line of [`LAYOUT`]: one tensor, or one for each value of the indices in braces.

    Attributes:
        name (`str`): In the released layout.
        shape (`str`): A size for each dimension: numbers, fields of the config and [`DERIVED`] sizes, which may be
            added and multiplied, as in `num_attention_heads*(qk_nope_head_dim+v_head_dim), kv_lora_rank`.
        kind (`str`): One of [`KINDS`].
        parameter (`str`): The parameter that holds it, where that has another name; see [`JOINED`].
        when (`tuple[str, ...]`): Those of [`CONDITIONS`] that must all hold.
        aliases (`tuple[str, ...]`): Other names under which it is read.
        may_be_extra (`bool`): Whether a checkpoint may have it although the model does not.
        may_be_absent (`bool`): Whether a checkpoint may lack it although the model has it.
    """

    name: str
    shape: str
    kind: str = "float"
    parameter: str = ""
    when: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    may_be_extra: bool = False
    may_be_absent: bool = False


def attention(at: str, *when: str) -> list[Tensors]:
    """The lines of one attention, and of the indexer that it may have."""
    biased, indexer, latent = (*when, "attention_bias"), (*when, "indexer"), "kv_lora_rank+qk_rope_head_dim"
    queries = "num_attention_heads*(qk_nope_head_dim+qk_rope_head_dim), q_lora_rank"
    keys_and_values = "num_attention_heads*(qk_nope_head_dim+v_head_dim), kv_lora_rank"
    return [
        Tensors(f"{at}.q_a_proj.weight", "q_lora_rank, hidden_size", "linear", when=when),
        Tensors(f"{at}.q_a_proj.bias", "q_lora_rank", when=biased),
        Tensors(f"{at}.q_a_layernorm.weight", "q_lora_rank", when=when),
        Tensors(f"{at}.q_b_proj.weight", queries, "linear", when=when),
        Tensors(f"{at}.kv_a_proj_with_mqa.weight", f"{latent}, hidden_size", "linear", when=when),
        Tensors(f"{at}.kv_a_proj_with_mqa.bias", latent, when=biased),
        Tensors(f"{at}.kv_a_layernorm.weight", "kv_lora_rank", when=when),
        Tensors(f"{at}.kv_b_proj.weight", keys_and_values, "linear", when=when),
        Tensors(f"{at}.o_proj.weight", "hidden_size, num_attention_heads*v_head_dim", "linear", when=when),
        Tensors(f"{at}.o_proj.bias", "hidden_size", when=biased),
        Tensors(f"{at}.indexer.wq_b.weight", "index_n_heads*index_head_dim, q_lora_rank", "linear", when=indexer),
        Tensors(f"{at}.indexer.wk.weight", "index_head_dim, hidden_size", "linear", when=indexer),
        Tensors(f"{at}.indexer.k_norm.weight", "index_head_dim", when=indexer),
        Tensors(f"{at}.indexer.weights_proj.weight", "index_n_heads, hidden_size", when=indexer),
    ]


def gated_mlp(at: str, width: str, when: tuple[str, ...] = (), parameter: str = "") -> list[Tensors]:
    """The lines of one gated MLP; `parameter` is the module that holds it, where that has another name."""
    return [
        Tensors(
            f"{at}.{name}.weight",
            f"hidden_size, {width}" if name == "down_proj" else f"{width}, hidden_size",
            "linear",
            parameter and f"{parameter}.{name}.weight",
            when,
        )
        for name in ("gate_proj", "up_proj", "down_proj")
    ]


TABLE, LAYER, MTP = "model.ngram_embeddings.embedders.{table}", "model.layers.{layer}", "model.mtp.layers.0"
EXPERT, STACKED = f"{LAYER}.mlp.experts.{{expert}}", f"{LAYER}.mlp.experts"
OE_TABLE, ROUTER, HEAD = "model.oe_embed_tokens{table}", f"{LAYER}.mlp.router", ("draft head",)
EXPERTS = "n_routed_experts+zero_expert_num"  # that the router selects from; zero experts have no tensors

LAYOUT: tuple[Tensors, ...] = (
    Tensors("model.embed_tokens.weight", "vocab_size, hidden_size"),
    Tensors(
        f"{TABLE}.weight",
        "subtable_sizes[{table}], subtable_width",
        when=("n-grams", "float tables"),
        aliases=(f"{OE_TABLE}.weight",),
    ),
    Tensors(
        f"{TABLE}.packed",
        "subtable_sizes[{table}], stored_columns",
        "packed",
        when=("n-grams", "packed tables"),
        aliases=(f"{OE_TABLE}.packed",),
    ),
    Tensors(
        "model.ngram_embeddings.post_projs.{table}.weight",
        "hidden_size, subtable_width",
        parameter="model.ngram_embeddings.post_proj.weight",
        when=("n-grams",),
        aliases=("model.oe_embed_proj{table}.weight",),
    ),
    *(
        Tensors(
            f"model.embedding_amplification.norm.{name}",
            "hidden_size",
            when=("normed embedding",),
            may_be_extra=True,
            may_be_absent=True,
        )
        for name in ("weight", "bias")
    ),
    Tensors(f"{LAYER}.input_layernorm.{{half}}.weight", "hidden_size"),
    *attention(f"{LAYER}.self_attn.{{half}}"),
    Tensors(f"{LAYER}.post_attention_layernorm.{{half}}.weight", "hidden_size"),
    *gated_mlp(f"{LAYER}.mlps.{{half}}", "ffn_hidden_size"),
    Tensors(f"{ROUTER}.classifier.weight", f"{EXPERTS}, hidden_size", "router"),
    Tensors(f"{ROUTER}.classifier.bias", EXPERTS, "router", when=("router_bias",)),
    Tensors(f"{ROUTER}.e_score_correction_bias", EXPERTS, "router"),
    Tensors(f"{EXPERT}.gate_proj.weight", "expert_ffn_hidden_size, hidden_size", "linear", f"{STACKED}.gate_up_proj"),
    Tensors(f"{EXPERT}.up_proj.weight", "expert_ffn_hidden_size, hidden_size", "linear", f"{STACKED}.gate_up_proj"),
    Tensors(f"{EXPERT}.down_proj.weight", "hidden_size, expert_ffn_hidden_size", "linear", f"{STACKED}.down_proj"),
    Tensors("model.norm.weight", "hidden_size"),
    Tensors("lm_head.weight", "vocab_size, hidden_size", when=("untied head",), may_be_extra=True),
    Tensors("model.mtp.embed_tokens.weight", "vocab_size, hidden_size", when=HEAD),
    Tensors(f"{MTP}.enorm.m.weight", "hidden_size", parameter=f"{MTP}.enorm.weight", when=HEAD),
    Tensors(f"{MTP}.hnorm.m.weight", "hidden_size", parameter=f"{MTP}.hnorm.weight", when=HEAD),
    Tensors(f"{MTP}.eh_proj.weight", "hidden_size, 2*hidden_size", "linear", when=HEAD),
    Tensors(f"{MTP}.input_layernorm.weight", "hidden_size", when=HEAD),
    *attention(f"{MTP}.self_attn", *HEAD),
    Tensors(f"{MTP}.post_attention_layernorm.weight", "hidden_size", when=HEAD),
    *gated_mlp(f"{MTP}.transformer_layer.mlp", "ffn_hidden_size", HEAD, f"{MTP}.mlp"),
    Tensors("model.mtp.norm.weight", "hidden_size", when=HEAD),
)


class Joined(NamedTuple):
    """A parameter that holds several tensors of the released layout: its shape, and how they are joined."""

    shape: str
    operations: Callable[[], list[ConversionOps]]


JOINED = {
    f"{STACKED}.gate_up_proj": Joined(
        "n_routed_experts, 2*expert_ffn_hidden_size, hidden_size",
        lambda: [MergeModulelist(dim=0), Concatenate(dim=1)],
    ),
    f"{STACKED}.down_proj": Joined(
        "n_routed_experts, hidden_size, expert_ffn_hidden_size", lambda: [MergeModulelist(dim=0)]
    ),
    "model.ngram_embeddings.post_proj.weight": Joined(
        "hidden_size, num_subtables*subtable_width",
        lambda: [Concatenate(dim=1, num_shards_attribute="num_subtables")],
    ),
}

# Sizes in a `shape` that are not fields of the config, and the fields that they are computed from.
NGRAM_SHAPE = ("emb_neighbor_num", "emb_split_num")
DERIVED = {
    "subtable_sizes": ("ngram_vocab_size_ratio", "ngram_base_vocab_size", *NGRAM_SHAPE),
    "subtable_width": ("hidden_size", *NGRAM_SHAPE),
    "stored_columns": ("ngram_table_bits", "hidden_size", *NGRAM_SHAPE),
    "num_subtables": NGRAM_SHAPE,
}


class Expected(NamedTuple):
    """A tensor that a checkpoint of one config should have, and its line in [`LAYOUT`]."""

    shape: tuple[int, ...]
    line: Tensors

    @property
    def kind(self) -> Kind:
        return KINDS[self.line.kind]


def released_tensors(config: LongCatLiteConfig) -> dict[str, Expected]:
    """Every tensor of a checkpoint of `config` in the released layout, by name."""
    return {
        name: Expected(shape, line)
        for line in LAYOUT
        if all(CONDITIONS[condition](config) for condition in line.when)
        for name, shape in _expanded(line.name, line.shape, config)
    }


def own_tensors(config: LongCatLiteConfig) -> dict[str, Expected]:
    """The same under the names of this package's parameters, which `save_original_format=False` writes."""
    own = dict[str, Expected]()
    for line in LAYOUT:
        if all(CONDITIONS[condition](config) for condition in line.when):
            parameter = line.parameter or line.name
            shape = JOINED[parameter].shape if parameter in JOINED else line.shape
            own |= {name: Expected(sizes, line) for name, sizes in _expanded(parameter, shape, config)}
    return own


def config_fields(line: Tensors) -> list[str]:
    """The fields of the config that a tensor's shape comes from."""
    names = re.findall(r"[a-z]\w*", line.shape.replace("{table}", ""))
    return list(dict.fromkeys(field for name in names for field in DERIVED.get(name, (name,))))


def _expanded(name: str, shape: str, config: LongCatLiteConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes for all values of the indices of a name: `a.{table}.b` becomes `a.0.b`, `a.1.b`, ..."""
    counts = {
        "table": config.num_subtables,
        "layer": config.num_layers,
        "half": 2,
        "expert": config.n_routed_experts,
    }
    sizes = {
        **vars(config),
        **{f"subtable_sizes[{i}]": rows for i, rows in enumerate(config.subtable_sizes)},
        "subtable_width": config.subtable_width,
        "stored_columns": row_format(config.ngram_table_bits).columns(config.subtable_width),
        "num_subtables": config.num_subtables,
    }
    indices = re.findall(r"{(\w+)}", name)
    same = None if "{" in shape else tuple(_size(part, sizes) for part in shape.split(", "))
    for values in itertools.product(*(range(counts[index]) for index in indices)):
        at = dict(zip(indices, values, strict=True))
        yield name.format(**at), same or tuple(_size(part, sizes) for part in shape.format(**at).split(", "))


def _size(expression: str, sizes: dict[str, int]) -> int:
    """`a*(b+2)`: the value of a product of sums."""

    def value(term: str) -> int:
        return int(term) if term.isdigit() else sizes[term]

    return math.prod(sum(map(value, factor.strip("()").split("+"))) for factor in expression.split("*"))


__all__ = [
    "CONDITIONS",
    "DRAFT_HEAD_PREFIX",
    "JOINED",
    "KINDS",
    "LAYER",
    "LAYOUT",
    "OE_TABLE",
    "SCALES",
    "TABLE",
    "Expected",
    "Kind",
    "Tensors",
    "config_fields",
    "own_tensors",
    "released_tensors",
]
