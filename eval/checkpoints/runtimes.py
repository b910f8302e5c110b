# SPDX-License-Identifier: Apache-2.0
"""What mlx-lm, vLLM and SGLang read of a LongCat-Flash-Lite checkpoint: config fields, tensor names and shapes.

Tables, and two functions that hold a checkpoint against them. They say what the runtimes' source files say, read and
not copied, in the versions of [`SOURCES`]. mlx-lm and vLLM are run too (`make test-mlx`, `make test-vllm`). What loads
and is computed differently is in `runtime_differences.py`.

vLLM and SGLang check little of it. A field that is absent falls back on the value of another model (the 560B
LongCat-Flash, or DeepSeek's); SGLang passes a tensor that it does not know with a warning, and what it does not find
stays uninitialised. So every field below has to be stated, and every tensor to be there. Quantized checkpoints, which
have other dtypes and scales, are not described.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from modeling_longcat_lite.checkpoint_header import StoredTensor

# Repository and version, or the commit at which a file was read.
SOURCES = {
    "mlx-lm": (
        "ml-explore/mlx-lm 0.32.2",
        "mlx_lm/models/longcat_flash_ngram.py",
        "mlx_lm/models/longcat_flash.py",
        "mlx_lm/models/rope_utils.py",
    ),
    "vLLM": (
        "vllm-project/vllm 0.32.0",
        "vllm/model_executor/models/longcat_flash_ngram.py",
        "vllm/model_executor/models/longcat_flash.py",
        "vllm/model_executor/models/deepseek_v2.py",
        "vllm/model_executor/layers/fused_moe/router/zero_expert_router.py",
        "vllm/transformers_utils/config.py",
        "vllm/transformers_utils/model_arch_config_convertor.py",
        "csrc/libtorch_stable/ngram_embedding_kernels.cu at ffb66e71",
    ),
    "SGLang": (
        "sgl-project/sglang 0.5.23",
        "python/sglang/srt/models/longcat_flash.py",
        "python/sglang/srt/layers/n_gram_embedding.py",
        "python/sglang/srt/configs/longcat_flash.py",
        "python/sglang/srt/configs/model_config.py",
        "python/sglang/srt/utils/hf_transformers/config.py",
        "python/sglang/kernels/ops/embeddings/ngram_embedding.py",
        "python/sglang/kernels/ops/moe/ep_moe_kernels.py",
    ),
}
RUNTIMES = tuple(SOURCES)
ARCHITECTURE = "LongcatFlashNgramForCausalLM"

# Tensors. V vocabulary, D hidden, S sub-tables, W = D / S, R{i} rows of sub-table i, N heads, Q and K ranks of the
# query and key-value latents, F and G widths of a dense MLP and of an expert, E routed experts and zero experts.
ATTENTION = {
    "q_a_proj": "Q D",
    "q_a_layernorm": "Q",
    "q_b_proj": "N*(nope+rope) Q",
    "kv_a_proj_with_mqa": "K+rope D",
    "kv_a_layernorm": "K",
    "kv_b_proj": "N*(nope+v) K",
    "o_proj": "D N*v",
}
LAYOUT = {
    "model.embed_tokens.weight": "V D",
    "model.ngram_embeddings.embedders.{table}.weight": "R{table} W",
    "model.ngram_embeddings.post_projs.{table}.weight": "D W",
    "model.layers.{layer}.input_layernorm.{half}.weight": "D",
    **{f"model.layers.{{layer}}.self_attn.{{half}}.{name}.weight": shape for name, shape in ATTENTION.items()},
    "model.layers.{layer}.post_attention_layernorm.{half}.weight": "D",
    "model.layers.{layer}.mlps.{half}.gate_proj.weight": "F D",
    "model.layers.{layer}.mlps.{half}.up_proj.weight": "F D",
    "model.layers.{layer}.mlps.{half}.down_proj.weight": "D F",
    "model.layers.{layer}.mlp.router.classifier.weight": "E D",
    "model.layers.{layer}.mlp.router.e_score_correction_bias": "E",
    "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight": "G D",
    "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight": "G D",
    "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight": "D G",
    "model.norm.weight": "D",
    "lm_head.weight": "V D",
}
BIASES = {
    "attention_bias": {
        "model.layers.{layer}.self_attn.{half}.q_a_proj.bias": "Q",
        "model.layers.{layer}.self_attn.{half}.kv_a_proj_with_mqa.bias": "K+rope",
        "model.layers.{layer}.self_attn.{half}.o_proj.bias": "D",
    },
    "router_bias": {"model.layers.{layer}.mlp.router.classifier.bias": "E"},
}
# mlx-lm and vLLM pass it by, and SGLang's main model too: anything with this prefix may be there.
DRAFT_HEAD_PREFIX = "model.mtp."
DRAFT_HEAD = {
    "model.mtp.embed_tokens.weight": "V D",
    "model.mtp.layers.0.enorm.m.weight": "D",
    "model.mtp.layers.0.hnorm.m.weight": "D",
    "model.mtp.layers.0.eh_proj.weight": "D 2*D",
    "model.mtp.layers.0.input_layernorm.weight": "D",
    **{f"model.mtp.layers.0.self_attn.{name}.weight": shape for name, shape in ATTENTION.items()},
    "model.mtp.layers.0.post_attention_layernorm.weight": "D",
    "model.mtp.layers.0.transformer_layer.mlp.gate_proj.weight": "F D",
    "model.mtp.layers.0.transformer_layer.mlp.up_proj.weight": "F D",
    "model.mtp.layers.0.transformer_layer.mlp.down_proj.weight": "D F",
    "model.mtp.norm.weight": "D",
}
FLOATS = ("BF16", "F16", "F32")
ROUTER_FLOATS = ("F32",)  # as released; the runtimes route in float32, and would not notice a rounded one


class Expected(NamedTuple):
    """Shape of a tensor, and its dtypes as safetensors names them."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]


