"""A stand-in for the hub's HTTP API, on this machine: repositories in memory, as far as uploads and downloads need them.

Spoken are: who am I, create a repository or branch, what a repository is, preupload, LFS batch and PUT, commit (NDJSON),
and files by revision with the headers that the client's cache goes by.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"
Files = dict[str, bytes]


class Hub:
    """What the server knows: {repository: {branch: [commit ids]}}, and the files of every commit."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.branches: dict[str, dict[str, list[str]]] = {}
        self.commits: dict[str, Files] = {}
        self.messages: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.lfs = False  # whether weights are to come through LFS
        self.read_only = False
        self.url = ""

    def files(self, repo: str, revision: str = "main") -> Files | None:
        branches = self.branches.get(repo, {})
        commit = branches[revision][-1] if revision in branches else revision
        return self.commits.get(commit)

    def head(self, repo: str, revision: str) -> str:
        branches = self.branches[repo]
        return branches[revision][-1] if revision in branches else revision

    def add(self, repo: str, branch: str, files: Files) -> str:
        history = self.branches[repo][branch]
        whole = {**(self.commits[history[-1]] if history else {}), **files}
        content = repr(sorted((k, hashlib.sha1(v).hexdigest()) for k, v in whole.items())) + str(len(self.commits))
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits[commit] = whole
        history.append(commit)
        return commit


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        path = self._path()
        if path == "/api/whoami-v2":
            return self._json({"type": "user", "name": "owner", "auth": {}}) if self._known() else self._refuse(401)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            repo = match[1]
            if repo not in self.hub.branches:
                return self._refuse(404, "RepoNotFound")
            history = self.hub.branches[repo]["main"]
            about = {"id": repo, "private": self.hub.private[repo], "sha": history[-1] if history else None, "siblings": []}
            return self._json({**about, "tags": [], "downloads": 0, "likes": 0})
        return self._file(body=True)

    def do_PUT(self) -> None:
        body = self._body()
        self.hub.blobs[hashlib.sha256(body).hexdigest()] = body
        self._path()
        self._json({})

    def do_POST(self) -> None:
        path, body, hub = self._path(), self._body(), self.hub
        if not self._known():
            return self._refuse(401)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if hub.read_only:
            return self._refuse(403)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            branches = hub.branches[match[1]]
            if match[2] in branches:
                return self._refuse(409)
            branches[match[2]] = list(branches["main"])
            return self._json({})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            if match[2] not in hub.branches.get(match[1], {}):
                return self._refuse(404, "RevisionNotFound")
            mode = {True: "lfs", False: "regular"}
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [
                {"path": n, "uploadMode": mode[hub.lfs and n.endswith(".safetensors")], "shouldIgnore": False} for n in names
            ]
            return self._json({"files": files})
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = [
                {**o, "actions": {"upload": {"href": f"{hub.url}/put/{o['oid']}"}}} for o in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects}, "application/vnd.git-lfs+json")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            return self._commit(match[1], match[2], [json.loads(line) for line in body.splitlines()])
        return self._refuse(404)

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization'] or 'owner'}/{asked['name']}"
        there = repo in self.hub.branches
        if not there:
            self.hub.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.branches[repo] = {"main": []}
            self.hub.add(repo, "main", {".gitattributes": b""})
        self._json({"url": f"{self.hub.url}/{repo}"}, status=409 if there else 200)

    def _commit(self, repo: str, branch: str, lines: list[dict[str, Any]]) -> None:
        files: Files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        oid = self.hub.add(repo, branch, files)
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid})

    def _file(self, body: bool) -> None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._path())
        if match is None or match[1] not in self.hub.branches:
            return self._refuse(404, "RepoNotFound")
        files = self.hub.files(match[1], match[2])
        if files is None:
            return self._refuse(404, "RevisionNotFound")
        if match[3] not in files:
            return self._refuse(404, "EntryNotFound")
        content = files[match[3]]
        self.send_response(200)
        self.send_header("X-Repo-Commit", self.hub.head(match[1], match[2]))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def _known(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _json(self, values: dict[str, Any], kind: str = "application/json", status: int = 200) -> None:
        content = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub at `hub.url`, until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
