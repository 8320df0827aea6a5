"""A Hub on loopback: the parts of the Hugging Face Hub's interface that huggingface_hub speaks, and its
faults.

Two servers, as in life: the Hub itself and, under another origin, the storage that it redirects to for LFS
files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_right"
LFS = (".safetensors", ".bin", ".pt")


@lru_cache(maxsize=16)
def sha256(content: bytes) -> str:
    """The hash by which LFS files are known; not again for the same large object."""
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(content: bytes) -> bytes:
    """What git holds in place of an LFS file."""
    digest = sha256(content)
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()


@dataclass
class Repo:
    """Commits by hash, branches and tags by name."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: Mapping[str, bytes], branch: str | None) -> str:
        text = json.dumps(
            [sorted((name, git_sha1(content)) for name, content in files.items()), len(self.commits)]
        )
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = dict(files)
        if branch:
            self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return sha if sha in self.commits else None


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD path" matches `where`.

    kind: status, cut (the connection breaks after `after` bytes of the body), truncate (the body ends there
    as if it were whole), slow (a pause before every 64 KiB), stall (nothing more comes), corrupt (one byte
    differs), replace (another body), pointer (what git holds in place of an LFS file), whole (ranges are
    ignored), drop (the connection closes before an answer).
    """

    where: str
    kind: str
    times: int = 10**9
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    after: int = 0
    pause: float = 0.05
    body: bytes = b""
    seen: int = 0


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    server: str

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


class Hub:
    """The state behind both servers, and what tests ask of it. A context manager; ports are the system's
    choice."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.stored: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.sent = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._servers = [_Server(self, "hub"), _Server(self, "storage")]
        self.url, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> Hub:
        self._threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            for server in self._servers
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
        for thread in self._threads:
            thread.join()
        for server in self._servers:
            server.server_close()

    def add(
        self,
        name: str,
        files: Mapping[str, bytes] | Path,
        *,
        branch: str = "main",
        tag: str | None = None,
        **settings: Any,
    ) -> str:
        """Commit files, or those of a directory, and return the commit."""
        if isinstance(files, Path):
            root = files
            files = {
                path.relative_to(root).as_posix(): path.read_bytes()
                for path in root.rglob("*")
                if path.is_file()
            }
        repo = self.repos.setdefault(name, Repo(**settings))
        sha = repo.commit(files, branch if tag is None else None)
        if tag:
            repo.tags[tag] = sha
        for path, content in files.items():
            if path.endswith(LFS):
                self.stored[sha256(content)] = content
        return sha

    def fail(self, where: str, kind: str, **options: Any) -> Fault:
        fault = Fault(where, kind, **options)
        self.faults.append(fault)
        return fault

    def asked(self, pattern: str) -> list[Request]:
        """The requests whose "METHOD path" matches."""
        return [
            request for request in self.requests if re.search(pattern, f"{request.method} {request.path}")
        ]

    def fault_for(self, text: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.seen < fault.times and re.search(fault.where, text):
                    fault.seen += 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: Hub, role: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.role = role

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away in these tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_arguments: Any) -> None:
        """Quiet."""

    def _dispatch(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        self.path, self.query = unquote(url.path), parse_qs(url.query)
        headers = {name.lower(): value for name, value in self.headers.items()}
        length = int(headers.get("content-length", 0))
        self.body = (
            self._chunked() if headers.get("transfer-encoding") == "chunked" else self.rfile.read(length)
        )
        with hub.lock:
            hub.requests.append(Request(self.command, self.path, headers, self.server.role))
        self.fault = hub.fault_for(f"{self.command} {self.path}")
        if self.fault and self.fault.kind == "drop":
            self.close_connection = True
        elif self.fault and self.fault.kind == "status":
            self._answer(self.fault.status, b'{"error": "a fault"}', dict(self.fault.headers))
        else:
            self._route()

    do_GET = do_HEAD = do_POST = do_PUT = _dispatch

    def _chunked(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _route(self) -> None:
        routes: list[tuple[str, str, Callable[..., None]]] = [
            ("GET", r"/blobs/(\w+)", self._blob),
            ("HEAD", r"/blobs/(\w+)", self._blob),
            ("PUT", r"/upload/(\w+)", self._store),
            ("GET", r"/api/models/([\w.-]+/[\w.-]+)", self._info),
            ("GET", r"/api/models/([\w.-]+/[\w.-]+)/revision/(.+)", self._info),
            ("GET", r"/api/models/([\w.-]+/[\w.-]+)/refs", self._refs),
            ("GET", r"/api/models/([\w.-]+/[\w.-]+)/tree/([^/]+)/?(.*)", self._tree),
            ("GET", r"/([\w.-]+/[\w.-]+)/resolve/([^/]+|refs/pr/\d+)/(.+)", self._resolve),
            ("HEAD", r"/([\w.-]+/[\w.-]+)/resolve/([^/]+|refs/pr/\d+)/(.+)", self._resolve),
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/validate-yaml", lambda: self._json({"errors": [], "warnings": []})),
            ("POST", r"/api/models/([\w.-]+/[\w.-]+)/branch/(.+)", self._branch),
            ("POST", r"/api/models/([\w.-]+/[\w.-]+)/preupload/(.+)", self._preupload),
            ("POST", r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", self._batch),
            ("POST", r"/api/models/([\w.-]+/[\w.-]+)/commit/(.+)", self._commit),
        ]
        for method, pattern, serve in routes:
            match = re.fullmatch(pattern, self.path)
            if match and method == self.command:
                serve(*match.groups())
                return
        self._answer(404, b"no such route")

    def _repo(self, name: str, revision: str = "main", *, write: bool = False) -> tuple[Repo, str] | None:
        """The repository and commit, or None when an error was answered, as the Hub answers it."""
        repo = self.server.hub.repos.get(name)
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token != TOKEN:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif write and not token:
            self._refuse(401, "", "Invalid username or password.")
        elif repo is None or (repo.private and not token):
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif repo.gated and not token:
            self._refuse(401, "GatedRepo", f"Access to model {name} is restricted.")
        elif (sha := repo.resolve(revision)) is None and not write:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repo, sha or ""
        return None

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._answer(status, json.dumps({"error": message}).encode(), headers)

    def _info(self, name: str, revision: str = "main") -> None:
        found = self._repo(name, revision)
        if found:
            repo, sha = found
            siblings = [_sibling(path, content) for path, content in sorted(repo.commits[sha].items())]
            names = {
                "_id": "1",
                "id": name,
                "modelId": name,
                "sha": sha,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
            self._json(
                {
                    **names,
                    "private": repo.private,
                    "gated": repo.gated,
                    "disabled": False,
                    "siblings": siblings,
                }
            )

    def _refs(self, name: str) -> None:
        found = self._repo(name)
        if found:
            repo = found[0]
            branches = [
                {"name": n, "ref": f"refs/heads/{n}", "targetCommit": s} for n, s in repo.branches.items()
            ]
            tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": s} for n, s in repo.tags.items()]
            self._json({"branches": branches, "tags": tags, "converts": []})

    def _tree(self, name: str, revision: str, _folder: str) -> None:
        found = self._repo(name, revision)
        if found:
            files = found[0].commits[found[1]].items()
            self._json(
                [{"type": "file", "oid": git_sha1(c), "path": p, "size": len(c)} for p, c in sorted(files)]
            )

    def _resolve(self, name: str, revision: str, path: str) -> None:
        found = self._repo(name, revision)
        if not found:
            return
        repo, sha = found
        content = repo.commits[sha].get(path)
        common = {"X-Repo-Commit": sha}
        if content is None:
            self._answer(
                404, b"", common | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            )
        elif self.fault and self.fault.kind == "pointer":
            self._content(pointer(content), common | {"ETag": f'"{git_sha1(pointer(content))}"'})
        elif path.endswith(LFS):
            digest = sha256(content)
            location = f"{self.server.hub.storage}/blobs/{digest}?signature=x"
            linked = {
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(content)),
                "Location": location,
            }
            self._answer(302, b"", common | linked)
        else:
            self._content(content, common | {"ETag": f'"{git_sha1(content)}"'})

    def _blob(self, digest: str) -> None:
        if "authorization" in self.headers:  # S3 refuses requests with two kinds of credentials
            self._answer(400, b"only one auth mechanism allowed")
        elif digest in self.server.hub.stored:
            self._content(self.server.hub.stored[digest], {"ETag": '"some-other-etag"'})
        else:
            self._answer(404, b"")

    def _create(self) -> None:
        values = json.loads(self.body)
        name = f"{values['organization']}/{values['name']}"
        if not self.headers.get("authorization"):
            self._refuse(401, "", "Invalid username or password.")
        elif values["organization"] == "forbidden":
            self._refuse(403, "", "You don't have the rights to create a model under this namespace")
        elif name in self.server.hub.repos:
            known = {"error": "You already created this model repo", "url": f"{self.server.hub.url}/{name}"}
            self._answer(409, json.dumps(known).encode())
        else:
            private = values.get("private") is True or values.get("visibility") == "private"
            repo = self.server.hub.repos[name] = Repo(private=private)
            repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "main")
            self._json({"url": f"{self.server.hub.url}/{name}", "name": name, "id": "1"})

    def _branch(self, name: str, branch: str) -> None:
        found = self._repo(name, write=True)
        if found and branch in found[0].branches:
            self._answer(409, b'{"error": "Reference already exists"}')
        elif found:
            found[0].branches[branch] = found[0].branches["main"]
            self._json({})

    def _preupload(self, name: str, revision: str) -> None:
        found = self._repo(name, revision, write=True)
        if found:
            present = found[0].commits.get(found[1], {})
            files = []
            for file in json.loads(self.body)["files"]:
                path = file["path"]
                oid = None
                if path in present:
                    content = present[path]
                    oid = sha256(content) if path.endswith(LFS) else git_sha1(content)
                mode = "lfs" if path.endswith(LFS) else "regular"
                files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self._json({"files": files})

    def _batch(self, name: str) -> None:
        if self._repo(name, write=True):
            objects = []
            for each in json.loads(self.body)["objects"]:
                entry = {"oid": each["oid"], "size": each["size"]}
                if each["oid"] not in self.server.hub.uploads and each["oid"] not in self.server.hub.stored:
                    entry["actions"] = {
                        "upload": {"href": f"{self.server.hub.storage}/upload/{each['oid']}", "header": {}}
                    }
                objects.append(entry)
            self._json({"transfer": "basic", "objects": objects})

    def _store(self, digest: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != digest:
            self._answer(400, b"hash mismatch")
            return
        self.server.hub.uploads[digest] = self.body
        self._answer(200, b"", {"ETag": '"x"'})

    def _commit(self, name: str, revision: str) -> None:
        found = self._repo(name, revision, write=True)
        if not found:
            return
        repo, parent = found
        files = dict(repo.commits.get(parent, {}))
        for line in self.body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                content = (
                    self.server.hub.uploads.get(entry["value"]["oid"])
                    or self.server.hub.stored[entry["value"]["oid"]]
                )
                files[entry["value"]["path"]] = content
                self.server.hub.stored[entry["value"]["oid"]] = content
        pull_request = "create_pr" in self.query
        sha = repo.commit(files, "refs/pr/1" if pull_request else revision)
        url = f"{self.server.hub.url}/{name}"
        request = f"{url}/discussions/1" if pull_request else None
        self._json(
            {"commitUrl": f"{url}/commit/{sha}", "commitOid": sha, "pullRequestUrl": request, "success": True}
        )

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _content(self, content: bytes, headers: Mapping[str, str]) -> None:
        """A file, or the range of it that was asked for."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if self.fault and self.fault.kind == "replace":
            content = self.fault.body
        if not match or (self.fault and self.fault.kind == "whole"):
            self._answer(200, content, headers)
            return
        start, stop = int(match[1]), min(int(match[2] or len(content)) + 1, len(content))
        if start >= len(content):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        place = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
        self._answer(206, content[start:stop], {**headers, **place})

    def _answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        fault = self.fault
        if fault and fault.kind == "corrupt" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault and fault.kind == "truncate":
            body = body[: fault.after]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send(memoryview(body), fault)

    def _send(self, body: memoryview, fault: Fault | None) -> None:
        hub = self.server.hub
        if fault and fault.kind in ("cut", "stall"):
            self.wfile.write(body[: fault.after])
            hub.sent += min(fault.after, len(body))
            self.wfile.flush()
            if fault.kind == "stall":
                hub.closing.wait(20)
            self.close_connection = True
            return
        for start in range(0, len(body), 1 << 16):
            if fault and fault.kind == "slow":
                hub.closing.wait(fault.pause)
            self.wfile.write(body[start : start + (1 << 16)])
            hub.sent += len(body[start : start + (1 << 16)])


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    if not path.endswith(LFS):
        return {"rfilename": path, "size": len(content), "blobId": git_sha1(content)}
    text = pointer(content)
    lfs = {"sha256": sha256(content), "size": len(content), "pointerSize": len(text)}
    return {"rfilename": path, "size": len(content), "blobId": git_sha1(text), "lfs": lfs}
