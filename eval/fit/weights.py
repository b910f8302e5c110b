# SPDX-License-Identifier: Apache-2.0
"""Bytes of a model's weights by part, module by module, from its config and the headers of its files.

The modules are those that transformers and accelerate place in one piece: a decoder layer, the draft head, and the
leaves of everything else. They are counted on the meta device; no weight is read.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from eval.checkpoints.load import ModelFolder
from eval.checkpoints.parameters import PARTS
from eval.reports.files import portable_path
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from modeling_longcat_lite.checkpoint_files import find_file, folder_weights, parse_index
from modeling_longcat_lite.checkpoint_header import FLOAT_DTYPES
from modeling_longcat_lite.experts_quantization import EXPERT_FORMATS, ExpertFormat
from modeling_longcat_lite.ngram_quantization import RowFormat, row_format

RELEASED = "meituan-longcat/LongCat-Flash-Lite"
TABLES, EXPERTS, BUFFERS = "n-gram tables", "routed experts", "buffers"


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a model without its weights.

    Args:
        name (`str`): For a report.
        source (`str`): What `from_pretrained` takes.
        dtype (`torch.dtype`): In which `from_pretrained` loads it.
        table_dtype (`torch.dtype`): Of the tables in the files.
        draft_head (`bool`): Whether it has one.
        experts (`ExpertFormat`): How its routed experts are held.
    """

    name: str
    source: str
    config: LongCatLiteConfig
    dtype: torch.dtype
    table_dtype: torch.dtype
    draft_head: bool
    experts: ExpertFormat

    def rows(self, bits: int | str | None) -> tuple[RowFormat, torch.dtype]:
        """How rows are stored if `bits` is asked for, else as in the files; and the dtype of unpacked rows."""
        asked = row_format(bits or self.config.ngram_table_bits)
        return asked, torch.bfloat16 if bits and not asked.is_packed else self.table_dtype


@dataclass(frozen=True)
class Unit:
    """A module that is placed in one piece.

    Args:
        parts (`dict[str, int]`): Bytes by part.
        attentions (`int`): Sublayers with a slot in the trunk's cache.
        largest_leaf (`int`): Bytes of its largest module without children, which is what moves when it is offloaded.
    """

    name: str
    parts: dict[str, int]
    attentions: int = 0
    largest_leaf: int = 0

    @property
    def size(self) -> int:
        return sum(self.parts.values())


def torch_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype of a config, which may be a name."""
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def header_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Dtype of every floating-point tensor of the checkpoint in a folder, from the headers; empty without weights.

    Raises:
        `ValueError`: naming the file that cannot be read, or contradicts the index.
    """
    if not any((folder / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        return {}
    places = folder_weights(folder).places
    return {name: FLOAT_DTYPES[one.dtype] for name, (_, one) in places.items() if one.dtype in FLOAT_DTYPES}


def hub_names(name: str) -> list[str]:
    """Tensor names in the index of a Hub repository; empty if it has no index."""
    path = find_file(name, SAFE_WEIGHTS_INDEX_NAME, {})
    return [] if path is None else list(parse_index(Path(path).read_bytes(), path))


def read_checkpoint(model: str | None, dtype: str | None = None, experts: str | None = None) -> Checkpoint:
    """Config and headers of a folder, a `config.json` or a Hub name; the released model by default.

    Args:
        model (`str`, *optional*): What `from_pretrained` would be given.
        dtype (`str`, *optional*): Name of the dtype to load it in; the checkpoint's own by default.
        experts (`str`, *optional*): One of `EXPERT_FORMATS`; that of `dtype` by default.
    """
    config = ModelFolder(model).ngram_config
    headers = header_dtypes(Path(model)) if model and Path(model).is_dir() else {}
    names = list(headers) or (hub_names(model) if model and not Path(model).exists() else [])
    carried = model is None or any(".mtp." in f".{name}" for name in names)
    wanted = config.num_nextn_predict_layers
    in_files = next((d for name, d in headers.items() if name.endswith("embed_tokens.weight")), None)
    tables = next((d for name, d in headers.items() if "ngram_embeddings.embedders." in name), None)
    source = model or RELEASED
    source = str(Path(source).parent) if source.endswith(".json") else source
    stored = torch_dtype(config.dtype) or in_files or torch.bfloat16
    loaded = torch_dtype(dtype) or stored
    return Checkpoint(
        name=portable_path(source),
        source=source,
        config=config,
        dtype=loaded,
        table_dtype=tables or stored,
        draft_head=carried if wanted is None else bool(wanted),
        experts=EXPERT_FORMATS[experts or str(loaded).removeprefix("torch.")],
    )


def part_of(name: str) -> str:
    """The part of the model that a tensor belongs to."""
    return next((part for part, text in PARTS.items() if text in name), BUFFERS)


def weigh(checkpoint: Checkpoint, placement: str, bits: int | str | None = None) -> list[Unit]:
    """The units of a model in the order in which they are placed, n-gram tables among them.

    Args:
        placement (`str`): `"resident"` converts the tables to the model's dtype, `"host"` and `"disk"` leave them in
            the files' own.
        bits (`int` or `str`, *optional*): Row format of the tables; the checkpoint's by default.
    """
    config = copy.deepcopy(checkpoint.config)
    rows, stored = checkpoint.rows(bits)
    config.ngram_table_bits = rows.bits
    # With its tables, wherever they will be: "host" and "disk" take them out of the list again.
    with torch.device("meta"):
        model = LongCatLiteForCausalLM(config, has_draft_head=checkpoint.draft_head)
    held = checkpoint.dtype if placement == "resident" and not bits else stored
    row_bytes = rows.row_bytes(config.subtable_width, held)
    kept, saved = LongCatLiteForCausalLM._keep_in_fp32_modules_strict, model.state_dict().keys()

    def size(name: str, tensor: torch.Tensor) -> int:
        if name == "lm_head.weight" and checkpoint.config.tie_word_embeddings:
            return 0
        if part_of(name) == TABLES:
            return len(tensor) * row_bytes
        if part_of(name) == EXPERTS:
            return checkpoint.experts.num_bytes(tensor.shape)
        if name not in saved or not kept.isdisjoint(name.split(".")):
            return tensor.numel() * tensor.itemsize  # as they are made: int64 or float32
        return tensor.numel() * checkpoint.dtype.itemsize

    return [unit for unit in split(model, "", size) if unit.size]


def split(module: nn.Module, name: str, size: Callable[[str, torch.Tensor], int]) -> Iterator[Unit]:
    """The units of a module tree; `size` gives the bytes of a tensor by name."""
    children = list(module.named_children())
    prefix = f"{name}." if name else ""
    is_whole = not children or type(module).__name__ in LongCatLiteForCausalLM._no_split_modules
    parts: Counter = Counter()
    leaves: Counter = Counter()
    for tensors in (module.named_parameters(recurse=is_whole), module.named_buffers(recurse=is_whole)):
        for key, tensor in tensors:
            num_bytes = size(prefix + key, tensor)
            parts[part_of(prefix + key)] += num_bytes
            leaves[key.rpartition(".")[0]] += num_bytes
    halves = getattr(module, "self_attn", None)
    attentions = len(halves) if isinstance(halves, nn.ModuleList) else 0  # the draft head has none in the cache
    yield Unit(name, dict(parts), attentions, max(leaves.values(), default=0))
    if not is_whole:
        for key, child in children:
            yield from split(child, f"{prefix}{key}", size)


__all__ = ["BUFFERS", "EXPERTS", "RELEASED", "TABLES", "Checkpoint", "Unit", "read_checkpoint", "weigh"]
