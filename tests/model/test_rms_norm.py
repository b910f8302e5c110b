# SPDX-License-Identifier: Apache-2.0
"""`LongCatLiteRMSNorm`: the formula, transformers' own, and float32 arithmetic inside bfloat16 models."""

import pytest
import torch
from conftest import randomize
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashRMSNorm

from modeling_longcat_lite.rms_norm import LongCatLiteRMSNorm


def test_is_the_formula():
    torch.manual_seed(0)
    norm = randomize(LongCatLiteRMSNorm(24, eps=1e-3))
    x = torch.randn(3, 5, 24)
    wide = x.double()
    expected = norm.weight.double() * wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(norm(x).double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ours_equals_theirs(dtype):
    torch.manual_seed(1)
    ours, theirs = LongCatLiteRMSNorm(24, eps=1e-5).to(dtype), LongcatFlashRMSNorm(24, eps=1e-5).to(dtype)
    randomize(ours)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 24).to(dtype)
    assert ours(x).dtype == dtype
    assert torch.equal(ours(x), theirs(x))


def test_squares_beyond_half_precision():
    norm = LongCatLiteRMSNorm(8).half()
    x = torch.full((1, 8), 1000.0, dtype=torch.float16)  # its square is above the largest float16
    assert torch.equal(norm(x), torch.ones(1, 8, dtype=torch.float16))


def test_zero_input_gives_zero():
    assert torch.equal(LongCatLiteRMSNorm(8)(torch.zeros(2, 8)), torch.zeros(2, 8))


def test_gradient_is_that_of_the_formula():
    norm = LongCatLiteRMSNorm(6, eps=1e-6)
    x = torch.linspace(-1.0, 2.0, 12).reshape(2, 6).requires_grad_()
    norm(x).sum().backward()
    wide = x.detach().double()
    root = (wide.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = 1 / root - wide * wide.sum(-1, keepdim=True) / (6 * root.pow(3))
    torch.testing.assert_close(x.grad.double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(norm.weight.grad.double(), (wide / root).sum(0), atol=1e-6, rtol=1e-6)
