# SPDX-License-Identifier: Apache-2.0
"""Rewrites a safetensors file tensor by tensor, replacing some of them. No tensor is in memory as a whole."""

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from modeling_longcat_lite.checkpoint_header import StoredTensor, read_safetensors_header

COPIED_AT_ONCE = 16 * 2**20  # bytes
ALIGNMENT = 8  # bytes; in the format, the data begin at a multiple of it


class Replacement(NamedTuple):
    """What replaces a tensor. `pieces` gives its bytes, in order, from the file and the entry of the old one."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    pieces: Callable[[BinaryIO, StoredTensor], Iterator[bytes]]


def rewritten_header(
    entries: Mapping[str, StoredTensor], replacements: Mapping[str, Replacement], metadata: dict
) -> bytes:
    """Length and header of the new file."""
    header: dict = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, entry in entries.items():
        new = replacements.get(name)
        name, dtype, shape, num_bytes = new[:4] if new else (name, entry.dtype, entry.shape, entry.num_bytes)
        if name in header:
            raise ValueError(f"`{name}` would be there twice: the file has a tensor of that name already.")
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + num_bytes]}
        offset += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def copied(file: BinaryIO, entry: StoredTensor) -> Iterator[bytes]:
    """The bytes of a tensor that does not change."""
    file.seek(entry.begin)
    for begin in range(entry.begin, entry.end, COPIED_AT_ONCE):
        piece = file.read(min(COPIED_AT_ONCE, entry.end - begin))
        if len(piece) < min(COPIED_AT_ONCE, entry.end - begin):
            raise OSError(errno.EIO, "the file was truncated while it was read")
        yield piece


def rewrite(
    source: Path,
    target: Path,
    replacements: Mapping[str, Replacement],
    report: Callable[[int], object] = lambda _: None,
):
    """Writes `target` as `source` with some tensors replaced; `report` gets the number of bytes of each write.

    Raises:
        `ValueError`: naming file and tensor, if they cannot be written, for example because the disk is full.
    """
    entries, metadata = read_safetensors_header(source)
    with source.open("rb") as file, target.open("xb") as new:
        tensor = "the header"
        try:
            new.write(rewritten_header(entries, replacements, metadata))
            for name, entry in entries.items():
                tensor = f"`{name}`"
                pieces = replacements[name].pieces if name in replacements else copied
                for piece in pieces(file, entry):
                    new.write(piece)
                    report(len(piece))
            new.flush()
            os.fsync(new.fileno())
        except OSError as error:
            raise ValueError(f"{target.name}: {tensor} could not be written ({error.strerror}).") from error


__all__ = ["Replacement", "rewrite"]
