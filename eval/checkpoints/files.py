# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in a folder or on the Hub, read in ranges of bytes that are counted: no tensor is ever read whole."""

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
from modeling_longcat_lite.checkpoint_files import choose_weight_files
from modeling_longcat_lite.checkpoint_header import FLOAT_DTYPES, StoredTensor, parse_safetensors_header


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
        self.metadata: dict[str, dict[str, str]] = {}  # of the headers read so far
        try:
            entries = self.system.ls(self.root, detail=True)
        except (OSError, ValueError, HfHubHTTPError) as error:  # no such repository, no network, no permission
            raise ValueError(f"`{checkpoint}` is no folder, and cannot be read on the Hub: {error}") from error
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
            `ValueError`: naming the file that is missing or no JSON object.
        """
        if name not in self:
            raise ValueError(f"{name} is missing.")
        try:
            content = json.loads(self.read(name, 0, self.sizes[name]))
        except ValueError as error:
            raise ValueError(f"{name} is no JSON: {error}. Download it again.") from error
        if not isinstance(content, dict):
            raise ValueError(f"{name} holds {type(content).__name__}, not an object of fields.")
        return content

    def header(self, name: str, contradictions: list | None = None) -> dict[str, StoredTensor]:
        """The tensors of a safetensors file; as of [`parse_safetensors_header`], with its errors."""
        if name not in self:
            raise ValueError(f"{name} is missing. Download it.")
        with self._open(name) as file:
            tensors, self.metadata[name] = parse_safetensors_header(file, self.sizes[name], name, contradictions)
            self.bytes_read += file.tell()
        return tensors

    def weight_files(self) -> tuple[list[str], dict[str, str]]:
        """The files that `from_pretrained` reads, and for each tensor the one in which an index says it is.

        Raises:
            `ValueError`: if there are none, or the index is wrong.
        """
        return choose_weight_files(self.sizes, lambda name: self.read(name, 0, self.sizes[name]))

    def _open(self, name: str):
        # Without a cache: what is asked for is fetched, not the 5 MB around it.
        return self.system.open(f"{self.root}/{name}", "rb", cache_type="none")


def values_of(tensor: StoredTensor) -> int:
    """Floating-point values of a tensor; 0 of a scalar, of other dtypes, or where bytes and shape contradict."""
    values = math.prod(tensor.shape) if tensor.shape and tensor.dtype in FLOAT_DTYPES else 0
    return values if values and values * FLOAT_DTYPES[tensor.dtype].itemsize == tensor.num_bytes else 0


class StoredRows:
    """Reads rows of tensors that lie in the files of a checkpoint.

    Args:
        files (`CheckpointFiles`): Where they lie.
        places (`Mapping[str, tuple[str, StoredTensor]]`): File and place of each tensor.
    """

    def __init__(self, files: CheckpointFiles, places: Mapping[str, tuple[str, StoredTensor]]):
        self.files, self.places = files, places

    def __contains__(self, name: str) -> bool:
        """Whether there is such a tensor, of floating-point numbers that can be read here."""
        return name in self.places and values_of(self.places[name][1]) > 0

    def read(self, name: str, first: int, count: int) -> torch.Tensor:
        """Rows `first` to `first + count` of a tensor `[R, ...]`: `[count, ...]` in its own dtype."""
        path, tensor = self.places[name]
        assert values_of(tensor)
        row_bytes = tensor.num_bytes // tensor.shape[0]
        begin = tensor.begin + first * row_bytes
        data = bytearray(self.files.read(path, begin, begin + count * row_bytes))
        return torch.frombuffer(data, dtype=FLOAT_DTYPES[tensor.dtype]).view(count, *tensor.shape[1:])

    def rows(self, name: str) -> int:
        return self.places[name][1].shape[0]


__all__ = ["CheckpointFiles", "StoredRows", "values_of"]
