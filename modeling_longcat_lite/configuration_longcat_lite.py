# SPDX-License-Identifier: Apache-2.0
"""Configuration of LongCat-Flash-Lite.

The JSON keys are those of the released checkpoint (meituan-longcat/LongCat-Flash-Lite), so that its `config.json`
loads unchanged, and ours can be read by older transformers, mlx-lm, vLLM and SGLang. Readable names are aliases of
them (`attribute_map`). The defaults are the released model.
"""

import copy
import json
import os
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from .configuration_rope import (
    RELEASED_ROPE_PARAMETERS,
    legacy_rope_fields,
    merge_rope_fields,
    validate_rope_fields,
    with_known_rope_type,
)
from .configuration_validation import (
    OE_FIELDS,
    take_draft_embedding,
    validate_fields,
    validate_oe_fields,
    validate_stated,
)

# Files name only the class that other runtimes know: SGLang compares the whole list.
UPSTREAM_PREFIX, OWN_PREFIX = "LongcatFlashNgram", "LongCatLite"

# Remote code: transformers lists the class that was saved; this adds the other ones.
AUTO_MAP = {
    "AutoConfig": "configuration_longcat_lite.LongCatLiteConfig",
    "AutoModel": "modeling_longcat_lite.LongCatLiteModel",
    "AutoModelForCausalLM": "modeling_longcat_lite.LongCatLiteForCausalLM",
}

# Derived here, but stated in some copies of the released `config.json`.
DERIVED = ("num_hidden_layers", "qk_head_dim")


