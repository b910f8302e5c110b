# SPDX-License-Identifier: Apache-2.0
"""Every module with weights is called as a module as soon as somebody watches it, and what a hook changes counts.

So activation capture and steering, calibration (GPTQ, AWQ) and ZeRO-3, whose weights are there only while their module
runs, work without gradients as they do in training.
"""

import functools
import types
from collections import defaultdict

import pytest
import torch
from cache_argument import held, holding
from conftest import randomize, tiny_config
from module_hooks import captured, gathered, not_called
from torch import nn
from transformers import StaticCache

from modeling_longcat_lite import LongCatLiteForCausalLM

IDS = torch.tensor([[5, 9, 7, 5, 9, 11], [8, 6, 4, 12, 13, 5]])
# Modules whose weights are faster to read than the modules are to call.
SHORTCUTS = [
    "model.ngram_embeddings.embedders.3",
    "model.ngram_embeddings.post_proj",
    "model.layers.0.self_attn.1.kv_b_proj",
]


def make_model(**overrides) -> LongCatLiteForCausalLM:
    return randomize(LongCatLiteForCausalLM(tiny_config(**overrides)), seed=1).eval()


def tokens_of(model, ids=IDS, **options) -> torch.Tensor:
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, **options}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)


@torch.no_grad()
def prefill_and_decode(model) -> torch.Tensor:
    """Logits of a prompt and of two tokens after it, `[2, 7, V]`."""
    output = model(IDS[:, :4], use_cache=True)
    steps = [model(IDS[:, i : i + 1], **holding(held(output))).logits for i in (4, 5)]
    return torch.cat([output.logits, *steps], 1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_all_modules_are_called_in_prefill_and_in_decoding(attention, kind):
    model = make_model(embedding_amplification="layer_norm")
    model.set_attn_implementation(attention)
    cache = StaticCache(config=model.config, max_cache_len=16) if kind == "static" else None
    with captured(model) as calls:
        output = model(IDS, use_cache=True, **holding(cache))
        assert not_called(model, calls) == []
        calls.clear()
        model(IDS[:, :1], **holding(held(output)))
        assert not_called(model, calls) == []
        calls.clear()
        model(IDS[:, :3], **holding(held(output)))  # as a draft is verified, or a chunk of a prompt is read
        assert not_called(model, calls) == []
    assert all(calls[f"{name} done"] == count for name, count in calls.items() if not name.endswith(" done"))


@pytest.mark.parametrize("ngram_drafts", [False, True])
def test_all_modules_of_the_draft_head_are_called(ngram_drafts):
    model = make_model(num_nextn_predict_layers=1, mtp_use_ngram_embedding=ngram_drafts)
    with captured(model) as calls:
        tokens_of(model, IDS[:1], use_mtp=True)
    head = {f"model.mtp.{name}" for name, module in model.model.mtp.named_modules() if isinstance(module, nn.Linear)}
    assert not [name for name in head if not calls[name]]
    assert bool(calls["model.mtp.embed_tokens"]) is not ngram_drafts


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("bits", [16, 8])
def test_weights_that_are_there_only_while_their_module_runs(mode, bits):
    model = make_model(ngram_table_bits=bits)
    tokens, logits = tokens_of(model, **mode), prefill_and_decode(model)
    with gathered(model):
        assert torch.equal(tokens_of(model, **mode), tokens)
        torch.testing.assert_close(prefill_and_decode(model), logits, atol=1e-4, rtol=0)
    assert torch.equal(prefill_and_decode(model), logits)


def test_gathered_weights_while_the_head_drafts():
    model = make_model(num_nextn_predict_layers=1, mtp_use_ngram_embedding=True)
    tokens = tokens_of(model, IDS[:1])
    with gathered(model):
        assert torch.equal(tokens_of(model, IDS[:1], use_mtp=True), tokens)


def halve_by_hook(module: nn.Module):
    handle = module.register_forward_hook(lambda module, inputs, output: output * 0.5)
    return handle.remove


def halve_by_forward(module: nn.Module):
    """As tools do that wrap a module in place: the class stays, the instance gets a forward of its own."""
    plain = module.forward
    module.forward = types.MethodType(lambda self, *inputs: plain(*inputs) * 0.5, module)
    return lambda: delattr(module, "forward")


def halve_by_weight_in_a_pre_hook(module: nn.Module):
    def enter(module, inputs):
        module.kept = module.weight.data
        module.weight.data = module.kept * 0.5

    handles = [module.register_forward_pre_hook(enter)]
    handles.append(module.register_forward_hook(lambda module, *_: setattr(module.weight, "data", module.kept)))
    return lambda: [handle.remove() for handle in handles]


def halve_by_a_hook_for_all(module: nn.Module):
    handle = nn.modules.module.register_module_forward_hook(
        lambda called, inputs, output: output * 0.5 if called is module else None
    )
    return handle.remove


@pytest.mark.parametrize("name", SHORTCUTS)
@pytest.mark.parametrize(
    "halve", [halve_by_hook, halve_by_forward, halve_by_weight_in_a_pre_hook, halve_by_a_hook_for_all]
)
def test_what_a_hook_changes_counts(name, halve):
    model, other = make_model(), make_model()
    before = prefill_and_decode(model)
    with torch.no_grad():
        other.get_submodule(name).weight.mul_(0.5)
    wanted = prefill_and_decode(other)
    assert (wanted - before).abs().max() > 1e-2
    undo = halve(model.get_submodule(name))
    try:
        torch.testing.assert_close(prefill_and_decode(model), wanted, atol=1e-4, rtol=0)
    finally:
        undo()
    assert torch.equal(prefill_and_decode(model), before)


def test_inputs_are_those_of_the_layer():
    """What calibration collects: the input of every linear layer gives its output."""
    model, seen = make_model(), defaultdict(list)

    def collect(module, inputs, output, name):
        seen[name].append((inputs[0], output))

    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    for name, module in linears.items():
        module.register_forward_hook(functools.partial(collect, name=name))
    prefill_and_decode(model)
    assert seen.keys() == linears.keys()
    for name, calls in seen.items():
        weight, bias = linears[name].weight, linears[name].bias
        assert len(calls) == 3, name
        assert sum(inputs.shape[-2] for inputs, _ in calls) >= 6, name  # a latent is expanded again in every step
        for inputs, output in calls:
            torch.testing.assert_close(output, nn.functional.linear(inputs, weight, bias), atol=1e-4, rtol=0)
