"""Uploads to a real server: large files take no memory, and no request can fill the disk or leave anything behind."""

from __future__ import annotations

import asyncio
import io
import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from django.test import override_settings
from PIL import Image

from simpletuner_site.edge.upload_files import FileUploads
from simpletuner_site.edge.uploads import BODY_FILE, COPIES, BodySizes, DiskSpace, UploadHandler, is_upload, remove_leftovers
from simpletuner_site.environment import BadEnvironment, read_environment
from tests.helpers.live_server import LiveServer, start_server
from tests.helpers.params import first_fast
from tests.site.test_edge import MIB, connect, detail_of, files_of, head, pour, read_all, status_of

UPLOAD_MB = 24
REQUEST = 4 * UPLOAD_MB * 1_000_000 + MIB


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with start_server(tmp_path_factory.mktemp("home"), environment={"SIMPLETUNER_UPLOAD_MB": str(UPLOAD_MB)}) as live:
        yield live


def photograph(megapixels: int = 6) -> bytes:
    """A PNG of noise: three bytes a pixel, as a camera's file can be."""
    stream = io.BytesIO()
    Image.frombytes("RGB", (1000, 1000 * megapixels), os.urandom(3_000_000 * megapixels)).save(stream, "PNG", compress_level=0)
    return stream.getvalue()


def send(server: LiveServer, folder: str, **files: bytes) -> httpx.Response:
    return server.post(f"/api/folders/{folder}/images", files=[("file", (name, content)) for name, content in files.items()])


def is_clean(server: LiveServer) -> bool:
    """Whether nothing of an upload is left, after a moment for the server to notice that a client is gone."""
    for _ in range(600):
        left = [path.name for path in (server.home / "state").iterdir() if path.name.startswith(("tmp", "upload-"))]
        if not left and files_of(server) < MIB:
            return True
        time.sleep(0.1)
    return False


def test_a_photograph_is_stored_with_its_caption_and_takes_no_memory(server: LiveServer) -> None:
    send(server, "warm", **{"a.png": photograph(1)})
    content, before = photograph(), psutil.Process(server.pid).memory_info().rss
    answer = send(server, "photos", **{"one.png": content, "one.txt": b"a <token>", "two.png": content, "three.png": content})
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert [one["size_bytes"] for one in shown["images"]] == [len(content)] * 3 and shown["captions"] == ["one.txt"]
    assert (server.home / "datasets/photos/three.png").read_bytes() == content and len(content) > 17 * MIB
    assert psutil.Process(server.pid).memory_info().rss - before < 24 * MIB, "54 MB were sent"
    assert is_clean(server)


def test_a_file_and_a_request_have_limits(server: LiveServer) -> None:
    answer = send(server, "photos", **{"large.png": photograph(9), "small.png": photograph(1)})
    assert [(one["code"], one["got"]) for one in answer.json()["problems"]] == [("too_large", "large.png")]
    assert f"{UPLOAD_MB} MB" in answer.json()["problems"][0]["message"] and len(answer.json()["images"]) == 1
    with connect(server) as connection:
        connection.sendall(head("POST /api/folders/photos/images HTTP/1.1", f"Content-Length: {REQUEST + 1}"))
        assert status_of(connection.recv(65536)) == 413
    assert server.post("/api/configs/environments", content=b" " * (8 * MIB + 1)).status_code == 413, "others keep their limit"
    assert is_clean(server)


def test_a_body_without_an_end_is_cut_off_at_the_limit(server: LiveServer) -> None:
    with connect(server) as connection:
        connection.sendall(head("POST /api/folders/photos/images HTTP/1.1", "Transfer-Encoding: chunked"))
        sent = pour(connection, 3 * REQUEST, b"100000\r\n" + b"x" * MIB + b"\r\n")
        answer = read_all(connection)
    assert sent < 2 * REQUEST and (not answer or (status_of(answer) == 413 and "the most that is read" in detail_of(answer)))
    assert is_clean(server) and server.get("/health").status_code == 200