class Field(NamedTuple):
    """A key of `config.json`. `accepts`: the only values that are served as trained; any where it is None. `stated`:
    False where the runtime's default, or its only way, is the first of `accepts`."""

    name: str
    accepts: tuple | None = None
    stated: bool = True


ARCHITECTURE_FIELDS = tuple(
    Field(name)
    for name in (
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
        "zero_expert_num",
        "moe_topk",
        "routed_scaling_factor",
        "rms_norm_eps",
        "rope_theta",
        "max_position_embeddings",
        "ngram_vocab_size_ratio",
        "emb_neighbor_num",
        "emb_split_num",
    )
)
# What no runtime can do otherwise: most are fields of this package that they do not know.
ONE_WAY_FIELDS = (
    Field("use_ngram_embedding", (True,), stated=False),
    Field("ngram_table_bits", (16,), stated=False),
    Field("embedding_amplification", ("none",), stated=False),
    Field("scale_word_embedding", (True,), stated=False),
    Field("attention_method", ("MLA",), stated=False),
    Field("tie_word_embeddings", (False,), stated=False),
    Field("hidden_act", ("silu",), stated=False),
    Field("zero_expert_type", ("identity",)),
)
SERVER_FIELDS = (
    # SGLang compares the whole list.
    Field("architectures", ([ARCHITECTURE],)),
    Field("eos_token_id"),
    Field("mla_scale_q_lora"),
    Field("mla_scale_kv_lora"),
    Field("attention_bias", (False,), stated=False),
    Field("norm_topk_prob", (False,), stated=False),
    # Any model that has it is a sparse one there: to vLLM a null is enough, see `config_problems`.
    Field("index_topk", (None,), stated=False),
)
CONFIG_FIELDS: dict[str, tuple[Field, ...]] = {
    "mlx-lm": (
        Field("model_type", ("longcat_flash_ngram",)),
        *ARCHITECTURE_FIELDS,
        # Without the factor its attention reads an attribute that it never made.
        Field("mla_scale_q_lora", (True,)),
        Field("mla_scale_kv_lora", (True,)),
        Field("scale_zero_experts", (True,), stated=False),
        *ONE_WAY_FIELDS,
    ),
    "vLLM": (
        # Latent attention and two attentions a layer depend on it, as `longcat_flash`: --hf-overrides says that.
        Field("model_type", ("longcat_flash_ngram", "longcat_flash"), stated=False),
        *ARCHITECTURE_FIELDS,
        *SERVER_FIELDS,
        Field("router_bias", (False,), stated=False),
        Field("scale_zero_experts", (True,), stated=False),
        *ONE_WAY_FIELDS,
    ),
    "SGLang": (
        *ARCHITECTURE_FIELDS,
        *SERVER_FIELDS,
        Field("router_bias", (False, True), stated=False),
        *ONE_WAY_FIELDS,
    ),
}
# This package keeps apart what a runtime takes from one field: the base of the hash, and what ends an n-gram.
SAME_AS = {
    "mlx-lm": {"ngram_base_vocab_size": "vocab_size"},
    "vLLM": {"ngram_base_vocab_size": "vocab_size", "ngram_eos_token_id": "eos_token_id"},
    # It would build `num_hidden_layers` decoder layers, where transformers counts attentions, twice as many.
    "SGLang": {
        "ngram_base_vocab_size": "vocab_size",
        "ngram_eos_token_id": "eos_token_id",
        "num_hidden_layers": "num_layers",
    },
}