class LongCatLiteConfig(PreTrainedConfig):
    r"""
    Configuration of a [`LongCatLiteModel`]. `LongCatLiteConfig()` is LongCat-Flash-Lite (arXiv 2601.21204, section 6).

    Args:
        vocab_size (`int`, *optional*, defaults to 131072):
            Rows of the word embedding and of the language-model head.
        hidden_size (`int`, *optional*, defaults to 3072):
            Width of the residual stream. Must be divisible by `num_subtables`.
        num_layers (`int`, *optional*, defaults to 14):
            Shortcut-connected layers. Each holds two attention sublayers: `num_hidden_layers` is `2 * num_layers`.
        num_attention_heads (`int`, *optional*, defaults to 32): Query heads of each attention sublayer.
        num_key_value_heads (`int`, *optional*): Always `num_attention_heads` (latent attention expands every head).
        ffn_hidden_size (`int`, *optional*, defaults to 6144): Width of the two dense MLPs of a layer.
        expert_ffn_hidden_size (`int`, *optional*, defaults to 1024): Width of one routed expert.
        q_lora_rank, kv_lora_rank (`int`, *optional*, defaults to 1536 and 512):
            Ranks of the query latent and of the key-value latent.
        qk_nope_head_dim, qk_rope_head_dim, v_head_dim (`int`, *optional*, defaults to 128, 64 and 128):
            Widths of a head's unrotated query/key part, its rotated part, and its value.
        head_dim (`int`, *optional*): Always `qk_rope_head_dim`; transformers sizes the rotary embedding with it.
        mla_scale_q_lora, mla_scale_kv_lora (`bool`, *optional*, defaults to `True`):
            Multiply a normalised latent by `sqrt(hidden_size / rank)` (arXiv 2509.01322, variance alignment).
        attention_bias (`bool`, *optional*, defaults to `False`): Biases in the down projections and `o_proj`.
        attention_dropout (`float`, *optional*, defaults to 0.0): Dropout of attention weights in training.
        latent_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of the two latent norms. The reference keeps 1e-6 there; SGLang uses `rms_norm_eps`.
        n_routed_experts, zero_expert_num, moe_topk (`int`, *optional*, defaults to 256, 128 and 12):
            Routed experts, zero-computation experts, and how many of both together a token selects.
        zero_expert_type (`str`, *optional*, defaults to `"identity"`):
            `"identity"` adds the gated input itself, `"drop"` adds nothing.
        scale_zero_experts (`bool`, *optional*, defaults to `True`):
            Whether identity experts take `routed_scaling_factor` too, as in the reference.
        routed_scaling_factor (`float`, *optional*, defaults to 6.0): Factor on the gate weights.
        norm_topk_prob (`bool`, *optional*, defaults to `False`): Renormalise the selected gate weights to sum 1.
        router_bias (`bool`, *optional*, defaults to `False`): Additive bias of the router's linear layer.
        output_router_logits (`bool`, *optional*, defaults to `False`): Return the logits of every router.
        use_ngram_embedding (`bool`, *optional*, defaults to `True`): `False` gives a model without any n-gram table.
        emb_neighbor_num (`int`, *optional*, defaults to 4): `max_ngram_order` N; orders 2..N have tables.
        emb_split_num (`int`, *optional*, defaults to 4): `num_subtables_per_order` K.
        ngram_vocab_size_ratio (`float`, *optional*, defaults to 78):
            Sub-table i has `int(ratio * ngram_base_vocab_size + 2 i + 1)` rows. Avoid integers when training from
            scratch (paper, section 3.2.2).
        ngram_base_vocab_size (`int`, *optional*):
            Vocabulary size in the hash; `vocab_size` at creation. `resize_token_embeddings` does not change it, so
            that ids stay the same.
        ngram_eos_token_id (`int` or `list[int]`, *optional*):
            Token(s) after which n-grams start anew; `eos_token_id` at creation. Kept apart because trainers rewrite
            `eos_token_id`, which must not change an id.
        ngram_table_bits (`int` or `str`, *optional*, defaults to 16):
            8 or 4 for tables whose rows are integers with a scale each, as `eval.checkpoints.quantize` writes them;
            16 for floating-point tables of any dtype. More in `ngram_quantization.ROW_FORMATS`.
        scale_word_embedding (`bool`, *optional*, defaults to `True`):
            Whether the word row is also divided by the number of terms, `(word + sum) / 13`, as in the reference,
            SGLang and Unsloth. `False` adds it undivided, `word + sum / 13`, as mlx-vlm (pull request 2063) reads
            LongCat-Flash-Lite-Sparse.
        embedding_amplification (`str`, *optional*, defaults to `"none"`):
            `"sqrt_d"` multiplies the embedding output by `sqrt(hidden_size)`, `"layer_norm"` normalises it (paper,
            section 3.2.4). Other runtimes know `"none"` only.
        num_nextn_predict_layers (`int`, *optional*):
            Blocks of the draft head (multi-token prediction), 0 or 1. `None` means: as many as the checkpoint
            carries, none for a fresh model.
        num_draft_tokens (`int`, *optional*, defaults to 3): Tokens drafted per cycle by `generate(use_mtp=True)`.
        mtp_use_ngram_embedding (`bool`, *optional*, defaults to `False`):
            Draft from the trunk's n-gram embedding, as FluentLLM does, instead of the head's own word embedding, as in
            the paper (section 4).
        attention_method (`str`, *optional*, defaults to `"MLA"`):
            `"LSA"` marks a checkpoint that selects keys with an indexer (LongCat-Flash-Lite-Sparse), which is not
            computed here; see `index_topk`.
        index_topk (`int`, *optional*):
            Keys that sparse attention selects per query. Up to that length a query sees every key, and the dense
            attention computed here is exact; longer sequences are refused. Without it there is no limit, and neither
            the config nor its file has the field, because vLLM treats any model that has it as sparse. To read it,
            use `dense_attention_limit`, which always exists.
        hidden_act (`str`, *optional*, defaults to `"silu"`): Activation of the dense MLPs and of the experts.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of fresh weights.
        rms_norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of the norms other than the latent ones.
        use_cache (`bool`, *optional*, defaults to `True`): Return a cache from a forward pass.
        bos_token_id, eos_token_id, pad_token_id (`int`, *optional*, defaults to 1, 2 and 3):
            Tokens that begin, end and fill a sequence; `eos_token_id` may be a list.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`):
            Whether the language-model head is the word embedding.
        rope_parameters (`dict`, *optional*):
            Rotary settings; type `deepseek_yarn` is `yarn`. A legacy `rope_theta` with or without `rope_scaling` is
            read too; without any of the three, the released YaRN settings hold.
        max_position_embeddings (`int`, *optional*, defaults to 327680): Longest sequence, in tokens.

    The names of LongCat-Flash-Lite-Sparse and LongCat-2.0 are read too and written as above: `oe_neighbor_num`,
    `oe_split_num`, `oe_vocab_size_ratio`, and `mtp_disable_over_tokenizer`, the opposite of `mtp_use_ngram_embedding`.
    With `mtp_replicate_modules`, `mtp_num_layers` steps are one block, applied `num_draft_tokens` times.

    Raises:
        `ValueError`: when a field is out of range; the message names the field.

    ```python
    >>> from modeling_longcat_lite import LongCatLiteConfig

    >>> config = LongCatLiteConfig()
    >>> config.num_subtables, config.subtable_sizes[0], config.subtable_width
    (12, 10223617, 256)
    ```
    """

    model_type = "longcat_flash_ngram"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012
    attribute_map = {  # noqa: RUF012
        **OE_FIELDS,
        "max_ngram_order": "emb_neighbor_num",
        "num_subtables_per_order": "emb_split_num",
        "num_local_experts": "n_routed_experts",
        "num_experts_per_tok": "moe_topk",
        "intermediate_size": "ffn_hidden_size",
        "moe_intermediate_size": "expert_ffn_hidden_size",
    }
    default_theta = 5_000_000.0
    base_model_tp_plan = {  # noqa: RUF012
        "layers.*.self_attn.*.q_b_proj": "colwise",
        "layers.*.self_attn.*.kv_a_proj_with_mqa": "mla_kv_a_proj",
        "layers.*.self_attn.*.kv_b_proj": "colwise",
        "layers.*.self_attn.*.o_proj": "rowwise",
        "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
        "layers.*.mlp.experts.down_proj": "rowwise",
        "layers.*.mlp.experts": "moe_tp_experts",
        "layers.*.mlps.*.gate_proj": "colwise",
        "layers.*.mlps.*.up_proj": "colwise",
        "layers.*.mlps.*.down_proj": "rowwise",
        # Rows of a table are split over the ranks; lookups are summed. Left out where tables are no parameters.
        "ngram_embeddings.embedders.*": "embedding_rowwise",
    }
    base_model_ep_plan: ClassVar[dict[str, Any]] = {
        "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
        "layers.*.mlp.experts.down_proj": "grouped_gemm",
        "layers.*.mlp.experts": "ep_dispatch_experts",
    }
    # Each table is a unit of its own: one at a time is whole, 5 GiB of 58 in the released model.
    base_model_fsdp_plan = {  # noqa: RUF012
        "embed_tokens": "free_full_weight",
        "ngram_embeddings.embedders.*": "free_full_weight",
        "layers.*": "free_full_weight",
        "norm": "keep_full_weight",
        "mtp": "free_full_weight",
    }

    vocab_size: int = 131072
    hidden_size: int = 3072
    num_layers: int = 14
    num_attention_heads: int = 32
    num_key_value_heads: int = None  # type: ignore[assignment]  # `num_attention_heads`
    ffn_hidden_size: int = 6144
    expert_ffn_hidden_size: int = 1024
    q_lora_rank: int = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    head_dim: int = None  # type: ignore[assignment]  # `qk_rope_head_dim`
    mla_scale_q_lora: bool = True
    mla_scale_kv_lora: bool = True
    latent_norm_eps: float | int = 1e-6
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    n_routed_experts: int = 256
    zero_expert_num: int = 128
    zero_expert_type: str = "identity"
    scale_zero_experts: bool = True
    moe_topk: int = 12
    routed_scaling_factor: float | int = 6.0
    norm_topk_prob: bool = False
    router_bias: bool = False
    output_router_logits: bool = False
    use_ngram_embedding: bool = True
    emb_neighbor_num: int = 4
    emb_split_num: int = 4
    ngram_vocab_size_ratio: float | int = 78
    ngram_base_vocab_size: int = None  # type: ignore[assignment]  # `vocab_size` at creation
    ngram_eos_token_id: int | list[int] | None = None
    ngram_table_bits: int | str = 16
    scale_word_embedding: bool = True
    embedding_amplification: str = "none"
    num_nextn_predict_layers: int | None = None
    num_draft_tokens: int = 3
    mtp_use_ngram_embedding: bool = False
    attention_method: str = "MLA"
    hidden_act: str = "silu"
    initializer_range: float | int = 0.02
    rms_norm_eps: float | int = 1e-5
    max_position_embeddings: int = 327680
    rope_parameters: dict = None  # type: ignore[assignment]  # the released YaRN settings
    use_cache: bool = True
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = 3
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.rope_parameters is None and kwargs.keys().isdisjoint({"rope_scaling", "rope_theta"}):
            self.rope_parameters = dict(RELEASED_ROPE_PARAMETERS)
        self.rope_parameters = with_known_rope_type(self.rope_parameters, "rope_parameters")  # type: ignore[assignment]
        if "rope_scaling" in kwargs:
            kwargs["rope_scaling"] = with_known_rope_type(kwargs["rope_scaling"], "rope_scaling")
        merge_rope_fields(self.rope_parameters, kwargs)
        take_draft_embedding(self, kwargs)
        for name in ("model_type", "index_topk", *OE_FIELDS):
            if name in kwargs and kwargs[name] is None:
                del kwargs[name]  # as if absent
        # The released `auto_map` names modules that transformers 5 cannot run; saving writes one that works.
        if OWN_PREFIX not in (kwargs.get("auto_map") or {}).get("AutoConfig", OWN_PREFIX):
            del kwargs["auto_map"]
        if not self.architectures:
            self.architectures = [f"{UPSTREAM_PREFIX}ForCausalLM"]  # as in its file, which servers read
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.qk_rope_head_dim
        if self.ngram_base_vocab_size is None:
            self.ngram_base_vocab_size = self.vocab_size
        if self.ngram_eos_token_id is None:
            self.ngram_eos_token_id = self.eos_token_id
        stated = {name: kwargs.pop(name) for name in DERIVED if name in kwargs}
        super().__post_init__(**kwargs)
        self.validate_architecture()
        validate_stated(self, stated)
        validate_rope_fields(self)

    @property
    def num_hidden_layers(self) -> int:
        """Attention sublayers, which is what a KV cache counts."""
        return 2 * self.num_layers

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int):
        # vLLM, which counts decoder layers, assigns their number before it builds the model; it reads `num_layers`.
        if value not in (self.num_layers, 2 * self.num_layers):
            raise ValueError(f"`num_hidden_layers` is derived; change `num_layers`. Got {value!r}.")

    @property
    def dense_attention_limit(self) -> int | None:
        """`index_topk`, up to which the dense attention computed here is exact; `None` for a model without it."""
        return vars(self).get("index_topk")

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def num_subtables(self) -> int:
        """Sub-tables over all orders, K (N - 1); 0 without n-gram embedding."""
        return self.emb_split_num * (self.emb_neighbor_num - 1) if self.use_ngram_embedding else 0

    @property
    def subtable_width(self) -> int:
        """Width of a sub-table row; 0 without n-gram embedding."""
        return self.hidden_size // self.num_subtables if self.num_subtables else 0

    @property
    def subtable_sizes(self) -> list[int]:
        """Rows of each sub-table, order-major: 2-grams k = 0..K-1, then 3-grams, and so on."""
        base = self.ngram_vocab_size_ratio * self.ngram_base_vocab_size
        return [int(base + 2 * i + 1) for i in range(self.num_subtables)]

    @classmethod
    def get_config_dict(cls, *args, **kwargs):
        """As [`PreTrainedConfig.get_config_dict`]; a `model_type` of null is left out."""
        fields, unused = super().get_config_dict(*args, **kwargs)
        return {key: value for key, value in fields.items() if key != "model_type" or value is not None}, unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As [`PreTrainedConfig.from_dict`]; two names of one field must agree."""
        validate_oe_fields(config_dict)
        changed = "index_topk" in kwargs
        index_topk = kwargs.pop("index_topk", None)
        loaded = super().from_dict(config_dict, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if changed:  # transformers changes only fields that the config has already, and this one may be absent
            vars(config).pop("index_topk", None)
            vars(config).update({} if index_topk is None else {"index_topk": index_topk})
        config.validate_architecture()  # fields of `kwargs` came later
        return loaded

    def to_vanilla(self) -> "LongCatLiteConfig":
        """The twin with the same total parameters and no n-gram embedding (the paper's "Vanilla", section 6).

        All n-gram parameters are turned into routed experts. Zero experts grow in proportion, so that a token still
        spends the same share of its `moe_topk` choices on routed experts and activated parameters stay the same.
        """
        ngram = sum(self.subtable_sizes) * self.subtable_width + self.hidden_size**2 if self.use_ngram_embedding else 0
        zero_share = self.zero_expert_num / self.n_routed_experts
        expert = 3 * self.hidden_size * self.expert_ffn_hidden_size
        routing = (1 + zero_share) * (self.hidden_size + 1)  # classifier row and selection bias
        extra = round(ngram / (self.num_layers * (expert + routing)))
        twin = copy.deepcopy(self)
        twin.use_ngram_embedding = twin.mtp_use_ngram_embedding = False
        twin.n_routed_experts = self.n_routed_experts + extra
        twin.zero_expert_num = round(twin.n_routed_experts * zero_share)
        return twin

    def validate_architecture(self):
        """Raises a `ValueError` that names the field. Runs whenever a config is made, from JSON too."""
        super().validate_architecture()
        validate_fields(self)

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True):
        """Writes `config.json` in the spelling that older readers and other runtimes take."""
        written = json.loads(self.to_json_string(use_diff=use_diff))
        names = [name.replace(OWN_PREFIX, UPSTREAM_PREFIX, 1) for name in written.get("architectures") or []]
        upstream = [name for name in names if name.startswith(UPSTREAM_PREFIX)]
        written["architectures"] = upstream[:1] or [f"{UPSTREAM_PREFIX}ForCausalLM"]
        if not written.get("auto_map", {}).keys().isdisjoint({"AutoModel", "AutoModelForCausalLM"}):
            written["auto_map"] = AUTO_MAP
        if written.get("index_topk") is None:
            written.pop("index_topk", None)
        written |= legacy_rope_fields(written.pop("rope_parameters"))
        if "dtype" in written:
            written["torch_dtype"] = written["dtype"]
        Path(json_file_path).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def segment_ends(config: LongCatLiteConfig) -> list[int]:
    """The tokens after which n-grams start afresh."""
    eos = config.ngram_eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


__all__ = ["LongCatLiteConfig", "segment_ends"]
