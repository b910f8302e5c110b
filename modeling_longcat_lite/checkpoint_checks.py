# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's tensors against the table of `checkpoint_layout.py`, before a byte of a weight is read.

Loading, merging and quantizing raise the first fault as a `ValueError`; verification lists all of them.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence

from .checkpoint_files import NO_TENSOR, Fault, Places
from .checkpoint_fp8 import scale_faults
from .checkpoint_header import FP8
from .checkpoint_layout import (
    DRAFT_HEAD_PREFIX,
    LAYOUT,
    SCALES,
    Expected,
    config_fields,
    own_tensors,
    released_tensors,
)
from .checkpoint_names import is_indexer, is_ngram_table, spelling_of
from .configuration_longcat_lite import LongCatLiteConfig
from .experts_quantization import BLOCK
from .sparse_attention import leave_indexer

EXTRA = tuple(line.name for line in LAYOUT if line.may_be_extra)


def check_checkpoint(config: LongCatLiteConfig, places: Places):
    """Checks a checkpoint that is not going to be loaded as loading would.

    Args:
        config (`LongCatLiteConfig`): Of the checkpoint.
        places (`Mapping[str, tuple[str, StoredTensor]]`): File of each tensor, and its entry in the header.

    Raises:
        `ValueError`: naming the tensor that is missing, has another shape or dtype, or does not belong to the model.
    """
    quantization = vars(config).get("quantization_config") or {}
    method = quantization.get("quant_method")
    if method not in (None, "fp8"):
        return  # its names and shapes are the quantizer's
    leave_indexer(places, config.dense_attention_limit)
    block = None if method is None else quantization.get("weight_block_size") or BLOCK
    raise_first_fault(layout_faults(config, places, block))


def raise_first_fault(faults: Iterator[Fault]):
    """Raises a `ValueError` that names the file and the tensor, if there is a fault."""
    for fault in faults:
        raise ValueError(str(fault))


def layout_faults(
    config: LongCatLiteConfig,
    places: Places,
    block: Sequence[int] | None = None,
    needs_head: bool | None = None,
    dtypes_only: bool = False,
    as_released: bool = False,
) -> Iterator[Fault]:
    """What in a checkpoint does not fit a model of `config`: names, shapes, dtypes.

    Args:
        config (`LongCatLiteConfig`): `num_nextn_predict_layers=None` means what the checkpoint has.
        places (`Mapping[str, tuple[str, StoredTensor]]`): File of each tensor, and its entry in the header.
        block (`Sequence[int]`, *optional*): Rows and columns that share a scale, for an FP8 checkpoint.
        needs_head (`bool`, *optional*):
            Whether the language-model head must be there, or is not read at all; by default it must, unless the
            checkpoint is of the trunk alone.
        dtypes_only (`bool`, *optional*, defaults to `False`): For `ignore_mismatched_sizes`.
        as_released (`bool`, *optional*, defaults to `False`):
            Accept only the dtypes that are published, not all that loading can read.
    """
    is_trunk = not any(name.startswith("model.") for name in places)
    found = {f"model.{name}" if is_trunk else name: place for name, place in places.items() if not is_indexer(name)}
    if needs_head is False:  # the trunk does not read it
        found = {name: place for name, place in found.items() if not name.startswith("lm_head.")}
    if block is not None:
        yield from scale_faults(found, block)
        found = {name: place for name, place in found.items() if not name.endswith(SCALES)}
    if config.num_nextn_predict_layers is None:
        config = copy.copy(config)
        config.num_nextn_predict_layers = int(any(name.startswith(DRAFT_HEAD_PREFIX) for name in found))
    released, own = released_tensors(config), own_tensors(config)
    spelled = spelling_of(found)
    needed = own if found.keys() & (own.keys() - released.keys()) else released
    expected = {spelled(name): tensor for name, tensor in needed.items()}
    if not dtypes_only:
        yield from _missing_and_reshaped(expected, found, not is_trunk if needs_head is None else needs_head)
        yield from _unexpected(expected, found, bool(config.num_nextn_predict_layers))
    yield from _wrong_dtypes(expected, found, block is not None, as_released)
    yield from _mixed_formats(found)


def _missing_and_reshaped(expected: Mapping[str, Expected], found: Places, needs_head: bool) -> Iterator[Fault]:
    for name, tensor in expected.items():
        shape = f"shape {list(tensor.shape)}"
        if name not in found:
            if not tensor.line.may_be_absent and (needs_head or not name.startswith("lm_head.")):
                fix = "Download the checkpoint again, or correct config.json if it asks for more than was trained."
                yield Fault("-", f"`{name}`", shape, NO_TENSOR, fix)
            continue
        file, stored = found[name]
        if stored.shape != tensor.shape:
            *fields, last = (f"`{field}`" for field in config_fields(tensor.line))
            wrong = f"{', '.join(fields)} or {last}" if fields else last
            fix = f"Correct {wrong} in config.json, or take the config of this checkpoint."
            yield Fault(file, f"`{name}`", shape, f"shape {list(stored.shape)}", fix)


def _unexpected(expected: Mapping[str, Expected], found: Places, has_draft_head: bool) -> Iterator[Fault]:
    for name, (file, _) in found.items():
        is_left_out = name.startswith(DRAFT_HEAD_PREFIX) and not has_draft_head
        if name in expected or name in EXTRA or is_left_out:
            continue
        fix = "Correct config.json if it asks for too little; otherwise remove the tensor."
        if name.startswith(DRAFT_HEAD_PREFIX):
            fix = "`num_nextn_predict_layers=0` loads the rest."
        elif name.endswith(".packed"):
            fix = "Tables of few bits need `ngram_table_bits` 8 or 4 in config.json."
        yield Fault(file, f"`{name}`", NO_TENSOR, "a tensor", fix)


def _wrong_dtypes(expected: Mapping[str, Expected], found: Places, is_fp8: bool, as_released: bool) -> Iterator[Fault]:
    for name, (file, stored) in found.items():
        if name not in expected:
            continue
        kind = expected[name].kind
        released = (*kind.released, *([FP8] if is_fp8 and kind.fp8 else []))
        dtypes = released if as_released else dict.fromkeys((*released, *kind.also_read))
        readable = [dtype for dtype in dtypes if dtype != FP8 or is_fp8]
        if stored.dtype not in readable:
            scales = " without a quantizer that reads its scales" if stored.dtype == FP8 else ""
            fix = "Take the file from the original checkpoint."
            yield Fault(file, f"`{name}`", f"dtype {' or '.join(readable)}", f"dtype {stored.dtype}{scales}", fix)


def _mixed_formats(found: Places) -> Iterator[Fault]:
    """Tensors in the rarer of two 16-bit formats. Tables may have one and the other tensors another.

    Bytes of one format are other numbers in the other. A conversion writes one format; both are in files whose header
    is damaged.
    """
    for of_tables in (True, False):
        names: dict[str, list[str]] = {"F16": [], "BF16": []}
        for name, (_, stored) in found.items():
            if stored.dtype in names and is_ngram_table(name) == of_tables:
                names[stored.dtype].append(name)
        few, many = sorted(names, key=lambda dtype: len(names[dtype]))
        for name in names[few]:
            fix = "Take the file from the original checkpoint, or convert all of it to one 16-bit format."
            yield Fault(found[name][0], f"`{name}`", f"dtype {many}, as the others have", f"dtype {few}", fix)


__all__ = ["check_checkpoint", "layout_faults", "raise_first_fault"]
