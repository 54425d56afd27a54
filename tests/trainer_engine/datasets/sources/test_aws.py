"""Datasets in a bucket, against a real S3 server on loopback and one that refuses."""

from __future__ import annotations

import io
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.caches import state_of
from tests.helpers.checked_runs import checked, codes, refusal
from tests.helpers.object_store import BUCKET, ObjectServer, object_server, stubborn_server
from tests.helpers.tiny_run import tiny_datasets, train_here
from trainer_engine.config.addresses import AddressRefused, Reach
from trainer_engine.contract.events import Notification
from trainer_engine.datasets import s3_client
from trainer_engine.datasets.index import discover
from trainer_engine.datasets.media.base import suffixes_of
from trainer_engine.datasets.sources.aws import AwsSource
from trainer_engine.datasets.sources.bucket import Bucket
from trainer_engine.datasets.sources.ranged import FIRST_BYTES, RangedFile

IMAGES = suffixes_of(("image",))


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with object_server() as found:
        yield found


@pytest.fixture
def store(server: ObjectServer) -> ObjectServer:
    server.clear()
    return server


def source(server: ObjectServer, prefix: str = "") -> AwsSource:
    bucket = Bucket(BUCKET, endpoint_url=server.url, region="us-east-1", access_key="key", secret_key="secret")
    return AwsSource(bucket, prefix)


def picture(width: int = 20, height: int = 10, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(stream, kind)
    return stream.getvalue()


def in_bucket(place: Path, server: ObjectServer, prefix: str = "sets/pictures", **fields: Any) -> list[dict[str, Any]]:
    """The tiny datasets with their images uploaded to a bucket."""
    images, texts = tiny_datasets(place)
    folder = place / "images"
    for path in folder.rglob("*.*"):
        server.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())
    del images["instance_data_dir"]
    keys = {"aws_access_key_id": "testing-key", "aws_secret_access_key": "testing-secret"}
    images |= {"type": "aws", "aws_bucket_name": BUCKET, "aws_data_prefix": prefix, "aws_endpoint_url": server.url, **keys}
    return [{name: value for name, value in {**images, **fields}.items() if value is not None}, texts]


def cached_files(place: Path) -> dict[str, bytes]:
    return state_of(place / "cache")


def test_objects_are_listed_by_their_names_below_the_prefix(store: ObjectServer) -> None:
    for key in ("a/1.png", "a/deep/2.JPG", "a/empty.png", "a/.hidden/3.png", "a/.4.png", "a/notes.txt", "a/draw.svg", "b/5.png"):
        store.put(key, b"" if "empty" in key else b"x" * 7)
    store.put("a/../out.png", b"x")
    store.put("a//twice.png", b"x")
    listing = source(store, "a/").list_files(IMAGES)
    assert [(file.name, file.size_bytes) for file in listing.files] == [("1.png", 7), ("deep/2.JPG", 7)]
    assert {one.name: one.reason for one in listing.left_out} == {
        "../out.png": "its name is not that of a file in a folder",
        "/twice.png": "its name is not that of a file in a folder",
        "draw.svg": ".svg files are not supported",
        "empty.png": "the object is empty (0 bytes)",
    }
    assert [file.name for file in source(store).list_files(IMAGES).files] == ["a/1.png", "a/deep/2.JPG", "b/5.png"]


@pytest.mark.slow
def test_more_objects_than_a_page_are_listed(store: ObjectServer) -> None:
    for number in range(1_003):
        store.put(f"many/{number:04}.png", b"x")
    assert len(source(store, "many/").list_files(IMAGES).files) == 1_003


