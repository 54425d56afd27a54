"""Properties of each provider, tested with its own library against small stand-ins."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import requests
from requests.adapters import HTTPAdapter

from tests.helpers.checkpoint_folder import FILES, write_checkpoint
from tests.helpers.object_store import ObjectServer, stubborn_server
from trainer_engine.config.publishing import PublishTarget, parse_publishing
from trainer_engine.publishing import dropbox as dropbox_store
from trainer_engine.publishing.base import ProviderError
from trainer_engine.publishing.dropbox import DropboxProvider, content_hash
from trainer_engine.publishing.providers import open_provider


def target_of(**entry: Any) -> PublishTarget:
    targets, problems = parse_publishing(entry)
    assert problems == []
    return targets[0]


@dataclass
class Seen:
    """Requests that came, and what is kept."""

    requests: list[str] = field(default_factory=list)
    kept: dict[str, bytes] = field(default_factory=dict)
    about: dict[str, dict[str, str]] = field(default_factory=dict)
    refuses: bool = False
    url: str = ""


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], seen: Seen) -> Iterator[Seen]:
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"seen": seen})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        seen.url = f"http://127.0.0.1:{server.server_port}"
        yield seen
        server.shutdown()


class _Base(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: Seen

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        return


# ---- S3 ----
def test_request_headers_are_sent_with_every_request(tmp_path: Path) -> None:
    with stubborn_server(200) as server:
        fields = {"endpoint_url": server.url, "access_key": "k", "secret_key": "s", "request_headers": {"X-Tenant": "me"}}
        store = open_provider(target_of(provider="s3", bucket="trained", **fields))
        store.send(write_checkpoint(tmp_path, 5), "run", lambda count: None)
    assert server.headers and all(headers.get("X-Tenant") == "me" for headers in server.headers)
    assert all("x-tenant" in headers["Authorization"] for headers in server.headers)  # signed


@pytest.mark.parametrize("single", [False, True])
def test_large_files_are_sent_in_parts_unless_force_single_part(tmp_path: Path, store: ObjectServer, single: bool) -> None:
    (tmp_path / "large").write_bytes(b"0123456789abcdef" * (1 << 20) + b"more")
    open_provider(target_of(**store.entry(force_single_part=single, base_path=f"single-{single}"))).send(tmp_path, "", lambda count: None)
    etag = store.client.head_object(Bucket="trained", Key=f"single-{single}/large")["ETag"]
    assert ("-" in etag) is not single  # of an object in parts it ends with their number


def test_missing_profile_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(ProviderError, match="profile") as refused:
        open_provider(target_of(provider="s3", bucket="trained", profile="nobody"))
    assert refused.value.permanent


def test_invalid_endpoint_is_shown_without_its_query(tmp_path: Path) -> None:
    target = PublishTarget("s3", "trained", access_key="k", secret_key="s", endpoint_url="http://127.0.0.1:9/?signature=SECRET")
    with pytest.raises(ProviderError, match="127.0.0.1:9/` was not a valid URI") as refused:
        open_provider(target).send(write_checkpoint(tmp_path, 5), "run", lambda count: None)
    assert "SECRET" not in refused.value.message


def test_profile_of_the_user_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("[mine]\naws_access_key_id = AKIAMINE\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with stubborn_server(200) as server:
        store = open_provider(target_of(provider="s3", bucket="trained", profile="mine", endpoint_url=server.url))
        store.send(write_checkpoint(tmp_path, 5), "run", lambda count: None)
    assert all("Credential=AKIAMINE/" in headers["Authorization"] for headers in server.headers)


def test_missing_credentials_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = open_provider(target_of(provider="s3", bucket="trained", endpoint_url="http://127.0.0.1:9"))
    with pytest.raises(ProviderError, match="no credentials") as refused:
        store.send(write_checkpoint(tmp_path, 5), "run", lambda count: None)
    assert refused.value.permanent


# ---- Azure ----
class AzureHandler(_Base):
    """Put Blob, Put Block, Put Block List and Get Blob Properties."""

    def do_PUT(self) -> None:
        content, path = self.body(), unquote(urlsplit(self.path).path)
        self.seen.requests.append(f"PUT {self.path}")
        if self.seen.refuses or not (self.headers.get("Authorization") or "").startswith("SharedKey me:"):
            self.answer(403, x_ms_error_code="AuthenticationFailed")
            return
        if "comp=block&" in f"{urlsplit(self.path).query}&":
            self.seen.kept[f"{path} parts"] = self.seen.kept.get(f"{path} parts", b"") + content
        elif "comp=blocklist" in self.path:
            self.seen.kept[path] = self.seen.kept.pop(f"{path} parts")
        else:
            self.seen.kept[path] = content
        metadata = {name.lower(): value for name, value in self.headers.items() if name.lower().startswith("x-ms-meta-")}
        self.seen.about.setdefault(path, {}).update(metadata)
        self.answer(201, ETag='"1"', Last_Modified="Thu, 26 Nov 2026 20:00:00 GMT", x_ms_request_server_encrypted="true")

    def do_HEAD(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path not in self.seen.kept:
            self.answer(404, x_ms_error_code="BlobNotFound")
            return
        headers = {"Content_Length": str(len(self.seen.kept[path])), "ETag": '"1"', "Last_Modified": "Thu, 26 Nov 2026 20:00:00 GMT"}
        self.send_response(200)
        for name, value in [*headers.items(), ("x-ms-blob-type", "BlockBlob"), *self.seen.about[path].items()]:
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


def azure_target(url: str, **fields: Any) -> PublishTarget:
    key = base64.b64encode(b"SECRET").decode()
    text = f"DefaultEndpointsProtocol=http;AccountName=me;AccountKey={key};BlobEndpoint={url}/me;"
    return target_of(**{"provider": "azure_blob", "container": "trained", "connection_string": text, "base_path": "runs", **fields})


def test_azure_uploads_every_file_once(tmp_path: Path) -> None:
    with serving(AzureHandler, Seen()) as seen:
        store = open_provider(azure_target(seen.url))
        address = store.send(write_checkpoint(tmp_path, 5), "demo/checkpoint-5", lambda count: None)
        assert address == f"{seen.url}/me/trained/runs/demo/checkpoint-5"
        kept = {path.removeprefix("/me/trained/runs/demo/checkpoint-5/"): content for path, content in seen.kept.items()}
        assert {name: kept[name] for name in FILES} == FILES and "manifest.json" in kept
        before = len(seen.requests)
        assert store.send(tmp_path / "checkpoint-5", "demo/checkpoint-5", lambda count: None) == address
        assert len(seen.requests) == before


def test_azure_sends_large_files_in_blocks(tmp_path: Path) -> None:
    content = b"0123456789abcdef" * (1 << 20)
    (tmp_path / "large").write_bytes(content)
    moved: list[int] = []
    with serving(AzureHandler, Seen()) as seen:
        open_provider(azure_target(seen.url)).send(tmp_path, "demo", moved.append)
        assert seen.kept["/me/trained/runs/demo/large"] == content
    assert sum(moved) == len(content) and len(moved) > 1


def test_azure_error_does_not_contain_the_key(tmp_path: Path) -> None:
    with serving(AzureHandler, Seen(refuses=True)) as seen:
        with pytest.raises(ProviderError, match="refuses these credentials|HTTP 403") as refused:
            open_provider(azure_target(seen.url)).send(write_checkpoint(tmp_path, 5), "demo", lambda count: None)
    assert refused.value.permanent and "credentials" in refused.value.hint
    with pytest.raises(ProviderError, match="cannot be used") as refused:
        open_provider(azure_target("http://x", connection_string="AccountName=me;SECRET"))
    assert "SECRET" not in refused.value.message + refused.value.hint


# ---- Dropbox ----
class DropboxHandler(_Base):
    """files/upload, upload_session/*, get_metadata. The library insists on its own hosts over TLS, so its session leads it here."""

    def do_POST(self) -> None:
        content = self.body()
        self.seen.requests.append(self.path)
        if self.headers.get("Authorization") != "Bearer good":
            self._json({"error_summary": "invalid_access_token/", "error": {".tag": "invalid_access_token"}}, 401)
        elif self.path == "/2/files/get_metadata":
            self._metadata(json.loads(content)["path"])
        else:
            self._upload(self.path.rpartition("/")[2], json.loads(self.headers["Dropbox-API-Arg"]), content)

    def _upload(self, how: str, wanted: dict[str, Any], content: bytes) -> None:
        parts = self.seen.about.setdefault("parts", {})
        if how in ("append_v2", "finish"):
            assert wanted["cursor"]["offset"] == len(base64.b64decode(parts["session"]))
        if how in ("start", "append_v2", "finish"):
            so_far = base64.b64decode(parts.get("session", "")) if how != "start" else b""
            parts["session"] = base64.b64encode(so_far + content).decode()
        if how == "start":
            self._json({"session_id": "session"})
        elif how == "append_v2":
            self._json(None)
        else:
            path = wanted["commit"]["path"] if how == "finish" else wanted["path"]
            self.seen.kept[path] = base64.b64decode(parts["session"]) if how == "finish" else content
            self._json(self._file(path))

    def _metadata(self, path: str) -> None:
        if path in self.seen.kept:
            self._json({".tag": "file", **self._file(path)})
        else:
            error = {".tag": "path", "path": {".tag": "not_found"}}
            self._json({"error_summary": "path/not_found/", "error": error}, 409)

    def _file(self, path: str) -> dict[str, Any]:
        content, time = self.seen.kept[path], "2026-11-26T20:00:00Z"
        blocks = [content[at : at + (4 << 20)] for at in range(0, len(content), 4 << 20)]
        whole = hashlib.sha256(b"".join(hashlib.sha256(block).digest() for block in blocks)).hexdigest()
        name = path.rpartition("/")[2]
        times = {"client_modified": time, "server_modified": time}
        return {
            "name": name,
            "id": "id:aaaaaaaaaaaaaaaaaaaaaa",
            "rev": "0123456789abcdef0",
            "size": len(content),
            "content_hash": whole,
            **times,
        }

    def _json(self, document: object, status: int = 200) -> None:
        self.answer(status, json.dumps(document).encode(), Content_Type="application/json")


class Redirecting(HTTPAdapter):
    """Sends what is meant for Dropbox to a server of this machine."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        request.url = self.url + urlsplit(str(request.url)).path
        return super().send(request, *args, **{**kwargs, "verify": False})


def dropbox_of(url: str, token: str = "good") -> DropboxProvider:
    session = requests.Session()
    session.mount("https://", Redirecting(url))
    return DropboxProvider(target_of(provider="dropbox", token=token, base_path="/runs/"), session)


def test_dropbox_uploads_every_file_once(tmp_path: Path) -> None:
    with serving(DropboxHandler, Seen()) as seen:
        store = dropbox_of(seen.url)
        assert store.send(write_checkpoint(tmp_path, 5), "demo/checkpoint-5", lambda count: None) == "dropbox://runs/demo/checkpoint-5"
        assert {name: seen.kept[f"/runs/demo/checkpoint-5/{name}"] for name in FILES} == FILES
        before = len(seen.requests)
        store.send(tmp_path / "checkpoint-5", "demo/checkpoint-5", lambda count: None)
        assert set(seen.requests[before:]) == {"/2/files/get_metadata"}


def test_dropbox_uploads_large_files_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropbox_store, "PART_BYTES", 4 << 20)
    content = b"0123456789abcdef" * (700 << 10)
    (tmp_path / "large").write_bytes(content)
    moved: list[int] = []
    with serving(DropboxHandler, Seen()) as seen:
        dropbox_of(seen.url).send(tmp_path, "demo", moved.append)
        assert seen.kept["/runs/demo/large"] == content
        assert DropboxHandler._file(type("", (), {"seen": seen})(), "/runs/demo/large")["content_hash"] == content_hash(tmp_path / "large")
    assert sum(moved) == len(content) and len(moved) == 3


def test_refused_dropbox_token_is_an_error(tmp_path: Path) -> None:
    with serving(DropboxHandler, Seen()) as seen:
        with pytest.raises(ProviderError, match="refuses the token") as refused:
            dropbox_of(seen.url, "SECRET").send(write_checkpoint(tmp_path, 5), "demo", lambda count: None)
    assert refused.value.permanent and "SECRET" not in refused.value.message + refused.value.hint


def test_missing_library_has_an_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer_engine.publishing.providers.is_installed", lambda provider: False)
    with pytest.raises(ProviderError, match="boto3") as refused:
        open_provider(target_of(provider="s3", bucket="trained"))
    assert refused.value.hint == "pip install boto3"
