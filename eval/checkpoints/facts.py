# SPDX-License-Identifier: Apache-2.0
"""Facts that only a checkpoint itself can tell, and what other runtimes would find in it."""

from collections.abc import Mapping
from typing import Any

from eval.checkpoints.files import CheckpointFiles, StoredRows
from eval.checkpoints.problems import Headers, Problem, dtype_counts
from eval.checkpoints.runtimes import RUNTIMES, config_problems
from eval.checkpoints.runtimes import tensor_problems as runtime_tensor_problems
from eval.checkpoints.sampled_rows import draft_words, latent_norms, router_biases, sampled_tables, table_names
from modeling_longcat_lite import LongCatLiteConfig
from modeling_longcat_lite.checkpoint_header import StoredTensor
from modeling_longcat_lite.checkpoint_layout import DRAFT_HEAD_PREFIX
from modeling_longcat_lite.checkpoint_names import is_indexer, is_ngram_table

SHOWN = 3  # findings that are listed; the others are counted
ROPE_FIELDS = ("rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings")
TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def file_facts(files: CheckpointFiles, headers: Headers) -> dict[str, Any]:
    """Shards, bytes and dtypes."""
    used = {name for name, _ in headers.places.values()}
    others = {name for name in files.sizes if name.endswith(".safetensors")} - used
    return {
        "weight_files": len(used),
        "other_safetensors": sorted(others),
        "tensors": len(headers.places),
        "draft_head_tensors": sum(name.startswith(DRAFT_HEAD_PREFIX) for name in headers.places),
        "indexer_tensors": sum(map(is_indexer, headers.places)),
        "bytes_of_tensors": sum(tensor.num_bytes for _, tensor in headers.places.values()),
        "dtypes": dtype_counts(headers.places),
    }


def config_facts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as `config.json` states them, and those that differ from LongCat-Flash-Lite."""
    released = LongCatLiteConfig().to_dict()
    rope = {name: fields[name] for name in ROPE_FIELDS if name in fields}
    spelled = [key for key in ("type", "rope_type") if key in (fields.get("rope_scaling") or {})]
    known = {name: value for name, value in fields.items() if name in released and name not in rope}
    named = ("transformers_version", "architectures", "model_type", "auto_map", "dtype")
    return {
        "model_type": fields.get("model_type", "absent"),
        "architectures": fields.get("architectures", "absent"),
        "transformers_version": fields.get("transformers_version", "absent"),
        "rope": rope,
        "rope_type_key": spelled or "absent",
        "token_ids": {name: fields.get(name, "absent") for name in TOKEN_FIELDS},
        "quantization_config": quantization_facts(fields.get("quantization_config")),
        "other_than_released": {k: v for k, v in known.items() if v != released[k] and k not in named},
        "unknown_here": sorted(fields.keys() - released.keys() - {*rope, "torch_dtype", "auto_map", "model_type"}),
    }


def quantization_facts(stated: Mapping[str, Any] | None) -> dict[str, Any] | str:
    """`quantization_config`; a list of modules becomes its length, and whether the n-gram tables are in it."""
    if not stated:
        return "absent"
    facts = {}
    for name, value in stated.items():
        if isinstance(value, list) and value and isinstance(value[0], str):
            tables = [module for module in value if is_ngram_table(f"{module}.") or "ngram" in module]
            value = {"entries": len(value), "first": value[0], "n-gram tables": tables[:1] or "not in it"}
        facts[name] = value
    return facts


def value_facts(stored: StoredRows, config: LongCatLiteConfig, rows: int) -> tuple[dict[str, Any], list[Problem]]:
    """Facts about sampled rows of the tables and about small tensors, and what is wrong with them."""
    tables, of_tables = sampled_tables(stored, config, rows, table_names(stored))
    biases, of_biases = router_biases(stored, config)
    share = draft_words(stored, rows)
    facts = {
        "draft head's word rows that are the model's": "no draft head" if share is None else share,
        "tables": tables,
        "router biases": biases,
        "latent norms": latent_norms(stored, config),
    }
    return facts, of_tables + of_biases


def runtime_findings(fields: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, list[str]]:
    """What each of the other runtimes would miss, or could not serve as trained."""
    try:
        of_tensors = runtime_tensor_problems(fields, tensors)
    except (ValueError, TypeError) as error:
        of_tensors = [str(error)]
    shown = of_tensors[:SHOWN]
    if len(of_tensors) > SHOWN:
        shown.append(f"and {len(of_tensors) - SHOWN} more tensors")
    if (method := (fields.get("quantization_config") or {}).get("quant_method")) is not None:
        # Expected names and dtypes are known only for weights that are not quantized.
        shown = [f"weights in {method} (`quantization_config`): whether this runtime reads them is not known here"]
    return {runtime: config_problems(runtime, fields) + shown for runtime in RUNTIMES}


__all__ = ["config_facts", "file_facts", "runtime_findings", "value_facts"]