def test_headers_are_read_in_ranges_and_an_unchanged_object_is_read_once(
    store: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = picture(300, 200, "BMP")
    store.put("x/large.bmp", large)
    store.put("x/small.png", picture(20, 10))
    read: list[int] = []
    whole = s3_client.S3Client.read

    def counted(self: s3_client.S3Client, key: str, etag: str, start: int, count: int) -> bytes:
        read.append(count)
        return whole(self, key, etag, start, count)

    monkeypatch.setattr(s3_client.S3Client, "read", counted)
    found = discover(source(store, "x/"), index_dir=tmp_path)
    assert [(image.name, image.width) for image in found.images] == [("large.bmp", 300), ("small.png", 20)]
    assert 0 < sum(read) < len(large) // 2
    before = len(read)
    assert discover(source(store, "x/"), index_dir=tmp_path).opened == 0 and len(read) == before
    store.put("x/small.png", picture(21, 10))
    again = discover(source(store, "x/"), index_dir=tmp_path)
    assert (again.opened, again.images[1].width) == (1, 21)


def test_a_file_is_read_at_any_position(store: ObjectServer) -> None:
    content = os.urandom(3 * FIRST_BYTES + 17)
    store.put("x/data.png", content)
    found = source(store, "x/")
    found.list_files(IMAGES)
    with found.open("data.png") as stream:
        assert stream.read(10) == content[:10]
        assert stream.seek(-5, os.SEEK_END) and stream.read() == content[-5:]
        assert stream.seek(FIRST_BYTES - 3) and stream.read(6) == content[FIRST_BYTES - 3 : FIRST_BYTES + 3]
        assert stream.seek(0) == 0 and stream.read() == content and stream.read() == b""
    assert found.read_small("data.png", 1 << 20) == content


def test_ranges_grow_while_a_file_is_read_in_sequence() -> None:
    content, asked = os.urandom(2 << 20), list[int]()

    def read_range(start: int, count: int) -> bytes:
        asked.append(count)
        return content[start : start + count]

    stream = io.BufferedReader(RangedFile(read_range, len(content)))
    assert b"".join(iter(lambda: stream.read(1_000), b"")) == content
    assert len(asked) < 8 and asked[0] == FIRST_BYTES and sum(asked) == len(content)


def test_a_name_that_was_not_listed_is_not_asked_for(store: ObjectServer) -> None:
    store.put("x/1.png", b"x")
    found = source(store, "x/")
    found.list_files(IMAGES)
    with pytest.raises(FileNotFoundError):
        found.open("1.txt")
    assert source(store, "x/").stat("1.png").size_bytes == 1
    with pytest.raises(FileNotFoundError):
        source(store, "x/").stat("2.png")


@pytest.mark.parametrize("change", ["gone", "replaced"])
def test_an_object_that_changes_after_it_was_listed_is_named(store: ObjectServer, change: str) -> None:
    store.put("x/1.png", b"before")
    found = source(store, "x/")
    found.list_files(IMAGES)
    store.clear() if change == "gone" else store.put("x/1.png", b"after!")
    with pytest.raises(FileNotFoundError, match="gone from the bucket, or was replaced"), found.open("1.png") as stream:
        stream.read()


def test_sources_of_one_place_are_equal_and_show_no_secret(store: ObjectServer) -> None:
    one, other = source(store, "x/"), source(store, "x/")
    assert one == other and hash(one) == hash(other) and one != source(store, "y/")
    assert one.location("1.png") == f"s3://{store.url.removeprefix('http://')}/{BUCKET}/x/1.png"
    assert "secret" not in repr(one) and "key" not in repr(one).replace("access_key", "")
    assert AwsSource(Bucket("b")).place == "s3://b"


def test_a_bucket_that_is_not_there_and_one_without_rights_are_named(store: ObjectServer) -> None:
    with pytest.raises(FileNotFoundError, match="there is no bucket nowhere"):
        AwsSource(Bucket("nowhere", endpoint_url=store.url, access_key="a", secret_key="b")).list_files(IMAGES)
    with stubborn_server(403) as refusing:
        with pytest.raises(OSError, match=r"HTTP 403 \(InvalidAccessKeyId\); check the keys"):
            AwsSource(Bucket("b", endpoint_url=refusing.url, access_key="a", secret_key="b")).list_files(IMAGES)
        assert "AWS4-HMAC-SHA256" in refusing.headers[0]["Authorization"]
    with stubborn_server(403) as refusing:
        with pytest.raises(OSError, match="HTTP 403"):
            AwsSource(Bucket("b", endpoint_url=refusing.url)).list_files(IMAGES)
        assert "Authorization" not in refusing.headers[0], "without keys requests are not signed, whatever keys the machine has"


def test_a_failing_service_is_asked_again_and_then_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "ATTEMPTS", 2)
    with stubborn_server(500) as failing:
        with pytest.raises(OSError, match="HTTP 500"):
            AwsSource(Bucket("b", endpoint_url=failing.url)).list_files(IMAGES)
        assert len(failing.asked) == 2
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(OSError, match="could not be reached: 127.0.0.1:"):
        AwsSource(Bucket("b", endpoint_url=f"http://127.0.0.1:{port}")).list_files(IMAGES)


