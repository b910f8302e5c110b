# SPDX-License-Identifier: Apache-2.0
"""What a card says about the model itself, found in its folder without reading the weights.

Parameters are counted on the meta device (`eval.checkpoints.parameters`), bytes from the headers of the safetensors
files.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eval.checkpoints.parameters import report as count_parameters
from eval.checkpoints.runtime_differences import differences
from eval.checkpoints.runtimes import RUNTIMES, config_problems
from eval.reports.results import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from eval.reports.units import format_size
from model_cards.training_record import formatted, read_json
from modeling_longcat_lite import LongCatLiteConfig
from modeling_longcat_lite.checkpoint_files import folder_weights
from modeling_longcat_lite.checkpoint_header import read_safetensors_header
from modeling_longcat_lite.ngram_quantization import row_format
from modeling_longcat_lite.ngram_row_files import ROW_DELTA_FILE, changed_rows_by_order


@dataclass(frozen=True)
class DescribedModel:
    """A model, or an adapter with its tokenizer and changed rows.

    Args:
        config (`LongCatLiteConfig`): Of the model, or of the adapter's base.
        rows (`list`): Rows of the card's table: name and value.
        memory (`list`):
            For each placement of the n-gram tables: its name, the weights on the accelerator, and what is elsewhere.
            Empty for an adapter.
        is_adapter (`bool`): Whether this is an adapter.
        has_row_delta (`bool`): Whether an adapter has changed n-gram rows.
        has_tools (`bool`): Whether tokenizer and chat template can write and read tool calls.
        served (`dict`): For each other runtime that serves the model: what it computes differently.
    """

    config: LongCatLiteConfig
    rows: list[tuple[str, str]]
    memory: list[tuple[str, str, str]]
    is_adapter: bool
    has_row_delta: bool
    has_tools: bool
    served: dict[str, list[str]]


def describe(folder: Path) -> DescribedModel:
    """Describe the model or the adapter in `folder`.

    Raises:
        `ValueError`: naming the file that is missing or broken.
    """
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    # Changed rows in a whole model's folder go into its tables when it is loaded.
    has_row_delta = is_adapter and (folder / ROW_DELTA_FILE).is_file()
    if is_adapter:
        adapter = read_json(folder / ADAPTER_CONFIG, "peft_type")
        config = base_config(folder)
        rows, memory = adapter_rows(folder, adapter), []
    elif not (folder / "config.json").is_file():
        raise ValueError(f"`model` {folder} has neither config.json nor {ADAPTER_CONFIG}")
    else:
        config = LongCatLiteConfig.from_pretrained(folder)
        tables, others = stored_bytes(folder)
        rows, memory = model_rows(config, tables, others), memory_rows(config, tables, others)
    if has_row_delta:
        rows.append(("changed n-gram rows", delta_text(folder / ROW_DELTA_FILE, config)))
    served = {} if is_adapter else served_elsewhere(config)
    return DescribedModel(config, rows, memory, is_adapter, has_row_delta, has_tools(folder), served)


def base_config(folder: Path) -> LongCatLiteConfig:
    """The config of the model that the adapter in `folder` was trained on.

    Raises:
        `ValueError`: that model is not where the adapter says, or is an adapter itself.
    """
    base = read_json(folder / ADAPTER_CONFIG, "base_model_name_or_path")["base_model_name_or_path"]
    if (Path(str(base)) / ADAPTER_CONFIG).is_file():  # transformers would take the base of that one
        raise ValueError(
            f"`base_model_name_or_path` in {folder / ADAPTER_CONFIG} is {base!r}, an adapter itself: merge it into "
            "its base (`--merge_adapter` of training.sft), and train on the merged model"
        )
    try:
        return LongCatLiteConfig.from_pretrained(base)
    except (OSError, TypeError) as error:
        raise ValueError(
            f"`base_model_name_or_path` in {folder / ADAPTER_CONFIG} is {base!r}, where no model can be found: {error}"
        ) from error


def model_rows(config: LongCatLiteConfig, tables: int, others: int) -> list[tuple[str, str]]:
    """Size and shape of a model. Quantized tables count with the numbers that they represent."""
    counts = count_parameters(LongCatLiteConfig.from_dict({**config.to_dict(), "ngram_table_bits": 16}))
    activated = counts["activated_by_routed_experts"]
    fewest, most = (min(activated, key=int), max(activated, key=int))
    rows = [("parameters", formatted(counts["total"]))]
    if counts["ngram"]:
        rows.append(("of these, n-gram embedding", f"{counts['ngram']:,} ({100 * counts['ngram_share']:.1f} %)"))
    rows.append(
        (
            "activated per token",
            f"{activated[fewest]:,} to {activated[most]:,}, with {fewest} to {most} routed experts",
        )
    )
    if counts["draft_head"]:
        rows.append(("draft head, in addition", formatted(counts["draft_head"])))
    return [*rows, *shape_rows(config), ("weights", f"{format_size(tables + others)}, {weights_kind(config)}")]


def shape_rows(config: LongCatLiteConfig) -> list[tuple[str, str]]:
    """Layers, experts, n-grams, vocabulary and context, from the config."""
    experts = f"{config.n_routed_experts} routed and {config.zero_expert_num} zero-computation, top {config.moe_topk}"
    rows = [
        ("layers, hidden size", f"{config.num_layers} (two attentions each), {config.hidden_size:,}"),
        ("experts per layer", experts),
    ]
    if config.use_ngram_embedding:
        tables = f"{config.num_subtables} tables, {sum(config.subtable_sizes):,} rows of {config.subtable_width}"
        rows.append(("n-grams", f"of 2 to {config.max_ngram_order} tokens; {tables}"))
    context = f"{config.max_position_embeddings:,} tokens"
    rope = config.rope_parameters
    if rope["rope_type"] == "yarn":
        context += f", extended from {rope['original_max_position_embeddings']:,} by YaRN"
    return [*rows, ("vocabulary", f"{config.vocab_size:,} tokens"), ("context", context)]


def weights_kind(config: LongCatLiteConfig) -> str:
    """How numbers are stored."""
    kind = str(config.dtype).removeprefix("torch.")
    quantized: Any = getattr(config, "quantization_config", None)
    if quantized:
        kind = quantized["quant_method"] if isinstance(quantized, dict) else quantized.quant_method
    rows = row_format(config.ngram_table_bits)
    return f"{kind}; n-gram tables in {rows.describe(config.dtype)}" if rows.is_packed else kind


def memory_rows(config: LongCatLiteConfig, tables: int, others: int) -> list[tuple[str, str, str]]:
    """For each value of `ngram_tables`: weights on the accelerator, and what is elsewhere."""
    if not config.use_ngram_embedding:
        return []
    return [
        ('`"resident"`, the default', format_size(tables + others), "nothing"),
        ('`"host"`', format_size(others), f"{format_size(tables)} in memory"),
        ('`"disk"`', format_size(others), "the rows in use, in memory"),
    ]


def stored_bytes(folder: Path) -> tuple[int, int]:
    """Bytes of the n-gram tables and of all other tensors."""
    sizes = {True: 0, False: 0}
    for name, (_, entry) in folder_weights(folder).places.items():
        sizes[".embedders." in name] += entry.num_bytes
    return sizes[True], sizes[False]


def adapter_rows(folder: Path, adapter: dict[str, Any]) -> list[tuple[str, str]]:
    """Kind and size of an adapter, from its config and the header of its weights."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"`model` {folder} has an {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}; save the adapter again")
    tensors = read_safetensors_header(folder / ADAPTER_WEIGHTS)[0].values()
    count = sum(math.prod(entry.shape) for entry in tensors)
    size = format_size((folder / ADAPTER_WEIGHTS).stat().st_size)
    rows = [("adapter", str(adapter["peft_type"])), ("trained parameters", f"{count:,} ({size})")]
    for key, label in (("r", "rank"), ("lora_alpha", "alpha"), ("lora_dropout", "dropout")):
        if key in adapter:
            rows.append((label, formatted(adapter[key])))
    for key, label in (("target_modules", "modules"), ("target_parameters", "parameters")):
        if targets := adapter.get(key):
            rows.append((label, f"`{targets}`" if isinstance(targets, str) else ", ".join(sorted(targets))))
    return rows