def test_a_body_in_chunks_is_the_same_as_one_with_a_length(server: LiveServer) -> None:
    plain = httpx.Request("POST", "http://localhost/", files=[("file", ("a.png", photograph(1)))])
    body, kind = plain.read(), {"Content-Type": plain.headers["content-type"]}
    pieces = (body[begin : begin + 100_000] for begin in range(0, len(body), 100_000))
    answer = server.post("/api/folders/chunks/images", content=pieces, headers=kind)
    assert answer.status_code == 200 and [one["file"] for one in answer.json()["images"]] == ["a.png"], answer.text
    answer = server.post("/api/configs/environments", content=iter([b'{"name": ', b'"a b"}']), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and "'a b'" in answer.text, "the name was read"
    assert is_clean(server)


def test_a_file_for_a_body_needs_one_of_the_few_places(server: LiveServer) -> None:
    with ExitStack() as stack:
        for _ in range(30):
            connection = stack.enter_context(connect(server))
            connection.sendall(head("POST /api/folders/photos/images HTTP/1.1", "Transfer-Encoding: chunked"))
        assert status_of(connection.recv(65536)) == 503
        links = [link.readlink() for link in Path(f"/proc/{server.pid}/fd").iterdir() if link.is_symlink()]
        assert sum("(deleted)" in str(link) and "/state/" in str(link) for link in links) <= 8
    assert is_clean(server)


@pytest.mark.parametrize("lacking", [1, 100_000])
def test_a_disk_that_fills_up_is_named(server: LiveServer, lacking: int) -> None:
    body = b"x" * 300_000
    limit = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    with connect(server) as connection:
        connection.sendall(head("POST /api/folders/photos/images HTTP/1.1", f"Content-Length: {len(body)}"))
        time.sleep(0.2)
        try:
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (len(body) - lacking, limit[1]))
            connection.sendall(body)
            answer = read_all(connection)
        finally:
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, limit)
    assert status_of(answer) == 507 and "too little space" in detail_of(answer)
    assert is_clean(server)


@pytest.mark.parametrize("announced", [10 * MIB, 70_000])
def test_a_body_of_another_length_than_announced_leaves_nothing(server: LiveServer, announced: int) -> None:
    form = "Content-Type: multipart/form-data; boundary=x"
    with connect(server) as connection:
        connection.sendall(head("POST /api/folders/odd/images HTTP/1.1", f"Content-Length: {announced}", form))
        pour(connection, 4 * MIB, b"x" * MIB)
    assert is_clean(server) and not (server.home / "datasets/odd").exists()
    assert server.get("/health").status_code == 200


BROKEN_FORMS = {
    "the middle of a file": b"",
    "headers without an end": b"\r\n--a-boundary-of-a-form\r\n" + b"x" * 20_000,
    "headers that are too long": b"\r\n--a-boundary-of-a-form\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("encoding", ["binary", "base64"])
@pytest.mark.parametrize("end", BROKEN_FORMS.values(), ids=BROKEN_FORMS)
def test_a_form_that_breaks_off_is_refused(server: LiveServer, end: bytes, encoding: str) -> None:
    part = f'Content-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=a-boundary-of-a-form"}
    body = b"--a-boundary-of-a-form\r\n" + part.encode() + photograph(1) + end
    answer = server.post("/api/folders/odd/images", content=body, headers=form)
    assert answer.status_code in (400, 422) or answer.json()["problems"], answer.text
    assert not list((server.home / "datasets").glob("odd/*")) and is_clean(server)


@pytest.mark.parametrize("address", ["..%2F..%2Fetc", "%2e%2e", "a%2Fb", "photos/..", "."])
def test_an_address_that_leaves_the_folder_gets_no_longer_body(server: LiveServer, address: str) -> None:
    answer = server.post(f"/api/folders/{address}/images", files=[("file", ("../../x.png", photograph(1)))])
    assert answer.status_code in (404, 405, 422) and json.loads(answer.text)["detail"]
    assert not list(server.home.rglob("x.png")) and not list(server.home.parent.glob("x.png"))


def test_pages_of_other_sites_upload_nothing(server: LiveServer) -> None:
    with connect(server) as connection:
        connection.sendall(head("POST /api/folders/photos/images HTTP/1.1", f"Content-Length: {20 * MIB}", "Origin: http://evil.example"))
        assert status_of(connection.recv(65536)) == 403
    assert is_clean(server)


# ---- parts ----
def scope(path: str, method: str = "POST") -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path}


async def send_nothing(message: Any) -> None:
    return None


