# SPDX-License-Identifier: Apache-2.0
"""What the installed transformers calls the cache: `cache` from 5.24 on, `past_key_values` before."""

from inspect import signature

import pytest
import torch
from transformers import LlamaForCausalLM, cache_utils
from transformers.utils.generic import ModelOutput

CACHE = "cache" if "cache" in signature(LlamaForCausalLM.forward).parameters else "past_key_values"


def holding(cache, name: str = CACHE) -> dict:
    """The keyword argument of `model(...)` and `generate(...)` for `cache`; none for None."""
    return {} if cache is None else {name: cache}


def held(output: ModelOutput):
    """The cache in what a model or `generate` returned."""
    return output[CACHE]


def keep_every_number(patch: pytest.MonkeyPatch):
    """Has quantized caches hold float32, so that what they hold is compared, and not how they round."""
    fp8_layer = getattr(cache_utils, "Fp8QuantizedLayer", None)  # not in the oldest versions
    if fp8_layer is not None:
        patch.setattr(fp8_layer, "fp8_dtype", torch.float32)