def delta_text(delta: Path, config: LongCatLiteConfig) -> str:
    """How many rows of the tables a delta changes, for n-grams of each length."""
    counts = changed_rows_by_order(delta, config)
    orders = ", ".join(f"{count:,} of {order} tokens" for order, count in counts.items())
    return f"{sum(counts.values()):,} of {sum(config.subtable_sizes):,}: {orders}"


def has_tools(folder: Path) -> bool:
    """Whether the chat template writes tools, and the tokenizer can read calls back."""
    template, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if not template.is_file() or not settings.is_file():
        return False
    renders = re.search(r"\btools\b", template.read_text(encoding="utf-8")) is not None
    return renders and "response_template" in read_json(settings)


def served_elsewhere(config: LongCatLiteConfig) -> dict[str, list[str]]:
    """For each runtime that serves a model with this config: what it computes differently."""
    if vars(config).get("quantization_config"):
        return {}  # it is not known here whether they read such weights
    with TemporaryDirectory() as folder:
        config.to_json_file(Path(folder, "config.json"))
        fields = read_json(Path(folder, "config.json"))
    return {  # the card's command for vLLM already includes its override
        name: [text for text in differences(name, fields) if "--hf-overrides" not in text]
        for name in RUNTIMES
        if not config_problems(name, fields)
    }


__all__ = ["DescribedModel", "base_config", "describe"]