def test_only_an_upload_has_the_longer_limit() -> None:
    sizes = BodySizes(10, 100)
    assert sizes.of(scope("/api/folders/cats/images")) == sizes.of(scope("/api/folders/cats/images/")) == 100
    for other in (scope("/api/folders/cats/images", "PUT"), scope("/api/folders/a/b/images"), scope("/api/training/start"), scope("")):
        assert not is_upload(other) and sizes.of(other) == 10
    assert not is_upload({"type": "websocket", "path": "/api/folders/cats/images"})


def test_space_is_kept_for_every_upload_that_is_under_way(tmp_path: Path) -> None:
    space = DiskSpace(tmp_path, 1000, lambda folder: 1000 + 2 * COPIES * 50)
    assert space.keep("a", 50) and space.keep("b", 50) and not space.keep("c", 1)
    assert space.keep("a", 50), "one that asks again counts once"
    space.give_back("a")
    space.give_back("unknown")
    assert space.keep("c", 50) and not space.keep("d", 1)


def test_a_disk_that_cannot_be_asked_has_no_space(tmp_path: Path) -> None:
    assert not DiskSpace(tmp_path / "none", 0).keep("a", 1)
    assert DiskSpace(tmp_path, 0).keep("a", 1) and not DiskSpace(tmp_path, 1 << 60).keep("a", 1)


def test_django_reads_the_body_from_the_file_that_the_edge_wrote(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"whole body")
    messages = [{"type": "http.request", "body": b"", "more_body": False}]
    seen: list[bytes] = []

    class Handler(UploadHandler):
        def create_request(self, scope: Any, body_file: Any) -> Any:
            seen.append(body_file.read())
            return super().create_request(scope, body_file)

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    file = path.open("rb")
    details = {"headers": [(b"host", b"localhost")], "query_string": b"", "http_version": "1.1", "server": ("localhost", 80)}
    asyncio.run(Handler().handle({**scope("/nothing", "GET"), **details, BODY_FILE: file}, receive, send_nothing))
    assert seen == [b"whole body"] and file.closed


def test_the_files_of_a_form_go_with_a_client_that_leaves(tmp_path: Path) -> None:
    form = httpx.Request("POST", "http://localhost/", files=[("file", ("a.png", photograph(1)))])
    messages = [{"type": "http.request", "body": form.read(), "more_body": False}]
    requests: list[Any] = []

    class Handler(UploadHandler):
        async def get_response_async(self, request: Any) -> Any:
            assert request.FILES and len(list(tmp_path.iterdir())) == 1
            requests.append(request)
            await asyncio.sleep(60)

    async def receive() -> Any:
        if messages:
            return messages.pop()
        while not requests:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    headers = [(name.lower().encode(), value.encode()) for name, value in form.headers.items()]
    details = {"headers": headers, "query_string": b"", "http_version": "1.1", "server": ("localhost", 80)}
    handlers = [f"{FileUploads.__module__}.{FileUploads.__name__}"]
    with override_settings(FILE_UPLOAD_TEMP_DIR=str(tmp_path), FILE_UPLOAD_HANDLERS=handlers):
        asyncio.run(Handler().handle({**scope("/nothing"), **details}, receive, send_nothing))
    assert requests and not list(tmp_path.iterdir())


def test_a_new_server_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / "upload-abc").mkdir()
    (tmp_path / "upload-abc/0.png").write_bytes(b"x")
    (tmp_path / "tmpabc.upload.png").write_bytes(b"x")
    (tmp_path / "simpletuner.sqlite3").write_bytes(b"x")
    (tmp_path / "uploads.json").write_bytes(b"x")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["simpletuner.sqlite3", "uploads.json"]


@pytest.mark.parametrize(("text", "size"), [("", 64_000_000), ("1", 1_000_000), ("16000", 16_000_000_000)])
def test_the_largest_file_is_a_setting(text: str, size: int) -> None:
    assert read_environment({"SIMPLETUNER_UPLOAD_MB": text}).upload_bytes == size


@pytest.mark.parametrize("text", first_fast(["0", "１", "16001", "-1", "x", "1e3", "99999999"], 3))
def test_a_wrong_size_is_named(text: str) -> None:
    with pytest.raises(BadEnvironment, match="SIMPLETUNER_UPLOAD_MB"):
        read_environment({"SIMPLETUNER_UPLOAD_MB": text})
