# SPDX-License-Identifier: Apache-2.0
"""`LongCatLiteConfig`: the released model by default, one `ValueError` per bad field, JSON for old and new readers."""

import dataclasses
import json
import re

import pytest
import torch
from config_files import PUBLISHED, RELEASED_YARN, write_and_load, written
from conftest import CONFORMANCE, CONFORMANCE_FOLDERS, YARN_ROPE, tiny_config
from transformers import AutoConfig

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM, LongCatLiteModel


def architecture(config: LongCatLiteConfig) -> dict:
    """Every field, without what a file system or a class registry adds."""
    bookkeeping = ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version")
    fields = {name: value for name, value in config.to_dict().items() if name not in bookkeeping}
    # Transformers keeps the old key beside the new one.
    fields["rope_parameters"] = {key: value for key, value in config.rope_parameters.items() if key != "type"}
    return fields


def test_defaults_are_the_released_model(tmp_path):
    config = LongCatLiteConfig()
    assert architecture(config) == architecture(write_and_load(PUBLISHED, tmp_path))
    assert config.model_type == "longcat_flash_ngram"
    assert config.rope_parameters == RELEASED_YARN
    assert config.subtable_sizes == list(range(10223617, 10223640, 2))
    assert (config.num_subtables, config.subtable_width) == (12, 256)
    assert (config.num_layers, config.num_hidden_layers) == (14, 28)
    assert (config.qk_head_dim, config.head_dim, config.num_key_value_heads) == (192, 64, 32)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 3)
    assert (config.ngram_base_vocab_size, config.ngram_eos_token_id) == (131072, 2)
    assert (config.latent_norm_eps, config.rms_norm_eps) == (1e-6, 1e-5)


def test_readable_names_are_aliases():
    config = LongCatLiteConfig(max_ngram_order=3, num_subtables_per_order=2, num_experts_per_tok=4)
    assert (config.emb_neighbor_num, config.emb_split_num, config.moe_topk) == (3, 2, 4)
    config.num_local_experts = 64
    assert config.n_routed_experts == 64
    assert (config.intermediate_size, config.moe_intermediate_size) == (6144, 1024)
    fields = config.to_dict()
    assert not {"max_ngram_order", "num_subtables_per_order", "num_experts_per_tok", "num_local_experts"} & set(fields)


def test_subtables_of_a_fractional_ratio():
    config = LongCatLiteConfig(vocab_size=250, ngram_vocab_size_ratio=5.3, emb_neighbor_num=3, emb_split_num=3)
    assert config.subtable_sizes == [1326, 1328, 1330, 1332, 1334, 1336]
    assert config.subtable_width == 512


def test_hash_fields_stay_as_created(tmp_path):
    config = tiny_config(vocab_size=64, eos_token_id=7)
    config.vocab_size, config.eos_token_id = 80, 9
    config.save_pretrained(tmp_path)
    loaded = LongCatLiteConfig.from_pretrained(tmp_path)
    assert (loaded.vocab_size, loaded.eos_token_id) == (80, 9)
    assert (loaded.ngram_base_vocab_size, loaded.ngram_eos_token_id) == (64, 7)
    assert loaded.subtable_sizes == tiny_config().subtable_sizes


