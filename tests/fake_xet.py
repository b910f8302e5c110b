# SPDX-License-Identifier: Apache-2.0
"""Xet storage in memory, for uploads by hf_xet 1.8: chunks arrive in xorbs, and a shard lists the files.

Formats as in the Xet protocol specification (huggingface.co/docs/xet), uncompressed chunks only: run the client with
`HF_XET_DATA_XORB_COMPRESSION_POLICY=none`.
"""

import struct

RECORD = 48  # bytes, of each entry of a shard
HAS_VERIFICATION, HAS_METADATA = 1 << 31, 1 << 30
LAST = b"\xff" * 32


def hexadecimal(stored: bytes) -> str:
    """A hash as it is written in addresses: four numbers of 64 bits, each little-endian when stored."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", stored))


class XetStorage:
    """Chunks by the hash of their xorb, and the hashes of xorbs in the order of their arrival."""

    def __init__(self) -> None:
        self.xorbs: dict[str, list[bytes]] = {}
        self.received: list[str] = []

    def store_xorb(self, name: str, body: bytes) -> None:
        """Store chunks, each of which has a header of 8 bytes: version, length, compression and original length."""
        chunks, at = [], 0
        while at < len(body):
            length, compression = int.from_bytes(body[at + 1 : at + 4], "little"), body[at + 4]
            if compression:
                raise ValueError("this storage reads no compressed chunks")
            chunks.append(body[at + 8 : at + 8 + length])
            at += 8 + length
        self.xorbs[name] = chunks
        self.received.append(name)

    def files_of_shard(self, body: bytes) -> dict[str, bytes]:
        """Content by sha256 of the files that a shard lists; `KeyError` for a xorb that never came."""
        found, at = {}, RECORD
        while body[at : at + 32] != LAST:
            flags, count = struct.unpack_from("<2I", body, at + 32)
            content = b""
            for entry in range(at + RECORD, at + RECORD * (1 + count), RECORD):
                begin, end = struct.unpack_from("<2I", body, entry + 40)
                content += b"".join(self.xorbs[hexadecimal(body[entry : entry + 32])][begin:end])
            at += RECORD * (1 + count * (2 if flags & HAS_VERIFICATION else 1))
            if flags & HAS_METADATA:
                found[hexadecimal(body[at : at + 32])] = content
                at += RECORD
        return found
