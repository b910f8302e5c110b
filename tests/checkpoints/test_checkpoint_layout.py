# SPDX-License-Identifier: Apache-2.0
"""Checkpoints have the released names and shapes, come back bit-equal, and say what is wrong with them."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from conftest import CONFORMANCE, randomize, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from eval.checkpoints.runtimes import expected_tensors
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM, LongCatLiteModel
from modeling_longcat_lite.checkpoint_layout import (
    CONDITIONS,
    JOINED,
    KINDS,
    LAYOUT,
    config_fields,
    own_tensors,
    released_tensors,
)
from modeling_longcat_lite.checkpoint_names import is_indexer, is_ngram_table, released_name, spelling_of

WEIGHTS = "model.safetensors"


def released_shapes(config: LongCatLiteConfig) -> dict[str, tuple[int, ...]]:
    """The naming scheme of the released checkpoint, as other runtimes read it."""
    return {name: tensor.shape for name, tensor in expected_tensors(config.to_dict()).items()}


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}


def assert_same_weights(found: torch.nn.Module, expected: torch.nn.Module):
    expected_state = expected.state_dict()
    assert found.state_dict().keys() == expected_state.keys()
    for name, tensor in found.state_dict().items():
        assert tensor.dtype == expected_state[name].dtype, name
        assert torch.equal(tensor, expected_state[name]), name


@st.composite
def configs(draw) -> LongCatLiteConfig:
    def size(least: int, most: int) -> int:
        return draw(st.integers(least, most))

    order, per_order = size(2, 4), size(1, 3)
    routed, zero = size(1, 5), size(0, 3)
    rope = 2 * size(1, 3)
    return tiny_config(
        vocab_size=size(8, 40),
        hidden_size=per_order * (order - 1) * size(1, 5),
        num_layers=size(1, 2),
        num_attention_heads=size(1, 3),
        ffn_hidden_size=size(1, 20),
        expert_ffn_hidden_size=size(1, 12),
        q_lora_rank=size(1, 9),
        kv_lora_rank=size(1, 9),
        qk_nope_head_dim=size(1, 8),
        qk_rope_head_dim=rope,
        v_head_dim=size(1, 8),
        n_routed_experts=routed,
        zero_expert_num=zero,
        moe_topk=size(1, routed + zero),
        emb_neighbor_num=order,
        emb_split_num=per_order,
        ngram_vocab_size_ratio=draw(st.sampled_from([1, 2.5, 3.3, 7])),
        use_ngram_embedding=draw(st.sampled_from([True, True, False])),
        tie_word_embeddings=draw(st.booleans()),
        num_nextn_predict_layers=draw(st.sampled_from([None, 0, 1])),
    )


@settings(max_examples=15, derandomize=True, deadline=None)
@given(config=configs(), sharded=st.booleans(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_saves_the_released_layout_and_reloads_bit_equal(config, sharded, dtype):
    with TemporaryDirectory() as folder:
        model = randomize(LongCatLiteForCausalLM(config))
        model.save_pretrained(folder, **({"max_shard_size": "20KB"} if sharded else {}))
        saved = tensors_in(Path(folder))
        assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == released_shapes(config)
        loaded = LongCatLiteForCausalLM.from_pretrained(folder)
        assert_same_weights(loaded, model)

        # In another dtype, and again: the second copy on disk equals the first.
        first, second = Path(folder) / "first", Path(folder) / "second"
        LongCatLiteForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(first)
        LongCatLiteForCausalLM.from_pretrained(first).save_pretrained(second)
        again = tensors_in(second)
        for name, tensor in tensors_in(first).items():
            assert tensor.dtype == (torch.float32 if ".router." in name else dtype), name
            assert torch.equal(tensor, again[name]), name
        assert again.keys() == saved.keys()


def test_the_scheme_is_that_of_the_released_folder():
    config = LongCatLiteConfig.from_pretrained(CONFORMANCE / "released")
    config.num_nextn_predict_layers = 1
    found = {name: tuple(tensor.shape) for name, tensor in tensors_in(CONFORMANCE / "released").items()}
    assert found == released_shapes(config)


def test_the_scheme_counts_the_real_checkpoint():
    config = LongCatLiteConfig(num_nextn_predict_layers=1)
    shapes = released_shapes(config)
    assert len(shapes) == 11_143 + 17
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 69_073_335_552


def test_saving_what_was_loaded_gives_the_same_files(conformance_folder, tmp_path):
    LongCatLiteForCausalLM.from_pretrained(conformance_folder).save_pretrained(tmp_path)
    expected = tensors_in(conformance_folder)
    saved = tensors_in(tmp_path)
    assert saved.keys() == expected.keys()
    for name, tensor in expected.items():
        assert saved[name].dtype == tensor.dtype, name
        assert torch.equal(saved[name], tensor), name


def test_sharded_round_trip(tmp_path):
    model = randomize(LongCatLiteForCausalLM(tiny_config()))
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    assert index.keys() == released_shapes(model.config).keys()
    assert_same_weights(LongCatLiteForCausalLM.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("cls", [LongCatLiteForCausalLM, LongCatLiteModel])
def test_own_names_round_trip(cls, tmp_path):
    """`save_original_format=False` writes the parameters as they are."""
    model = randomize(cls(tiny_config(num_nextn_predict_layers=1)))
    model.save_pretrained(tmp_path, save_original_format=False)
    assert tensors_in(tmp_path).keys() == model.state_dict().keys()
    assert_same_weights(cls.from_pretrained(tmp_path), model)


def test_the_trunk_alone_round_trips(tmp_path):
    model = randomize(LongCatLiteModel(tiny_config()))
    model.save_pretrained(tmp_path)
    shapes = {
        name.removeprefix("model."): s for name, s in released_shapes(model.config).items() if "lm_head" not in name
    }
    assert {name: tuple(tensor.shape) for name, tensor in tensors_in(tmp_path).items()} == shapes
    assert_same_weights(LongCatLiteModel.from_pretrained(tmp_path), model)


def test_the_trunk_is_taken_from_a_whole_checkpoint(tmp_path):
    model = randomize(LongCatLiteForCausalLM(tiny_config()))
    model.save_pretrained(tmp_path)
    assert_same_weights(LongCatLiteModel.from_pretrained(tmp_path), model.model)


def test_a_trunk_without_head_is_no_language_model(tmp_path):
    LongCatLiteModel(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`lm_head\.weight`"):
        LongCatLiteForCausalLM.from_pretrained(tmp_path)


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], **overrides):
    """Saves a tiny model and changes its file."""
    LongCatLiteForCausalLM(tiny_config(**overrides)).save_pretrained(folder)
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.ngram_embeddings.embedders.11.weight",
        "model.ngram_embeddings.post_projs.0.weight",
        "model.layers.1.mlp.experts.5.up_proj.weight",
        "model.layers.0.mlp.experts.0.down_proj.weight",
        "model.layers.0.mlp.router.classifier.weight",
        "model.layers.1.mlp.router.e_score_correction_bias",
        "model.layers.1.self_attn.1.kv_b_proj.weight",
    ],
)
def test_a_missing_tensor_is_named(name, tmp_path):
    edit(tmp_path, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=rf"`{name}`"):
        LongCatLiteForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["layers.0.eh_proj.weight", "layers.0.enorm.m.weight", "embed_tokens.weight"])
def test_a_draft_head_must_be_complete(name, tmp_path):
    edit(tmp_path, lambda tensors: tensors.pop(f"model.mtp.{name}"), num_nextn_predict_layers=1)
    with pytest.raises(ValueError, match=rf"`model\.mtp\.{name}`"):
        LongCatLiteForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.ngram_embeddings.embedders.3.weight", (217, 4)),
        ("model.layers.0.mlp.experts.2.gate_proj.weight", (17, 48)),
        ("model.layers.0.mlp.router.e_score_correction_bias", (6,)),
        ("model.layers.1.self_attn.0.kv_a_proj_with_mqa.weight", (48, 16)),
        ("lm_head.weight", (65, 48)),
    ],
)
def test_a_wrong_shape_is_named_with_its_file(name, shape, tmp_path):
    edit(tmp_path, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    expected = list(released_shapes(tiny_config())[name])
    with pytest.raises(ValueError) as raised:
        LongCatLiteForCausalLM.from_pretrained(tmp_path)
    for part in (f"`{name}`", str(list(shape)), str(expected), str(tmp_path / WEIGHTS)):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.experts.6.gate_proj.weight",
        "model.layers.2.input_layernorm.0.weight",
        "model.ngram_embeddings.embedders.12.weight",
        "model.ngram_embeddings.word_embeddings.weight",
        "transformer.wte.weight",
    ],
)
def test_an_unknown_tensor_is_named_with_its_file(name, tmp_path):
    edit(tmp_path, lambda tensors: tensors.update({name: torch.zeros(4, 4)}))
    with pytest.raises(ValueError) as raised:
        LongCatLiteForCausalLM.from_pretrained(tmp_path)
    assert f"`{name}`" in str(raised.value)
    assert str(tmp_path / WEIGHTS) in str(raised.value)


def test_a_wrong_config_is_noticed(tmp_path):
    LongCatLiteForCausalLM(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`model\.ngram_embeddings\.embedders\.0\.weight`"):
        LongCatLiteForCausalLM.from_pretrained(tmp_path, ngram_vocab_size_ratio=4)
    with pytest.raises(ValueError, match=r"`model\.layers\.1\."):
        LongCatLiteForCausalLM.from_pretrained(tmp_path, num_layers=1)


@pytest.mark.parametrize("kept", [0, 4, 200, -1], ids=["empty", "no header", "half a header", "one byte short"])
def test_a_truncated_file_is_named(kept, tmp_path):
    LongCatLiteForCausalLM(tiny_config()).save_pretrained(tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[:kept])
    with pytest.raises(ValueError, match=WEIGHTS):
        LongCatLiteForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("shard", [0, -1], ids=["first", "last"])
def test_a_truncated_shard_is_named(shard, tmp_path):
    LongCatLiteForCausalLM(tiny_config()).save_pretrained(tmp_path, max_shard_size="100KB")
    path = sorted(tmp_path.glob("*.safetensors"))[shard]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=path.name):
        LongCatLiteForCausalLM.from_pretrained(tmp_path)


def test_a_shard_that_lacks_its_tensor_is_noticed(tmp_path):
    LongCatLiteForCausalLM(tiny_config()).save_pretrained(tmp_path, max_shard_size="100KB")
    path = sorted(tmp_path.glob("*.safetensors"))[0]
    tensors = load_file(path)
    name = next(iter(tensors))
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"`{name}`"):
        LongCatLiteForCausalLM.from_pretrained(tmp_path)


def test_mismatched_sizes_may_be_ignored_on_request(tmp_path):
    LongCatLiteForCausalLM(tiny_config()).save_pretrained(tmp_path)
    model = LongCatLiteForCausalLM.from_pretrained(
        tmp_path, vocab_size=32, ngram_base_vocab_size=64, ignore_mismatched_sizes=True
    )
    assert model.lm_head.weight.shape == (32, 48)


@settings(max_examples=15, derandomize=True, deadline=None)
@given(config=configs(), biased=st.booleans(), normed=st.booleans())
def test_the_table_is_what_models_have(config, biased, normed):
    """Names, shapes and, for a fresh model in float32, dtypes of `LAYOUT` against the model's own state."""
    config.attention_bias = config.router_bias = biased
    config.embedding_amplification = "layer_norm" if normed else "none"
    for bits in (16, 8):
        config.ngram_table_bits = bits
        model = LongCatLiteForCausalLM(config)
        state = {name: t for name, t in model.state_dict().items() if name not in model.all_tied_weights_keys}
        own = own_tensors(model.config)
        assert {name: tensor.shape for name, tensor in own.items()} == {n: tuple(t.shape) for n, t in state.items()}
        for name, tensor in state.items():
            assert ("U8" if tensor.dtype == torch.uint8 else "F32") in own[name].kind.released, name
        if config.n_routed_experts == 1:
            continue  # transformers 5.16 writes the matrices of an only expert without their dimensions
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            saved = {name: tuple(tensor.shape) for name, tensor in tensors_in(Path(folder)).items()}
        assert saved == {name: tensor.shape for name, tensor in released_tensors(model.config).items()}