BAD_FIELDS = [
    ("emb_neighbor_num", 1),
    ("emb_neighbor_num", "4"),
    ("emb_neighbor_num", 2.5),
    ("emb_neighbor_num", None),
    ("emb_split_num", 0),
    ("emb_split_num", 1.5),
    ("emb_split_num", 5),
    ("hidden_size", 3073),
    ("hidden_size", "3072"),
    ("hidden_size", -12),
    ("ngram_vocab_size_ratio", -1),
    ("ngram_vocab_size_ratio", 0),
    ("ngram_vocab_size_ratio", "78"),
    ("ngram_vocab_size_ratio", float("nan")),
    ("ngram_vocab_size_ratio", float("inf")),
    ("ngram_base_vocab_size", 0),
    ("ngram_base_vocab_size", 1.5),
    ("ngram_eos_token_id", "2"),
    ("use_ngram_embedding", "no"),
    ("embedding_amplification", "layernorm"),
    ("embedding_amplification", None),
    ("vocab_size", 0),
    ("num_layers", 0),
    ("num_layers", 1.5),
    ("num_layers", None),
    ("num_hidden_layers", 30),
    ("num_attention_heads", 0),
    ("num_key_value_heads", 8),
    ("ffn_hidden_size", 0),
    ("expert_ffn_hidden_size", 0),
    ("q_lora_rank", 0),
    ("q_lora_rank", None),
    ("kv_lora_rank", 0),
    ("qk_nope_head_dim", 0),
    ("qk_rope_head_dim", 63),
    ("qk_head_dim", 128),
    ("v_head_dim", 0),
    ("head_dim", 128),
    ("n_routed_experts", 0),
    ("zero_expert_num", -1),
    ("zero_expert_num", None),
    ("zero_expert_num", 1.5),
    ("zero_expert_type", "copy"),
    ("zero_expert_type", None),
    ("moe_topk", 0),
    ("moe_topk", 385),
    ("routed_scaling_factor", None),
    ("routed_scaling_factor", "6"),
    ("rms_norm_eps", "1e-5"),
    ("hidden_act", "sillu"),
    ("max_position_embeddings", 0),
    ("num_nextn_predict_layers", 2),
    ("num_nextn_predict_layers", -1),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=repr)
def test_a_bad_field_is_named(field, value, tmp_path):
    with pytest.raises(ValueError, match=rf"`{field}`"):
        LongCatLiteConfig(**{field: value})
    with pytest.raises(ValueError, match=rf"`{field}`"):
        write_and_load({**PUBLISHED, field: value}, tmp_path)


def test_a_bad_field_is_named_with_its_value():
    with pytest.raises(ValueError, match=r"`moe_topk` \(385\).*384"):
        LongCatLiteConfig(moe_topk=385)
    with pytest.raises(ValueError, match=r"`hidden_size` \(3073\).*`emb_split_num`.*12"):
        LongCatLiteConfig(hidden_size=3073)


def test_ngram_fields_are_free_without_ngrams():
    config = LongCatLiteConfig(use_ngram_embedding=False, hidden_size=100)
    assert (config.num_subtables, config.subtable_sizes) == (0, [])


@pytest.mark.parametrize("redundant", [{"num_hidden_layers": 28}, {"qk_head_dim": 192}, {"head_dim": 64}], ids=str)
def test_derived_fields_may_be_stated(redundant, tmp_path):
    """Re-saved copies carry them."""
    config = write_and_load({**PUBLISHED, **redundant}, tmp_path)
    assert architecture(config) == architecture(LongCatLiteConfig())


def test_unknown_fields_are_kept(tmp_path):
    assert write_and_load({**PUBLISHED, "disable_quant_module": []}, tmp_path).disable_quant_module == []


@pytest.mark.parametrize(
    "config",
    [
        LongCatLiteConfig(),
        LongCatLiteConfig().to_vanilla(),
        tiny_config(),
        tiny_config(rope_parameters=YARN_ROPE, ngram_eos_token_id=[2, 5], eos_token_id=[2, 5]),
        tiny_config(embedding_amplification="sqrt_d", zero_expert_type="drop", scale_zero_experts=False),
        tiny_config(num_nextn_predict_layers=1, norm_topk_prob=True, tie_word_embeddings=True, router_bias=True),
    ],
    ids=["released", "vanilla", "tiny", "yarn", "choices", "switches"],
)
def test_json_round_trip(config, tmp_path):
    fields = written(config, tmp_path)
    loaded = LongCatLiteConfig.from_pretrained(tmp_path)
    assert architecture(loaded) == architecture(config)
    assert written(loaded, tmp_path / "again") == fields
    assert architecture(AutoConfig.from_pretrained(tmp_path)) == architecture(config)


