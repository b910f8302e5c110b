# SPDX-License-Identifier: Apache-2.0
"""Ours against the reference's recorded outputs: all conformance checkpoints, through the public API."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_longcat_lite import LongCatLiteForCausalLM

CONFORMANCE = Path(__file__).parents[1] / "conformance"
CASES = ["base", "yarn", "bigram", "fractional", "released"]
LOGITS_TOLERANCE = 2e-4  # the reference itself moves by 4e-5 between chunked and full forward
PIECES = {"uneven": (7, 1, 7, 1, 16, 8), "one_by_one": (1,) * 40}

every_implementation = pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
every_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])
every_case = pytest.mark.parametrize("case", CASES)


def load(case: str, attention: str = "sdpa", experts: str = "grouped_mm"):
    model = LongCatLiteForCausalLM.from_pretrained(
        CONFORMANCE / case,
        dtype=torch.float32,
        attn_implementation=attention,
        experts_implementation=experts,
    )
    assert (model.config._attn_implementation, model.config._experts_implementation) == (attention, experts)
    return model, load_file(CONFORMANCE / case / "golden.safetensors")


@every_case
@every_attention
@every_implementation
@torch.no_grad()
def test_full_forward(case, attention, experts):
    model, golden = load(case, attention, experts)
    logits = model(golden["input_ids"]).logits
    torch.testing.assert_close(logits, golden["logits"], atol=LOGITS_TOLERANCE, rtol=0)


@every_case
@every_attention
@every_implementation
@pytest.mark.parametrize("pieces", PIECES)
@torch.no_grad()
def test_through_the_cache_in_pieces(case, attention, experts, pieces):
    model, golden = load(case, attention, experts)
    cache, logits = None, []
    for piece in golden["input_ids"].split(PIECES[pieces], dim=1):
        output = model(piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, 1), golden["logits"], atol=LOGITS_TOLERANCE, rtol=0)


@every_case
@every_attention
@every_implementation
def test_greedy_tokens(case, attention, experts):
    model, golden = load(case, attention, experts)
    tokens = model.generate(golden["prompts"], max_new_tokens=24, do_sample=False, eos_token_id=None)
    assert torch.equal(tokens, golden["greedy"])
