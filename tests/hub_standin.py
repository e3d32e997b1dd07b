"""A hub on this machine, for the real client: the few addresses that pushing and pulling ask for, over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


class Standin(BaseHTTPRequestHandler):
    """One repository, ``me/cues``; ``files`` hold what was pushed, ``asked`` each request."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        content, path = self._body(), urlsplit(self.path).path
        self.asked.append(f"POST {path}")
        base = f"http://{self.headers['Host']}"
        if path == "/api/repos/create":
            self._json({"url": f"{base}/me/cues", "name": "me/cues"})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/models/me/cues/preupload/main":
            asked = json.loads(content)["files"]
            self._json({"files": [{**one, "uploadMode": "regular", "shouldIgnore": False} for one in asked]})
        elif path == "/api/models/me/cues/commit/main":
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._json({"commitUrl": f"{base}/me/cues/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._json({"error": "not found"}, 404)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        if path.startswith("/api/models/me/cues/tree/"):
            self._json([{"type": "file", "path": n, "size": len(c), "oid": _tag(c)} for n, c in self.files.items()])
        elif path in ("/api/models/me/cues", "/api/models/me/cues/revision/main"):
            siblings = [{"rfilename": name} for name in self.files]
            self._json({"id": "me/cues", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        elif path.startswith("/me/cues/resolve/") and path.split("/", 5)[5] in self.files:
            content = self.files[path.split("/", 5)[5]]
            self._send(200, content, {"ETag": f'"{_tag(content)}"', "X-Repo-Commit": COMMIT})
        else:
            self._json({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815  the name that the server asks for

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _tag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextmanager
def hub_standin() -> Iterator[tuple[str, type[Standin]]]:
    """Serve in a thread; gives the address and the handler, on which ``files`` and ``asked`` are to be seen."""
    kept = type("Kept", (Standin,), {"files": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kept)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", kept
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