class _EndlessListing(BaseHTTPRequestHandler):
    pages = 0

    def do_GET(self) -> None:
        type(self).pages += 1
        content = f"""<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>true</IsTruncated>
        <NextContinuationToken>{self.pages}</NextContinuationToken></ListBucketResult>""".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        return


def test_a_listing_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "LISTING_SECONDS", 0.5)
    with ThreadingHTTPServer(("127.0.0.1", 0), _EndlessListing) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        with pytest.raises(OSError, match="takes longer than"):
            AwsSource(Bucket("b", endpoint_url=f"http://127.0.0.1:{http.server_address[1]}")).list_files(IMAGES)
        http.shutdown()
    assert _EndlessListing.pages > 1


@pytest.mark.parametrize("address", ["http://169.254.169.254", "http://10.0.0.1:9000", "http://[fe80::1]", "http://0.0.0.0:80"])
def test_no_internal_machine_is_asked(address: str) -> None:
    with pytest.raises(AddressRefused):
        AwsSource(Bucket("b", endpoint_url=address)).list_files(IMAGES)


def test_a_name_that_leads_to_an_internal_machine_later_is_refused(store: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("x/1.png", b"before")
    found = source(store, "x/")
    found.list_files(IMAGES)
    inner = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.1.2.3", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: inner)
    with pytest.raises(AddressRefused, match=r"10\.1\.2\.3, in a private network"), found.open("1.png") as stream:
        stream.read()
    assert Reach(private=True).addresses("inner.example", 80) == ["10.1.2.3"]


def test_a_set_that_moves_into_a_bucket_trains_to_the_same_bytes_and_encodes_nothing_again(store: ObjectServer, tmp_path: Path) -> None:
    local = train_here(tmp_path)
    before, weights = cached_files(tmp_path), local.weights()
    datasets = in_bucket(tmp_path, store)
    shutil.rmtree(tmp_path / "images")
    shutil.rmtree(tmp_path / "output")
    moved = train_here(tmp_path, datasets=datasets)
    assert before and cached_files(tmp_path) == before
    assert moved.weights() == weights


def test_a_run_resumes_after_its_set_moved_into_a_bucket(store: ObjectServer, tmp_path: Path) -> None:
    straight = train_here(tmp_path / "straight")
    train_here(tmp_path / "moved", stop_after=2)
    resumed = train_here(tmp_path / "moved", datasets=in_bucket(tmp_path / "moved", store), resume_from_checkpoint="latest")
    assert resumed.step == 4 and resumed.weights() == straight.weights()
    assert not [event for event in resumed.heard.of(Notification) if event.code == "data_changed"]


def test_captions_lie_beside_the_objects(store: ObjectServer, tmp_path: Path) -> None:
    datasets = in_bucket(tmp_path, store, caption_strategy="textfile")
    names = [key for key in store.names() if key.endswith((".png", ".jpg", ".jpeg", ".webp"))]
    for key in names[1:]:
        store.put(f"{key.rpartition('.')[0]}.txt", "ein Käfer".encode("utf-16"))
    report = checked(tmp_path, datasets=datasets)
    assert report.errors == []
    [left_out] = [problem for problem in report.problems if problem.code == "files_broken"]
    assert "1 of 8 files" in left_out.message and "it has no .txt file" in left_out.message


def test_an_object_that_vanishes_during_a_run_is_named_once_and_left_out(store: ObjectServer, tmp_path: Path) -> None:
    datasets = in_bucket(tmp_path, store)
    key = sorted(store.names())[0]
    whole = s3_client.S3Client.read

    def vanish(self: s3_client.S3Client, wanted: str, etag: str, start: int, count: int) -> bytes:
        if wanted == key and start == 0 and count > 100:
            vanished.append(wanted)
            if len(vanished) > 1:
                store.client.delete_object(Bucket=BUCKET, Key=key)
        return whole(self, wanted, etag, start, count)

    vanished: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3_client.S3Client, "read", vanish)
        run = train_here(tmp_path, datasets=datasets, train_batch_size=1)
    named = [event for event in run.heard.of(Notification) if event.code == "files_left_out"]
    assert run.step == 4 and len(named) == 1 and "gone from the bucket" in named[0].message


