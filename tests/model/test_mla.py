# SPDX-License-Identifier: Apache-2.0
"""Latent attention against transformers' `LongcatFlashMLA`, and what it stores in a cache."""

import pytest
import torch
from conftest import PLAIN_ROPE, YARN_ROPE, randomize, their_config, tiny_config
from transformers import DynamicCache
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashMLA, LongcatFlashRotaryEmbedding

from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.mla import LongCatLiteMLA
from modeling_longcat_lite.rotary_embedding import LongCatLiteRotaryEmbedding
from modeling_longcat_lite.transformers_versions import CACHE

LENGTH = 7


def make(attention: str = "eager", **overrides) -> LongCatLiteMLA:
    config = tiny_config(**overrides)
    config._attn_implementation = attention
    return randomize(LongCatLiteMLA(config, layer_idx=0))


def states(length: int = LENGTH) -> torch.Tensor:
    return torch.randn(2, length, 48, generator=torch.Generator().manual_seed(1))


def causal_mask(length: int = LENGTH, past: int = 0) -> torch.Tensor:
    """Added to the scores: `[1, 1, T, past + T]`."""
    later = torch.ones(length, past + length, dtype=torch.bool).triu(past + 1)
    return torch.zeros(1, 1, length, past + length).masked_fill(later, torch.finfo(torch.float32).min)


def run(mla: LongCatLiteMLA, x: torch.Tensor, cache=None, past: int = 0):
    positions = torch.arange(past, past + x.shape[1]).unsqueeze(0)
    angles = LongCatLiteRotaryEmbedding(mla.config)(x, positions)
    return mla(x, angles, causal_mask(x.shape[1], past), cache=cache)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("rope", [PLAIN_ROPE, YARN_ROPE], ids=["default", "yarn"])
def test_ours_equals_theirs(rope, bias):
    ours = make(rope_parameters=dict(rope), attention_bias=bias)
    config = their_config(ours.config)
    config.attention_bias = bias
    theirs = LongcatFlashMLA(config, layer_idx=0)
    theirs.load_state_dict(ours.state_dict())
    x = states()
    angles = LongcatFlashRotaryEmbedding(config)(x, torch.arange(LENGTH).unsqueeze(0))
    expected, expected_weights = theirs(x, angles, causal_mask())
    output, weights = run(ours, x)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights, expected_weights, atol=1e-6, rtol=0)


def test_ours_equals_theirs_in_gradient():
    ours = make()
    config = their_config(ours.config)
    theirs = LongcatFlashMLA(config, layer_idx=0)
    theirs.load_state_dict(ours.state_dict())
    x, y = states().requires_grad_(), states().requires_grad_()
    run(ours, x)[0].square().sum().backward()
    angles = LongcatFlashRotaryEmbedding(config)(y, torch.arange(LENGTH).unsqueeze(0))
    theirs(y, angles, causal_mask())[0].square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-5)
    for (name, our), (_, their) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(our.grad, their.grad, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_sdpa_equals_eager():
    eager, sdpa = make(), make("sdpa")
    x = states()
    output, weights = run(sdpa, x)
    torch.testing.assert_close(output, run(eager, x)[0], atol=1e-5, rtol=0)
    assert weights is None


def test_weights_are_causal_and_sum_to_one():
    _, weights = run(make(), states())
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, LENGTH), atol=1e-6, rtol=0)
    assert torch.equal(weights.triu(1), torch.zeros_like(weights))


@pytest.mark.parametrize(("flag", "norm", "factor"), [
    ("mla_scale_q_lora", "q_a_layernorm", (48 / 20) ** 0.5),
    ("mla_scale_kv_lora", "kv_a_layernorm", (48 / 12) ** 0.5),
])  # fmt: skip
def test_a_scale_is_a_factor_on_its_latent_norm(flag, norm, factor):
    scaled, unscaled = make(), make(**{flag: False})
    x = states()
    assert not torch.allclose(run(scaled, x)[0], run(unscaled, x)[0], atol=1e-3)
    with torch.no_grad():
        getattr(unscaled, norm).weight.mul_(factor)
    torch.testing.assert_close(run(unscaled, x)[0], run(scaled, x)[0], atol=1e-5, rtol=0)


def test_latent_norm_eps_is_its_own():
    small = states() * 1e-3  # where epsilon shows
    released, other = make(), make(latent_norm_eps=1e-5)
    assert released.q_a_layernorm.variance_epsilon == released.kv_a_layernorm.variance_epsilon == 1e-6
    assert not torch.allclose(run(released, small)[0], run(other, small)[0], rtol=1e-2, atol=0)