def expected_tensors(config: Mapping[str, Any]) -> dict[str, Expected]:
    """Every tensor that a runtime asks for, by name; the draft head too where the config states one.

    Args:
        config (`Mapping[str, Any]`): `config.json` as read. `tie_word_embeddings` and `use_ngram_embedding` are
            honoured, although no runtime does: see `CONFIG_FIELDS`.

    Raises:
        `ValueError`: naming the field that is missing.
    """
    try:
        sizes, counts = _sizes(config), _counts(config)
    except KeyError as error:
        raise ValueError(f"`{error.args[0]}` is missing in the config.") from error
    layout = LAYOUT | (DRAFT_HEAD if config.get("num_nextn_predict_layers") else {})
    for switch, biases in BIASES.items():
        layout |= biases if config.get(switch) else {}
    if config.get("tie_word_embeddings"):
        layout.pop("lm_head.weight")
    return {
        name: Expected(tuple(sizes[size] for size in shape.split()), ROUTER_FLOATS if ".router." in name else FLOATS)
        for pattern, pattern_shape in layout.items()
        for name, shape in _expand(pattern, pattern_shape, counts)
    }


def tensor_problems(config: Mapping[str, Any], found: Mapping[str, StoredTensor]) -> list[str]:
    """One sentence for each tensor that is missing, of another shape or dtype, or unknown to the runtimes.

    Args:
        config (`Mapping[str, Any]`): `config.json` as read.
        found (`Mapping[str, StoredTensor]`): All tensors of the checkpoint, from [`read_safetensors_header`].
    """
    expected = expected_tensors(config)
    problems = [f"`{name}` is missing: {list(expected[name].shape)}" for name in expected.keys() - found.keys()]
    for name, tensor in found.items():
        if name not in expected:
            if not name.startswith(DRAFT_HEAD_PREFIX):
                problems.append(f"`{name}` is no tensor that a runtime knows")
        elif tensor.shape != expected[name].shape:
            problems.append(f"`{name}` has shape {list(tensor.shape)}, expected {list(expected[name].shape)}")
        elif tensor.dtype not in expected[name].dtypes:
            problems.append(f"`{name}` is {tensor.dtype}, expected {' or '.join(expected[name].dtypes)}")
    return sorted(problems)