@pytest.mark.parametrize(
    ("fields", "option", "code", "words"),
    [
        ({"aws_bucket_name": None}, "aws_bucket_name", "missing", ""),
        ({"aws_bucket_name": "nowhere"}, "aws_bucket_name", "missing_folder", "the bucket nowhere does not exist"),
        ({"aws_secret_access_key": None}, "aws_bucket_name", "unreadable_folder", "need each other"),
        ({"aws_endpoint_url": "ftp://x"}, "aws_bucket_name", "unreadable_folder", "aws_endpoint_url is not a URL"),
        ({"aws_endpoint_url": "http://user:pass@host"}, "aws_bucket_name", "unreadable_folder", "aws_endpoint_url is not a URL"),
        ({"aws_endpoint_url": "http://169.254.169.254"}, "aws_bucket_name", "unreadable_folder", "credentials; that is never allowed"),
        ({"aws_data_prefix": "sets/nothing"}, "aws_bucket_name", "no_images", ""),
        ({"aws_secret_access_key": "***"}, "aws_secret_access_key", "hidden_value", "none is stored"),
        ({"aws_max_pool_connections": 0}, "aws_max_pool_connections", "out_of_range", ""),
        ({"instance_data_dir": "/data"}, "instance_data_dir", "not_for_type", ""),
    ],
)
def test_validate_names_what_is_wrong_with_a_bucket(
    store: ObjectServer, tmp_path: Path, fields: Any, option: str, code: str, words: str
) -> None:
    problem = refusal(checked(tmp_path, datasets=in_bucket(tmp_path, store, **fields)))
    assert (problem.option, problem.code) == (f"dataloader[0].{option}", code) and words in problem.message
    assert "testing-secret" not in str(problem) and "pass" not in problem.got


def test_validate_reports_on_a_bucket_and_a_missing_library_is_refused(
    store: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = in_bucket(tmp_path, store)
    report = checked(tmp_path, datasets=datasets)
    assert report.errors == [] and "files_broken" not in codes(report)
    [images] = report.understood["datasets"]
    assert (images["folder"], images["usable"]) == (BUCKET, 8)
    monkeypatch.setattr("trainer_engine.datasets.sources.aws.LIBRARY", "botocore_is_not_here")
    problem = refusal(checked(tmp_path, datasets=datasets))
    assert "pip install '.[aws]'" in problem.message


def test_the_option_gives_the_number_of_connections(store: ObjectServer, tmp_path: Path) -> None:
    report = checked(tmp_path, datasets=in_bucket(tmp_path, store), aws_max_pool_connections=3)
    assert report.resolved.datasets[0]["aws_max_pool_connections"] == 3
    own = checked(tmp_path, datasets=in_bucket(tmp_path, store, aws_max_pool_connections=5), aws_max_pool_connections=3)
    assert own.resolved.datasets[0]["aws_max_pool_connections"] == 5
