# SPDX-License-Identifier: Apache-2.0
"""What the installed transformers calls the cache: `cache` from 5.24 on, `past_key_values` before."""

from inspect import signature

from transformers import LlamaForCausalLM
from transformers.utils.generic import ModelOutput

CACHE = "cache" if "cache" in signature(LlamaForCausalLM.forward).parameters else "past_key_values"


def holding(cache, name: str = CACHE) -> dict:
    """The keyword argument of `model(...)` and `generate(...)` for `cache`; none for None."""
    return {} if cache is None else {name: cache}


def held(output: ModelOutput):
    """The cache in what a model or `generate` returned."""
    return output[CACHE]
