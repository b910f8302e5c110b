# SPDX-License-Identifier: Apache-2.0
"""`eval.checkpoints.verify` on every kind of checkpoint: packed tables, FP8, other names, tied or resized words."""

from pathlib import Path

import pytest
import torch
from conftest import randomize, tiny_config
from safetensors.torch import load_file, save_file
from verify_cases import WEIGHTS, copied, edit_json, edit_weights, only_problem, verify

from eval.checkpoints.quantize import convert
from modeling_longcat_lite import LongCatLiteForCausalLM


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_tables_fit(bits, tmp_path):
    LongCatLiteForCausalLM(tiny_config(hidden_size=96)).save_pretrained(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "packed", bits, 2**20)
    assert verify(tmp_path / "packed")["problems"] == []


def test_every_kind_of_model_that_is_saved_fits(tmp_path):
    kinds = {
        "tied": {"tie_word_embeddings": True},
        "biases": {"attention_bias": True, "router_bias": True},
        "normed": {"embedding_amplification": "layer_norm"},
        "plain": {"use_ngram_embedding": False},
    }
    for name, fields in kinds.items():
        randomize(LongCatLiteForCausalLM(tiny_config(**fields))).save_pretrained(tmp_path / name)
        assert verify(tmp_path / name)["problems"] == [], name
    model = randomize(LongCatLiteForCausalLM(tiny_config()))
    model.resize_token_embeddings(80)
    model.save_pretrained(tmp_path / "resized")
    assert verify(tmp_path / "resized")["problems"] == []


def write_fp8(folder: Path):
    """`base` in FP8 as released: every projection but the n-gram ones, a scale for blocks of 32 x 32, some cut."""
    weights = load_file(folder / WEIGHTS)
    for name in [name for name in weights if "_proj" in name and "post_projs" not in name and "norm" not in name]:
        grid = [-(-size // 32) for size in weights[name].shape]
        weights[name] = weights[name].to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = torch.ones(grid)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    quantization = {"quant_method": "fp8", "weight_block_size": [32, 32], "ignored_layers": ["lm_head", "model.norm"]}
    edit_json(folder / "config.json", quantization_config=quantization)


def test_fp8_weights_with_their_scales(tmp_path):
    folder = copied("base", tmp_path)
    write_fp8(folder)
    results = verify(folder)
    assert results["problems"] == []
    quantization = results["facts"]["config"]["quantization_config"]
    assert quantization["weight_block_size"] == [32, 32]
    for findings in results["runtimes"].values():
        assert findings == [
            "weights in fp8 (`quantization_config`): whether this runtime reads them is not known here"
        ]
    assert quantization["ignored_layers"] == {"entries": 2, "first": "lm_head", "n-gram tables": "not in it"}
    scales = "model.layers.0.mlps.1.up_proj.weight_scale_inv"
    edit_weights(folder, lambda w: w.update({scales: torch.ones(1, 1)}))
    assert only_problem(verify(folder))["where"] == f"`{scales}`"
    edit_weights(folder, lambda w: w.pop(scales))
    problem = only_problem(verify(folder))
    assert (problem["where"], problem["found"]) == (f"`{scales}`", "no such tensor")


def test_oe_names_and_an_indexer_fit(tmp_path):
    folder = tmp_path / "model"
    LongCatLiteForCausalLM(tiny_config(attention_method="LSA", index_topk=16)).save_pretrained(folder)

    def rename(weights: dict[str, torch.Tensor]):
        for name in list(weights):
            other = name.replace("ngram_embeddings.embedders.", "oe_embed_tokens")
            weights[other.replace("ngram_embeddings.post_projs.", "oe_embed_proj")] = weights.pop(name)
        weights["model.layers.0.self_attn.0.indexer.wk.weight"] = torch.ones(2, 2)

    edit_weights(folder, rename)
    results = verify(folder)
    assert results["problems"] == []
    assert results["facts"]["files"]["indexer_tensors"] == 1
    assert len([one for one in results["facts"]["tables"] if "oe_embed_tokens" in one["tensor"]]) == 12
