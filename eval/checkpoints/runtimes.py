# SPDX-License-Identifier: Apache-2.0
"""What mlx-lm, vLLM and SGLang read of a LongCat-Flash-Lite checkpoint: fields of the config, and tensors.

The tables of fields say what the runtimes' source files say, in the versions of [`SOURCES`]; tensors are those of the
package's own table, `checkpoint_layout.py`. `make test-mlx` and `make test-vllm` run two of the runtimes.
`runtime_differences.py` has what loads but is computed differently, `adding_a_runtime.md` how to add one.

vLLM and SGLang check little. For an absent field they take the value of another model (the 560B LongCat-Flash, or
DeepSeek's); SGLang skips an unknown tensor with a warning, and leaves a missing one uninitialised. So every field
below must be stated, and every tensor must be there. Quantized checkpoints are not described.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from modeling_longcat_lite import LongCatLiteConfig
from modeling_longcat_lite.checkpoint_header import StoredTensor
from modeling_longcat_lite.checkpoint_layout import (
    DRAFT_HEAD_PREFIX,
    LAYOUT,
    Expected,
    config_fields,
    released_tensors,
)

# Repository and version, and the files that were read, at a commit where one is named.
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
# Conditions of lines in `LAYOUT` whose sizes a config must state: those of models that the runtimes serve.
BUILT_FROM_FIELDS = {"n-grams", "float tables", "untied head"}


class Field(NamedTuple):
    """A key of `config.json`.

    `accepts`: the only values that are served as trained; `None` for any. `stated`: whether the file must have it;
    `False` where the runtime's default, or all that it can do, is the first of `accepts`.
    """

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
# Fields of which every runtime serves one value; most are fields of this package that they do not know.
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
    # SGLang compares the list as a whole.
    Field("architectures", ([ARCHITECTURE],)),
    Field("eos_token_id"),
    Field("mla_scale_q_lora"),
    Field("mla_scale_kv_lora"),
    Field("attention_bias", (False,), stated=False),
    Field("norm_topk_prob", (False,), stated=False),
    # They take any model with this field for a sparse one, vLLM even if it is null: see `config_problems`.
    Field("index_topk", (None,), stated=False),
)
CONFIG_FIELDS: dict[str, tuple[Field, ...]] = {
    "mlx-lm": (
        Field("model_type", ("longcat_flash_ngram",)),
        *ARCHITECTURE_FIELDS,
        # Without the factor, its attention reads an attribute that it never set.
        Field("mla_scale_q_lora", (True,)),
        Field("mla_scale_kv_lora", (True,)),
        Field("scale_zero_experts", (True,), stated=False),
        *ONE_WAY_FIELDS,
    ),
    "vLLM": (
        # Latent attention and two attentions per layer need `longcat_flash`, which --hf-overrides can state.
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
# Two fields of this package that a runtime takes from one: the base of the hash, and the tokens that end an n-gram.
SAME_AS = {
    "mlx-lm": {"ngram_base_vocab_size": "vocab_size"},
    "vLLM": {"ngram_base_vocab_size": "vocab_size", "ngram_eos_token_id": "eos_token_id"},
    # SGLang would build `num_hidden_layers` decoder layers; transformers counts attentions, which are twice as many.
    "SGLang": {
        "ngram_base_vocab_size": "vocab_size",
        "ngram_eos_token_id": "eos_token_id",
        "num_hidden_layers": "num_layers",
    },
}


def expected_tensors(config: Mapping[str, Any]) -> dict[str, Expected]:
    """Every tensor that a runtime asks for, by name; with the draft head's where the config states one.

    It is the package's own table, for a model without what no runtime serves: packed tables, a norm after the
    embedding, and a base of the hash other than `vocab_size`.

    Args:
        config (`Mapping[str, Any]`): `config.json` as read. `tie_word_embeddings` and `use_ngram_embedding` are
            honoured, although no runtime does: see `CONFIG_FIELDS`.

    Raises:
        `ValueError`: naming the field that is missing.
    """
    served = {"ngram_table_bits": 16, "embedding_amplification": "none"}
    for line in LAYOUT:
        for name in config_fields(line) if set(line.when) <= BUILT_FROM_FIELDS else ():
            if name not in config and name not in (*served, "ngram_base_vocab_size"):
                raise ValueError(f"`{name}` is missing in the config.")
    served["ngram_base_vocab_size"] = config["vocab_size"]
    return released_tensors(LongCatLiteConfig.from_dict({**config, **served}))


def tensor_problems(config: Mapping[str, Any], found: Mapping[str, StoredTensor]) -> list[str]:
    """One sentence for each tensor that is missing, has another shape or dtype, or is unknown to the runtimes.

    Args:
        config (`Mapping[str, Any]`): `config.json` as read.
        found (`Mapping[str, StoredTensor]`): All tensors of the checkpoint, from [`read_safetensors_header`].
    """
    expected = expected_tensors(config)
    problems = [f"`{name}` is missing: {list(expected[name].shape)}" for name in expected.keys() - found.keys()]
    for name, tensor in found.items():
        if name not in expected:
            if not name.startswith(DRAFT_HEAD_PREFIX):  # no runtime's main model reads it
                problems.append(f"`{name}` is unknown to every runtime")
        elif tensor.shape != expected[name].shape:
            problems.append(f"`{name}` has shape {list(tensor.shape)}, expected {list(expected[name].shape)}")
        elif tensor.dtype not in (dtypes := expected[name].kind.released):
            problems.append(f"`{name}` is {tensor.dtype}, expected {' or '.join(dtypes)}")
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
    """Problems of the newer spelling of RoPE; files that this package saves have only the older one."""
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


__all__ = [
    "CONFIG_FIELDS",
    "RUNTIMES",
    "SAME_AS",
    "SOURCES",
    "Field",
    "config_problems",
    "expected_tensors",
    "tensor_problems",
]
