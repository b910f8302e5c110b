# SPDX-License-Identifier: Apache-2.0
"""`torch.export` of a forward with a cache: logits, keys and token history leave the graph as they leave the model."""

import pytest
import torch
from conftest import randomize, tiny_config
from transformers import DynamicCache
from transformers.integrations.executorch import export_with_dynamic_cache

from modeling_longcat_lite import LongCatLiteDynamicCache, LongCatLiteForCausalLM
from modeling_longcat_lite.transformers_versions import CACHE

IDS = torch.tensor([[5, 6, 7, 8, 9, 2, 11, 12]])


@pytest.mark.slow  # half a minute of tracing
@torch.no_grad()
def test_a_forward_with_a_cache_is_exported():
    model = randomize(LongCatLiteForCausalLM(tiny_config())).eval()
    model.set_experts_implementation("grouped_mm")  # the plain form branches on which experts were chosen
    mask = torch.ones_like(IDS)
    program = export_with_dynamic_cache(model, IDS, mask).module()
    inputs = {"input_ids": IDS, "attention_mask": mask, "use_cache": True}
    found = program(**inputs, **{CACHE: DynamicCache(config=model.config)})
    expected = model(**inputs)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    cache = found[CACHE]
    assert isinstance(cache, LongCatLiteDynamicCache)
    assert torch.equal(cache.token_history, expected[CACHE].token_history)
    # Decoding goes on from it.
    logits = [model(IDS[:, :1], **{CACHE: held}).logits for held in (cache, expected[CACHE])]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)