def test_conformance_configs_load(conformance_folder):
    config = LongCatLiteConfig.from_pretrained(conformance_folder)
    stated = json.loads((conformance_folder / "config.json").read_text())
    ignored = {"architectures", "auto_map", "torch_dtype", "transformers_version", "rope_scaling", "rope_theta"}
    for name in stated.keys() - ignored:
        assert getattr(config, name) == stated[name], name
    assert config.dtype == getattr(torch, stated["torch_dtype"])
    assert config.rope_parameters["rope_theta"] == stated["rope_theta"]
    assert config.rope_parameters["rope_type"] == ("yarn" if "rope_scaling" in stated else "default")
    for key, value in stated.get("rope_scaling", {}).items():
        assert config.rope_parameters[key] == value


def test_loaded_configs_write_what_they_were(conformance_folder, tmp_path):
    config = LongCatLiteConfig.from_pretrained(conformance_folder)
    stated = json.loads((conformance_folder / "config.json").read_text())
    fields = written(config, tmp_path)
    assert fields["model_type"] == "longcat_flash_ngram"
    for name in stated.keys() - {"auto_map", "rope_scaling", "transformers_version"}:
        assert fields[name] == stated[name], name
    kept = stated.get("rope_scaling")
    renamed = dict.fromkeys(("type", "rope_type"), "deepseek_yarn")
    assert fields["rope_scaling"] == (kept and {**kept, **renamed})


def test_there_are_five_conformance_folders():
    assert [path.name for path in CONFORMANCE_FOLDERS] == ["base", "bigram", "fractional", "released", "yarn"]


@pytest.mark.parametrize(("cls", "suffix"), [(LongCatLiteForCausalLM, "ForCausalLM"), (LongCatLiteModel, "Model")])
def test_older_readers_find_their_fields(cls, suffix, tmp_path):
    cls(tiny_config(rope_parameters=YARN_ROPE)).to(torch.bfloat16).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["architectures"] == [f"LongcatFlashNgram{suffix}"]
    assert fields["rope_theta"] == 10000.0
    scaling = {key: value for key, value in YARN_ROPE.items() if key != "rope_theta"}
    assert fields["rope_scaling"] == {**scaling, "type": "deepseek_yarn", "rope_type": "deepseek_yarn"}
    assert "rope_parameters" not in fields
    assert fields["torch_dtype"] == fields["dtype"] == "bfloat16"
    assert fields["model_type"] == "longcat_flash_ngram"
    assert fields["auto_map"] == {
        "AutoConfig": "configuration_longcat_lite.LongCatLiteConfig",
        "AutoModel": "modeling_longcat_lite.LongCatLiteModel",
        "AutoModelForCausalLM": "modeling_longcat_lite.LongCatLiteForCausalLM",
    }


def test_vllm_may_state_what_it_counts_as_layers():
    """It assigns the number of decoder layers to `num_hidden_layers`, and builds the model of `vars(config)`."""
    config = tiny_config()
    config.num_hidden_layers = config.num_layers
    assert (vars(config)["num_layers"], config.num_hidden_layers) == (2, 4)
    with pytest.raises(ValueError, match="`num_hidden_layers` is derived"):
        config.num_hidden_layers = 3


def test_only_a_sparse_model_has_index_topk(tmp_path):
    """vLLM asks whether the config has the field, whatever it says."""
    for fields in ({}, {"index_topk": None}):
        config = tiny_config(**fields)
        assert not hasattr(config, "index_topk")
        assert config.dense_attention_limit is None
        assert "index_topk" not in written(config, tmp_path)
        assert not hasattr(write_and_load({**written(config, tmp_path), "index_topk": None}, tmp_path), "index_topk")
    config.index_topk = None  # as a user may write who means no limit
    assert "index_topk" not in written(config, tmp_path)
    sparse = LongCatLiteConfig.from_pretrained(tmp_path, index_topk=24)
    assert (sparse.index_topk, sparse.dense_attention_limit, written(sparse, tmp_path)["index_topk"]) == (24, 24, 24)
    loaded = AutoConfig.from_pretrained(tmp_path, index_topk=None)
    assert loaded.dense_attention_limit is None and not hasattr(loaded, "index_topk")


