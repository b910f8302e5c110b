# SPDX-License-Identifier: Apache-2.0
"""Router, routed experts and zero experts: a plain loop, transformers' classes, and three experts implementations."""

import pytest
import torch
from conftest import randomize, their_config, tiny_config
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashMoE, LongcatFlashTopkRouter

from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.moe import LongCatLiteMoE, LongCatLiteRouter

IMPLEMENTATIONS = ["eager", "grouped_mm", "batched_mm"]
ROUTED, ZERO, TOP_K, HIDDEN = 6, 3, 3, 48  # of `tiny_config`


def make(implementation: str = "eager", **overrides) -> LongCatLiteMoE:
    config = tiny_config(**overrides)
    config._experts_implementation = implementation
    return randomize(LongCatLiteMoE(config))


def states(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*(shape or (2, 9)), HIDDEN, generator=torch.Generator().manual_seed(seed))


def naive_moe(moe: LongCatLiteMoE, x: torch.Tensor, norm_topk_prob=False, zero_factor=6.0) -> torch.Tensor:
    """Token after token, expert after expert, in float64; `zero_factor` multiplies the gates of zero experts."""
    router, experts = moe.router, moe.experts
    output = []
    for token in x.double().reshape(-1, HIDDEN):
        gates = (router.classifier.weight.double() @ token).softmax(-1)
        chosen = (gates + router.e_score_correction_bias.double()).topk(TOP_K).indices
        total = gates[chosen].sum() if norm_topk_prob else 1.0
        mixed = torch.zeros(HIDDEN, dtype=torch.float64)
        for expert in chosen.tolist():
            if expert < ROUTED:
                gate, up = (experts.gate_up_proj[expert].double() @ token).chunk(2)
                mixed += (
                    6.0
                    * gates[expert]
                    / total
                    * (experts.down_proj[expert].double() @ (nn.functional.silu(gate) * up))
                )
            else:
                mixed += zero_factor * gates[expert] / total * token
        output.append(mixed)
    return torch.stack(output).view_as(x)


def test_states_reach_both_kinds_of_experts():
    _, _, ids = make().router(states().reshape(-1, HIDDEN))
    assert set(ids.unique().tolist()) == set(range(ROUTED + ZERO))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("overrides", "formula"),
    [
        ({}, {}),
        ({"zero_expert_type": "drop"}, {"zero_factor": 0.0}),
        ({"scale_zero_experts": False}, {"zero_factor": 1.0}),
        ({"norm_topk_prob": True}, {"norm_topk_prob": True}),
        ({"norm_topk_prob": True, "scale_zero_experts": False}, {"norm_topk_prob": True, "zero_factor": 1.0}),
    ],
    ids=str,
)
def test_equals_the_plain_loop(implementation, overrides, formula):
    moe = make(implementation, **overrides)
    torch.testing.assert_close(moe(states()).double(), naive_moe(moe, states(), **formula), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_zero_experts(implementation):
    moe = make(implementation, zero_expert_num=0)
    torch.testing.assert_close(moe(states()).double(), naive_moe(moe, states()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ours_equals_theirs(implementation):
    ours = make(implementation)
    theirs = LongcatFlashMoE(their_config(tiny_config()))
    weights = dict(ours.state_dict())
    # Theirs also has gate and up rows for the zero experts. Nothing may read them.
    unused = torch.full((ZERO, *weights["experts.gate_up_proj"].shape[1:]), torch.nan)
    weights["experts.gate_up_proj"] = torch.cat([weights["experts.gate_up_proj"], unused])
    theirs.load_state_dict(weights)
    x, y = states().requires_grad_(), states().requires_grad_()
    output, expected = ours(x), theirs(y)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    output.square().mean().backward()
    expected.square().mean().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-5)
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, their_gradients[name][: parameter.shape[0]], atol=1e-5, rtol=1e-5, msg=name
        )


def test_router_ours_equals_theirs():
    ours = randomize(LongCatLiteRouter(tiny_config()))
    theirs = LongcatFlashTopkRouter(their_config(tiny_config()))
    theirs.load_state_dict(ours.state_dict())
    for our, their in zip(ours(states(20)), theirs(states(20)), strict=True):
        assert torch.equal(our, their)


def test_the_selection_bias_selects_and_does_not_weigh():
    router = randomize(LongCatLiteRouter(tiny_config()))
    router.e_score_correction_bias.zero_()
    router.e_score_correction_bias[[1, 4, 8]] = 2.0
    logits, weights, ids = router(states(5))
    assert torch.equal(ids.sort(-1).values, torch.tensor([[1, 4, 8]] * 5))
    torch.testing.assert_close(weights, 6.0 * logits.softmax(-1).gather(1, ids), atol=1e-6, rtol=0)


def test_normalised_weights_sum_to_the_scaling_factor():
    router = randomize(LongCatLiteRouter(tiny_config(norm_topk_prob=True, routed_scaling_factor=2.5)))
    _, weights, _ = router(states(5))
    torch.testing.assert_close(weights.sum(-1), torch.full((5,), 2.5), atol=1e-6, rtol=0)


def test_router_bias_shifts_the_logits():
    router = randomize(LongCatLiteRouter(tiny_config(router_bias=True)))
    expected = states(5) @ router.classifier.weight.T + router.classifier.bias
    torch.testing.assert_close(router(states(5))[0], expected, atol=1e-5, rtol=0)


def test_router_computes_in_float32_whatever_its_dtype():
    router = randomize(LongCatLiteRouter(tiny_config()))
    narrow = randomize(LongCatLiteRouter(tiny_config()))
    narrow.classifier.bfloat16()
    with torch.no_grad():
        router.classifier.weight.copy_(narrow.classifier.weight)
    x = states(20).bfloat16()
    for wide, found in zip(router(x), narrow(x), strict=True):
        assert torch.equal(found, wide)
    assert [output.dtype for output in narrow(x)] == [torch.float32, torch.float32, torch.int64]


def test_router_keeps_float32_values_in_a_bfloat16_model(tmp_path):
    LongCatLiteForCausalLM(tiny_config()).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.router.{}"
    # bfloat16 has nothing between 0.5 and 0.5039.
    tensors[name.format("e_score_correction_bias")] = 0.5 + 1e-3 * torch.arange(9)
    tensors = {key: tensor if "router" in key else tensor.bfloat16() for key, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    model = LongCatLiteForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    router = model.model.layers[1].mlp.router
    assert torch.equal(router.e_score_correction_bias, tensors[name.format("e_score_correction_bias")])
    assert torch.equal(router.classifier.weight, tensors[name.format("classifier.weight")])
    others = {key: t.dtype for key, t in model.state_dict().items() if "router" not in key}
    assert set(others.values()) == {torch.bfloat16}
    assert model(torch.tensor([[5, 6, 7]])).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
def test_implementations_agree_in_the_whole_model(implementation):
    """Set through the public switch; logits and every gradient as in the plain form."""
    model = randomize(LongCatLiteForCausalLM(tiny_config()))
    ids = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    found = {}
    for name in ("eager", implementation):
        model.set_experts_implementation(name)
        model.zero_grad()
        outputs = model(ids, labels=ids)
        outputs.loss.backward()
        found[name] = outputs.logits.detach(), {key: p.grad.clone() for key, p in model.named_parameters()}
    torch.testing.assert_close(found[implementation][0], found["eager"][0], atol=1e-5, rtol=1e-5)
    for key, gradient in found["eager"][1].items():
        torch.testing.assert_close(found[implementation][1][key], gradient, atol=1e-5, rtol=1e-5, msg=key)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_tokens_that_select_only_zero_experts(implementation):
    moe = make(implementation)
    moe.router.e_score_correction_bias[ROUTED:] = 2.0
    x = states().requires_grad_()
    _, weights, ids = moe.router(x.reshape(-1, HIDDEN))
    assert int(ids.min()) == ROUTED
    output = moe(x)
    torch.testing.assert_close(output, weights.sum(-1).view(2, 9, 1) * x, atol=1e-6, rtol=0)
    output.sum().backward()
    assert x.grad.isfinite().all()
    for expert_weight in (moe.experts.gate_up_proj, moe.experts.down_proj):
        assert expert_weight.grad is None or not expert_weight.grad.any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dropped_zero_experts_add_nothing(implementation):
    moe = make(implementation, zero_expert_type="drop")
    moe.router.e_score_correction_bias[ROUTED:] = 2.0
    assert torch.equal(moe(states()), torch.zeros(2, 9, HIDDEN))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0)], ids=str)
