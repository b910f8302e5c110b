# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in a folder or on the Hub, read in ranges of bytes, which are counted. No tensor is read whole."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import torch
from huggingface_hub import HfFileSystem
from huggingface_hub.errors import HfHubHTTPError

from eval.reports.results import ADAPTER_CONFIG
from modeling_longcat_lite.checkpoint_files import WeightFiles, choose_weight_files
from modeling_longcat_lite.checkpoint_header import (
    FLOAT_DTYPES,
    Contradiction,
    StoredTensor,
    parse_safetensors_header,
)


def file_system_of(checkpoint: str, revision: str | None) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system that holds a checkpoint, and its folder there."""
    if Path(checkpoint).is_dir():
        return fsspec.filesystem("file"), str(Path(checkpoint).resolve())
    return HfFileSystem(), f"{checkpoint}@{revision}" if revision else checkpoint


class CheckpointFiles:
    """The files of a checkpoint.

    Args:
        checkpoint (`str`): A folder, or a repository on the Hub.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.

    Raises:
        `ValueError`: naming the checkpoint, if it is neither, cannot be reached, or is an adapter.
    """

    def __init__(self, checkpoint: str, revision: str | None = None):
        self.system, self.root = file_system_of(checkpoint, revision)
        self.bytes_read = 0
        try:
            entries = self.system.ls(self.root, detail=True)
        except (OSError, ValueError, HfHubHTTPError) as error:  # no such repository, no network, no permission
            raise ValueError(f"`{checkpoint}` is not a folder, and cannot be read on the Hub: {error}") from error
        self.sizes = {entry["name"].rpartition("/")[2]: int(entry["size"] or 0) for entry in entries}
        if "config.json" not in self and ADAPTER_CONFIG in self:
            raise ValueError(f"`{checkpoint}` holds an adapter: give the model that it belongs to, or merge it first.")

    def __contains__(self, name: str) -> bool:
        return name in self.sizes

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes.values())

    def read(self, name: str, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end` of a file.

        Raises:
            `ValueError`: naming the file that is shorter.
        """
        with self._open(name) as file:
            file.seek(begin)
            content = file.read(end - begin)
        self.bytes_read += len(content)
        if len(content) != end - begin:
            raise ValueError(f"{name} ends before byte {end}. Download it again.")
        return content

    def read_json(self, name: str) -> dict[str, Any]:
        """A small file, parsed.

        Raises:
            `ValueError`: naming the file that is missing or not a JSON object.
        """
        if name not in self:
            raise ValueError(f"{name} is missing.")
        try:
            content = json.loads(self.read(name, 0, self.sizes[name]))
        except ValueError as error:
            raise ValueError(f"{name} is not JSON: {error}. Download it again.") from error
        if not isinstance(content, dict):
            raise ValueError(f"{name} holds {type(content).__name__}, not an object of fields.")
        return content

    def header(self, name: str, contradictions: list[Contradiction]) -> tuple[dict[str, StoredTensor], dict[str, str]]:
        """Tensors and metadata of a safetensors file, as [`parse_safetensors_header`] reads them, with its errors."""
        if name not in self:
            raise ValueError(f"{name} is missing. Download it.")
        with self._open(name) as file:
            header = parse_safetensors_header(file, self.sizes[name], name, contradictions)
            self.bytes_read += file.tell()
        return header

    def weight_files(self) -> WeightFiles:
        """The files that `from_pretrained` reads, and what their index says.

        Raises:
            `ValueError`: if there are none, or the index is wrong.
        """
        return choose_weight_files(self.sizes, lambda name: self.read(name, 0, self.sizes[name]))

    def _open(self, name: str):
        # Without a cache, which would fetch 5 MB around each range.
        return self.system.open(f"{self.root}/{name}", "rb", cache_type="none")


def values_of(tensor: StoredTensor) -> int:
    """Number of floating-point values; 0 for a scalar, another dtype, or bytes that do not fit the shape."""
    values = math.prod(tensor.shape) if tensor.shape and tensor.dtype in FLOAT_DTYPES else 0
    return values if values and values * FLOAT_DTYPES[tensor.dtype].itemsize == tensor.num_bytes else 0


class StoredRows:
    """Reads rows of tensors in the files of a checkpoint.

    Args:
        files (`CheckpointFiles`): The files.
        places (`Mapping[str, tuple[str, StoredTensor]]`): File and place of each tensor.
    """

    def __init__(self, files: CheckpointFiles, places: Mapping[str, tuple[str, StoredTensor]]):
        self.files, self.places = files, places

    def __contains__(self, name: str) -> bool:
        """Whether there is such a tensor, with floating-point values that can be read."""
        return name in self.places and values_of(self.places[name][1]) > 0

    def read(self, name: str, first: int, count: int) -> torch.Tensor:
        """Rows `first` to `first + count` of a tensor `[rows, ...]`: `[count, ...]` in its own dtype."""
        path, tensor = self.places[name]
        assert values_of(tensor)
        row_bytes = tensor.num_bytes // tensor.shape[0]
        begin = tensor.begin + first * row_bytes
        data = bytearray(self.files.read(path, begin, begin + count * row_bytes))
        return torch.frombuffer(data, dtype=FLOAT_DTYPES[tensor.dtype]).view(count, *tensor.shape[1:])

    def rows(self, name: str) -> int:
        return self.places[name][1].shape[0]


__all__ = ["CheckpointFiles", "StoredRows", "values_of"]
