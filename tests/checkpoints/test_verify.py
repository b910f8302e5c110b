# SPDX-License-Identifier: Apache-2.0
"""`eval.checkpoints.verify`: conformance checkpoints fit, every kind of damage is named, and little is read."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from fake_hub import FakeHub
from safetensors.torch import load_file
from verify_cases import INDEX, WEIGHTS, copied, edit_json, edit_weights, only_problem, verify

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from modeling_longcat_lite.checkpoint_layout import released_tensors


def test_the_conformance_checkpoints_fit(conformance_folder, tmp_path):
    results = verify(copied(conformance_folder.name, tmp_path))
    assert results["problems"] == []
    assert results["status"] == 0


def test_facts_of_the_released_layout(tmp_path, capsys):
    results = verify(copied("released", tmp_path))
    facts = results["facts"]
    assert (facts["files"]["weight_files"], facts["files"]["draft_head_tensors"]) == (3, 17)
    assert facts["files"]["dtypes"] == {"BF16": 140, "F32": 4}
    assert facts["config"]["rope_type_key"] == ["type"]
    assert facts["config"]["model_type"] == "absent"
    assert facts["config"]["token_ids"] == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    assert facts["draft head's word rows that are the model's"] == 0
    weights = {k: v for file in (tmp_path / "released").glob("model*.safetensors") for k, v in load_file(file).items()}
    for layer, bias in enumerate(facts["router biases"]):
        expected = weights[f"model.layers.{layer}.mlp.router.e_score_correction_bias"]
        assert (bias["min"], bias["max"]) == (expected.min().item(), expected.max().item())
        assert bias["zero_experts_all_zero"] is bool((expected[8:] == 0).all())
    for norm in facts["latent norms"]:
        expected = weights[f"model.layers.{norm['layer']}.self_attn.0.{norm['norm']}.weight"].float()
        assert norm["mean_weight"] == pytest.approx(expected.mean().item())
    assert results["runtimes"] == {"mlx-lm": ["`model_type` is missing"], "vLLM": [], "SGLang": []}
    assert "the draft head is not loaded" in facts["computed otherwise by"]["vLLM"]
    assert "released: fits" in capsys.readouterr().out
    markdown = (tmp_path / "released-report" / "verify_checkpoint.md").read_text()
    assert "| mlx-lm | `model_type` is missing |" in markdown


def test_a_runtime_may_be_asked_for(tmp_path):
    folder = copied("released", tmp_path)
    assert verify(folder, "--runtime", "vLLM")["status"] == 0
    assert verify(folder, "--runtime", "mlx-lm")["status"] == 1


def test_the_head_shares_the_words_of_the_model(tmp_path):
    folder = tmp_path / "model"
    LongCatLiteForCausalLM(tiny_config(num_nextn_predict_layers=1)).save_pretrained(folder)
    edit_weights(folder, lambda w: w.update({"model.mtp.embed_tokens.weight": w["model.embed_tokens.weight"].clone()}))
    results = verify(folder)
    assert results["facts"]["draft head's word rows that are the model's"] == 1
    pads = {one["tensor"]: one["row_of_pad_is_zero"] for one in results["facts"]["tables"]}
    assert pads["model.embed_tokens.weight"] is True  # as initialised: `padding_idx`
    assert pads["lm_head.weight"] is False


DAMAGED = {
    "missing": (lambda w: w.pop("model.norm.weight"), "`model.norm.weight`", "shape [96]", "no such tensor"),
    "shape": (
        lambda w: w.update({"lm_head.weight": torch.ones(255, 96)}),
        "`lm_head.weight`",
        "shape [256, 96]",
        "shape [255, 96]",
    ),
    "dtype": (
        lambda w: w.update({"model.norm.weight": torch.ones(96, dtype=torch.int64)}),
        "`model.norm.weight`",
        "dtype F32 or F16 or BF16",
        "dtype I64",
    ),
    "rounded router": (
        lambda w: w.update({(n := "model.layers.1.mlp.router.classifier.weight"): w[n].bfloat16()}),
        "`model.layers.1.mlp.router.classifier.weight`",
        "dtype F32",
        "dtype BF16",
    ),
    "extra": (lambda w: w.update({"model.extra": torch.ones(2)}), "`model.extra`", "no such tensor", "a tensor"),
    "NaN": (
        lambda w: w["model.ngram_embeddings.embedders.5.weight"][3].fill_(torch.nan),
        "`model.ngram_embeddings.embedders.5.weight`",
        "finite numbers",
        "NaN or infinity in 1 of 64 sampled rows, first 3",
    ),
    "blank": (
        lambda w: w["model.ngram_embeddings.embedders.5.weight"].zero_(),
        "`model.ngram_embeddings.embedders.5.weight`",
        "trained rows",
        "64 sampled rows, all zero",
    ),
    "bias": (
        lambda w: w["model.layers.0.mlp.router.e_score_correction_bias"][2].fill_(torch.inf),
        "`model.layers.0.mlp.router.e_score_correction_bias`",
        "finite numbers",
        "NaN or infinity",
    ),
}


@pytest.mark.parametrize(("change", "where", "expected", "found"), DAMAGED.values(), ids=DAMAGED)
def test_damage_is_named(change, where, expected, found, tmp_path):
    folder = copied("base", tmp_path)
    edit_weights(folder, change)
    problem = only_problem(verify(folder))
    assert (problem["where"], problem["expected"], problem["found"]) == (where, expected, found)
    assert problem["file"] == ("-" if found == "no such tensor" else WEIGHTS)


@pytest.mark.parametrize("kept", [4, 200, -1], ids=["no header", "half a header", "one byte short"])
def test_a_cut_off_shard_is_named(kept, tmp_path):
    folder = copied("released", tmp_path)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:kept])
    problem = only_problem(verify(folder))
    assert problem["file"] == shard.name
    assert "truncated" in problem["found"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda entry: entry.update(shape=[128, 96]), ["shape [128, 96]", "98304 bytes"]),
        (lambda entry: entry.update(shape=[24576]), ["shape [24576]"]),
        (lambda entry: entry.update(shape=[]), ["shape []"]),
    ],
    ids=["bytes", "flat", "scalar"],
)
def test_a_header_that_contradicts_itself(change, found, tmp_path):
    folder = copied("base", tmp_path)
    content = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header["lm_head.weight"])
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    problems = [problem for problem in verify(folder)["problems"] if problem["where"] == "`lm_head.weight`"]
    assert {problem["found"] for problem in problems} == set(found)


def test_a_header_of_damaged_length_is_not_read(tmp_path):
    write_larger(tmp_path / "model")
    path = tmp_path / "model" / WEIGHTS
    with path.open("r+b") as file:
        file.truncate(300_000_000)
        file.write((200_000_000).to_bytes(8, "little"))
    results = verify(tmp_path / "model")
    assert only_problem(results)["file"] == WEIGHTS
    assert results["bytes_read"] < 10_000


def test_a_missing_shard_is_named(tmp_path):
    folder = copied("released", tmp_path)
    (folder / "model-auxiliary.safetensors").unlink()
    assert only_problem(verify(folder))["file"] == "model-auxiliary.safetensors"


def test_an_index_that_does_not_tell_the_truth(tmp_path):
    folder = copied("released", tmp_path)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
    moved = index["weight_map"].pop("lm_head.weight")
    (folder / INDEX).write_text(json.dumps(index))
    found = {problem["where"]: problem for problem in verify(folder)["problems"]}
    assert found.keys() == {"`model.norm.weight`", "`lm_head.weight`"}
    assert found["`lm_head.weight`"]["file"] == moved


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"ngram_vocab_size_ratio": 8}, "`ngram_vocab_size_ratio`"),
        ({"kv_lora_rank": 25}, "`kv_lora_rank`"),
        ({"n_routed_experts": 7}, "`n_routed_experts`"),
        ({"moe_topk": 99}, "`moe_topk`"),
        ({"rope_scaling": {"type": "unheard", "factor": 2.0}}, "unheard"),
        ({"rope_scaling": "yarn"}, "`rope_scaling` must be an object of fields, or null"),
        ({"mtp_num_layers": "3"}, "`mtp_num_layers`"),
    ],
    ids=str,
)
def test_a_config_field_that_is_off_is_named(fields, named, tmp_path):
    folder = copied("base", tmp_path)
    edit_json(folder / "config.json", **fields)
    results = verify(folder)
    assert results["status"] == 1
    assert any(named in problem["fix"] + problem["found"] for problem in results["problems"])
    assert len(results["problems"]) < 15  # one of each kind
    if "ngram_vocab_size_ratio" in fields:
        assert sum(problem["count"] for problem in results["problems"]) == 12


def test_fields_that_shapes_cannot_tell_are_shown(tmp_path):
    folder = copied("base", tmp_path)
    edit_json(folder / "config.json", routed_scaling_factor=2.5)
    facts = verify(folder)["facts"]["config"]
    assert facts["other_than_released"]["routed_scaling_factor"] == 2.5


def write_larger(folder: Path):
    """A checkpoint of 25 MB, nearly all of it tables."""
    LongCatLiteForCausalLM(tiny_config(ngram_vocab_size_ratio=2000.3)).save_pretrained(folder)


def test_the_released_sizes(tmp_path):
    """11,160 tensors of 138 GB, as a file with holes: all but the values, which are zero, fits."""
    folder = tmp_path / "model"
    config = LongCatLiteConfig(dtype="bfloat16")
    config.save_pretrained(folder)
    header, end = {}, 0
    config.num_nextn_predict_layers = 1
    for name, tensor in released_tensors(config).items():
        dtype, width = ("F32", 4) if ".router." in name else ("BF16", 2)
        begin, end = end, end + math.prod(tensor.shape) * width
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    results = verify(folder)
    assert (results["facts"]["files"]["tensors"], results["bytes_in_all"] // 10**9) == (11_160, 138)
    assert {problem["found"] for problem in results["problems"]} == {"64 sampled rows, all zero"}
    assert results["bytes_read"] < 4e6


def test_reads_under_a_hundredth(tmp_path):
    write_larger(tmp_path / "model")
    results = verify(tmp_path / "model")
    assert results["problems"] == []
    assert results["bytes_in_all"] > 24e6
    assert results["bytes_read"] < results["bytes_in_all"] / 100
    assert verify(tmp_path / "model", "--sampled-rows", "8")["bytes_read"] < results["bytes_read"]


@pytest.mark.slow  # a process of its own: this one is offline
def test_a_repository_on_the_hub_is_read_in_ranges(tmp_path):
    write_larger(tmp_path / "model")
    with FakeHub() as hub:
        hub.add_folder(tmp_path / "model", "me/model")
        code = "import runpy; runpy.run_module('eval.checkpoints.verify', run_name='__main__')"
        hub.run(code, "--output", tmp_path, "me/model")
    on_hub = json.loads((tmp_path / "verify_checkpoint.json").read_text())
    assert hub.bytes_read == on_hub["bytes_read"] < on_hub["bytes_in_all"] / 100
    local = verify(tmp_path / "model")
    assert {**on_hub, "checkpoint": None} == {**local, "checkpoint": None}


def test_a_users_mistakes_are_named(tmp_path):
    for name in (tmp_path / "nowhere", Path("me/nowhere")):
        with pytest.raises(ValueError, match=r"`.*nowhere` is not a folder, and cannot be read on the Hub"):
            verify(name)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"`.*adapter` holds an adapter.*merge it"):
        verify(adapter)
    shards = copied("released", tmp_path)
    (shards / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": None}}))
    with pytest.raises(ValueError, match=r"index\.json.*`weight_map`"):
        verify(shards)
    folder = copied("base", tmp_path)
    with pytest.raises(ValueError, match="`--sampled-rows`"):
        verify(folder, "--sampled-rows", "0")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        verify(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        verify(folder)
