# SPDX-License-Identifier: Apache-2.0
"""Training reaches every parameter that should train, with and without gradient checkpointing."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from safetensors.torch import load_file

from modeling_longcat_lite import LongCatLiteForCausalLM

CONFORMANCE = Path(__file__).parents[1] / "conformance"


def gradients(model, ids) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model.train()
    model(ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
def test_checkpointing_changes_no_gradient(experts, use_reentrant):
    model = LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "base", experts_implementation=experts)
    ids = load_file(CONFORMANCE / "base" / "golden.safetensors")["input_ids"]
    plain = gradients(model, ids)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    checkpointed = gradients(model, ids)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert torch.equal(checkpointed[name], gradient), name


@pytest.mark.parametrize("amplification", ["none", "sqrt_d", "layer_norm"])
@pytest.mark.parametrize("use_ngram_embedding", [True, False])
def test_every_parameter_gets_a_gradient(amplification, use_ngram_embedding):
    torch.manual_seed(0)
    config = tiny_config(embedding_amplification=amplification, use_ngram_embedding=use_ngram_embedding)
    model = LongCatLiteForCausalLM(config)
    found = gradients(model, torch.randint(4, config.vocab_size, (8, 64)))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad and name in found, name
        assert found[name].abs().sum() > 0, name


def test_the_draft_head_is_frozen_and_the_rest_of_a_released_checkpoint_trains():
    model = LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "released", dtype=torch.float32)
    found = gradients(model, load_file(CONFORMANCE / "released" / "golden.safetensors")["input_ids"])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in found) == (not name.startswith("model.mtp.")), name


def test_the_loss_is_averaged_over_the_items_that_the_trainer_counted():
    model = LongCatLiteForCausalLM.from_pretrained(CONFORMANCE / "base")
    ids = load_file(CONFORMANCE / "base" / "golden.safetensors")["input_ids"]
    items = ids[:, 1:].numel()
    mean = model(ids, labels=ids).loss
    halved = model(ids, labels=ids, num_items_in_batch=2 * items).loss
    torch.testing.assert_close(halved * 2, mean, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("amplification", ["none", "sqrt_d", "layer_norm"])
def test_a_few_steps_of_training_lower_the_loss(amplification):
    torch.manual_seed(0)
    config = tiny_config(embedding_amplification=amplification)
    model = LongCatLiteForCausalLM(config).train()
    ids = torch.randint(4, config.vocab_size, (4, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_rows_train_under_torch_compile():
    """A sparse gradient is no graph; the rest of the trunk is, on either side of the lookups."""
    ids = torch.randint(4, 60, (1, 12), generator=torch.Generator().manual_seed(0))
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = LongCatLiteForCausalLM(tiny_config(num_layers=1)).train()
        for table in model.model.ngram_embeddings.embedders:
            table.sparse = True
        if compiled:
            model.model.compile(dynamic=False)
        loss = model(ids, labels=ids).loss
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    assert sum(gradient.is_sparse for gradient in found[1]) == model.config.num_subtables
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled.to_dense(), plain.to_dense(), atol=1e-6, rtol=1e-5)
