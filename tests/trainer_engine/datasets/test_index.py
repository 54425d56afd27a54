"""Discovery, and its memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from trainer_engine.datasets.index import discover
from trainer_engine.datasets.scanning import CHUNK_FILES
from trainer_engine.datasets.sources.base import Listing, Suffixes
from trainer_engine.datasets.sources.local import LocalSource


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(4):
        Image.new("RGB", (20 + number, 10)).save(root / f"{number}.png")
    (root / "bad.png").write_bytes(b"nothing")
    return root


def test_sizes_and_broken_files_are_found(folder: Path) -> None:
    found = discover(LocalSource(str(folder)))
    assert [(image.name, image.width, image.height) for image in found.images] == [(f"{n}.png", 20 + n, 10) for n in range(4)]
    assert [(file.name, file.broken) for file in found.left_out] == [("bad.png", True)]
    assert found.files == 5


def test_discovery_without_an_index_folder_writes_nothing(folder: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    discover(LocalSource(str(folder)))
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unchanged_folder_is_not_read_again(folder: Path, tmp_path: Path) -> None:
    first = discover(LocalSource(str(folder)), index_dir=tmp_path / "index")
    second = discover(LocalSource(str(folder)), index_dir=tmp_path / "index")
    assert (first.opened, second.opened) == (5, 0)
    assert (second.images, second.left_out) == (first.images, first.left_out)


def test_changed_new_and_removed_files_are_noticed(folder: Path, tmp_path: Path) -> None:
    discover(LocalSource(str(folder)), index_dir=tmp_path / "index")
    Image.new("RGB", (99, 99)).save(folder / "0.png")
    Image.new("RGB", (5, 5)).save(folder / "new.png")
    (folder / "3.png").unlink()
    found = discover(LocalSource(str(folder)), index_dir=tmp_path / "index")
    assert found.opened == 2
    assert {image.name: image.width for image in found.images} == {"0.png": 99, "1.png": 21, "2.png": 22, "new.png": 5}


def test_a_file_of_the_same_length_and_another_time_is_read_again(folder: Path, tmp_path: Path) -> None:
    discover(LocalSource(str(folder)), index_dir=tmp_path / "index")
    os.utime(folder / "0.png", ns=(1, 1))
    assert discover(LocalSource(str(folder)), index_dir=tmp_path / "index").opened == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"version":2,"files":{"0.png":[1]}}', b'{"version":0,"files":{}}', b'{"version":2,"files":[]}', b"\xff\xfe"],
)
def test_a_damaged_memory_costs_time_and_nothing_else(folder: Path, tmp_path: Path, content: bytes) -> None:
    first = discover(LocalSource(str(folder)), index_dir=tmp_path / "index")
    [memory] = (tmp_path / "index").iterdir()
    memory.write_bytes(content)
    assert discover(LocalSource(str(folder)), index_dir=tmp_path / "index").images == first.images
    assert discover(LocalSource(str(folder)), index_dir=tmp_path / "index").opened == 0


def test_a_memory_that_cannot_be_written_costs_time_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "index").write_text("a file where a folder should be")
    assert len(discover(LocalSource(str(folder)), index_dir=tmp_path / "index").images) == 4


def test_two_folders_have_two_memories(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (7, 7)).save(other / "0.png")
    for _ in range(2):
        discover(LocalSource(str(folder)), index_dir=tmp_path / "index")
        found = discover(LocalSource(str(other)), index_dir=tmp_path / "index")
    assert (found.opened, found.images[0].width) == (0, 7)


def test_names_that_are_no_text_are_remembered(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    Image.new("RGB", (3, 4)).save(root / "a.png")
    os.rename(root / "a.png", os.fsencode(root) + b"/\xff.png")
    for opened in (1, 0):
        assert discover(LocalSource(str(root)), index_dir=tmp_path / "index").opened == opened


def test_progress_is_reported_up_to_the_end(tmp_path: Path) -> None:
    picture = tmp_path / "0.png"
    Image.new("RGB", (3, 3)).save(picture)
    for number in range(1, CHUNK_FILES + 5):
        os.link(picture, tmp_path / f"{number}.png")
    reported: list[tuple[str, int, int]] = []
    discover(LocalSource(str(tmp_path)), on_progress=lambda *step: reported.append(step), threads=3)
    total = CHUNK_FILES + 5
    assert [(current, of) for _, current, of in reported] == [(CHUNK_FILES, total), (total, total)]


def test_the_order_does_not_depend_on_threads(folder: Path) -> None:
    assert discover(LocalSource(str(folder)), threads=1) == discover(LocalSource(str(folder)), threads=8)


def test_an_empty_folder_is_empty(tmp_path: Path) -> None:
    found = discover(LocalSource(str(tmp_path)))
    assert (found.images, found.left_out, found.opened) == ([], [], 0)


@dataclass(frozen=True)
class _Sized(LocalSource):
    """A folder whose listing knows some of the sizes."""

    sizes: tuple[tuple[str, tuple[int, int]], ...] = ()

    def list_files(self, suffixes: Suffixes) -> Listing:
        listing, known = super().list_files(suffixes), dict(self.sizes)
        return Listing([file._replace(size=known.get(file.name)) for file in listing.files], listing.left_out)


def test_an_image_whose_size_the_listing_knows_is_not_opened(folder: Path, tmp_path: Path) -> None:
    source = _Sized(str(folder), sizes=(("0.png", (7, 9)), ("bad.png", (5, 5))))
    found = discover(source, index_dir=tmp_path / "index")
    assert {image.name: (image.width, image.height) for image in found.images if image.name != "3.png"} == {
        "0.png": (7, 9),
        "1.png": (21, 10),
        "2.png": (22, 10),
        "bad.png": (5, 5),
    }
    assert found.opened == 3 and found.left_out == []
    assert discover(source, index_dir=tmp_path / "index").opened == 0


def test_a_size_of_a_listing_is_not_taken_for_a_measurement_later(folder: Path, tmp_path: Path) -> None:
    discover(_Sized(str(folder), sizes=(("0.png", (7, 9)),)), index_dir=tmp_path / "index")
    found = discover(LocalSource(str(folder)), index_dir=tmp_path / "index")
    assert found.opened == 1 and found.images[0].width == 20
    assert discover(_Sized(str(folder), sizes=(("0.png", (8, 8)),)), index_dir=tmp_path / "index").images[0].width == 8
