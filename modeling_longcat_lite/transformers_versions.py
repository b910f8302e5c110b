# SPDX-License-Identifier: Apache-2.0
"""All that differs between the supported versions of transformers, in one file.

    5.16 to 5.22    loading, forward and generation; what trainers and other engines pin
    5.23            everything
    5.24            everything; a cache is called `cache`, which was `past_key_values` before

A name that upstream changes must never disappear into `**kwargs`: if a cache arrives under a name that is not read,
every step sees only its own token, and the generated tokens are wrong without an error.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.utils import TransformersKwargs, logging
from transformers.utils.output_capturing import OutputRecorder

NEWEST_TESTED = (5, 24)
CACHE_NAMES = ("cache", "past_key_values")
# What this version calls a cache, in arguments and in outputs.
CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"

# Tensors that trainers, attention functions and tokenizers pass along with those that the model reads.
KNOWN_TENSORS = frozenset(TransformersKwargs.__annotations__) | {
    "cache_position",
    "labels",
    "length",
    "logits_to_keep",
    "max_seqlen_in_batch",
    "offset_mapping",
    "overflow_to_sample_mapping",
    "shift_labels",
    "special_tokens_mask",
    "s_aux",
    "token_type_ids",
}

logger = logging.get_logger(__name__)


def warn_of_an_unknown_version():
    """Warns once if transformers is newer than the versions this code was tested with."""
    if tuple(int(number) for number in transformers.__version__.split(".")[:2]) > NEWEST_TESTED:
        newest = ".".join(map(str, NEWEST_TESTED))
        logger.warning_once(
            f"transformers {transformers.__version__} is newer than {newest}, the newest version that LongCat-Lite "
            "was tested with. Inputs under unknown names raise an error."
        )


def the_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache, under whichever of its two names it was passed.

    Raises:
        `ValueError`: if it was passed under both, or is not a `Cache`.
    """
    if cache is not None and past_key_values is not None and cache is not past_key_values:
        raise ValueError("`cache` and `past_key_values` are two names of one argument: pass only one.")
    found = past_key_values if cache is None else cache
    if found is not None and not isinstance(found, Cache):
        raise ValueError(
            f"`{CACHE}` is a {type(found).__name__}, not a `Cache`: pass the one that the model returned, or none."
        )
    return found


def check_unread_inputs(unread: Mapping[str, Any]):
    """Checks the keyword arguments that a forward pass hands on without reading them.

    Raises:
        `ValueError`: naming an argument that carries a cache or a tensor under an unknown name.
    """
    for name, value in unread.items():
        if isinstance(value, Cache):
            raise ValueError(
                f"A cache was passed as `{name}`, a name that this model does not read; the generated tokens would be "
                f"wrong. Pass it as `{CACHE}`. transformers {transformers.__version__} is installed; versions up to "
                f"{'.'.join(map(str, NEWEST_TESTED))} were tested."
            )
        if isinstance(value, torch.Tensor) and name not in KNOWN_TENSORS:
            raise ValueError(
                f"The tensor `{name}` is not an input of this model. Check its name: leaving it unread would "
                "silently change the result."
            )


def check_prepared_cache(model_kwargs: Mapping[str, Any], is_wanted: bool) -> Cache | None:
    """The cache that `generate` prepared, which must be under the name `CACHE`.

    Raises:
        `ValueError`: if there is none although one is wanted, or it has another name.
    """
    cache = model_kwargs.get(CACHE)
    check_unread_inputs(
        {name: value for name, value in model_kwargs.items() if isinstance(value, Cache) and name != CACHE}
    )
    if is_wanted and cache is None:
        raise ValueError(
            f"`generate` of transformers {transformers.__version__} prepared no cache under the name `{CACHE}`, "
            "although `use_cache` is on. Pass `use_cache=False`, or install a version up to "
            f"{'.'.join(map(str, NEWEST_TESTED))}."
        )
    return cache


def check_promise(promised: Cache | None, used: Cache | None):
    """Raises a `ValueError` if `generate` prepared a cache and another one, or none, was used."""
    if promised is not None and used is not promised:
        raise ValueError(
            f"`generate` prepared a {type(promised).__name__}, but the model got "
            f"{'none' if used is None else 'another one'}: something between them renames or drops `{CACHE}`."
        )


def reset_dynamic_cache(cache: DynamicCache):
    """Empties a cache. Before 5.23, `DynamicCache.reset` turns its tokens into zeros instead of removing them."""
    DynamicCache.reset(cache)
    layers: Any = cache.layers
    for layer in layers:
        if layer.get_seq_length():
            layer.keys, layer.values, layer.is_initialized = None, None, False


def output_recorder(module: type[torch.nn.Module], layers_field: str) -> OutputRecorder:
    """An `OutputRecorder` of hidden states whose layers are counted by the config's `layers_field`.

    Earlier versions than 5.23 have no such count.
    """
    options: dict[str, Any] = {"num_hidden_layers_key": layers_field}
    known = {field.name for field in dataclasses.fields(OutputRecorder)}
    return OutputRecorder(module, **{name: value for name, value in options.items() if name in known})


__all__ = [
    "CACHE",
    "CACHE_NAMES",
    "check_prepared_cache",
    "check_promise",
    "check_unread_inputs",
    "output_recorder",
    "reset_dynamic_cache",
    "the_cache",
    "warn_of_an_unknown_version",
]
