# SPDX-License-Identifier: Apache-2.0
"""A small Hub on this machine: model repositories in memory, and the HTTP routes that huggingface_hub 2.4 uses.

    with FakeHub() as hub:
        hub.run("import ...", argument)  # or a process with env=hub.environment(): huggingface_hub reads it on import

What arrived is in `hub.files(name)`, `hub.repositories[name]`, `hub.requests` and `hub.stored`; `hub.fail` makes
requests fail. Large files come by LFS, or with `FakeHub(xet=True)` by Xet, as on the Hub; all are read by HTTP.
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path

from fake_hub_routes import TOKEN, HubRequestHandler
from fake_repository import Commit, File, Repository
from fake_xet import XetStorage


@dataclass
class Failure:
    """After `after` requests of this kind, the next `times` fail with `status`; without one the connection drops."""

    method: str
    path: str
    after: int
    times: float
    status: int | None


class FakeHub:
    """The server, in its own thread for the length of the `with` block.

    Attributes:
        repositories (`dict[str, Repository]`): By name.
        requests (`list[tuple[str, str]]`): Method and path of every request that arrived.
        stored (`list[str]`): sha256 of every file that came by LFS, once for each time that it was sent.
        xet (`XetStorage` or `None`): What came by Xet.
        bytes_read (`int`): Of the content of files, as sent.
    """

    def __init__(self, xet: bool = False):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.stored: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.bytes_read = 0
        self.xet = XetStorage() if xet else None
        self.lock = threading.Lock()
        self._failures: list[Failure] = []

    def __enter__(self) -> "FakeHub":
        handler = type("Handler", (HubRequestHandler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self._home = tempfile.TemporaryDirectory()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._home.cleanup()

    def environment(self, **changes: str | None) -> dict[str, str]:
        """Environment of a process that uses this as the Hub, with an empty cache; `None` removes a variable."""
        elsewhere = ("HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_XET_CACHE")
        names: Mapping[str, str | None] = {
            **os.environ,
            **dict.fromkeys(elsewhere),
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": self._home.name,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_XET_DATA_XORB_COMPRESSION_POLICY": "none",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            **changes,
        }
        return {name: value for name, value in names.items() if value is not None}

    def run(self, code: str, *arguments, fails: bool = False, cwd=None, stdin: str = "", **changes: str | None) -> str:
        """Run code in a process that uses this as the Hub; returns its output, which must not contain the token."""
        environment = self.environment(**changes)
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=environment,
            cwd=cwd,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
        )
        output = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, output
        assert environment.get("HF_TOKEN", TOKEN) not in output
        return output

    def add_repository(self, name: str, private: bool = False) -> None:
        """Create a repository with the one file that new ones have."""
        self.repositories[name] = Repository(private)
        self.repositories[name].add(Commit("main", "initial commit", {".gitattributes": File(b"", lfs=False)}, []))

    def add_folder(self, folder: Path, name: str) -> None:
        """Create a repository from the files in a folder."""
        self.add_repository(name)
        files = {path.name: File(path.read_bytes(), lfs=path.suffix == ".safetensors") for path in folder.iterdir()}
        self.repositories[name].add(Commit("main", "of a folder", files, list(files)))

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Content by path, at the head of a branch."""
        return {path: file.content for path, file in self.repositories[name].branches[revision].files.items()}

    def fail(
        self, method: str, path: str = "", after: int = 0, times: float = float("inf"), status: int | None = None
    ) -> None:
        """Make requests fail whose path contains `path`; without `status` the connection drops during the request."""
        self._failures.append(Failure(method, path, after, times, status))

    def heal(self) -> None:
        """Make all requests succeed again."""
        self._failures.clear()

    def failure_of(self, method: str, path: str) -> Failure | None:
        with self.lock:
            for failure in self._failures:
                if failure.method == method and failure.path in path:
                    if failure.after:
                        failure.after -= 1
                    elif failure.times:
                        failure.times -= 1
                        return failure
        return None
