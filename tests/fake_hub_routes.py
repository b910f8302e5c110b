# SPDX-License-Identifier: Apache-2.0
"""The HTTP routes of the Hub that huggingface_hub 2.4 uses for models, on the state of a `FakeHub`."""

import base64
import hashlib
import json
import re
import time
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from fake_repository import Commit, File, Repository
from fake_xet import XetStorage

USER = "me"
TOKEN = "hf_" + "ThisIsTheTokenOfTheFakeHub1234567"


class HubError(Exception):
    """An answer that reports a failure."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


class HubRequestHandler(BaseHTTPRequestHandler):
    """One request; the routes are the methods in `ROUTES`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a header and a body apart would wait for each other
    hub: Any  # the `FakeHub` that it answers for

    def log_message(self, *_) -> None:
        pass

    def answer(self) -> None:
        quoted = urlsplit(self.path).path
        path = unquote(quoted)
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
        failure = self.hub.failure_of(self.command, path)
        if failure is not None and failure.status is None:
            self.close_connection = True  # with the body unread: the client's next write fails
            return
        self.body = self.read_body()
        try:
            if failure is not None:
                raise HubError(failure.status or 0, "the disk is full")
            for method, pattern, route in ROUTES:
                match = re.fullmatch(pattern, quoted)
                if match and self.command in method.split():
                    with self.hub.lock:
                        route(self, *map(unquote, match.groups()))
                    return
            raise HubError(404, f"no route {self.command} {path}")
        except HubError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)} if error.code else {}
            self.send(error.status, {"error": str(error)}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, status: int, content: bytes | Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # Who may do what.

    def user_is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def check_user(self) -> None:
        if not self.user_is_known():
            raise HubError(401, "Invalid username or password.")

    def check_owner(self, name: str) -> None:
        self.check_user()
        if name.split("/")[0] != USER:
            raise HubError(403, f"Forbidden: you don't have the rights to write to {name}")

    def repository(self, name: str) -> Repository:
        found = self.hub.repositories.get(name)
        may_read = self.user_is_known() and name.split("/")[0] == USER
        if found is None or (found.private and not may_read):
            raise HubError(404, "Repository not found", "RepoNotFound")
        return found

    def commit_at(self, name: str, revision: str | None) -> Commit:
        commit = self.repository(name).at(revision or "main")
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # The routes.

    def whoami(self) -> None:
        self.check_user()
        self.send(200, {"name": USER, "type": "user", "orgs": [], "auth": {"type": "access_token"}})

    def create_repository(self) -> None:
        self.check_user()
        asked = json.loads(self.body)
        name = f"{asked['organization'] or USER}/{asked['name']}"
        if name.split("/")[0] != USER:
            raise HubError(403, f"You don't have the rights to create a model under the namespace {name}")
        address = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repositories:
            self.send(409, {"error": "You already created this model repo", **address})
            return
        self.hub.add_repository(name, private=asked.get("visibility") == "private")
        self.send(200, address)

    def create_branch(self, name: str, branch: str) -> None:
        self.check_owner(name)
        repository = self.repository(name)
        if branch in repository.branches:
            raise HubError(409, f"Reference already exists: {branch}")
        start = self.commit_at(name, json.loads(self.body or b"{}").get("startingPoint"))
        repository.branches[branch] = start
        self.send(200, {})

    def validate_card(self) -> None:
        text = json.loads(self.body)["content"]
        metadata = text.split("---")[1] if text.startswith("---") else ""
        base = re.search(r"^base_model: *(\S+)", metadata, re.MULTILINE)
        if base and not re.fullmatch(r"[\w.-]+/[\w.-]+", base[1]):
            message = f'"base_model" with value "{base[1]}" is not valid. Use a model id from https://hf.co/models.'
            self.send(400, {"error": message, "errors": [{"message": message}], "warnings": []})
            return
        self.send(200, {"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        self.check_owner(name)
        there = self.commit_at(name, revision).files
        answers = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            mode = "lfs" if path.endswith(".safetensors") else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
            if path in there:
                answers[-1]["oid"] = there[path].oid
        self.send(200, {"files": answers})

    def lfs_batch(self, name: str) -> None:
        self.check_owner(name)
        self.repository(name)
        answers = []
        for asked in json.loads(self.body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:  # without `actions` nothing is sent
                upload, verify = (f"{self.hub.url}/lfs/{what}{asked['oid']}" for what in ("", "verify/"))
                answer["actions"] = {"upload": {"href": upload, "header": {}}, "verify": {"href": verify}}
            answers.append(answer)
        self.send(200, {"transfer": "basic", "objects": answers})

    def lfs_store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "content does not match its oid")
        self.hub.objects[oid] = self.body
        self.hub.stored.append(oid)
        self.send(200, b"")

    def lfs_verify(self, oid: str) -> None:
        if oid not in self.hub.objects:
            raise HubError(404, "no such object")
        self.send(200, {})

    def xet_token(self, name: str, revision: str) -> None:
        self.check_owner(name)
        expires = int(time.time()) + 3600
        self.send(200, {"casUrl": f"{self.hub.url}/xet", "exp": expires, "accessToken": "of-xet"})

    def xet_xorb(self, name: str) -> None:
        self.xet.store_xorb(name, self.body)
        self.send(200, {"was_inserted": True})

    def xet_shard(self) -> None:
        files = self.xet.files_of_shard(self.body)
        for sha256, content in files.items():
            if hashlib.sha256(content).hexdigest() != sha256:
                raise HubError(400, "content does not match its sha256")
        self.hub.objects |= files
        self.send(200, {"result": 1})

    @property
    def xet(self) -> XetStorage:
        if self.hub.xet is None:
            raise HubError(404, "this Hub has no Xet storage")
        return self.hub.xet

    def commit(self, name: str, branch: str) -> None:
        self.check_owner(name)
        files = dict(self.commit_at(name, branch).files)
        summary, changed = "", []
        for line in self.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                summary = value["summary"]
                continue
            changed.append(value["path"])
            if key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise HubError(400, f"the content of {value['path']} was never uploaded")
                files[value["path"]] = File(self.hub.objects[value["oid"]], lfs=True)
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise HubError(400, f"no operation {key}")
        made = Commit(branch, summary, files, changed)
        self.repository(name).add(made)
        self.send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{made.sha}", "commitOid": made.sha})

    def information(self, name: str, revision: str | None = None) -> None:
        commit = self.commit_at(name, revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        private = self.repository(name).private
        self.send(200, {"id": name, "sha": commit.sha, "private": private, "siblings": siblings, "tags": []})

    def tree(self, name: str, revision: str, folder: str | None = None) -> None:
        prefix = f"{folder}/" if folder else ""
        entries = []
        for path, file in sorted(self.commit_at(name, revision).files.items()):
            if path.startswith(prefix):
                entries.append({"type": "file", "path": path, "size": len(file.content), "oid": file.oid})
                if file.lfs:
                    entries[-1]["lfs"] = {"oid": file.oid, "size": len(file.content), "pointerSize": 134}
        if folder and not entries:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        self.send(200, entries)

    def resolve(self, name: str, revision: str, path: str) -> None:
        commit = self.commit_at(name, revision)
        if path not in commit.files:
            raise HubError(404, f"{path} does not exist", "EntryNotFound")
        file = commit.files[path]
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{file.oid}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        content = file.content[int(asked[1]) : int(asked[2]) + 1] if asked else file.content
        self.hub.bytes_read += len(content) if self.command == "GET" else 0
        self.send(206 if asked else 200, content, headers)


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    ("GET", "/api/whoami-v2", HubRequestHandler.whoami),
    ("POST", "/api/repos/create", HubRequestHandler.create_repository),
    ("POST", "/api/validate-yaml", HubRequestHandler.validate_card),
    ("POST", f"/api/models/{NAME}/branch/(.+)", HubRequestHandler.create_branch),
    ("POST", f"/api/models/{NAME}/preupload/(.+)", HubRequestHandler.preupload),
    ("POST", f"/api/models/{NAME}/commit/(.+)", HubRequestHandler.commit),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", HubRequestHandler.lfs_batch),
    ("PUT", "/lfs/([0-9a-f]+)", HubRequestHandler.lfs_store),
    ("POST", "/lfs/verify/([0-9a-f]+)", HubRequestHandler.lfs_verify),
    ("GET", f"/api/models/{NAME}/xet-write-token/(.+)", HubRequestHandler.xet_token),
    ("POST", "/xet/v1/xorbs/default/([0-9a-f]+)", HubRequestHandler.xet_xorb),
    ("POST", "/xet/v1/shards", HubRequestHandler.xet_shard),
    ("GET", f"/api/models/{NAME}", HubRequestHandler.information),
    ("GET", f"/api/models/{NAME}/revision/(.+)", HubRequestHandler.information),
    ("GET", f"/api/models/{NAME}/tree/([^/]+)", HubRequestHandler.tree),
    ("GET", f"/api/models/{NAME}/tree/([^/]+)/(.+)", HubRequestHandler.tree),
    ("GET HEAD", rf"/{NAME}/resolve/([^/]+)/(.+)", HubRequestHandler.resolve),
)