def test_older_readers_see_plain_rope(tmp_path):
    fields = written(tiny_config(), tmp_path)
    assert fields["rope_theta"] == 10000.0
    assert fields["rope_scaling"] is None


def test_saving_twice_keeps_the_architectures(tmp_path):
    model = LongCatLiteForCausalLM(tiny_config())
    for folder in (tmp_path / "first", tmp_path / "second"):
        model.save_pretrained(folder)
        model = LongCatLiteForCausalLM.from_pretrained(folder)
        fields = json.loads((folder / "config.json").read_text())
        assert fields["architectures"] == ["LongcatFlashNgramForCausalLM"]


@pytest.mark.parametrize(
    ("stated", "written_name"),
    [
        (None, "LongcatFlashNgramForCausalLM"),
        (["LongcatFlashNgramForCausalLM", "LongCatLiteForCausalLM"], "LongcatFlashNgramForCausalLM"),
        (["LongcatFlashNgramModel"], "LongcatFlashNgramModel"),
        (["LongCatLiteModel"], "LongcatFlashNgramModel"),
    ],
    ids=["none", "both names", "trunk", "own name"],
)
def test_one_architecture_is_written(stated, written_name, tmp_path):
    assert written(tiny_config(architectures=stated), tmp_path)["architectures"] == [written_name]


def test_the_documentation_has_every_field():
    documented = set()
    for names in re.findall(r"^ {8}(\w+(?:, \w+)*) \(`", LongCatLiteConfig.__doc__, flags=re.MULTILINE):
        documented |= set(names.split(", "))
    fields = {field.name for field in dataclasses.fields(LongCatLiteConfig)}
    own = fields & LongCatLiteConfig.__annotations__.keys()
    assert len(own) > 40
    assert own - documented == set()


def test_a_config_is_read_as_it_was_written(tmp_path):
    """Also what its file states although nobody has said it."""
    config = tiny_config()
    config.save_pretrained(tmp_path)
    config.to_json_file(tmp_path / "whole.json", use_diff=False)
    for read in (
        LongCatLiteConfig.from_json_file(tmp_path / "config.json"),
        LongCatLiteConfig.from_json_file(tmp_path / "whole.json"),
        LongCatLiteConfig.from_pretrained(tmp_path),
        LongCatLiteConfig(**config.to_dict()),
    ):
        assert read.to_dict() == config.to_dict()


def count(config: LongCatLiteConfig) -> tuple[int, float]:
    """All parameters, and those that a token meets beyond the embedding if it chooses among experts evenly."""
    with torch.device("meta"):
        model = LongCatLiteForCausalLM(config)
    sizes = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    embedding = sum(size for name, size in sizes.items() if "embed" in name)
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    chosen = config.moe_topk / (config.n_routed_experts + config.zero_expert_num)
    return sum(sizes.values()), sum(sizes.values()) - embedding - experts + experts * chosen


def test_to_vanilla_of_the_released_model():
    total, activated = count(LongCatLiteConfig())
    assert total == 68_562_465_024
    vanilla = LongCatLiteConfig().to_vanilla()
    vanilla_total, vanilla_activated = count(vanilla)
    assert abs(vanilla_total / total - 1) < 0.005
    assert abs(vanilla_activated / activated - 1) < 0.005
    assert vanilla.zero_expert_num / vanilla.n_routed_experts == 0.5
    assert not vanilla.use_ngram_embedding


def test_to_vanilla_changes_experts_alone():
    config = LongCatLiteConfig()
    vanilla = config.to_vanilla()
    changed = {name for name, value in config.to_dict().items() if vanilla.to_dict()[name] != value}
    assert changed == {"use_ngram_embedding", "n_routed_experts", "zero_expert_num"}
    assert (config.use_ngram_embedding, config.n_routed_experts) == (True, 256)
    again = vanilla.to_vanilla()
    assert architecture(again) == architecture(vanilla)


def test_released_folder_is_read_without_model_type():
    assert "model_type" not in json.loads((CONFORMANCE / "released" / "config.json").read_text())
    assert LongCatLiteConfig.from_pretrained(CONFORMANCE / "released").num_layers == 2
