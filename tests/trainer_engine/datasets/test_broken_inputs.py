"""A run whose datasets are full of broken files, rows, addresses and captions ends well, and names each of them once."""

from __future__ import annotations

import csv
import io
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.dataset_hub import png, shard
from tests.helpers.tiny_run import HereRun, tiny_datasets, train_here
from tests.helpers.web_server import WebServer, picture, serving
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.events import Notification
from trainer_engine.datasets import downloads, http_client

GOOD = 2
"""Usable samples of each set."""
AT_LEAST = 60


def jpeg(size: tuple[int, int] = (96, 96)) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


def header_of(width: int, height: int) -> bytes:
    """A PNG that states this size and has no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk


BROKEN_FILES: Mapping[str, bytes] = {
    "empty.png": b"",
    "one_byte.jpg": b"\xff",
    "text.png": b"this is no picture\n",
    "page.jpg": b"<!doctype html><html>404</html>",
    "zeros.png": bytes(4096),
    "cut_header.png": png(1)[:20],
    "cut_pixels.png": png(2)[: len(png(2)) // 2],
    "cut_picture.jpg": jpeg()[:700],
    "no_end.jpg": jpeg()[:4],
    "signature.png": b"\x89PNG\r\n\x1a\n",
    "no_width.png": header_of(0, 10),
    "huge.png": header_of(1 << 30, 1 << 30),
    "negative.png": header_of(0xFFFFFFFF, 1),
    "riff.webp": b"RIFF\x10\x00\x00\x00WEBPVP8 ",
    "archive.png": b"PK\x03\x04" + bytes(60),
    "program.jpg": b"\x7fELF" + bytes(60),
    "scrambled.png": png(3)[:40] + bytes(byte ^ 0x55 for byte in png(3)[40:]),
    "safetensors.png": struct.pack("<Q", 2) + b"{}",
}
BROKEN_CAPTIONS: Mapping[str, bytes | None] = {
    "without": None,
    "empty": b"",
    "blank": b"  \n\t\n",
    "mark": b"\xef\xbb\xbf",
    "marks_of_utf16": b"\xff\xfe",
    "nuls": b"\x00\x00\x00",
    "alphabet": "собака".encode("cp1251"),
    "shift_jis": "犬の写真です".encode("shift_jis"),
    "binary": bytes(range(256)),
    "picture": jpeg()[:2000],
    "lines": b"\n\n\r\n\r\n",
}
BROKEN_ROWS: tuple[dict[str, Any], ...] = (
    {"image": None, "caption": "no image"},
    {"image": {"bytes": None, "path": None}, "caption": "an image without bytes"},
    {"image": {"bytes": b"", "path": "x.png"}, "caption": "an empty image"},
    {"image": {"bytes": b"no picture", "path": "x.png"}, "caption": "text for an image"},
    {"image": {"bytes": png(4)[:30], "path": "x.png"}, "caption": "a cut image"},
    {"image": {"bytes": header_of(1 << 30, 4), "path": "x.png"}, "caption": "a huge image"},
    {"image": {"bytes": None, "path": "../../../etc/passwd"}, "caption": "a foreign file"},
    {"image": {"bytes": None, "path": "/etc/hostname"}, "caption": "an absolute path"},
    {"image": {"bytes": None, "path": "gone.png"}, "caption": "a file that is not there"},
    {"image": {"bytes": png(5), "path": "x.png"}, "caption": None},
    {"image": {"bytes": png(6), "path": "x.png"}, "caption": ""},
    {"image": {"bytes": png(7), "path": "x.png"}, "caption": "   \n"},
)
DEAD: Mapping[str, str] = {
    "404.png": "",
    "503.png": "500",
    "html.png": "html",
    "hidden.png": "hidden html",
    "short.png": "too short",
    "redirect.png": "redirect http://169.254.169.254/latest",
    "endless.png": "endless",
    "slow.png": "slow",
}
NOT_OF_THE_WEB = (
    "file:///etc/passwd.png",
    "ftp://example.com/f.png",
    "no-address.png",
    "http://",
    "http://host:99999/p.png",
    "http://169.254.169.254/m.png",
    "http://10.0.0.1/l.png",
    "http://[fd00:ec2::254]/v6.png",
    "http://0.0.0.0/z.png",
    "http://127.0.0.1:1/closed.png",
    "",
)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(downloads, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(downloads, "FILE_SECONDS", 0.5)
    monkeypatch.setattr(downloads, "LARGEST_FILE_BYTES", 1 << 20)
    monkeypatch.setattr(http_client, "READ_SECONDS", 0.5)
    with serving() as server:
        yield server


def files_set(place: Path) -> dict[str, Any]:
    folder = place / "files"
    folder.mkdir()
    for name, content in {**BROKEN_FILES, **{f"good_{number}.png": png(number) for number in range(GOOD)}}.items():
        (folder / name).write_bytes(content)
    (folder / "link.png").symlink_to("nowhere.png")
    (folder / "folder.png").mkdir()
    return {"id": "files", "instance_data_dir": str(folder), "caption_strategy": "filename"}


def captions_set(place: Path) -> dict[str, Any]:
    folder = place / "captions"
    folder.mkdir()
    captions = {**BROKEN_CAPTIONS, **{f"good_{number}": b"a good caption" for number in range(GOOD)}}
    for number, (name, caption) in enumerate(captions.items()):
        (folder / f"{name}.png").write_bytes(png(number))
        if caption is not None:
            (folder / f"{name}.txt").write_bytes(caption)
    return {"id": "captions", "instance_data_dir": str(folder), "caption_strategy": "textfile"}


def rows_set(place: Path) -> dict[str, Any]:
    good = [{"image": {"bytes": png(10 + number), "path": "x.png"}, "caption": "a good row"} for number in range(GOOD)]
    (place / "rows" / "data").mkdir(parents=True)
    (place / "rows" / "data" / "train-00000-of-00001.parquet").write_bytes(shard([*good, *BROKEN_ROWS]))
    return {"id": "rows", "type": "huggingface", "dataset_name": str(place / "rows"), "caption_strategy": "huggingface"}


def addresses_set(place: Path, web: WebServer) -> dict[str, Any]:
    web.files |= {f"/good_{number}.png": picture(96, 96 + number) for number in range(GOOD)}
    for name, how in DEAD.items():
        if how:
            web.bad[f"/{name}"], web.files[f"/{name}"] = how, picture(96, 96)
    addresses = [f"{web.url}/{name}" for name in (*(f"good_{number}.png" for number in range(GOOD)), *DEAD)]
    stream = io.StringIO()
    csv.writer(stream).writerows([("url", "caption"), *((address, "a picture") for address in (*addresses, *NOT_OF_THE_WEB))])
    (place / "addresses.csv").write_text(stream.getvalue())
    return {
        "id": "addresses",
        "type": "csv",
        "csv_file": str(place / "addresses.csv"),
        "csv_cache_dir": str(place / "downloads"),
        "csv_caption_column": "caption",
        "csv_hash_filenames": False,
        "caption_strategy": "csv",
    }


def named(run: HereRun, id: str) -> list[str]:
    """The reasons that the run gives for what it leaves out of a set, with the names."""
    texts = [event.message for event in run.heard.of(Notification) if event.message.startswith(f"Dataset {id}: ")]
    (text,) = texts
    found = re.match(rf"Dataset {id}: (\d+) files are left out: (.*)\.$", text, re.DOTALL)
    assert found is not None, text
    entries = re.split(r"(?<=\)); ", found[2])
    assert int(found[1]) == len(entries), text
    return entries


def test_each_of_sixty_broken_inputs_is_named_once_and_the_run_ends_well(tmp_path: Path, web: WebServer) -> None:
    images, texts = tiny_datasets(tmp_path)
    own = {name: value for name, value in images.items() if name not in ("id", "instance_data_dir", "caption_strategy", "cache_dir_vae")}
    broken = [files_set(tmp_path), captions_set(tmp_path), rows_set(tmp_path), addresses_set(tmp_path, web)]
    run = train_here(tmp_path, datasets=[images, *({**own, **one} for one in broken), texts], max_train_steps=3)
    assert (run.code, run.step) == (ExitCode.COMPLETED, 3)
    expected = {"files": [*BROKEN_FILES, "link.png"], "captions": [f"{name}.png" for name in BROKEN_CAPTIONS]}
    for id, names in expected.items():
        found = [entry.partition(" (")[0] for entry in named(run, id)]
        assert sorted(found) == sorted(names), id
    assert len(named(run, "rows")) == len(BROKEN_ROWS)
    entries = named(run, "addresses")
    for name in DEAD:
        assert len([entry for entry in entries if name in entry]) == 1, name
    assert len(entries) == len(DEAD) + len(NOT_OF_THE_WEB)
    assert len(BROKEN_FILES) + 1 + len(BROKEN_CAPTIONS) + len(BROKEN_ROWS) + len(DEAD) + len(NOT_OF_THE_WEB) >= AT_LEAST


def test_nothing_of_a_foreign_file_is_in_a_log(tmp_path: Path) -> None:
    images, texts = tiny_datasets(tmp_path)
    own = {name: value for name, value in images.items() if name not in ("id", "instance_data_dir", "caption_strategy", "cache_dir_vae")}
    run = train_here(tmp_path, datasets=[images, {**own, **rows_set(tmp_path)}, texts], max_train_steps=1)
    assert "root:" not in " ".join(event.message for event in run.heard.of(Notification))
