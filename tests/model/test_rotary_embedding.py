# SPDX-License-Identifier: Apache-2.0
"""Rotary embedding: YaRN's numbers for the released model, parity with transformers, and rotation as such."""

import math

import pytest
import torch
from conftest import PLAIN_ROPE, YARN_ROPE, their_config, tiny_config
from transformers.models.longcat_flash.modeling_longcat_flash import (
    LongcatFlashRotaryEmbedding,
    apply_rotary_pos_emb_interleave,
    yarn_apply_mscale,
)

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from modeling_longcat_lite.rotary_embedding import LongCatLiteRotaryEmbedding, rotate_pairs, yarn_softmax_factor

WIDE = {"qk_rope_head_dim": 16}
ROPE_KINDS = {
    "default": PLAIN_ROPE,
    "yarn": YARN_ROPE,
    "yarn without mscale": {key: value for key, value in YARN_ROPE.items() if "mscale" not in key},
    "yarn with mscale_all_dim alone": {key: value for key, value in YARN_ROPE.items() if key != "mscale"},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


def test_released_yarn_numbers():
    config = LongCatLiteConfig()
    rotary = LongCatLiteRotaryEmbedding(config)
    assert round(yarn_softmax_factor(config.rope_parameters), 6) == 1.513536
    assert rotary.attention_scaling == 1.0
    plain = 5e6 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    # Pairs up to 10 turn as trained, pairs from 18 on ten times slower, and those between in linear proportion.
    slowed = ((torch.arange(32, dtype=torch.float64) - 10) / 8).clamp(0, 1)
    expected = plain * (1 - slowed) + plain / 10 * slowed
    torch.testing.assert_close(rotary.inv_freq.double(), expected, atol=0, rtol=1e-6)


@pytest.mark.parametrize("kind", ROPE_KINDS)
def test_ours_equals_theirs(kind):
    config = tiny_config(**WIDE, rope_parameters=dict(ROPE_KINDS[kind]))
    ours, theirs = LongCatLiteRotaryEmbedding(config), LongcatFlashRotaryEmbedding(their_config(config))
    x = torch.zeros(2, 1)
    positions = torch.stack([torch.arange(40), torch.arange(460, 500)])  # "dynamic" rescales beyond 256
    for our, their in zip(ours(x, positions), theirs(x, positions), strict=True):
        assert torch.equal(our, their[..., :8])
        assert torch.equal(our, their[..., 8:])
    assert math.isclose(
        yarn_softmax_factor(config.rope_parameters), yarn_apply_mscale(config.rope_parameters, 1.0), rel_tol=1e-12
    )


def test_softmax_factor_is_one_without_context_extension():
    assert yarn_softmax_factor({**YARN_ROPE, "factor": 1.0}) == 1.0
    assert yarn_softmax_factor({"rope_type": "yarn", "factor": 10.0}) == 1.0
    assert yarn_softmax_factor(PLAIN_ROPE) == 1.0


def test_rotate_pairs_equals_theirs():
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 1, 5, 8)
    angles = torch.randn(2, 5, 4)
    cos, sin = angles.cos(), angles.sin()
    theirs = apply_rotary_pos_emb_interleave(q, k, torch.cat([cos, cos], -1), torch.cat([sin, sin], -1))
    assert torch.equal(rotate_pairs(q, cos, sin), theirs[0])
    assert torch.equal(rotate_pairs(k, cos, sin), theirs[1])


def test_rotate_pairs_is_complex_multiplication():
    torch.manual_seed(1)
    x, angles = torch.randn(2, 3, 5, 8, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    turned = torch.view_as_complex(x.reshape(2, 3, 5, 4, 2)) * torch.polar(torch.ones_like(angles), angles)[:, None]
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(rotate_pairs(x, angles.cos(), angles.sin()), expected, atol=1e-12, rtol=0)


def test_products_depend_on_distance_alone():
    torch.manual_seed(2)
    rotary = LongCatLiteRotaryEmbedding(tiny_config(**WIDE))
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def product(q_position: int, k_position: int) -> torch.Tensor:
        angles = [rotary(q, torch.tensor([[position]])) for position in (q_position, k_position)]
        return (rotate_pairs(q, *angles[0]) * rotate_pairs(k, *angles[1])).sum()

    torch.testing.assert_close(product(9, 2), product(107, 100), atol=1e-4, rtol=0)
    assert abs(product(9, 2) - product(9, 3)) > 1e-2


def test_angles_are_float32_in_bfloat16_models(tmp_path):
    config = tiny_config()
    LongCatLiteForCausalLM(config).save_pretrained(tmp_path)
    rotary = LongCatLiteForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).model.rotary_emb
    exact = LongCatLiteRotaryEmbedding(config)
    assert rotary.inv_freq.dtype == torch.float32
    assert torch.equal(rotary.inv_freq, exact.inv_freq)
    positions = torch.tensor([[257, 1003, 65537]])  # bfloat16 knows none of them
    for ours, wide in zip(
        rotary(torch.zeros(1, dtype=torch.bfloat16), positions), exact(torch.zeros(1), positions), strict=True
    ):
        assert torch.equal(ours, wide.bfloat16())


def test_unknown_rope_type_is_refused():
    # Silent plain RoPE would read well for a few thousand tokens and then turn to noise.
    with pytest.raises(ValueError, match="rope_type"):
        tiny_config(rope_parameters={"rope_type": "ntk_yarn", "rope_theta": 10000.0, "factor": 8.0})
