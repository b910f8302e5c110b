# SPDX-License-Identifier: Apache-2.0
"""`config.json` for tests: that of the released model, and configs written and read."""

import json
from pathlib import Path

from modeling_longcat_lite import LongCatLiteConfig

RELEASED_YARN = {
    "rope_type": "yarn",
    "rope_theta": 5_000_000.0,
    "factor": 10.0,
    "original_max_position_embeddings": 32768,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
# As published: the fields of the released `config.json`, without `model_type`.
PUBLISHED = {
    "architectures": ["LongcatFlashNgramForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_longcat_ngram.LongcatFlashNgramConfig"},
    "bos_token_id": 1,
    "emb_neighbor_num": 4,
    "emb_split_num": 4,
    "eos_token_id": 2,
    "expert_ffn_hidden_size": 1024,
    "ffn_hidden_size": 6144,
    "hidden_size": 3072,
    "kv_lora_rank": 512,
    "max_position_embeddings": 327680,
    "mla_scale_kv_lora": True,
    "mla_scale_q_lora": True,
    "moe_topk": 12,
    "n_routed_experts": 256,
    "ngram_vocab_size_ratio": 78,
    "norm_topk_prob": False,
    "num_attention_heads": 32,
    "num_layers": 14,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {key: value for key, value in RELEASED_YARN.items() if key not in ("rope_type", "rope_theta")}
    | {"type": "yarn"},
    "rope_theta": 5_000_000.0,
    "routed_scaling_factor": 6.0,
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 131072,
    "zero_expert_num": 128,
    "zero_expert_type": "identity",
}


def write_and_load(fields: dict, folder: Path) -> LongCatLiteConfig:
    (folder / "config.json").write_text(json.dumps(fields))
    return LongCatLiteConfig.from_pretrained(folder)


def written(config: LongCatLiteConfig, folder: Path) -> dict:
    config.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def as_written_before(fields: dict) -> dict:
    """`config.json` as this package wrote it until November 2026: RoPE twice, and a null `index_topk`."""
    scaling = fields["rope_scaling"]
    own = {"rope_type": "default"} if scaling is None else {**scaling, "rope_type": "yarn"}
    own.pop("type", None)
    twice = {"rope_parameters": {**own, "rope_theta": fields["rope_theta"]}}
    twice["rope_scaling"] = None if scaling is None else {**own, "type": "yarn"}
    return {"index_topk": None, **fields, **twice}
