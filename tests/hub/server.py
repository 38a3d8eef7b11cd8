"""A hub of one repository on loopback: enough of its HTTP interface for the client to create, commit and download."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

COMMIT = "1" * 40


@contextmanager
def local_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """Serve; the client's address and offline switch are set for as long. Yields the files of the repository."""
    from huggingface_hub import constants

    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _json(self, value: Any) -> None:
            self._send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

        def do_POST(self) -> None:
            body = (
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                if "Content-Length" in self.headers
                else (self._chunks())
            )
            path = self.path.split("?")[0]
            if path == "/api/repos/create":
                sent = json.loads(body)
                return self._json({"url": f"{address}/{sent.get('organization', 'me')}/{sent['name']}"})
            if "/preupload/" in path:
                modes = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                return self._json({"files": modes})
            if "/commit/" in path:
                for line in filter(None, body.split(b"\n")):
                    part = json.loads(line)
                    if part["key"] == "file":
                        files[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
                return self._json({"commitUrl": f"{address}/me/bridge/commit/{COMMIT}", "commitOid": COMMIT})
            if path == "/api/validate-yaml":
                return self._json({"errors": [], "warnings": []})
            return self._send(b"{}", 404)

        def _chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path.startswith("/api/models/"):
                return self._json({"id": "me/bridge", "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]})
            name = path.rpartition("/")[2]
            if "/resolve/" not in path or name not in files:
                return self._send(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            etag = hashlib.sha256(files[name]).hexdigest()
            return self._send(files[name], headers={"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
