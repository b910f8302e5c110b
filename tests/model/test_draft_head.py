# SPDX-License-Identifier: Apache-2.0
"""The draft head against the formula on the raw tensors of the released layout, and its way through load and save."""

import json
import math

import pytest
import torch
from conftest import CONFORMANCE, tiny_config
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import DynamicCache

from modeling_longcat_lite import LongCatLiteForCausalLM, LongCatLiteModel

RELEASED = CONFORMANCE / "released"
BESIDE = RELEASED / "model-auxiliary.safetensors"
TENSORS = {name.removeprefix("model.mtp."): tensor for name, tensor in load_file(BESIDE).items()}
# Released name, then the parameter's name in the loaded head.
NAMES = {
    "embed_tokens.weight": "embed_tokens.weight",
    "norm.weight": "norm.weight",
    "layers.0.enorm.m.weight": "layers.0.enorm.weight",
    "layers.0.hnorm.m.weight": "layers.0.hnorm.weight",
    "layers.0.eh_proj.weight": "layers.0.eh_proj.weight",
    "layers.0.input_layernorm.weight": "layers.0.input_layernorm.weight",
    "layers.0.post_attention_layernorm.weight": "layers.0.post_attention_layernorm.weight",
    "layers.0.self_attn.q_a_proj.weight": "layers.0.self_attn.q_a_proj.weight",
    "layers.0.self_attn.q_a_layernorm.weight": "layers.0.self_attn.q_a_layernorm.weight",
    "layers.0.self_attn.q_b_proj.weight": "layers.0.self_attn.q_b_proj.weight",
    "layers.0.self_attn.kv_a_proj_with_mqa.weight": "layers.0.self_attn.kv_a_proj_with_mqa.weight",
    "layers.0.self_attn.kv_a_layernorm.weight": "layers.0.self_attn.kv_a_layernorm.weight",
    "layers.0.self_attn.kv_b_proj.weight": "layers.0.self_attn.kv_b_proj.weight",
    "layers.0.self_attn.o_proj.weight": "layers.0.self_attn.o_proj.weight",
    "layers.0.transformer_layer.mlp.gate_proj.weight": "layers.0.mlp.gate_proj.weight",
    "layers.0.transformer_layer.mlp.up_proj.weight": "layers.0.mlp.up_proj.weight",
    "layers.0.transformer_layer.mlp.down_proj.weight": "layers.0.mlp.down_proj.weight",
}