def config_problems(runtime: str, config: Mapping[str, Any]) -> list[str]:
    """One sentence for each field that `runtime` would miss, or could not serve as trained.

    Args:
        runtime (`str`): One of `RUNTIMES`.
        config (`Mapping[str, Any]`): `config.json` as read.
    """
    problems = []
    for field in CONFIG_FIELDS[runtime]:
        if field.name not in config:
            if field.stated:
                problems.append(f"`{field.name}` is missing")
        elif field.accepts is not None and config[field.name] not in field.accepts:
            allowed = " or ".join(map(repr, field.accepts))
            problems.append(f"`{field.name}` is {config[field.name]!r}; {runtime} serves {allowed}")
    for name, taken_from in SAME_AS[runtime].items():
        if name in config and config[name] != config.get(taken_from):
            problems.append(
                f"`{name}` is {config[name]!r}, but {runtime} takes `{taken_from}`: {config.get(taken_from)!r}"
            )
    problems += _rope_problems(runtime, config)
    if runtime == "vLLM" and config.get("index_topk", 0) is None:
        problems.append("`index_topk` is null; vLLM takes every config with this field for a sparse model: remove it")
    if runtime != "mlx-lm" and not isinstance(config.get("eos_token_id", 0), int):
        problems.append(f"`eos_token_id` is {config['eos_token_id']!r}; {runtime} takes one integer")
    return problems


def _rope_problems(runtime: str, config: Mapping[str, Any]) -> list[str]:
    """What the newer of the two spellings of RoPE does; files that this package saves have the older one alone."""
    own, old = config.get("rope_parameters"), config.get("rope_scaling") or {}
    if not isinstance(own, dict) or not isinstance(old, dict):
        return []
    problems = []
    named = (rope.get("rope_type") or rope.get("type") or "default" for rope in (old, own))
    legacy, today = (name.replace("deepseek_yarn", "yarn") for name in named)
    if legacy != today:
        problems.append(f"`rope_scaling` says {legacy!r}, but `rope_parameters` says {today!r}")
    if (own.get("rope_type") or own.get("type")) == "yarn":
        reader = "its config class" if runtime == "SGLang" else "transformers' tokenizer without trust_remote_code"
        problems.append(
            f"`rope_parameters` has type 'yarn', which {reader} does not load: load the model with this package and "
            "save it again"
        )
    return problems


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that stand in `LAYOUT`, by what is written there."""
    hidden, heads, rope = config["hidden_size"], config["num_attention_heads"], config["qk_rope_head_dim"]
    nope, value, latent = config["qk_nope_head_dim"], config["v_head_dim"], config["kv_lora_rank"]
    tables = _counts(config)["table"]
    base = config["ngram_vocab_size_ratio"] * config["vocab_size"] if tables else 0
    return {
        "V": config["vocab_size"],
        "D": hidden,
        "2*D": 2 * hidden,
        "W": hidden // tables if tables else 0,
        **{f"R{i}": int(base + 2 * i + 1) for i in range(tables)},
        "Q": config["q_lora_rank"],
        "K": latent,
        "K+rope": latent + rope,
        "N*(nope+rope)": heads * (nope + rope),
        "N*(nope+v)": heads * (nope + value),
        "N*v": heads * value,
        "F": config["ffn_hidden_size"],
        "G": config["expert_ffn_hidden_size"],
        "E": config["n_routed_experts"] + config["zero_expert_num"],
    }


def _counts(config: Mapping[str, Any]) -> dict[str, int]:
    """How many there are of each `{index}` of `LAYOUT`."""
    has_tables = config.get("use_ngram_embedding", True)
    return {
        "table": config["emb_split_num"] * (config["emb_neighbor_num"] - 1) if has_tables else 0,
        "layer": config["num_layers"],
        "half": 2,
        "expert": config["n_routed_experts"],
    }


def _expand(pattern: str, shape: str, counts: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """`a.{table}.b` and its shape for every table, and so on for all indices of a name."""
    indices = re.findall(r"{(\w+)}", pattern)
    for values in itertools.product(*(range(counts[index]) for index in indices)):
        at = dict(zip(indices, values, strict=True))
        yield pattern.format(**at), shape.format(**at)


__all__ = [
    "CONFIG_FIELDS",
    "DRAFT_HEAD_PREFIX",
    "RUNTIMES",
    "SAME_AS",
    "SOURCES",
    "Expected",
    "Field",
    "config_problems",
    "expected_tensors",
    "tensor_problems",
]
