# SPDX-License-Identifier: Apache-2.0
"""LongCat-Flash-Lite for transformers.

Importing it registers the classes with `AutoConfig`, `AutoModel` and `AutoModelForCausalLM`, and makes
`save_pretrained` and `push_to_hub` save the code with the weights.

These are the names that users need. A module's own `__all__` lists what the other folders of the repository may
import.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_longcat_lite import LongCatLiteConfig
from .modeling_longcat_lite import LongCatLiteForCausalLM, LongCatLiteModel, LongCatLitePreTrainedModel
from .ngram_cache import LongCatLiteDynamicCache, LongCatLiteQuantizedCache, LongCatLiteStaticCache
from .ngram_embedding import ngram_row_ids
from .ngram_row_files import read_hot_rows, write_hot_rows

# `exist_ok`: another package may have registered the same model type before.
AutoConfig.register(LongCatLiteConfig.model_type, LongCatLiteConfig, exist_ok=True)
AutoModel.register(LongCatLiteConfig, LongCatLiteModel, exist_ok=True)
AutoModelForCausalLM.register(LongCatLiteConfig, LongCatLiteForCausalLM, exist_ok=True)

LongCatLiteConfig.register_for_auto_class("AutoConfig")
LongCatLiteModel.register_for_auto_class("AutoModel")
LongCatLiteForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = [
    "LongCatLiteConfig",
    "LongCatLiteDynamicCache",
    "LongCatLiteForCausalLM",
    "LongCatLiteModel",
    "LongCatLitePreTrainedModel",
    "LongCatLiteQuantizedCache",
    "LongCatLiteStaticCache",
    "ngram_row_ids",
    "read_hot_rows",
    "write_hot_rows",
]
