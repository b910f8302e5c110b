# SPDX-License-Identifier: Apache-2.0
"""Checks on a configuration: each raises a `ValueError` that names the field, its value and what would be right.

transformers' own `@strict` validation raises errors of another kind, which no caller of `from_pretrained` expects.
"""

import math
import sys
from typing import Any

from transformers import PreTrainedConfig

from .configuration_rope import LARGEST_INTEGER, is_number, validate_rope_numbers

try:
    from .ngram_quantization import row_format
except ImportError:  # without torch, which a config does not need and a table does
    row_format = None  # type: ignore[assignment]

POSITIVE_INTEGERS = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "ffn_hidden_size",
    "expert_ffn_hidden_size",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "head_dim",
    "n_routed_experts",
    "moe_topk",
    "max_position_embeddings",
    "num_draft_tokens",
)
INTEGERS = ("zero_expert_num", "emb_neighbor_num", "emb_split_num", "ngram_base_vocab_size")
# Every expert of every layer is a tensor of the released layout, which is listed before a file is opened.
MOST_EXPERTS = 2**18
MOST_ROWS = 2**40  # of a table: row ids are numbered so (`ngram_tables.py`)
BELOW_ONE = math.nextafter(1, 0)
# Outside these, numbers overflow, divide by zero or mean nothing. An epsilon below the least float32 is zero.
NUMBERS = {
    "ngram_vocab_size_ratio": (-math.inf, math.inf),  # where there are tables, `_validate_ngram` asks for more
    "routed_scaling_factor": (1e-6, 1e6),
    "rms_norm_eps": (1e-30, 1),
    "latent_norm_eps": (1e-30, 1),
    "initializer_range": (0, 1e3),
    "attention_dropout": (0, BELOW_ONE),
}
SWITCHES = (
    "use_ngram_embedding",
    "mtp_use_ngram_embedding",
    "scale_word_embedding",
    "mla_scale_q_lora",
    "mla_scale_kv_lora",
    "attention_bias",
    "scale_zero_experts",
    "norm_topk_prob",
    "router_bias",
    "tie_word_embeddings",
)
CHOICES: dict[str, tuple] = {
    "embedding_amplification": ("none", "sqrt_d", "layer_norm"),
    "zero_expert_type": ("identity", "drop"),
    "attention_method": ("MLA", "LSA"),
    "num_nextn_predict_layers": (None, 0, 1),
}
# The same fields in LongCat-Flash-Lite-Sparse and LongCat-2.0.
OE_FIELDS = {
    "oe_neighbor_num": "emb_neighbor_num",
    "oe_split_num": "emb_split_num",
    "oe_vocab_size_ratio": "ngram_vocab_size_ratio",
}
# What relatives of the model do with their n-grams and attention that this package does not.
UNSUPPORTED = {
    "ngram_exclude_sp_token": "n-grams that leave out special tokens",
    "ngram_fix_normalize_factor": "an embedding divided by the root of the number of its terms",
    "linear_method": "linear attention",
}


def validate_oe_fields(fields: dict[str, Any]):
    """Two names of one field, both stated, must agree."""
    for name, own in OE_FIELDS.items():
        stated, ours = fields.get(name), fields.get(own)
        if stated is not None and ours is not None and stated != ours:
            raise ValueError(f"`{name}` is {stated!r} but `{own}`, the same field, is {ours!r}: remove one of them.")


def take_draft_embedding(config: PreTrainedConfig, fields: dict[str, Any]):
    """`mtp_disable_over_tokenizer` of `fields` becomes its opposite, `config.mtp_use_ngram_embedding`."""
    plain = fields.pop("mtp_disable_over_tokenizer", None)
    if plain is None:
        return
    if not isinstance(plain, bool):
        raise ValueError(f"`mtp_disable_over_tokenizer` must be true or false, got {plain!r}.")
    if plain and config.mtp_use_ngram_embedding:
        raise ValueError("`mtp_disable_over_tokenizer` and `mtp_use_ngram_embedding` contradict: both are true.")
    config.mtp_use_ngram_embedding = not plain


def validate_fields(config: PreTrainedConfig):
    """Types, ranges and what fields ask of each other."""
    _validate_types(config)
    _validate_relatives(config)
    _validate_sizes(config)
    for name, allowed in CHOICES.items():
        value = getattr(config, name)
        if value not in allowed or isinstance(value, bool | float):  # True and 1.0 are equal to 1
            raise ValueError(f"`{name}` must be one of {allowed}, got {value!r}.")
    table_rows = None if row_format is None else row_format(config.ngram_table_bits)
    _validate_activation(config.hidden_act)
    validate_rope_numbers(config.rope_parameters)
    if config.use_ngram_embedding:
        _validate_ngram(config)
        if table_rows is not None:
            table_rows.check_width(config.subtable_width)
    elif config.mtp_use_ngram_embedding:
        raise ValueError("`mtp_use_ngram_embedding` needs n-gram tables, but `use_ngram_embedding` is False.")


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _validate_activation(name: Any):
    if not isinstance(name, str):
        raise ValueError(f"`hidden_act` must be the name of an activation, got {name!r}.")
    if name == "silu":
        return
    try:
        from transformers.activations import ACT2FN
    except ImportError:  # without torch, a config is read for a runtime that has activations of its own
        return
    if name not in ACT2FN:
        raise ValueError(f"`hidden_act` must be one of {tuple(ACT2FN)}, got {name!r}.")


def validate_stated(config: PreTrainedConfig, stated: dict[str, Any]):
    """Fields that follow from others may stand in a file, with the value that follows."""
    for name, value in stated.items():
        if value != getattr(config, name):
            raise ValueError(f"`{name}` is derived and must be {getattr(config, name)} here, got {value!r}.")


