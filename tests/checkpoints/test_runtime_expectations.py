# SPDX-License-Identifier: Apache-2.0
"""What this package saves has the fields, names and shapes that mlx-lm, vLLM and SGLang read; a fault is named."""

import json
from pathlib import Path

import pytest
import torch
from config_files import as_written_before
from conftest import CONFORMANCE, YARN_ROPE, tiny_config

from eval.checkpoints.runtime_differences import differences
from eval.checkpoints.runtimes import CONFIG_FIELDS, RUNTIMES, config_problems, expected_tensors, tensor_problems
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from modeling_longcat_lite.checkpoint_header import StoredTensor, read_safetensors_header

every_runtime = pytest.mark.parametrize("runtime", RUNTIMES)


def config_in(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def tensors_in(folder: Path) -> dict[str, StoredTensor]:
    return {
        name: tensor
        for path in folder.glob("model*.safetensors")
        for name, tensor in read_safetensors_header(path)[0].items()
    }


def problems_by_runtime(config: dict) -> dict[str, list[str]]:
    return {runtime: found for runtime in RUNTIMES if (found := config_problems(runtime, config))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "released").save_pretrained(folder)
    return folder


def test_saved_checkpoints_are_what_the_runtimes_read(conformance_folder, tmp_path):
    LongCatLiteForCausalLM.from_pretrained(conformance_folder).save_pretrained(tmp_path, max_shard_size="200KB")
    config = config_in(tmp_path)
    assert tensor_problems(config, tensors_in(tmp_path)) == []
    assert problems_by_runtime(config) == {}


def test_the_reference_checkpoints_are_too(conformance_folder):
    """Written by the reference's own code; the released repository states no `model_type`, which mlx-lm asks for."""
    config = config_in(conformance_folder)
    assert tensor_problems(config, tensors_in(conformance_folder)) == []
    is_released = conformance_folder.name == "released"
    assert problems_by_runtime(config) == ({"mlx-lm": ["`model_type` is missing"]} if is_released else {})


def test_a_renamed_tensor_is_named(saved):
    found = tensors_in(saved)
    old, new = "model.layers.1.self_attn.0.kv_b_proj.weight", "model.layers.1.self_attn.kv_b_proj.weight"
    found[new] = found.pop(old)
    assert tensor_problems(config_in(saved), found) == [
        f"`{old}` is missing: [112, 24]",
        f"`{new}` is unknown to every runtime",
    ]


def test_another_shape_or_dtype_is_named(saved):
    found = tensors_in(saved)
    table, router = "model.ngram_embeddings.embedders.11.weight", "model.layers.0.mlp.router.classifier.weight"
    found[table] = found[table]._replace(shape=(1816, 8))
    found[router] = found[router]._replace(dtype="BF16")
    assert tensor_problems(config_in(saved), found) == [
        f"`{router}` is BF16, expected F32",
        f"`{table}` has shape [1816, 8], expected [1815, 8]",
    ]


def test_the_draft_head_may_be_left_out(saved):
    found = {name: tensor for name, tensor in tensors_in(saved).items() if ".mtp." not in name}
    config = config_in(saved)
    assert len(tensor_problems(config, found)) == 17
    assert tensor_problems({**config, "num_nextn_predict_layers": 0}, found) == []
    assert tensor_problems({**config, "num_nextn_predict_layers": None}, tensors_in(saved)) == []


def test_biases_belong_to_their_switches(tmp_path):
    LongCatLiteForCausalLM(tiny_config(attention_bias=True, router_bias=True)).save_pretrained(tmp_path)
    config, found = config_in(tmp_path), tensors_in(tmp_path)
    assert tensor_problems(config, found) == []
    without = {**config, "attention_bias": False, "router_bias": False}
    assert len(tensor_problems(without, found)) == 2 * (2 * 3 + 1)  # layers, attentions and their biases, router


@every_runtime
def test_each_missing_field_is_named(runtime, saved):
    config = config_in(saved)
    stated = [field.name for field in CONFIG_FIELDS[runtime] if field.stated]
    assert len(stated) > 20
    for name in stated:
        without = {key: value for key, value in config.items() if key != name}
        assert any(problem.startswith(f"`{name}` is missing") for problem in config_problems(runtime, without)), name


def test_tensors_of_an_incomplete_config_are_not_guessed(saved):
    config = config_in(saved)
    del config["qk_rope_head_dim"]
    with pytest.raises(ValueError, match="`qk_rope_head_dim` is missing"):
        expected_tensors(config)


@every_runtime
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("embedding_amplification", "layer_norm"),
        ("scale_word_embedding", False),
        ("attention_method", "LSA"),
        ("use_ngram_embedding", False),
        ("ngram_table_bits", 8),
        ("tie_word_embeddings", True),
        ("zero_expert_type", "drop"),
        ("ngram_base_vocab_size", 255),
    ],
)
def test_what_no_runtime_serves_is_named(runtime, name, value, saved):
    (problem,) = config_problems(runtime, {**config_in(saved), name: value})
    assert f"`{name}`" in problem


