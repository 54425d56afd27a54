"""As much of the Hugging Face hub as uploads and downloads of a model take; its library is led here by HF_ENDPOINT."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.helpers.loopback import served_by

TOKEN = "hf_testing"
OWNER = "me"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors",)
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class HubServer:
    """Repositories in memory."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Repository -> path -> content."""
    private: dict[str, bool] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 -> content of a large file."""
    commits: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    """SHA-256 of every large file that came over the line."""
    errors: list[str] = field(default_factory=list)
    """What the hub finds wrong with a card."""

    @property
    def variables(self) -> dict[str, str]:
        """Environment of a process that speaks to it. Xet needs servers of its own; without, the library takes the git-lfs way."""
        switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, **switches}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_: Any) -> None:
        return

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, document: object, status: int = 200) -> None:
        self._answer(status, json.dumps(document).encode(), Content_Type="application/json")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _refuses(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return False
        self._json({"error": "Invalid credentials"}, 401)
        return True

    def do_POST(self) -> None:
        body = self._body()
        path = urlsplit(self.path).path
        if self._refuses():
            return
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            errors = [{"message": message} for message in self.hub.errors]
            self._json({"errors": errors, "warnings": []}, 400 if errors else 200)
        elif re.fullmatch(rf"/api/models/{REPO}/preupload/main", path):
            files = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular"} for one in files]
            self._json({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif re.fullmatch(rf"/{REPO}\.git/info/lfs/objects/batch", path):
            self._json({"transfer": "basic", "objects": [self._transfer(one) for one in json.loads(body)["objects"]]})
        elif found := re.fullmatch(rf"/api/models/{REPO}/commit/main", path):
            self._commit(found["repo"], [json.loads(line) for line in body.splitlines()])
        else:
            self._json({"error": f"{path} is not part of this stand-in"}, 501)

    def _create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted.get('organization') or OWNER}/{wanted['name']}"
        known = repo in self.hub.repos
        if not known:
            self.hub.repos[repo] = {}
            self.hub.private[repo] = wanted.get("visibility") == "private" or wanted.get("private") is True
        self._json({"url": f"{self.hub.url}/{repo}", "error": "exists"}, 409 if known else 200)

    def _transfer(self, wanted: dict[str, Any]) -> dict[str, Any]:
        oid = wanted["oid"]
        action = {} if oid in self.hub.blobs else {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{oid}"}}}
        return {"oid": oid, "size": wanted["size"], **action}

    def do_PUT(self) -> None:
        content = self._body()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.blobs[oid] = content
        self.hub.sent.append(oid)
        self._answer(200, ETag='"x"')

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append(value["summary"])
            elif line["key"] == "file":
                self.hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.repos[repo][value["path"]] = self.hub.blobs[value["oid"]]
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})

    def do_GET(self) -> None:
        found = re.fullmatch(rf"/{REPO}/resolve/[^/]+/(?P<path>.+)", unquote(urlsplit(self.path).path))
        if self._refuses():
            return
        content = self.hub.repos.get(found["repo"], {}).get(found["path"]) if found else None
        if content is None:
            self._answer(404, X_Error_Code="EntryNotFound")
            return
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": COMMIT}
        self._answer(206 if start else 200, content[start:], Content_Length=str(len(content) - start), **headers)

    do_HEAD = do_GET


@contextmanager
def hub_server() -> Iterator[HubServer]:
    hub = HubServer()
    with served_by(_Handler, hub=hub) as hub.url:
        yield hub


HANGS_UP = b""
OTHER_ANSWERS = {
    "error 500": b"HTTP/1.1 500 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno",
    "hangs up": HANGS_UP,
    "half an answer": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
    "no HTTP": b"SSH-2.0-OpenSSH_9.9\r\n",
    "a login page": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>",
    "other JSON": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]",
}
"""What a server that is no working hub sends, by what it does; the connection is closed afterwards."""


class _SameAnswer(socketserver.StreamRequestHandler):
    timeout = 10
    answer: bytes

    def handle(self) -> None:
        length = 0
        while (line := self.rfile.readline()).strip():
            name, _, value = line.lower().partition(b":")
            length = int(value) if name == b"content-length" else length
        self.rfile.read(length)
        self.wfile.write(self.answer)


@contextmanager
def broken_hub(answer: bytes) -> Iterator[HubServer]:
    """A server that sends ``answer`` to every request and closes the connection."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), type("Handler", (_SameAnswer,), {"answer": answer})) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield HubServer(url=f"http://127.0.0.1:{server.server_address[1]}")
        finally:
            server.shutdown()


class _NoAnswer(socketserver.StreamRequestHandler):
    closing: threading.Event

    def handle(self) -> None:
        self.closing.wait()


@contextmanager
def silent_hub() -> Iterator[HubServer]:
    """A server that accepts every connection and never answers."""
    closing = threading.Event()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), type("Handler", (_NoAnswer,), {"closing": closing})) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield HubServer(url=f"http://127.0.0.1:{server.server_address[1]}")
        finally:
            closing.set()
            server.shutdown()