def test_every_line_of_the_table_is_complete():
    fields = vars(LongCatLiteConfig()).keys() | {"index_n_heads", "index_head_dim"}
    for line in LAYOUT:
        assert set(config_fields(line)) <= fields, line.name
        assert line.kind in KINDS and set(line.when) <= CONDITIONS.keys(), line.name
        parameter = line.parameter or line.name
        assert parameter in JOINED or parameter.count("{") == line.name.count("{"), line.name


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_names_are_found_under_every_spelling(prefix):
    """Aliases lead to the released name and back; a name that only looks like one is left alone."""
    for line in LAYOUT:
        name = line.name.format(table=3, layer=1, half=0, expert=7).removeprefix("model.")
        for alias in line.aliases:
            other = f"{prefix}{alias.format(table=3).removeprefix('model.')}"
            assert released_name(other) == f"{prefix}{name}"
            assert spelling_of([other])(f"model.{name}") == other
        assert released_name(prefix + name) == prefix + name
        assert is_indexer(prefix + name) == (".indexer." in name)
        assert is_ngram_table(prefix + name) == ("embedders" in name)
    for other in ("model.mtp.oe_embed_tokens0.weight", "model.oe_embed_tokens.weight", "x.oe_embed_proj1.weight"):
        assert released_name(other) == other and not is_ngram_table(other)
