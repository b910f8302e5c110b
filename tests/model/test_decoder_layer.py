# SPDX-License-Identifier: Apache-2.0
"""The shortcut-connected layer against transformers' `LongcatFlashDecoderLayer`."""

from functools import partial

import pytest
import torch
from conftest import PLAIN_ROPE, YARN_ROPE, randomize, their_config, tiny_config
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.models.longcat_flash.modeling_longcat_flash import (
    LongcatFlashDecoderLayer,
    LongcatFlashMLP,
    LongcatFlashRotaryEmbedding,
)

from modeling_longcat_lite.decoder_layer import LongCatLiteDecoderLayer, LongCatLiteMLP
from modeling_longcat_lite.rotary_embedding import LongCatLiteRotaryEmbedding
from modeling_longcat_lite.transformers_versions import CACHE

LENGTH = 6
CAUSAL = torch.full((1, 1, LENGTH, LENGTH), torch.finfo(torch.float32).min).triu(1)
POSITIONS = torch.arange(LENGTH).unsqueeze(0)


def pair(rope: dict = PLAIN_ROPE) -> tuple[LongCatLiteDecoderLayer, LongcatFlashDecoderLayer]:
    """Ours and theirs with the same weights."""
    config = tiny_config(rope_parameters=dict(rope))
    config._attn_implementation = "eager"
    ours = randomize(LongCatLiteDecoderLayer(config, layer_idx=1))
    theirs = LongcatFlashDecoderLayer(their_config(config), layer_idx=1)
    weights = dict(ours.state_dict())
    # Theirs also has rows for the zero experts, which nothing reads.
    unused = theirs.mlp.experts.gate_up_proj.shape[0] - config.n_routed_experts
    weights["mlp.experts.gate_up_proj"] = nn.functional.pad(weights["mlp.experts.gate_up_proj"], [0] * 5 + [unused])
    theirs.load_state_dict(weights)
    return ours, theirs


def states(seed: int = 1) -> torch.Tensor:
    return torch.randn(2, LENGTH, 48, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rope", [PLAIN_ROPE, YARN_ROPE], ids=["default", "yarn"])
def test_ours_equals_theirs(rope):
    ours, theirs = pair(rope)
    x, y = states().requires_grad_(), states().requires_grad_()
    output = ours(
        x,
        attention_mask=CAUSAL,
        position_embeddings=LongCatLiteRotaryEmbedding(ours.self_attn[0].config)(x, POSITIONS),
    )
    expected = theirs(
        y,
        attention_mask=CAUSAL,
        position_embeddings=LongcatFlashRotaryEmbedding(theirs.self_attn[0].config)(y, POSITIONS),
    )
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    output.square().mean().backward()
    expected.square().mean().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-5)


def test_both_attentions_have_their_own_cache_slot():
    ours, theirs = pair()
    x = states()
    our_cache, their_cache = DynamicCache(), DynamicCache()
    ours(
        x,
        CAUSAL,
        cache=our_cache,
        position_embeddings=LongCatLiteRotaryEmbedding(ours.self_attn[0].config)(x, POSITIONS),
    )
    theirs(
        x,
        CAUSAL,
        **{CACHE: their_cache},
        position_embeddings=LongcatFlashRotaryEmbedding(theirs.self_attn[0].config)(x, POSITIONS),
    )
    assert [our_cache.get_seq_length(slot) for slot in range(4)] == [0, 0, LENGTH, LENGTH]
    for slot in (2, 3):
        torch.testing.assert_close(our_cache.layers[slot].keys, their_cache.layers[slot].keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            our_cache.layers[slot].values, their_cache.layers[slot].values, atol=1e-5, rtol=1e-5
        )


def test_the_shortcut_skips_the_second_half():
    """What the MoE adds is not seen by the second attention and MLP: without it, the output lacks that sum alone."""
    layer, _ = pair()
    x = states()
    inputs = {
        "attention_mask": CAUSAL,
        "position_embeddings": LongCatLiteRotaryEmbedding(layer.self_attn[0].config)(x, POSITIONS),
    }
    whole = layer(x, **inputs)
    shortcuts = []
    layer.mlp.register_forward_hook(lambda module, args, output: shortcuts.append(output) or torch.zeros_like(output))
    torch.testing.assert_close(layer(x, **inputs) + shortcuts[0], whole, atol=1e-5, rtol=1e-5)
    assert shortcuts[0].abs().mean() > 0.1


def test_mlp_ours_equals_theirs():
    config = tiny_config()
    ours = randomize(LongCatLiteMLP(config))
    theirs = LongcatFlashMLP(config, config.ffn_hidden_size)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(states()), theirs(states()))


def test_gradient_checkpointing_gives_the_same_gradients():
    plain, _ = pair()
    checkpointed, _ = pair()
    checkpointed.gradient_checkpointing = True
    checkpointed._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    inputs = {
        "attention_mask": CAUSAL,
        "position_embeddings": LongCatLiteRotaryEmbedding(plain.self_attn[0].config)(states(), POSITIONS),
    }
    for layer in (plain, checkpointed):
        layer.train()(states().requires_grad_(), **inputs).square().sum().backward()
    for (name, expected), (_, found) in zip(plain.named_parameters(), checkpointed.named_parameters(), strict=True):
        assert torch.equal(found.grad, expected.grad), name
