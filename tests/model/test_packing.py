# SPDX-License-Identifier: Apache-2.0
"""Packed documents equal separate ones: neither attention nor n-grams cross a boundary."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trl.trainer.utils import add_fused_lm_head

from modeling_longcat_lite import LongCatLiteForCausalLM
from modeling_longcat_lite.model_inputs import token_windows

BASE = Path(__file__).parents[1] / "conformance" / "base"
TOLERANCE = 1e-5


@pytest.fixture(params=["eager", "sdpa"])
def model(request):
    return LongCatLiteForCausalLM.from_pretrained(BASE, attn_implementation=request.param)


@pytest.fixture
def documents() -> list[torch.Tensor]:
    rows = load_file(BASE / "golden.safetensors")["input_ids"]
    return [rows[0, :7], rows[1, :13], rows[2, :11]]


def packed(documents, starts):
    positions = [torch.arange(len(d)) + start for d, start in zip(documents, starts, strict=True)]
    return torch.cat(documents)[None], torch.cat(positions)[None], positions


def separate(model, documents, positions):
    logits = [model(d[None], position_ids=p[None]).logits[0] for d, p in zip(documents, positions, strict=True)]
    return torch.cat(logits)[None]


@pytest.mark.parametrize("starts", [(0, 0, 0), (0, 9, 0), (4, 9, 2)], ids=str)
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_packed_equals_separate(model, documents, starts, use_cache):
    ids, position_ids, positions = packed(documents, starts)
    together = model(ids, position_ids=position_ids, use_cache=use_cache).logits
    torch.testing.assert_close(together, separate(model, documents, positions), atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_an_all_ones_mask_hides_no_boundary(model, documents):
    ids, position_ids, positions = packed(documents, (0, 0, 0))
    together = model(ids, position_ids=position_ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(together, separate(model, documents, positions), atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_packed_rows_may_end_in_padding(model, documents):
    ids, position_ids, positions = packed(documents, (0, 0, 0))
    together = model(
        torch.nn.functional.pad(ids, (0, 3), value=3),
        position_ids=torch.nn.functional.pad(position_ids, (0, 3)),
        attention_mask=torch.nn.functional.pad(torch.ones_like(ids), (0, 3)),
    ).logits[:, :-3]
    torch.testing.assert_close(together, separate(model, documents, positions), atol=TOLERANCE, rtol=0)


@pytest.mark.slow  # transformers compiles the block mask, which takes a minute on two cores
@torch.no_grad()
def test_packed_equals_separate_under_flex_attention(documents):
    model = LongCatLiteForCausalLM.from_pretrained(BASE, attn_implementation="flex_attention")
    ids, position_ids, positions = packed(documents, (0, 9, 0))
    together = model(ids, position_ids=position_ids).logits
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(together, separate(model, documents, positions), atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_boolean_mask_of_the_callers_own(model, documents):
    ids = documents[1][None]
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(model(ids, attention_mask=causal).logits, model(ids).logits, atol=TOLERANCE, rtol=0)


def loss_and_gradients(model, rows) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of (ids, positions) rows, over all their tokens but the first of each document."""
    model.zero_grad()
    losses, count = [], 0
    for ids, positions in rows:
        labels = ids.masked_fill(positions == 0, -100)
        # `num_items_in_batch` 1 makes it a sum.
        losses.append(model(ids, position_ids=positions, labels=labels, num_items_in_batch=1).loss)
        count += (labels != -100).sum()
    loss = torch.stack(losses).sum() / count
    loss.backward()
    gradients = {name: weights.grad.clone() for name, weights in model.named_parameters() if weights.grad is not None}
    return loss.detach(), gradients


def test_loss_and_gradients_of_packed_equal_those_of_separate(model, documents):
    ids, position_ids, positions = packed(documents, (0, 0, 0))
    loss, gradients = loss_and_gradients(model, [(ids, position_ids)])
    apart = [(d[None], p[None]) for d, p in zip(documents, positions, strict=True)]
    expected_loss, expected = loss_and_gradients(model, apart)
    torch.testing.assert_close(loss, expected_loss, atol=TOLERANCE, rtol=0)
    assert gradients.keys() == expected.keys()
    assert {name.split(".")[1] for name in expected} >= {"ngram_embeddings", "embed_tokens", "layers", "norm"}
    for name, gradient in gradients.items():
        atol = min(TOLERANCE, 1e-4 * expected[name].abs().max().item() + 1e-7)  # also where gradients are small
        torch.testing.assert_close(
            gradient, expected[name], atol=atol, rtol=0, msg=lambda text, name=name: name + text
        )
    # What would be learned if the boundaries were not known is something else.
    merged_loss, merged = loss_and_gradients(model, [(ids, torch.arange(ids.shape[1])[None])])
    table = "model.ngram_embeddings.embedders.0.weight"
    assert (merged_loss - loss).abs() > 1e-3 and not torch.allclose(merged[table], gradients[table], atol=1e-4)


def test_the_loss_of_trl_is_that_of_the_model(model, documents):
    ids, position_ids, _ = packed(documents, (0, 0, 0))
    labels = ids.masked_fill(position_ids == 0, -100)
    expected = model(ids, position_ids=position_ids, labels=labels).loss
    add_fused_lm_head(model)
    fused = model(input_ids=ids, position_ids=position_ids, labels=labels, fused_lm_head=True).loss
    torch.testing.assert_close(fused, expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_boundary_inside_an_earlier_chunk_still_holds(documents):
    # The chunk border falls two tokens after a document began at a nonzero position.
    model = LongCatLiteForCausalLM.from_pretrained(BASE)
    first, second = documents[0], documents[1]
    ids, position_ids, _ = packed([first, second], (0, 20))
    cut = len(first) + 2
    whole = model.model.ngram_embeddings.ids(token_windows(model.config, ids, position_ids=position_ids))
    cache = model(ids[:, :cut], position_ids=position_ids[:, :cut], use_cache=True).past_key_values
    window = cache.append_tokens(ids[:, cut:], lookback=3)
    assert torch.equal(model.model.ngram_embeddings.ids(window), whole[..., cut:])
