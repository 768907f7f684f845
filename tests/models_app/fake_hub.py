"""A model hub on localhost, with the faults a real network has."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What the hub holds, does wrong and was asked.

    Attributes:
        files: Contents by name; ``.safetensors`` are announced with SHA-256, others as git blobs.
        cut_after: Names whose next answer breaks off after so many bytes.
        ignores_ranges: Answers the whole file to a Range request.
        gate: HTTP status and error code instead of any file.
        token: Asked for when set.
        lies: Names announced with a wrong checksum.
    """

    files: dict[str, bytes]
    repository: str = "owner/model"
    cut_after: dict[str, int] = field(default_factory=dict)
    ignores_ranges: bool = False
    gate: tuple[int, str] | None = None
    token: str = ""
    lies: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    sent_bytes: int = 0
    endpoint: str = ""

    def listing(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.files.items():
            sibling: dict[str, Any] = {"rfilename": name, "size": len(content)}
            blob = f"blob {len(content)}\0".encode() + content
            sibling["blobId"] = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
            if name.endswith(".safetensors"):
                digest = hashlib.sha256(b"lie" if name in self.lies else content).hexdigest()
                sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        return {"id": self.repository, "sha": REVISION, "siblings": siblings}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        hub.asked.append((path, self.headers.get("Range", "")))
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._error(401, "GatedRepo")
        elif path == f"/api/models/{hub.repository}/revision/{REVISION}":
            body = json.dumps(hub.listing()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif path.startswith("/api/"):
            self._error(404, "RevisionNotFound" if hub.repository in path else "RepoNotFound")
        elif hub.gate:
            self._error(*hub.gate)
        else:
            self._file(hub, path.removeprefix(f"/{hub.repository}/resolve/{REVISION}/"))

    def _file(self, hub: FakeHub, name: str) -> None:
        if name not in hub.files:
            self._error(404, "EntryNotFound")
            return
        content = hub.files[name]
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match and not hub.ignores_ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        cut = hub.cut_after.pop(name, None)
        if cut is not None:
            body = body[:cut]
            self.close_connection = True
        hub.sent_bytes += len(body)
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    hub: FakeHub
    daemon_threads = True


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve a hub on a free port."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = hub
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def contents_of(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