def yarn_angles(positions: torch.Tensor, config: dict) -> torch.Tensor:
    """One angle per position and pair, `[T, R / 2]`, after arXiv 2309.00071."""
    scaling, theta, width = config["rope_scaling"], config["rope_theta"], config["qk_rope_head_dim"]

    def pair_that_turns(times: float) -> float:
        """Which pair makes so many turns within the original context."""
        wavelength = scaling["original_max_position_embeddings"] / times
        return width / 2 * math.log(wavelength / (2 * math.pi), theta)

    low = max(math.floor(pair_that_turns(scaling["beta_fast"])), 0)
    high = min(math.ceil(pair_that_turns(scaling["beta_slow"])), width - 1)
    frequencies = []
    for pair in range(width // 2):
        slowed = min(max((pair - low) / (high - low), 0), 1)
        frequency = theta ** (-2 * pair / width)
        frequencies.append(frequency * (1 - slowed) + frequency / scaling["factor"] * slowed)
    return positions[:, None] * torch.tensor(frequencies)


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turns the pairs of the last dimension, `[..., T, R]`, as complex numbers."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def reference(tokens: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    """`[B, T]` tokens and `[B, T, D]` states to `[B, T, D]`, in float64."""
    config = json.loads((RELEASED / "config.json").read_text())
    weights = {name: tensor.double() for name, tensor in TENSORS.items()}
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope, value_width = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    q_rank, kv_rank, eps = config["q_lora_rank"], config["kv_lora_rank"], config["rms_norm_eps"]
    batch, length = tokens.shape
    angles = yarn_angles(torch.arange(length).double(), config)

    def linear(x, name):
        return F.linear(x, weights[f"layers.0.{name}.weight"])

    def norm(x, name, eps=eps):
        return F.rms_norm(x, x.shape[-1:], weights[f"{name}.weight"], eps)

    embeds = F.embedding(tokens, weights["embed_tokens.weight"])
    joined = torch.cat([norm(embeds, "layers.0.enorm.m"), norm(previous.double(), "layers.0.hnorm.m")], dim=-1)
    h = linear(joined, "eh_proj")

    x = norm(h, "layers.0.input_layernorm")
    q_latent = norm(linear(x, "self_attn.q_a_proj"), "layers.0.self_attn.q_a_layernorm", 1e-6)
    q = linear(q_latent * math.sqrt(hidden / q_rank), "self_attn.q_b_proj")
    q = q.view(batch, length, heads, nope + rope).transpose(1, 2)
    kv_latent, k_rotated = linear(x, "self_attn.kv_a_proj_with_mqa").split([kv_rank, rope], dim=-1)
    kv_latent = norm(kv_latent, "layers.0.self_attn.kv_a_layernorm", 1e-6) * math.sqrt(hidden / kv_rank)
    kv = linear(kv_latent, "self_attn.kv_b_proj").view(batch, length, heads, nope + value_width).transpose(1, 2)
    k_plain, value = kv.split([nope, value_width], dim=-1)
    k_rotated = rotate(k_rotated, angles)[:, None].expand(-1, heads, -1, -1)
    q = torch.cat([q[..., :nope], rotate(q[..., nope:], angles)], dim=-1)
    k = torch.cat([k_plain, k_rotated], dim=-1)
    scale = (nope + rope) ** -0.5 * (0.1 * math.log(config["rope_scaling"]["factor"]) + 1) ** 2
    attended = F.scaled_dot_product_attention(q, k, value, is_causal=True, scale=scale)
    h = h + linear(attended.transpose(1, 2).flatten(2), "self_attn.o_proj")

    x = norm(h, "layers.0.post_attention_layernorm")
    gate = F.silu(linear(x, "transformer_layer.mlp.gate_proj"))
    h = h + linear(gate * linear(x, "transformer_layer.mlp.up_proj"), "transformer_layer.mlp.down_proj")
    return norm(h, "norm")


def head_of(model):
    return model.model.mtp


def load(**arguments) -> LongCatLiteForCausalLM:
    return LongCatLiteForCausalLM.from_pretrained(RELEASED, **arguments)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_forward_equals_the_formula(attention):
    model = load(dtype=torch.float32, attn_implementation=attention)
    tokens = load_file(RELEASED / "golden.safetensors")["input_ids"]
    with torch.no_grad():
        states = model.model(tokens).last_hidden_state[:, :-1]
        found = head_of(model)(tokens[:, 1:], states, torch.arange(states.shape[1]).unsqueeze(0))
    torch.testing.assert_close(found.double(), reference(tokens[:, 1:], states), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pieces", [[3, 36], [39 - 3, 1, 1, 1], [1] * 39], ids=["3+36", "36+1+1+1", "one by one"])
def test_pieces_through_a_cache_equal_the_formula(pieces):
    model = load(dtype=torch.float32)
    tokens = load_file(RELEASED / "golden.safetensors")["input_ids"]
    with torch.no_grad():
        states = model.model(tokens).last_hidden_state[:, :-1]
        cache, past, found = DynamicCache(), 0, []
        for piece in tokens[:, 1:].split(pieces, dim=1):
            end = past + piece.shape[1]
            positions = torch.arange(past, end).unsqueeze(0)
            found.append(head_of(model)(piece, states[:, past:end], positions, cache=cache))
            past = end
    expected = reference(tokens[:, 1:], states)
    torch.testing.assert_close(torch.cat(found, dim=1).double(), expected, atol=1e-5, rtol=1e-5)


def test_packed_documents_are_apart():
    model = load(dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 256, (1, 7), generator=generator)
    states = torch.randn(1, 7, 96, generator=generator)
    with torch.no_grad():
        packed = head_of(model)(tokens, states, torch.tensor([[0, 1, 2, 0, 1, 2, 3]]))
    alone = [reference(tokens[:, :3], states[:, :3]), reference(tokens[:, 3:], states[:, 3:])]
    torch.testing.assert_close(packed.double(), torch.cat(alone, dim=1), atol=1e-5, rtol=1e-5)


def test_left_padding_changes_nothing():
    model = load(dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 256, (1, 6), generator=generator)
    states = torch.randn(1, 6, 96, generator=generator)
    mask, positions = torch.tensor([[0, 0, 1, 1, 1, 1]]), torch.tensor([[0, 0, 0, 1, 2, 3]])
    with torch.no_grad():
        padded = head_of(model)(tokens, states, positions, attention_mask=mask)[:, 2:]
    torch.testing.assert_close(padded.double(), reference(tokens[:, 2:], states[:, 2:]), atol=1e-5, rtol=1e-5)


def test_the_head_reads_its_own_embedding_alone():
    """The paper: a conventional embedding drafts. Neither the trunk's word rows nor its n-grams take part."""
    model = load(dtype=torch.float32)
    tokens, states = torch.tensor([[5, 6, 7]]), torch.randn(1, 3, 96, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(3).unsqueeze(0)
    with torch.no_grad():
        before = head_of(model)(tokens, states, positions)
        model.model.embed_tokens.weight.zero_()
        model.model.ngram_embeddings.post_proj.weight.zero_()
        assert torch.equal(head_of(model)(tokens, states, positions), before)
        head_of(model).embed_tokens.weight.zero_()
        assert not torch.equal(head_of(model)(tokens, states, positions), before)


@pytest.mark.parametrize("cls", [LongCatLiteForCausalLM, LongCatLiteModel])
def test_weights_load_bit_equal(cls):
    model = cls.from_pretrained(RELEASED)
    head = model.mtp if cls is LongCatLiteModel else model.model.mtp
    assert set(TENSORS) == set(NAMES)
    state = head.state_dict()
    assert set(state) == set(NAMES.values())
    for released, name in NAMES.items():
        assert state[name].dtype == torch.bfloat16
        assert torch.equal(state[name], TENSORS[released]), released


def test_saving_writes_the_released_names(tmp_path):
    load().save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    found = {name.removeprefix("model.mtp."): tensor for name, tensor in saved.items() if ".mtp." in name}
    assert set(found) == set(TENSORS)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert json.loads((tmp_path / "config.json").read_text())["num_nextn_predict_layers"] == 1
    assert head_of(LongCatLiteForCausalLM.from_pretrained(tmp_path)) is not None


def test_the_trunk_is_the_same_with_and_without_the_head():
    tokens = torch.tensor([[5, 6, 7, 2, 9]])
    with torch.no_grad():
        with_head, without = load()(tokens).logits, load(num_nextn_predict_layers=0)(tokens).logits
    assert torch.equal(with_head, without)


def test_the_head_can_be_left_out():
    model = load(num_nextn_predict_layers=0)
    assert head_of(model) is None
    assert model.config.num_nextn_predict_layers == 0


@pytest.mark.parametrize("num_nextn_predict_layers", [None, 0])
def test_no_head_where_the_checkpoint_has_none(num_nextn_predict_layers, tmp_path):
    model = LongCatLiteForCausalLM(tiny_config(num_nextn_predict_layers=num_nextn_predict_layers))
    assert head_of(model) is None
    model.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "mtp" in name]
    assert head_of(LongCatLiteForCausalLM.from_pretrained(tmp_path)) is None
    assert head_of(LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "yarn")) is None


