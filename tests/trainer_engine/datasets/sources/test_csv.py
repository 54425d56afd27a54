"""Datasets of addresses, against a web server on loopback with every kind of failure."""

from __future__ import annotations

import csv
import io
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.helpers.caches import places_of, state_of
from tests.helpers.checked_runs import checked, codes, refusal
from tests.helpers.tiny_run import run_in_this_process, tiny_datasets, train_here, write_job
from tests.helpers.web_server import WebServer, picture, serving
from trainer_engine.config.addresses import GB, Reach
from trainer_engine.contract.commands import Command
from trainer_engine.contract.events import Notification
from trainer_engine.datasets import downloads, http_client
from trainer_engine.datasets.downloads import Allowance, SetTooLarge
from trainer_engine.datasets.media.base import suffixes_of
from trainer_engine.datasets.sources.base import Fetching
from trainer_engine.datasets.sources.csv import USUAL_FILE_BYTES, CsvSource
from trainer_engine.runtime.control import Stopped

IMAGES = suffixes_of(("image",))


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with serving() as web:
        yield web


@pytest.fixture
def web(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> WebServer:
    server.clear()
    monkeypatch.setattr(downloads, "PAUSE_SECONDS", 0.001)
    return server


def write_csv(place: Path, rows: list[tuple[str, ...]], head: tuple[str, ...] = ("url", "caption"), encoding: str = "utf-8") -> Path:
    stream = io.StringIO()
    csv.writer(stream).writerows([head, *rows])
    (place / "addresses.csv").write_bytes(stream.getvalue().encode(encoding))
    return place / "addresses.csv"


def source(place: Path, *urls: str, hash_names: bool = False) -> CsvSource:
    path = write_csv(place, [(url, "a cat") for url in urls])
    return CsvSource(str(path), "url", str(place / "files"), hash_names)


def fetch(one: CsvSource, largest_bytes: int = 0) -> None:
    one.download(IMAGES, Fetching(lambda *_: None, lambda: None, Reach(largest_set_bytes=largest_bytes)))


def reasons(one: CsvSource) -> dict[str, str]:
    return {file.name: file.reason for file in one.list_files(IMAGES).left_out}


def on_the_web(place: Path, web: WebServer, **fields: Any) -> list[dict[str, Any]]:
    """The tiny datasets with their images on the web, under their names."""
    images, texts = tiny_datasets(place)
    folder, rows = place / "images", []
    for path in sorted(folder.rglob("*.*")):
        name = str(path.relative_to(folder))
        web.files[f"/{name}"] = path.read_bytes()
        rows.append((f"{web.url}/{name}", path.stem.replace("_", " ")))
    write_csv(place, rows)
    del images["instance_data_dir"]
    images |= {"type": "csv", "csv_file": str(place / "addresses.csv"), "csv_cache_dir": str(place / "files")}
    images |= {"caption_strategy": "csv", "csv_caption_column": "caption", "csv_hash_filenames": False}
    return [{name: value for name, value in {**images, **fields}.items() if value is not None}, texts]


def cached_files(place: Path) -> dict[str, bytes]:
    return state_of(place / "cache")


def test_files_are_downloaded_once_under_the_names_of_their_paths(web: WebServer, tmp_path: Path) -> None:
    web.files |= {"/1.png": picture(), "/deep/2.PNG": picture(), "/b c.png": picture()}
    one = source(tmp_path, f"{web.url}/1.png", f"{web.url}/deep/2.PNG?size=large#x", f"{web.url}/b%20c.png", f"{web.url}/1.png")
    assert (one.list_files(IMAGES).pending.files, one.list_files(IMAGES).files) == (3, [])
    fetch(one)
    listing = one.list_files(IMAGES)
    assert [file.name for file in listing.files] == ["1.png", "b c.png", "deep/2.PNG"] and not listing.pending
    fetch(one)
    assert set(web.asked.values()) == {1}
    with one.open("deep/2.PNG") as stream:
        assert stream.read() == web.files["/deep/2.PNG"]
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == [".addresses.json", "1.png", "b c.png", "deep"]


def test_hashed_names_depend_on_the_address_alone(web: WebServer, tmp_path: Path) -> None:
    web.files |= {"/1.png": picture(), "/no-suffix": picture(kind="JPEG"), "/image.php": picture(kind="WEBP")}
    one = source(tmp_path, f"{web.url}/1.png", f"{web.url}/no-suffix?id=7", f"{web.url}/image.php?id=8", hash_names=True)
    fetch(one)
    names = [file.name for file in one.list_files(IMAGES).files]
    assert len(names) == 3 and sorted(name[64:] for name in names) == [".jpg", ".png", ".webp"]
    other = source(tmp_path, f"{web.url}/image.php?id=8", hash_names=True)
    assert {file.name for file in other.list_files(IMAGES).files} < set(names)
    fetch(other)
    assert set(web.asked.values()) == {1}


def test_addresses_of_one_path_keep_files_of_their_own(web: WebServer, tmp_path: Path) -> None:
    web.files["/1.png"] = picture()
    one = source(tmp_path, f"{web.url}/1.png?a", f"{web.url}/1.png?b")
    fetch(one)
    names = [file.name for file in one.list_files(IMAGES).files]
    assert len(set(names)) == 2 and all(name.startswith("1-") and name.endswith(".png") for name in names)
    turned = source(tmp_path, f"{web.url}/1.png?b", f"{web.url}/1.png?a")
    assert [file.name for file in turned.list_files(IMAGES).files] == names


@pytest.mark.parametrize(
    "path", ["/..%2f..%2fout.png", "/%2e%2e/out.png", "/.hidden.png", "/a%00b.png", "/a%5cb.png", "/" + "x" * 300 + ".png"]
)
def test_a_path_that_is_no_file_name_is_hashed(web: WebServer, tmp_path: Path, path: str) -> None:
    web.files[unquote(path)] = picture()
    one = source(tmp_path, f"{web.url}{path}")
    fetch(one)
    [file] = one.list_files(IMAGES).files
    assert len(file.name) == 64 + 4 and not (tmp_path / "out.png").exists()
    assert all(path.resolve().is_relative_to(tmp_path / "files") for path in (tmp_path / "files").rglob("*"))


@pytest.mark.parametrize(
    ("how", "reason", "asked"),
    [
        ("", "it answers HTTP 404", 1),
        ("500", "it answers HTTP 503", 3),
        ("html", "it is text/html, not an image", 1),
        ("hidden html", "it is not an image, despite its name", 1),
        ("too short", "could not be read", 3),
        ("redirect http://169.254.169.254/latest/meta-data", "it leads to http://169.254.169.254/latest/meta-data: redirects are", 1),
        ("redirect https://example.com/1.png?token=x", r"it leads to https://example.com/1.png?***: redirects are", 1),
        ("endless", "it is larger than", 1),
        ("slow", "it takes longer than", 3),
        ("silent", "does not answer in time", 3),
    ],
)
def test_a_dead_address_is_named_and_not_asked_again(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, reason: str, asked: int
) -> None:
    monkeypatch.setattr(downloads, "FILE_SECONDS", 0.3)
    monkeypatch.setattr(downloads, "LARGEST_FILE_BYTES", 1 << 20)
    monkeypatch.setattr(http_client, "READ_SECONDS", 0.5)
    web.files["/good.png"] = picture()
    if how:
        web.bad["/1.png"], web.files["/1.png"] = how, picture(100, 100)
    one = source(tmp_path, f"{web.url}/1.png", f"{web.url}/good.png")
    fetch(one)
    assert [file.name for file in one.list_files(IMAGES).files] == ["good.png"]
    [(name, found)] = reasons(one).items()
    assert name == f"{web.url}/1.png" and reason in found
    assert web.asked["/1.png"] == asked
    fetch(one)
    assert web.asked["/1.png"] == asked and not one.list_files(IMAGES).pending
    assert not list((tmp_path / "files").glob(".part-*"))


def test_an_address_that_was_busy_is_asked_again_and_forgotten_in_time(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.bad["/1.png"], web.files["/1.png"] = "once", picture()
    one = source(tmp_path, f"{web.url}/1.png", f"{web.url}/2.png")
    fetch(one)
    assert [file.name for file in one.list_files(IMAGES).files] == ["1.png"] and web.asked["/1.png"] == 2
    web.files["/2.png"] = picture()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 6 * 24 * 3600)
    fetch(one)
    assert web.asked["/2.png"] == 1
    monkeypatch.setattr(time, "time", lambda: now + 8 * 24 * 3600)
    assert one.list_files(IMAGES).pending.files == 1
    fetch(one)
    assert len(one.list_files(IMAGES).files) == 2


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'{"a": 3}', b'{"a": ["x", "y"]}'])
def test_a_damaged_record_of_dead_addresses_asks_them_again(web: WebServer, tmp_path: Path, record: bytes) -> None:
    one = source(tmp_path, f"{web.url}/1.png")
    fetch(one)
    (tmp_path / "files/.addresses.json").write_bytes(record)
    fetch(one)
    assert web.asked["/1.png"] == 2


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd.png", "not a web address"),
        ("ftp://example.com/1.png", "not a web address"),
        ("1.png", "not a web address"),
        ("http://", "not a web address"),
        ("http://[::1/1.png", "not a web address"),
        ("http://host:99999/1.png", "not a web address"),
        ("http://169.254.169.254/1.png", "credentials; that is never allowed"),
        ("http://10.0.0.1/1.png", "in a private network"),
        ("http://[fd00:ec2::254]/1.png", "credentials; that is never allowed"),
        ("http://0.0.0.0/1.png", "not the address of a single machine"),
        ("http://2852039166/1.png", "credentials; that is never allowed"),
        ("http://0xa9fea9fe/1.png", "credentials; that is never allowed"),
        ("http://[::ffff:169.254.169.254]/1.png", "credentials; that is never allowed"),
        ("http://user:pw@169.254.169.254/1.png", "credentials; that is never allowed"),
    ],
)
def test_an_address_that_is_not_of_the_public_web_is_not_asked(tmp_path: Path, url: str, reason: str) -> None:
    one = source(tmp_path, url)
    fetch(one)
    assert [reason in found for found in reasons(one).values()] == [True]


