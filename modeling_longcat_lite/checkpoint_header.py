# SPDX-License-Identifier: Apache-2.0
"""Offsets of the tensors in a safetensors file, so that parts of them can be read in place.

The safetensors library gives shapes and slices, but no offsets. A header comes from outside, so it is checked here as
the library checks it, and more strictly where it could be read in two ways. Code that reads or writes bytes at these
offsets can rely on them.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

MOST_HEADER_BYTES = 100_000_000  # the most that the safetensors library reads; a longer header is damaged
LARGEST = 2**63 - 1  # of a size or an offset
MOST_DIMENSIONS = 64  # of a torch tensor; the product of millions would take minutes
FLOAT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FP8 = "F8_E4M3"
# Bits of a value, for every dtype that the library knows.
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
FIELDS = {"dtype", "shape", "data_offsets"}
METADATA = "__metadata__"


class StoredTensor(NamedTuple):
    """A tensor in a header. `dtype` is the format's name, such as `BF16`; offsets count from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


class Contradiction(NamedTuple):
    """A tensor whose entry can be read, but contradicts itself or a neighbour."""

    tensor: str
    expected: str
    found: str


def read_safetensors_header(
    path: str | os.PathLike, contradictions: list[Contradiction] | None = None
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors, in the order of their data, and metadata of a file.

    Args:
        contradictions (`list[Contradiction]`, *optional*):
            Collects what is wrong with sizes and offsets of single tensors, for a report of all of it. By default,
            the first one raises.

    Raises:
        `ValueError`: naming the file, and the tensor and field that are wrong, if the file is cut off, is not a
            safetensors file, or contradicts itself. Every file that the safetensors library refuses is refused.
    """
    try:
        with Path(path).open("rb") as file:
            return parse_safetensors_header(file, os.fstat(file.fileno()).st_size, path, contradictions)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"{path} is missing. Download it.") from error


def parse_safetensors_header(
    file: BinaryIO, size: int, path: str | os.PathLike, contradictions: list[Contradiction] | None = None
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """As [`read_safetensors_header`], for an open file of `size` bytes, which errors call `path`."""
    header, start = _read_object(file, size, path)
    metadata = header.pop(METADATA, None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{path}: `{METADATA}` must be an object of strings. Download the file again.")
    entries = [(name, _checked_entry(name, entry, start, path)) for name, entry in header.items()]
    tensors = dict(sorted(entries, key=lambda item: item[1][2:]))
    for name, tensor in tensors.items():
        if tensor.end > size:
            raise ValueError(f"{path} is truncated inside `{name}`. Download it again.")
    found = _contradictions(tensors, start, size)
    if contradictions is not None:
        contradictions += found
    else:
        raise_first(found, path)
    last = max((tensor.end for tensor in tensors.values()), default=start)
    if last != size:
        raise ValueError(
            f"{path} has {size - last} bytes after the `data_offsets` of its last tensor. Download it again."
        )
    return tensors, metadata


def sort_metadata(path: str | os.PathLike):
    """Sorts the metadata of a safetensors file in place. The library writes them in any order, and files with equal
    content should be equal."""
    begin = b'{"__metadata__":'
    with Path(path).open("r+b") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
        if header.startswith(begin):
            metadata, end = json.JSONDecoder().raw_decode(header.decode(), len(begin))
            text = json.dumps(metadata, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
            if len(text) == end - len(begin):
                file.seek(8 + len(begin))
                file.write(text)


def raise_first(contradictions: list[Contradiction], path: str | os.PathLike):
    """Raises a `ValueError` if there is a contradiction."""
    for tensor, expected, found in contradictions:
        raise ValueError(f"{path}: `{tensor}` must have {expected}, but has {found}. Download the file again.")


def _read_object(file: BinaryIO, size: int, path: str | os.PathLike) -> tuple[dict[str, Any], int]:
    """The JSON object at the head of a file, and the offset at which the data begin."""
    length = int.from_bytes(file.read(8), "little")
    text = file.read(length) if 8 + length <= size and length <= MOST_HEADER_BYTES else b""
    try:
        content = text.decode("utf-8")  # `json` would also accept UTF-16
        header = json.loads(content, parse_int=_natural)
        if not isinstance(header, dict):
            raise ValueError("the header is not an object")
        fields = len(header) + sum(len(entry) for entry in header.values() if isinstance(entry, dict))
        if (
            content.count(":") != fields
        ):  # one in a string, or a name that occurs twice, of which `json` keeps the last
            json.loads(content, object_pairs_hook=fields_once)
        if "\\u" in content:  # `json` accepts half of a surrogate pair, which no file can hold
            json.dumps(header, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError(f"{path}: the header is nested too deep. Download it again.") from error
    except ValueError as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({str(error)[:200]}). Download it again."
        ) from error
    return header, 8 + length


def fields_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names must differ; by default, `json` keeps the last of two fields with one name."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"`{next(name for name in names if names.count(name) > 1)}` occurs twice")
    return fields


def _natural(text: str) -> int:
    return -1 if text.startswith("-") else int(text)  # -0 too, which is a float to the library


def _checked_entry(name: str, entry: Any, start: int, path: str | os.PathLike) -> StoredTensor:
    """An entry of the header, with offsets from the start of the file."""
    wrong = None
    if not isinstance(entry, dict) or entry.keys() != FIELDS:
        raise ValueError(
            f"{path}: `{name}` must be an object of {', '.join(sorted(FIELDS))}, got {_short(entry)}. Download the "
            "file again."
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        wrong = "dtype", "a dtype of the format", dtype
    elif not _are_naturals(shape) or len(shape) > MOST_DIMENSIONS:
        wrong = "shape", f"a list of at most {MOST_DIMENSIONS} integers from 0 to 2^63 - 1", shape
    elif not _are_naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        wrong = "data_offsets", "two integers, of which the second is not smaller", offsets
    if wrong is not None:
        field, expected, found = wrong
        raise ValueError(
            f"{path}: `{field}` of `{name}` must be {expected}, got {_short(found)}. Download the file again."
        )
    return StoredTensor(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _are_naturals(value: Any) -> bool:
    if type(value) is not list:
        return False
    return all(type(one) is int and 0 <= one <= LARGEST for one in value)  # `type`: True is an int too


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _contradictions(tensors: dict[str, StoredTensor], start: int, size: int) -> list[Contradiction]:
    """Sizes that do not fit shape and dtype, gaps and overlaps of tensors, which are in the order of their data."""
    found, expected_begin = [], start
    for name, (dtype, shape, begin, end) in tensors.items():
        bits = math.prod(shape) * BITS[dtype]
        if bits != 8 * (end - begin):
            if shape:
                expected, there = f"as many bytes as {list(shape)} {dtype} takes", f"{end - begin} bytes"
            else:
                expected, there = f"a shape of {end - begin} bytes of {dtype}", "shape []"
            found.append(Contradiction(name, expected, there))
        elif 0 in shape and math.prod(filter(None, shape)) > LARGEST:
            found.append(Contradiction(name, "a shape within 2^63 values", f"shape {list(shape)}"))
        if begin != expected_begin:
            expected = f"`data_offsets` from {expected_begin - start}, where the tensor before it ends"
            found.append(Contradiction(name, expected, f"{begin - start}"))
        expected_begin = end
    return found


__all__ = [
    "FLOAT_DTYPES",
    "FP8",
    "Contradiction",
    "StoredTensor",
    "fields_once",
    "parse_safetensors_header",
    "raise_first",
    "read_safetensors_header",
    "sort_metadata",
]
