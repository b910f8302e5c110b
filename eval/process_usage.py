# SPDX-License-Identifier: Apache-2.0
"""What this process takes of memory and drive, as the kernel counts it (Linux)."""

import threading
from pathlib import Path

STATUS, IO = Path("/proc/self/status"), Path("/proc/self/io")
INTERVAL = 0.005  # seconds between two looks


def memory() -> dict[str, int]:
    """Bytes of memory: `anonymous`, the process's own, and `file`, pages of mapped files, which can be dropped."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    kinds = {"anonymous": "RssAnon", "file": "RssFile"}
    return {kind: 1024 * int(lines[field].split()[0]) for kind, field in kinds.items()}


def bytes_read() -> int:
    """Bytes that the drive has delivered to this process since it began; what the page cache had does not count."""
    lines = dict(line.split(": ") for line in IO.read_text().splitlines())
    return int(lines["read_bytes"])


class PeakMemory:
    """The most memory of each kind inside a `with` block, looked at every few milliseconds: `.bytes`."""

    def __enter__(self) -> "PeakMemory":
        self.bytes = memory()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _look(self):
        self.bytes = {kind: max(self.bytes[kind], now) for kind, now in memory().items()}

    def _watch(self):
        while not self.ended.wait(INTERVAL):
            self._look()

    def __exit__(self, *exception):
        self.ended.set()
        self.thread.join()
        self._look()


__all__ = ["PeakMemory", "bytes_read", "memory"]
