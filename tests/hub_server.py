# SPDX-License-Identifier: Apache-2.0
"""A folder served as a repository of the Hub, as far as reading ranges of its files asks for; it counts the bytes."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 40


@dataclass
class Served:
    """Where the server listens, and the bytes of file content that it sent."""

    endpoint: str
    sent: list[int] = field(default_factory=list)


@contextmanager
def serve_repository(folder: Path, name: str) -> Iterator[Served]:
    """Serves `folder` as model repository `name`, such as `me/model`, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # one connection, and one packet an answer
        wbufsize = 65536

        def do_GET(self):
            path = self.path.partition("?")[0]
            if path.startswith(f"/api/models/{name}/tree/"):
                entries = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": COMMIT}
                    for file in sorted(folder.iterdir())
                ]
                self.answer(json.dumps(entries).encode())
            elif path.startswith(f"/api/models/{name}"):
                self.answer(json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())
            elif path.startswith(f"/{name}/resolve/") and (folder / Path(path).name).is_file():
                begin, _, end = self.headers["range"].removeprefix("bytes=").partition("-")
                with (folder / Path(path).name).open("rb") as file:
                    file.seek(int(begin))
                    content = file.read(int(end) + 1 - int(begin))
                served.sent.append(len(content))
                self.answer(content, 206)
            else:
                self.answer(b"{}", 404)

        def answer(self, content: bytes, status: int = 200):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()


__all__ = ["Served", "serve_repository"]
