# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with the fields and tensor names of LongCat-Flash-Lite-Sparse and LongCat-2.0, at small sizes."""

import json
from pathlib import Path

import torch
from conftest import randomize
from safetensors.torch import load_file, save_file

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM

WEIGHTS = "model.safetensors"
TOPK = 16
INDEXER = ("wq_b", "wk", "k_norm", "weights_proj")
SHARED = {
    "architectures": ["LongcatCausalLM"],
    "model_type": None,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "vocab_size": 64,
    "hidden_size": 48,
    "ffn_hidden_size": 40,
    "expert_ffn_hidden_size": 16,
    "num_layers": 2,
    "num_attention_heads": 2,
    "kv_lora_rank": 12,
    "q_lora_rank": 20,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "qk_nope_head_dim": 8,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
    "n_routed_experts": 6,
    "zero_expert_num": 3,
    "zero_expert_type": "identity",
    "moe_topk": 3,
    "max_position_embeddings": 983040,
    "rms_norm_eps": 1e-05,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_theta": 1000000.0,
    "rope_scaling": {
        "original_max_position_embeddings": 8192,
        "rope_type": "deepseek_yarn",
        "factor": 120,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1,
        "mscale_all_dim": 1,
    },
    "attention_method": "LSA",
    "index_head_dim": 8,
    "index_topk": TOPK,
    "index_k_norm_type": "rms",
    "index_local_tokens": 4,
    "index_init_tokens": 2,
    "cli_factor": 2,
    "mtp_num_layers": 3,
    "mtp_replicate_modules": True,
    "dsa_mtp_cli": True,
}
SPARSE = SHARED | {
    "oe_vocab_size_ratio": 7.8,
    "oe_neighbor_num": 4,
    "oe_split_num": 4,
    "index_n_heads": 2,
    "use_mla": 1,
    "indexer_rope_interleave": True,
    "routed_scaling_factor": 6.0,
}
LONGCAT_2 = SHARED | {
    "oe_vocab_size_ratio": 10.567,
    "oe_neighbor_num": 5,
    "oe_split_num": 4,
    "index_n_heads": 4,
    "mtp_disable_over_tokenizer": True,
    "routed_scaling_factor": 9.0,
}
TOKENS = torch.tensor([[7, 50, 2, 9, 0, 63, 8, 8, 2, 2, 5, 61, 3, 4, 7, 50]])  # TOPK of them


def oe_name(name: str) -> str:
    name = name.replace("ngram_embeddings.embedders.", "oe_embed_tokens")
    return name.replace("ngram_embeddings.post_projs.", "oe_embed_proj")


def write(folder: Path, fields: dict) -> tuple[LongCatLiteForCausalLM, Path]:
    """A checkpoint of ours and its twin with the other names and an indexer, as published."""
    folder.mkdir(exist_ok=True)
    twin = folder / "published"
    twin.mkdir()
    (twin / "config.json").write_text(json.dumps(fields))
    config = LongCatLiteConfig.from_pretrained(twin)
    config.num_nextn_predict_layers = 1
    model = randomize(LongCatLiteForCausalLM(config)).eval()
    model.save_pretrained(folder / "ours")
    weights = {oe_name(name): tensor for name, tensor in load_file(folder / "ours" / WEIGHTS).items()}
    attentions = [f"model.layers.{i}.self_attn.0" for i in range(2)] + ["model.mtp.layers.0.self_attn"]
    weights |= {f"{at}.indexer.{part}.weight": torch.ones(3) for at in attentions for part in INDEXER}
    save_file(weights, twin / WEIGHTS, metadata={"format": "pt"})
    return model, twin


def logits(model: LongCatLiteForCausalLM, tokens: torch.Tensor = TOKENS, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens, **kwargs).logits