def test_empty_batch(implementation, shape):
    moe = make(implementation)
    x = torch.zeros(*shape, HIDDEN, requires_grad=True)
    output = moe(x)
    assert output.shape == (*shape, HIDDEN)
    output.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_token_does_not_depend_on_its_neighbours(implementation):
    moe = make(implementation)
    x = states()
    alone = torch.stack([moe(row[t].view(1, 1, -1)).view(-1) for row in x for t in range(9)])
    torch.testing.assert_close(moe(x).reshape(-1, HIDDEN), alone, atol=1e-5, rtol=1e-5)


def test_router_learns_through_zero_experts_too():
    moe = make()
    moe.router.e_score_correction_bias[ROUTED:] = 2.0
    moe(states()).square().sum().backward()
    assert moe.router.classifier.weight.grad.abs().max() > 1e-3


def test_bfloat16_stays_bfloat16():
    moe = make().bfloat16()
    x = states().bfloat16()
    wide = make()
    wide.load_state_dict(moe.state_dict())
    output = moe(x)
    assert output.dtype == torch.bfloat16
    assert torch.equal(moe.router(x[0])[2].sort().values, wide.router(x[0].float())[2].sort().values)
    torch.testing.assert_close(output.float(), wide(x.float()), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_rows_of_any_width(implementation, dtype):
    """Grouped kernels ask for rows of whole 16 bytes; other widths take another way to the same result."""
    moe = make(implementation, expert_ffn_hidden_size=18).to(dtype)
    expected = make("eager", expert_ffn_hidden_size=18).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    x = states().to(dtype)
    torch.testing.assert_close(moe(x), expected(x), atol=tolerance, rtol=tolerance)


def test_the_router_is_made_in_float32():
    torch.set_default_dtype(torch.bfloat16)
    try:
        moe = LongCatLiteMoE(tiny_config())
    finally:
        torch.set_default_dtype(torch.float32)
    assert moe.router.classifier.weight.dtype == torch.float32
    assert moe.experts.down_proj.dtype == torch.bfloat16


@torch.no_grad()
def test_autocast_leaves_the_router_in_float32():
    torch.manual_seed(0)
    moe = randomize(LongCatLiteMoE(tiny_config()))
    states = torch.randn(20, 48)
    logits, weights, ids = moe.router(states)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for inside, outside in zip(moe.router(states), (logits, weights, ids), strict=True):
            assert inside.dtype == outside.dtype and torch.equal(inside, outside)