@pytest.mark.parametrize(
    ("runtime", "name", "value"),
    [
        ("mlx-lm", "mla_scale_q_lora", False),
        ("mlx-lm", "scale_zero_experts", False),
        ("vLLM", "model_type", "longcat_lite"),
        ("vLLM", "norm_topk_prob", True),
        ("vLLM", "router_bias", True),
        ("vLLM", "scale_zero_experts", False),
        ("vLLM", "index_topk", None),
        ("vLLM", "index_topk", 2048),
        ("SGLang", "index_topk", 2048),
        ("vLLM", "ngram_eos_token_id", [2, 7]),
        ("SGLang", "architectures", ["LongcatFlashNgramForCausalLM", "LongCatLiteForCausalLM"]),
        ("SGLang", "attention_bias", True),
        ("SGLang", "num_hidden_layers", 4),
    ],
)
def test_what_one_runtime_cannot_serve_is_named(runtime, name, value, saved):
    (problem,) = config_problems(runtime, {**config_in(saved), name: value})
    assert f"`{name}`" in problem


@every_runtime
def test_the_spelling_of_before_is_named(runtime, saved):
    """RoPE twice, and the newer field of a type that other readers check before they can."""
    before = {key: value for key, value in as_written_before(config_in(saved)).items() if key != "index_topk"}
    (problem,) = config_problems(runtime, before)
    assert "`rope_parameters` has type 'yarn'" in problem and "save it again" in problem
    first, second = config_problems(runtime, {**before, "rope_scaling": None})
    assert first == "`rope_scaling` says 'default', but `rope_parameters` says 'yarn'"
    assert second == problem


def found_by(runtime: str, config: dict, *words: str) -> bool:
    return any(all(word in text for word in words) for text in differences(runtime, config))


def test_what_is_computed_differently_is_foretold(saved):
    """What the model does not have is not told."""
    config = {**config_in(saved), "hidden_size": 3072, "zero_expert_num": 128, "routed_scaling_factor": 6.0}
    assert found_by("vLLM", config, "end-of-sequence", "row 0")
    assert not found_by("vLLM", {**config, "use_ngram_embedding": False}, "row 0")
    assert found_by("SGLang", config, "zero experts", "without `routed_scaling_factor`")
    for change in ({"zero_expert_num": 0}, {"routed_scaling_factor": 1.0}, {"scale_zero_experts": False}):
        assert not found_by("SGLang", {**config, **change}, "routed_scaling_factor")
    for runtime in ("vLLM", "SGLang"):
        assert not found_by(runtime, config, "`hidden_size`")
        for size, left_out in ((192, 192), (384, 128), (3000, 184)):
            changed = {**config, "hidden_size": size}
            assert found_by(runtime, changed, f"`hidden_size` is {size}", f"the last {left_out} values")
            assert not found_by(runtime, {**changed, "zero_expert_num": 0}, "`hidden_size`")
    assert found_by("vLLM", config, "--hf-overrides")
    assert not found_by("vLLM", {**config, "model_type": "longcat_flash"}, "--hf-overrides")


@every_runtime
def test_a_tokenizer_that_loads_only_with_trust_is_foretold(runtime, saved):
    config = config_in(saved)
    assert not found_by(runtime, config, "trust_remote_code")
    for released in ({"type": "yarn"}, {"rope_type": "yarn"}):
        assert found_by(runtime, {**config, "rope_scaling": released}, "the tokenizer does not load without")


def test_servers_take_one_end_of_sequence_token(saved):
    config = {**config_in(saved), "eos_token_id": [2, 7], "ngram_eos_token_id": [2, 7]}
    assert problems_by_runtime(config) == {
        runtime: [f"`eos_token_id` is [2, 7]; {runtime} takes one integer"] for runtime in ("vLLM", "SGLang")
    }


@pytest.mark.parametrize("config", [LongCatLiteConfig(), tiny_config(rope_parameters=YARN_ROPE), tiny_config()])
def test_a_saved_config_states_everything(config, tmp_path):
    """Also what equals a default of this package, or of transformers."""
    config.dtype = torch.bfloat16
    config.save_pretrained(tmp_path)
    assert problems_by_runtime(config_in(tmp_path)) == {}
