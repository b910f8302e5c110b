# SPDX-License-Identifier: Apache-2.0
"""Bytes of a model's weights by part, module after module, from its config and the headers of its files.

The modules are those that transformers and accelerate place as one piece: a decoder layer, the draft head, and
everything else down to its leaves. They are counted on the meta device; no weight is read.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from eval.checkpoints.load import load_config
from eval.checkpoints.parameters import PARTS
from eval.reports.files import spoken_path
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from modeling_longcat_lite.checkpoint_files import folder_weights, parse_index
from modeling_longcat_lite.checkpoint_header import FLOAT_DTYPES

RELEASED = "meituan-longcat/LongCat-Flash-Lite"
TABLES, BUFFERS = "n-gram tables", "buffers"


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a model without its weights."""

    name: str
    source: str  # what `from_pretrained` takes
    config: LongCatLiteConfig
    dtype: torch.dtype  # that `from_pretrained` loads it in
    table_dtype: torch.dtype  # of the tables in the files
    draft_head: bool


@dataclass(frozen=True)
class Unit:
    """A module that is placed as one piece."""

    name: str
    parts: dict[str, int]  # bytes by part
    attentions: int = 0  # sublayers with a slot in the trunk's cache
    largest_leaf: int = 0  # bytes of its largest module without children, which moves as one when offloaded

    @property
    def size(self) -> int:
        return sum(self.parts.values())


def torch_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype of a config, which may be a name."""
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def header_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Dtype of every floating tensor of the checkpoint in a folder, from the headers alone; none without weights.

    Raises:
        `ValueError`: naming the file that cannot be read, or contradicts the index.
    """
    if not any((folder / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        return {}
    places = folder_weights(folder).places
    return {name: FLOAT_DTYPES[one.dtype] for name, (_, one) in places.items() if one.dtype in FLOAT_DTYPES}


def hub_names(name: str) -> list[str]:
    """Tensor names in the index of a Hub repository; none if it has no index."""
    path = cached_file(
        name,
        SAFE_WEIGHTS_INDEX_NAME,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return [] if path is None else list(parse_index(Path(path).read_bytes(), path))


def read_checkpoint(model: str | None, dtype: str | None = None) -> Checkpoint:
    """Config and headers of a folder, a `config.json` or a Hub name; the released model by default.

    Args:
        model (`str`, *optional*): What `from_pretrained` would be given.
        dtype (`str`, *optional*): Name of the dtype to load it in; the checkpoint's own by default.
    """
    config = load_config(model)
    headers = header_dtypes(Path(model)) if model and Path(model).is_dir() else {}
    names = list(headers) or (hub_names(model) if model and not Path(model).exists() else [])
    carried = model is None or any(".mtp." in f".{name}" for name in names)
    wanted = config.num_nextn_predict_layers
    in_files = next((d for name, d in headers.items() if name.endswith("embed_tokens.weight")), None)
    tables = next((d for name, d in headers.items() if "ngram_embeddings.embedders." in name), None)
    source = model or RELEASED
    source = str(Path(source).parent) if source.endswith(".json") else source
    stored = torch_dtype(config.dtype) or in_files or torch.bfloat16
    return Checkpoint(
        name=spoken_path(source),
        source=source,
        config=config,
        dtype=torch_dtype(dtype) or stored,
        table_dtype=tables or stored,
        draft_head=carried if wanted is None else bool(wanted),
    )


def part_of(name: str) -> str:
    """The part of the model that a tensor belongs to."""
    return next((part for part, text in PARTS.items() if text in name), BUFFERS)


def weigh(checkpoint: Checkpoint, placement: str, bits: int | None = None) -> list[Unit]:
    """The units of a model in the order in which they are placed, n-gram tables among them.

    Args:
        placement (`str`): `"resident"` converts the tables to the model's dtype, `"host"` and `"disk"` leave them in
            the files' own.
        bits (`int`, *optional*): Of a value in the tables, 16, 8 or 4; the checkpoint's by default.
    """
    config = copy.deepcopy(checkpoint.config)
    config.ngram_table_bits = bits or config.ngram_table_bits
    # With its tables, wherever they will be: "host" and "disk" take them out of the list again.
    with torch.device("meta"):
        model = LongCatLiteForCausalLM(config, has_draft_head=checkpoint.draft_head)
    table_dtype = checkpoint.dtype if placement == "resident" else checkpoint.table_dtype
    value_bytes = 2 if bits == 16 else table_dtype.itemsize
    kept, saved = LongCatLiteForCausalLM._keep_in_fp32_modules_strict, model.state_dict().keys()

    def size(name: str, tensor: torch.Tensor) -> int:
        if name == "lm_head.weight" and checkpoint.config.tie_word_embeddings:
            return 0
        if part_of(name) == TABLES:
            return tensor.numel() * (value_bytes if tensor.is_floating_point() else tensor.itemsize)
        if name not in saved or not kept.isdisjoint(name.split(".")):
            return tensor.numel() * tensor.itemsize  # as they are made: int64 or float32
        return tensor.numel() * checkpoint.dtype.itemsize

    return [unit for unit in split(model, "", size) if unit.size]


def split(module: nn.Module, name: str, size: Callable[[str, torch.Tensor], int]) -> Iterator[Unit]:
    """The units of a module tree; `size` gives the bytes of a tensor by name."""
    children = list(module.named_children())
    prefix = f"{name}." if name else ""
    is_whole = not children or type(module).__name__ in LongCatLiteForCausalLM._no_split_modules
    tensors = {f"{prefix}{key}": tensor for key, tensor in own_tensors(module, recurse=is_whole)}
    parts: Counter = Counter()
    for key, tensor in tensors.items():
        parts[part_of(key)] += size(key, tensor)
    leaves: Counter = Counter()
    for key, tensor in tensors.items():
        leaves[key.rpartition(".")[0]] += size(key, tensor)
    halves = getattr(module, "self_attn", None)
    attentions = len(halves) if isinstance(halves, nn.ModuleList) else 0  # not that of the draft head
    yield Unit(name, dict(parts), attentions, max(leaves.values(), default=0))
    if not is_whole:
        for key, child in children:
            yield from split(child, f"{prefix}{key}", size)


def own_tensors(module: nn.Module, recurse: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers, those that no checkpoint holds included."""
    yield from module.named_parameters(recurse=recurse)
    yield from module.named_buffers(recurse=recurse)


__all__ = ["BUFFERS", "RELEASED", "TABLES", "Checkpoint", "Unit", "read_checkpoint", "weigh"]
