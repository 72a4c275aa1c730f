"""A hub on the loopback address: repositories with commits and branches, spoken to by the real huggingface_hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

Files = dict[str, bytes]


def files_of(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@dataclass
class Hub:
    """What the hub has of one repository, and what it was asked."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    moves_to: str = ""
    """Commit that ``main`` means once it has been looked up."""
    lies: Files = field(default_factory=dict)
    """Bytes that are sent in place of those that a file's hash is of."""
    asked: list[str] = field(default_factory=list)
    """Paths of all requests."""
    endpoint: str = ""

    def answer(self, path: str) -> tuple[bytes, dict[str, str]] | None:
        """Body and headers; None: there is no such thing."""
        self.asked.append(path)
        if found := re.fullmatch(r"/api/models/org/tiny(?:/revision/(.+))?", path):
            revision = found[1] or "main"
            commit = self.branches.get(revision, revision)
            if self.moves_to:
                self.branches["main"] = self.moves_to
            return (_json({"id": "org/tiny", "sha": commit}), {}) if commit in self.commits else None
        if found := re.match(r"/api/models/org/tiny/tree/(\w+)", path):
            files = self.commits[found[1]]
            return _json([_described(name, data) for name, data in files.items()]), {}
        if found := re.fullmatch(r"/org/tiny/resolve/([^/]+)/([^/]+)", path):
            commit = self.branches.get(found[1], found[1])
            data = self.commits[commit].get(found[2])
            if data is None:
                return None
            sent = self.lies.get(found[2], data)
            return sent, {"X-Repo-Commit": commit, "ETag": f'"{_name(found[2], data)}"'}
        return None


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body, headers = hub.answer(self.path) or (None, {})
            self.send_response(200 if body is not None else 404)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def _name(name: str, data: bytes) -> str:
    """The hash by which the hub knows a file: SHA-256 of large ones, git's of small ones."""
    if _is_large(name):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


def _described(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": _name(name, data)}
    if _is_large(name):
        entry["lfs"] = {"oid": _name(name, data), "size": len(data), "pointerSize": 134}
    return entry


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
