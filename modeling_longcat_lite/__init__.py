# SPDX-License-Identifier: Apache-2.0
"""LongCat-Flash-Lite for transformers.

Importing registers the classes with `AutoConfig`, `AutoModel` and `AutoModelForCausalLM`, and lets `save_pretrained`
and `push_to_hub` ship the code with the weights.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .checkpoint_files import (
    SAVE_ID,
    WHOLE_FILE,
    check_same_save,
    choose_weight_files,
    folder_weights,
    parse_index,
    read_weights,
)
from .checkpoint_header import FLOAT_DTYPES, StoredTensor, parse_safetensors_header, read_safetensors_header
from .checkpoint_layout import of_another_format
from .checkpoint_saving import superseded
from .configuration_longcat_lite import LongCatLiteConfig, segment_ends
from .modeling_longcat_lite import LongCatLiteForCausalLM, LongCatLiteModel, LongCatLitePreTrainedModel
from .ngram_cache import LongCatLiteDynamicCache, LongCatLiteQuantizedCache, LongCatLiteStaticCache
from .ngram_embedding import ngram_row_ids, ngram_tokens
from .ngram_quantization import dequantize_rows, packed_width, quantize_rows
from .ngram_row_files import (
    ROW_DELTA_FILE,
    changed_rows_by_order,
    other_base,
    read_hot_rows,
    read_row_delta,
    sample_base,
    write_hot_rows,
    write_row_delta,
)
from .ngram_row_store import RowOverlay
from .ngram_table_files import find_tables
from .ngram_tables import NgramTables
from .whole_files import check_finished, staged_files, whole_file, write_whole

# `exist_ok`: another package may have registered the same model type before.
AutoConfig.register(LongCatLiteConfig.model_type, LongCatLiteConfig, exist_ok=True)
AutoModel.register(LongCatLiteConfig, LongCatLiteModel, exist_ok=True)
AutoModelForCausalLM.register(LongCatLiteConfig, LongCatLiteForCausalLM, exist_ok=True)

LongCatLiteConfig.register_for_auto_class("AutoConfig")
LongCatLiteModel.register_for_auto_class("AutoModel")
LongCatLiteForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = [
    "FLOAT_DTYPES",
    "ROW_DELTA_FILE",
    "SAVE_ID",
    "WHOLE_FILE",
    "LongCatLiteConfig",
    "LongCatLiteDynamicCache",
    "LongCatLiteForCausalLM",
    "LongCatLiteModel",
    "LongCatLitePreTrainedModel",
    "LongCatLiteQuantizedCache",
    "LongCatLiteStaticCache",
    "NgramTables",
    "RowOverlay",
    "StoredTensor",
    "changed_rows_by_order",
    "check_finished",
    "check_same_save",
    "choose_weight_files",
    "dequantize_rows",
    "find_tables",
    "folder_weights",
    "ngram_row_ids",
    "ngram_tokens",
    "of_another_format",
    "other_base",
    "packed_width",
    "parse_index",
    "parse_safetensors_header",
    "quantize_rows",
    "read_hot_rows",
    "read_row_delta",
    "read_safetensors_header",
    "read_weights",
    "sample_base",
    "segment_ends",
    "staged_files",
    "superseded",
    "whole_file",
    "write_hot_rows",
    "write_row_delta",
    "write_whole",
]