PIECES = pytest.mark.parametrize("pieces", [[7], [1] * 7, [3, 1, 3], [6, 1], [1, 6]], ids=str)
ATTENTIONS = pytest.mark.parametrize("attention", ["eager", "sdpa"])


@PIECES
@ATTENTIONS
def test_pieces_through_a_cache_equal_the_whole(attention, pieces):
    """Decoding attends to latents, a prompt to expanded heads: two ways to the same numbers."""
    mla, x, cache = make(attention), states(), DynamicCache()
    outputs, past = [], 0
    for piece in x.split(pieces, dim=1):
        outputs.append(run(mla, piece, cache, past)[0])
        past += piece.shape[1]
    torch.testing.assert_close(torch.cat(outputs, dim=1), run(mla, x)[0], atol=1e-5, rtol=0)


@PIECES
@pytest.mark.parametrize("rope", [PLAIN_ROPE, YARN_ROPE], ids=["default", "yarn"])
def test_pieces_ours_equals_theirs(rope, pieces):
    ours = make(rope_parameters=dict(rope))
    config = their_config(ours.config)
    theirs = LongcatFlashMLA(config, layer_idx=0)
    theirs.load_state_dict(ours.state_dict())
    our_cache, their_cache, past = DynamicCache(), DynamicCache(), 0
    for piece in states().split(pieces, dim=1):
        length = piece.shape[1]
        angles = LongcatFlashRotaryEmbedding(config)(piece, torch.arange(past, past + length).unsqueeze(0))
        expected, expected_weights = theirs(piece, angles, causal_mask(length, past), **{CACHE: their_cache})
        output, weights = run(ours, piece, our_cache, past)
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(weights, expected_weights, atol=1e-6, rtol=0)
        past += length


@ATTENTIONS
def test_gradients_through_a_cache_equal_those_of_the_whole(attention):
    gradients = []
    for pieces in ([7], [5, 1, 1]):
        mla, x, cache, past = make(attention), states().requires_grad_(), DynamicCache(), 0
        for piece in x.split(pieces, dim=1):
            (run(mla, piece, cache, past)[0].square().sum() / 100).backward(retain_graph=True)
            past += piece.shape[1]
        gradients.append([x.grad, *(parameter.grad for parameter in mla.parameters())])
    for whole, split in zip(*gradients, strict=True):
        torch.testing.assert_close(split, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pieces", [[7], [3, 4], [4, 1, 1, 1]], ids=str)
def test_padding_stays_finite_and_unseen(pieces):
    """A padding token sees nothing at all. What it leaves in the cache must not reach the tokens after it."""
    mla, x = make("sdpa"), states()
    padding = 5
    cache, outputs, past = DynamicCache(), [], 0
    for piece in x.split(pieces, dim=1):
        length = piece.shape[1]
        keep = torch.ones(length, past + length, dtype=torch.bool).tril(past)
        keep[:, :padding] = False
        angles = LongCatLiteRotaryEmbedding(mla.config)(piece, torch.arange(past, past + length).unsqueeze(0))
        outputs.append(mla(piece, angles, keep.expand(2, 1, -1, -1), cache=cache)[0])
        past += length
    found = torch.cat(outputs, dim=1)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, padding:], run(mla, x[:, padding:])[0], atol=1e-5, rtol=0)


def test_the_cache_holds_one_latent_and_one_rotated_key_per_token():
    mla, cache = make(), DynamicCache()
    run(mla, states(), cache)
    assert cache.layers[0].keys.shape == (2, 1, LENGTH, mla.config.kv_lora_rank)
    assert cache.layers[0].values.shape == (2, 1, LENGTH, mla.config.qk_rope_head_dim)


def test_each_sublayer_fills_its_own_slot():
    cache = DynamicCache(config=tiny_config())
    config = tiny_config()
    config._attn_implementation = "eager"
    run(LongCatLiteMLA(config, layer_idx=3), states(), cache)
    assert [cache.get_seq_length(slot) for slot in range(4)] == [0, 0, 0, LENGTH]


def test_dropout_acts_in_training_alone():
    mla = make(attention_dropout=0.5)
    x = states()
    torch.manual_seed(0)
    assert not torch.equal(run(mla.train(), x)[0], run(mla, x)[0])
    assert torch.equal(run(mla.eval(), x)[0], run(make(), x)[0])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_padding_in_float64(attention):
    model = randomize(LongCatLiteForCausalLM(tiny_config())).double().eval()
    model.set_attn_implementation(attention)
    model.set_experts_implementation("eager")  # grouped products know no float64
    ids = torch.tensor([[3, 3, 5, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = model(ids, attention_mask=mask, position_ids=positions).logits[:, 2:]
    torch.testing.assert_close(padded, model(ids[:, 2:]).logits, atol=1e-6, rtol=0)