def test_a_head_that_is_asked_for_must_be_in_the_checkpoint():
    with pytest.raises(ValueError, match=r"model\.mtp\."):
        LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "yarn", num_nextn_predict_layers=1)


@pytest.mark.parametrize("source", ["loaded", "new"])
def test_frozen_by_default(source):
    """The trunk's loss does not reach it, and distributed training refuses parameters without a gradient."""
    model = load() if source == "loaded" else LongCatLiteForCausalLM(tiny_config(num_nextn_predict_layers=1))
    assert [name for name, parameter in head_of(model).named_parameters() if parameter.requires_grad] == []
    trunk = [parameter for name, parameter in model.named_parameters() if ".mtp." not in name]
    assert all(parameter.requires_grad for parameter in trunk)


def test_can_be_unfrozen():
    model = LongCatLiteForCausalLM(tiny_config(num_nextn_predict_layers=1))
    head = head_of(model).requires_grad_(True)
    states = torch.randn(1, 4, 48, generator=torch.Generator().manual_seed(0))
    head(torch.tensor([[5, 6, 7, 8]]), states, torch.arange(4).unsqueeze(0)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_resized_vocabulary_survives_save_and_load(tmp_path):
    model = load()
    model.resize_token_embeddings(264, mean_resizing=False)
    model.save_pretrained(tmp_path)
    head = head_of(LongCatLiteForCausalLM.from_pretrained(tmp_path))
    assert head.embed_tokens.weight.shape == (264, 96)
    assert torch.equal(head.embed_tokens.weight[:256], TENSORS["embed_tokens.weight"])
