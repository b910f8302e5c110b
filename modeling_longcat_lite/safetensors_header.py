# SPDX-License-Identifier: Apache-2.0
"""Where the tensors of a safetensors file lie, so that parts of them can be read in place.

The safetensors library gives shapes and slices, but no offsets.
"""

import json
import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

MOST_HEADER_BYTES = 100_000_000  # the safetensors library reads no longer one; a longer one is damage
FLOAT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class StoredTensor(NamedTuple):
    """A tensor of a header. `dtype` is the format's name, `BF16` or `U8`; offsets are from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


def read_safetensors_header(path: str | os.PathLike) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors, in the order of their data, and metadata of a file.

    Raises:
        `ValueError`: naming the file that is cut off, and inside which tensor, or that is no safetensors file.
    """
    with Path(path).open("rb") as file:
        return parse_safetensors_header(file, Path(path).stat().st_size, path)


def parse_safetensors_header(
    file: BinaryIO, size: int, path: str | os.PathLike
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """As [`read_safetensors_header`], of an open file of `size` bytes, wherever it lies; `path` is what errors say."""
    length = int.from_bytes(file.read(8), "little")
    text = file.read(length) if 8 + length <= size and length <= MOST_HEADER_BYTES else b""
    try:
        header = json.loads(text)
        metadata, tensors = header.pop("__metadata__", {}), {}
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            tensors[name] = StoredTensor(entry["dtype"], tuple(entry["shape"]), begin, end)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file. Download it again.") from error
    for name, tensor in tensors.items():
        if tensor.end > size:
            raise ValueError(f"{path} is truncated inside `{name}`. Download it again.")
    return tensors, metadata


def sort_metadata(path: str | os.PathLike):
    """Puts the metadata of a safetensors file in order, in place: the library writes them in any, and files with equal
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


__all__ = ["FLOAT_DTYPES", "StoredTensor", "parse_safetensors_header", "read_safetensors_header", "sort_metadata"]
