# SPDX-License-Identifier: Apache-2.0
"""Checks on a configuration: each raises a `ValueError` that names the field, its value and what would be right.

transformers' own `@strict` validation raises errors of another kind, which no caller of `from_pretrained` expects.
"""

import math
from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

POSITIVE_INTEGERS = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_attention_heads",
    "ffn_hidden_size",
    "expert_ffn_hidden_size",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "n_routed_experts",
    "moe_topk",
    "max_position_embeddings",
    "num_draft_tokens",
)
INTEGERS = ("zero_expert_num", "emb_neighbor_num", "emb_split_num", "ngram_base_vocab_size")
NUMBERS = (
    "ngram_vocab_size_ratio",
    "routed_scaling_factor",
    "rms_norm_eps",
    "latent_norm_eps",
    "initializer_range",
    "attention_dropout",
)
SWITCHES = (
    "use_ngram_embedding",
    "mtp_use_ngram_embedding",
    "mla_scale_q_lora",
    "mla_scale_kv_lora",
    "attention_bias",
    "scale_zero_experts",
    "norm_topk_prob",
    "router_bias",
    "tie_word_embeddings",
)
CHOICES: dict[str, tuple] = {
    "ngram_table_bits": (16, 8, 4),
    "embedding_amplification": ("none", "sqrt_d", "layer_norm"),
    "zero_expert_type": ("identity", "drop"),
    "num_nextn_predict_layers": (None, 0, 1),
    "hidden_act": tuple(ACT2FN),
}


def validate_fields(config: PreTrainedConfig):
    """Types, ranges and what fields ask of each other."""
    _validate_types(config)
    _validate_sizes(config)
    for name, allowed in CHOICES.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"`{name}` must be one of {allowed}, got {getattr(config, name)!r}.")
    if config.use_ngram_embedding:
        _validate_ngram(config)
    elif config.mtp_use_ngram_embedding:
        raise ValueError("`mtp_use_ngram_embedding` needs n-gram tables, but `use_ngram_embedding` is False.")


def validate_rope_fields(config: PreTrainedConfig):
    """transformers warns about odd RoPE settings; what cannot work raises here."""
    try:
        config.validate_rope()
    except KeyError as error:
        raise ValueError(f"`rope_parameters` is incomplete: {error.args[0]}") from error
    if config.rope_parameters["rope_type"] not in ("default", *ROPE_INIT_FUNCTIONS):
        raise ValueError(f"`rope_type` {config.rope_parameters['rope_type']!r} in `rope_parameters` is unknown.")


def validate_stated(config: PreTrainedConfig, stated: dict[str, Any]):
    """Fields that follow from others may stand in a file, with the value that follows."""
    for name, value in stated.items():
        if value != getattr(config, name):
            raise ValueError(f"`{name}` is derived and must be {getattr(config, name)} here, got {value!r}.")


def take_one_rope_story(rope_parameters: dict[str, Any] | None, fields: dict[str, Any]):
    """Drops `rope_scaling` and `rope_theta` from `fields` if `rope_parameters` says the same.

    A file of ours says RoPE twice, for old readers and for new ones: an edit of one alone would be lost.
    """
    scaling = fields.get("rope_scaling") or {}
    for rope in (rope_parameters or {}, scaling):
        if rope.get("type", rope.get("rope_type")) != rope.get("rope_type", rope.get("type")):
            raise ValueError(f"`rope_type` is {rope['rope_type']!r} but `type` beside it is {rope['type']!r}.")
    if rope_parameters is None:
        return
    own = {"rope_type": rope_parameters.get("type", "default"), **rope_parameters}
    stated = {"rope_type": scaling["type"]} if "type" in scaling else {}
    stated |= {key: value for key, value in scaling.items() if key != "type"}
    if fields.get("rope_theta") is not None:
        stated["rope_theta"] = fields["rope_theta"]
    if "rope_scaling" in fields and not scaling:
        stated["rope_type"] = "default"
    for key, value in stated.items():
        if own.get(key) != value:
            raise ValueError(
                f"`rope_parameters['{key}']` is {own.get(key)!r} but the legacy `rope_scaling` / `rope_theta` "
                f"fields say {value!r}. Change both, or remove the legacy fields."
            )
    fields.pop("rope_scaling", None)
    fields.pop("rope_theta", None)


def _validate_types(config: PreTrainedConfig):
    for names, types, kind in (
        (INTEGERS, int, "an integer"),
        (NUMBERS, int | float, "a finite number"),
        (SWITCHES, bool, "true or false"),
    ):
        for name in names:
            value = getattr(config, name)
            if not isinstance(value, types) or (isinstance(value, float) and not math.isfinite(value)):
                raise ValueError(f"`{name}` must be {kind}, got {value!r}.")
    for name in POSITIVE_INTEGERS:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
    eos = config.ngram_eos_token_id
    if not all(isinstance(token, int) for token in (eos if isinstance(eos, list) else [eos or 0])):
        raise ValueError(f"`ngram_eos_token_id` must be a token id or a list of them, got {eos!r}.")


def _validate_sizes(config: PreTrainedConfig):
    if config.zero_expert_num < 0:
        raise ValueError(f"`zero_expert_num` must not be negative, got {config.zero_expert_num}.")
    if config.pad_token_id is not None and not 0 <= config.pad_token_id < config.vocab_size:
        raise ValueError(
            f"`pad_token_id` must be below `vocab_size` ({config.vocab_size}), got {config.pad_token_id}."
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
    if config.ngram_table_bits == 4 and config.subtable_width % 2:
        raise ValueError(f"`ngram_table_bits` of 4 packs pairs, but a table row has {config.subtable_width} values.")


__all__ = ["take_one_rope_story", "validate_fields", "validate_rope_fields", "validate_stated"]