def test_a_name_that_changes_its_address_is_judged_at_the_connection(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["/1.png"] = picture()
    port = urlsplit(web.url).port
    looked_up, answers = list[str](), ["127.0.0.1", "10.9.8.7"]

    real = socket.getaddrinfo

    def resolve(host: str, *rest: Any, **named: Any) -> list[Any]:
        if host != "rebinding.example":
            return real(host, *rest, **named)
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers[len(looked_up) - 1], port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    one = source(tmp_path, f"http://rebinding.example:{port}/1.png")
    fetch(one)
    assert looked_up == ["rebinding.example"] and len(one.list_files(IMAGES).files) == 1
    two = source(tmp_path, f"http://rebinding.example:{port}/2.png")
    fetch(two)
    assert "10.9.8.7, in a private network" in "".join(reasons(two).values())
    assert web.asked["/2.png"] == 0


def test_a_file_that_is_there_is_never_replaced(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/1.png").write_bytes(picture(33, 33))
    web.files["/1.png"] = picture()
    fetch(source(tmp_path, f"{web.url}/1.png"))
    assert (tmp_path / "files/1.png").read_bytes() == picture(33, 33) and web.asked["/1.png"] == 0


def test_a_file_of_another_medium_is_neither_downloaded_nor_replaced(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/holiday.mp4").write_bytes(b"a film of the operator")
    web.files["/holiday.mp4"] = picture()
    one = source(tmp_path, f"{web.url}/holiday.mp4")
    fetch(one)
    assert web.asked["/holiday.mp4"] == 0 and (tmp_path / "files/holiday.mp4").read_bytes() == b"a film of the operator"
    assert not one.list_files(IMAGES).pending and ".mp4" in "".join(reasons(one).values())


def test_an_empty_file_and_a_folder_keep_their_names(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "files/2.png").mkdir(parents=True)
    (tmp_path / "files/1.png").touch()
    (tmp_path / "files/3.png").write_bytes(picture(33, 33))
    names = ("/1.png", "/2.png", "/3.png/4.png", "/5.png")
    web.files |= dict.fromkeys(names, picture())
    one = source(tmp_path, *(f"{web.url}{name}" for name in names))
    fetch(one)
    assert (tmp_path / "files/1.png").read_bytes() == b"" and (tmp_path / "files/2.png").is_dir()
    assert (tmp_path / "files/3.png").read_bytes() == picture(33, 33) and (tmp_path / "files/5.png").is_file()
    assert sum("name" in reason for reason in reasons(one).values()) == 3


@pytest.mark.parametrize("column", ["url", "-----BEGIN PRIVATE KEY-----"])
def test_a_text_file_of_another_kind_is_not_read_as_addresses(tmp_path: Path, column: str) -> None:
    key = tmp_path / "server-key.txt"
    key.write_text("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\n")
    images, texts = tiny_datasets(tmp_path)
    del images["instance_data_dir"]
    images |= {"type": "csv", "csv_file": str(key), "csv_url_column": column, "csv_cache_dir": str(tmp_path / "files")}
    images |= {"caption_strategy": "csv", "csv_caption_column": column}
    report = checked(tmp_path, datasets=[images, texts])
    said = [problem.message for problem in report.problems]
    assert not any(text in " ".join(said) for text in ("BEGIN", "MIIEvQ")) and any("does not end with .csv" in one for one in said)


def test_a_stop_ends_the_downloads_and_keeps_what_is_complete(web: WebServer, tmp_path: Path) -> None:
    names = [f"/{number}.png" for number in range(200)]
    web.files |= {name: picture() for name in names}
    one, done = source(tmp_path, *(f"{web.url}{name}" for name in names)), list[int]()

    def stop() -> None:
        if len(done) >= 20:
            raise Stopped

    with pytest.raises(Stopped):
        one.download(IMAGES, Fetching(lambda count, _total: done.append(count), stop))
    listing = one.list_files(IMAGES)
    assert 20 <= len(listing.files) <= 60 and listing.pending.files == 200 - len(listing.files) and listing.left_out == []
    fetch(one)
    assert len(one.list_files(IMAGES).files) == 200 and max(web.asked.values()) <= 2


@pytest.mark.parametrize("announced", [True, False])
def test_a_set_takes_no_more_of_the_disk_than_it_may(web: WebServer, tmp_path: Path, announced: bool) -> None:
    """A file of addresses is short, and what they answer may be endless: the size of each file was limited, never their sum."""
    names = [f"/{number}.png" for number in range(40)]
    web.files |= {name: picture(300, 300) + bytes(50_000) for name in names}
    web.bad |= {} if announced else dict.fromkeys(names, "no length")
    one = source(tmp_path, *(f"{web.url}{name}" for name in names))
    with pytest.raises(SetTooLarge):
        fetch(one, largest_bytes=300_000)
    stored = [path.stat().st_size for path in (tmp_path / "files").glob("*.png")]
    assert 0 < sum(stored) <= 300_000 and not list((tmp_path / "files").glob(".part-*"))
    assert one.list_files(IMAGES).pending.files == 40 - len(stored), "no address counts as dead"
    asked = sum(web.asked.values())
    with pytest.raises(SetTooLarge):
        fetch(one, largest_bytes=sum(stored))
    assert sum(web.asked.values()) - asked <= downloads.THREADS, "what is here counts before anything is downloaded"
    fetch(one)
    assert len(one.list_files(IMAGES).files) == 40


def test_bytes_of_files_that_are_given_up_count() -> None:
    allowance = Allowance(100, taken=40)
    allowance.expect(60)
    allowance.take(59)
    with pytest.raises(SetTooLarge):
        allowance.expect(2)
    for count in (2, 1):
        with pytest.raises(SetTooLarge):
            allowance.take(count)
    Allowance(0, taken=40).take(1 << 60)


def test_validate_names_the_limit_of_a_set_and_a_set_that_is_beyond_it(web: WebServer, tmp_path: Path) -> None:
    datasets = on_the_web(tmp_path, web)
    report = checked(tmp_path, datasets=datasets)
    [note] = [problem for problem in report.problems if problem.code == "files_pending"]
    assert "All files may take 500 GB (SIMPLETUNER_DOWNLOAD_GB)." in note.message
    systems = report.understood["disk"]["file_systems"]
    assert any("the downloaded files of dataset" in one["what"] and one["bytes"] > 8 * USUAL_FILE_BYTES for one in systems)
    one = CsvSource(str(tmp_path / "addresses.csv"), "url", str(tmp_path / "files"), False)
    assert one.list_files(IMAGES).pending.size_bytes == 8 * USUAL_FILE_BYTES
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / Path(sorted(web.files)[0]).name).write_bytes(picture())
    with pytest.raises(OSError, match=r"its files take more than 1e-09 GB, the limit for one dataset \(SIMPLETUNER_DOWNLOAD_GB\)"):
        one.reached_by(Reach(largest_set_bytes=1)).list_files(IMAGES)
    larger = one.reached_by(Reach(largest_set_bytes=len(picture()) + 5)).list_files(IMAGES).pending
    assert (larger.files, larger.size_bytes, larger.largest_bytes) == (7, 5, len(picture()) + 5)


def test_validate_counts_references_that_a_run_downloads(web: WebServer, tmp_path: Path) -> None:
    images, texts = tiny_datasets(tmp_path)
    folder = Path(images["instance_data_dir"])
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    web.files |= {f"/{name}": (folder / name).read_bytes() for name in names}
    write_csv(tmp_path, [(f"{web.url}/{name}", "") for name in names])
    place = {"type": "csv", "csv_file": str(tmp_path / "addresses.csv"), "csv_cache_dir": str(tmp_path / "files")}
    masks = {"id": "masks", "conditioning_type": "mask", **place, "csv_hash_filenames": False}
    datasets = [{**images, "conditioning_data": ["masks"]}, texts, masks]
    report = checked(tmp_path, datasets=datasets)
    assert report.errors == [], "masks that are downloaded later are not missing"
    [note] = [problem for problem in report.problems if problem.code == "files_pending"]
    assert note.message == f"dataset masks: {len(names)} masks are fetched when the run starts."
    what = "the downloaded files of dataset masks"
    assert any(what in one["what"] and one["bytes"] >= len(names) * USUAL_FILE_BYTES for one in report.understood["disk"]["file_systems"])
    for name in names[1:]:
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_bytes((folder / name).read_bytes())
    [note] = [problem for problem in checked(tmp_path, datasets=datasets).problems if problem.code == "files_pending"]
    assert note.got == "1"
    (tmp_path / "files" / names[0]).write_bytes((folder / names[0]).read_bytes())
    complete = checked(tmp_path, datasets=datasets)
    assert complete.errors == [] and what not in complete.understood["disk"]["text"]


def test_a_run_beyond_the_limit_of_a_set_ends_and_names_it(web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = on_the_web(tmp_path, web)
    monkeypatch.setenv("SIMPLETUNER_DOWNLOAD_GB", str(200 / GB))
    report = run_in_this_process(write_job(tmp_path, datasets=datasets)).report()
    assert report is not None and report.error_code == "dataset_unusable"
    assert "its files take more than 2e-07 GB, the limit for one dataset (SIMPLETUNER_DOWNLOAD_GB)" in report.message


def test_parts_of_a_killed_download_are_removed(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/.part-abc.png").write_bytes(b"half")
    web.files["/1.png"] = picture()
    fetch(source(tmp_path, f"{web.url}/1.png"))
    assert not (tmp_path / "files/.part-abc.png").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_captions_are_read_in_every_encoding_and_the_last_row_counts(web: WebServer, tmp_path: Path, encoding: str) -> None:
    datasets = on_the_web(tmp_path, web)
    with (tmp_path / "addresses.csv").open() as stream:
        rows = [(row[0], "ein Käfer, grün") for row in list(csv.reader(stream))[1:]]
    write_csv(tmp_path, [(rows[0][0], "old"), *rows], encoding=encoding)
    train_here(tmp_path, datasets=datasets, max_train_steps=1)
    report = checked(tmp_path, datasets=datasets)
    assert report.errors == [] and report.understood["datasets"][0]["usable"] == 8
    assert len(places_of(tmp_path / "cache/text")) == 2, "one caption and the empty prompt"


def test_validate_downloads_nothing_and_says_what_a_run_fetches(web: WebServer, tmp_path: Path) -> None:
    datasets = on_the_web(tmp_path, web)
    report = checked(tmp_path, datasets=datasets)
    assert report.errors == [] and not web.asked and not (tmp_path / "files").exists()
    [note] = [problem for problem in report.problems if problem.code == "files_pending"]
    assert "8 of 8 files are fetched when the run starts" in note.message
    train_here(tmp_path, datasets=datasets, max_train_steps=1)
    report = checked(tmp_path, datasets=datasets)
    assert "files_pending" not in codes(report) and report.understood["datasets"][0]["usable"] == 8
    assert set(web.asked.values()) == {1}


def test_a_set_that_moves_to_the_web_trains_to_the_same_bytes_and_encodes_nothing_again(web: WebServer, tmp_path: Path) -> None:
    local = train_here(tmp_path)
    before, weights = cached_files(tmp_path), local.weights()
    datasets = on_the_web(tmp_path, web)
    shutil.rmtree(tmp_path / "images")
    shutil.rmtree(tmp_path / "output")
    moved = train_here(tmp_path, datasets=datasets)
    assert before and cached_files(tmp_path) == before and moved.weights() == weights


def test_a_run_resumes_after_its_set_moved_to_the_web(web: WebServer, tmp_path: Path) -> None:
    straight = train_here(tmp_path / "straight")
    train_here(tmp_path / "moved", stop_after=2)
    resumed = train_here(tmp_path / "moved", datasets=on_the_web(tmp_path / "moved", web), resume_from_checkpoint="latest")
    assert resumed.step == 4 and resumed.weights() == straight.weights()
    assert [event.code for event in resumed.heard.of(Notification) if event.code == "data_changed"] == []


def test_a_run_names_dead_addresses_once_and_trains_on_the_rest(web: WebServer, tmp_path: Path) -> None:
    datasets = on_the_web(tmp_path, web)
    gone = sorted(web.files)[0]
    del web.files[gone]
    run = train_here(tmp_path, datasets=datasets, train_batch_size=1)
    [left_out] = [event for event in run.heard.of(Notification) if event.code == "files_left_out"]
    assert run.step == 4 and "1 files are left out" in left_out.message and f"{gone} (it answers HTTP 404)" in left_out.message
    report = checked(tmp_path, datasets=datasets, train_batch_size=1)
    assert report.errors == [] and "files_broken" in codes(report)


def test_a_run_that_is_stopped_while_it_downloads_ends_at_once(web: WebServer, tmp_path: Path) -> None:
    datasets = on_the_web(tmp_path, web)
    web.bad |= dict.fromkeys(web.files, "slow")
    folder = write_job(tmp_path, datasets=datasets)

    def stop(run: Any) -> None:
        deadline = time.monotonic() + 60
        while not web.asked and time.monotonic() < deadline:
            time.sleep(0.02)
        run.request(Command.STOP)

    started = time.monotonic()
    ended = run_in_this_process(folder, stop)
    assert ended.code == 10 and time.monotonic() - started < 90
    report = ended.report()
    assert report is not None and report.status == "stopped"


def test_a_run_whose_every_address_is_dead_says_so(web: WebServer, tmp_path: Path) -> None:
    datasets = on_the_web(tmp_path, web)
    web.files.clear()
    ended = run_in_this_process(write_job(tmp_path, datasets=datasets))
    report = ended.report()
    assert report is not None and report.error_code == "dataset_unusable" and "it answers HTTP 404" in report.message


@pytest.mark.parametrize(
    ("fields", "content", "option", "code", "words"),
    [
        ({"csv_file": None}, None, "csv_file", "missing", ""),
        ({"csv_cache_dir": None}, None, "csv_cache_dir", "missing", ""),
        ({"csv_caption_column": None}, None, "csv_caption_column", "missing", ""),
        ({"csv_file": "gone.csv"}, None, "csv_file", "", ""),
        ({"csv_url_column": "link"}, None, "csv_file", "unreadable_folder", "has no column 'link'; it has url, caption"),
        ({"csv_caption_column": "text"}, None, "caption_strategy", "unreadable_captions", "has no column 'text'"),
        ({}, b"", "csv_file", "unreadable_folder", "has no column 'url'"),
        ({}, b"url,caption\n", "csv_file", "unreadable_folder", "has no address in its column 'url'"),
        ({}, b"\x89PNG\r\n\x1a\n", "csv_file", "unreadable_folder", "neither UTF-8 nor Latin-1"),
        ({}, b'url,caption\n"http://x/1.png', "csv_file", "unreadable_folder", "line 2 is not CSV"),
        ({"csv_cache_dir": "/etc/files"}, None, "csv_cache_dir", "outside_roots", ""),
    ],
)
def test_validate_names_what_is_wrong_with_a_csv_file(
    web: WebServer, tmp_path: Path, fields: Any, content: bytes | None, option: str, code: str, words: str
) -> None:
    datasets = on_the_web(tmp_path, web, **fields)
    if content is not None:
        (tmp_path / "addresses.csv").write_bytes(content)
    problem = refusal(checked(tmp_path, datasets=datasets))
    assert problem.option == f"dataloader[0].{option}" and words in problem.message
    assert problem.code == code or not code


def test_captions_of_csv_need_a_set_of_addresses(web: WebServer, tmp_path: Path) -> None:
    images, texts = tiny_datasets(tmp_path, caption_strategy="csv", csv_caption_column="caption")
    problem = refusal(checked(tmp_path, datasets=[images, texts]))
    assert problem.code == "unreadable_captions" and "it needs type=csv" in problem.message


def test_rows_without_a_caption_are_named(web: WebServer, tmp_path: Path) -> None:
    datasets = on_the_web(tmp_path, web)
    lines = (tmp_path / "addresses.csv").read_text().splitlines()
    (tmp_path / "addresses.csv").write_text("\n".join([*lines[:-1], lines[-1].split(",")[0], ",no address"]))
    run = train_here(tmp_path, datasets=datasets, train_batch_size=1)
    [left_out] = [event for event in run.heard.of(Notification) if event.code == "files_left_out"]
    assert "its row in csv_file has no caption" in left_out.message


def test_a_thousand_addresses_are_listed_without_a_request(tmp_path: Path) -> None:
    one = source(tmp_path, *(f"https://unreachable.example/{number}.png" for number in range(1_000)))
    assert one.list_files(IMAGES).pending.files == 1_000
    assert not (tmp_path / "files").exists()