def _validate_relatives(config: PreTrainedConfig):
    """What only LongCat-Flash-Lite-Sparse, LongCat-2.0 and their like state."""
    stated = config.__dict__
    for name, what in UNSUPPORTED.items():
        if stated.get(name):
            raise ValueError(f"`{name}` is {stated[name]!r}: {what} cannot be computed here.")
    topk = stated.get("index_topk")
    if topk is not None and (type(topk) is not int or topk < 1):
        raise ValueError(f"`index_topk` must be an integer of at least 1, or null, got {topk!r}.")
    if config.attention_method == "LSA" and topk is None:
        raise ValueError(
            '`attention_method` is "LSA" without `index_topk`: set it to the length up to which dense attention, '
            "which is what runs here, stands in for sparse."
        )
    blocks, shared = stated.get("mtp_num_layers") or 0, stated.get("mtp_replicate_modules", False)
    if not is_integer(blocks):
        raise ValueError(f"`mtp_num_layers` must be an integer, got {blocks!r}.")
    if blocks > 1 and not shared and config.num_nextn_predict_layers != 0:
        raise ValueError(
            f"`mtp_num_layers` is {blocks} but `mtp_replicate_modules` is not true: a draft head of several blocks "
            "cannot be computed here. `num_nextn_predict_layers=0` leaves it out."
        )


def _validate_types(config: PreTrainedConfig):
    for name, (least, most) in NUMBERS.items():
        value = getattr(config, name)
        if not is_number(value, -sys.float_info.max, sys.float_info.max):
            raise ValueError(f"`{name}` must be a finite number, got {value!r}.")
        if not least <= value <= most:
            below = "below 1" if most == BELOW_ONE else f"{most:g}"
            raise ValueError(f"`{name}` must be a number from {least:g} to {below}, got {value!r}.")
    for name in SWITCHES:
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"`{name}` must be true or false, got {getattr(config, name)!r}.")
    for name in (*POSITIVE_INTEGERS, *INTEGERS):
        value, positive = getattr(config, name), name in POSITIVE_INTEGERS
        if not is_integer(value) or value > LARGEST_INTEGER or (positive and value < 1):
            wanted = "an integer of at least 1" if positive else "an integer"
            raise ValueError(f"`{name}` must be {wanted}, below 2^31, got {value!r}.")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "ngram_eos_token_id"):
        value = getattr(config, name)
        ids = value if isinstance(value, list) and name.endswith("eos_token_id") else [0 if value is None else value]
        if not all(is_integer(token) for token in ids):
            raise ValueError(f"`{name}` must be a token id or a list of them, got {value!r}.")


def _validate_sizes(config: PreTrainedConfig):
    if config.zero_expert_num < 0:
        raise ValueError(f"`zero_expert_num` must not be negative, got {config.zero_expert_num}.")
    if config.pad_token_id is not None and not 0 <= config.pad_token_id < config.vocab_size:
        raise ValueError(
            f"`pad_token_id` must be below `vocab_size` ({config.vocab_size}), got {config.pad_token_id}."
        )
    if config.num_layers * config.n_routed_experts > MOST_EXPERTS:
        raise ValueError(
            f"`num_layers` ({config.num_layers}) times `n_routed_experts` ({config.n_routed_experts}) must be at most "
            f"{MOST_EXPERTS}."
        )
    experts = config.n_routed_experts + config.zero_expert_num
    if config.moe_topk > experts:
        raise ValueError(
            f"`moe_topk` ({config.moe_topk}) is above the number of experts: "
            f"`n_routed_experts` + `zero_expert_num` = {experts}."
        )
    if config.head_dim != config.qk_rope_head_dim:
        raise ValueError(f"`head_dim` ({config.head_dim}) must equal `qk_rope_head_dim` ({config.qk_rope_head_dim}).")
    if config.qk_rope_head_dim % 2:
        raise ValueError(f"`qk_rope_head_dim` must be even: RoPE turns pairs, got {config.qk_rope_head_dim}.")
    if config.num_key_value_heads != config.num_attention_heads:
        raise ValueError(
            f"`num_key_value_heads` ({config.num_key_value_heads}) must equal `num_attention_heads` "
            f"({config.num_attention_heads}): latent attention expands every head."
        )


def _validate_ngram(config: PreTrainedConfig):
    if config.emb_neighbor_num < 2:
        raise ValueError(
            f"`emb_neighbor_num` (N) must be at least 2, got {config.emb_neighbor_num}; "
            "for a model without tables set `use_ngram_embedding=False`."
        )
    if config.emb_split_num < 1:
        raise ValueError(f"`emb_split_num` (K) must be at least 1, got {config.emb_split_num}.")
    if config.ngram_vocab_size_ratio <= 0:
        raise ValueError(f"`ngram_vocab_size_ratio` must be positive, got {config.ngram_vocab_size_ratio}.")
    if config.ngram_base_vocab_size < 1:
        raise ValueError(f"`ngram_base_vocab_size` must be at least 1, got {config.ngram_base_vocab_size}.")
    if config.hidden_size % config.num_subtables:
        raise ValueError(
            f"`hidden_size` ({config.hidden_size}) must be divisible by the number of sub-tables, "
            f"`emb_split_num` * (`emb_neighbor_num` - 1) = {config.num_subtables}."
        )
    if config.subtable_sizes[-1] > MOST_ROWS:
        raise ValueError(
            f"`ngram_vocab_size_ratio` ({config.ngram_vocab_size_ratio}) times `ngram_base_vocab_size` "
            f"({config.ngram_base_vocab_size}) must be below 2^40, the rows of a table."
        )


__all__ = [
    "OE_FIELDS",
    "take_draft_embedding",
    "validate_fields",
    "validate_oe_fields",
    "validate_stated",
]
