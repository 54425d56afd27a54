"""Files that remember sizes and captions: which of several is read, what a damaged one costs, and how many are kept."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.pictures import generate_images
from tests.trainer_engine.datasets.test_report import entry, only, report_of
from trainer_engine.contract.files import FileTooLarge
from trainer_engine.datasets.index import discover
from trainer_engine.datasets.index_file import Indexes
from trainer_engine.datasets.sources.local import LocalSource
from trainer_engine.datasets.texts import LONGEST_BYTES, RememberedTexts


class CountingSource(LocalSource):
    """Counts the texts that are read."""

    read = 0

    def read_small(self, name: str, largest: int) -> bytes:
        type(self).read += 1
        return super().read_small(name, largest)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generate_images(tmp_path / "set", count=6, captions="textfile")
    return tmp_path / "set"


def read_all(folder: Path, indexes: Indexes) -> tuple[list[bytes], int]:
    """Every text of a folder, and how many of them were read."""
    CountingSource.read = 0
    texts = RememberedTexts(CountingSource(str(folder)), indexes)
    found = [texts.read_small(path.name, 1 << 20) for path in sorted(folder.glob("*.txt"))]
    texts.save()
    return found, CountingSource.read


def test_texts_that_have_not_changed_are_not_read_again(images: Path, tmp_path: Path) -> None:
    indexes = Indexes(tmp_path / "index")
    first, again = read_all(images, indexes), read_all(images, indexes)
    assert (first[1], again[1]) == (6, 0) and first[0] == again[0]


def test_a_changed_text_is_read_again_and_a_removed_one_is_forgotten(images: Path, tmp_path: Path) -> None:
    indexes = Indexes(tmp_path / "index")
    read_all(images, indexes)
    changed, removed, *_ = sorted(images.glob("*.txt"))
    changed.write_bytes("né en été".encode("latin-1"))
    removed.unlink()
    found, read = read_all(images, indexes)
    assert (read, found[0], len(found)) == (1, "né en été".encode("latin-1"), 5)
    [index] = (tmp_path / "index").glob("texts-*")
    assert removed.name not in json.loads(index.read_text())["files"]


def test_long_texts_are_read_each_time_and_missing_ones_are_missing(images: Path, tmp_path: Path) -> None:
    indexes = Indexes(tmp_path / "index")
    long = next(iter(images.glob("*.txt")))
    long.write_text("x" * (LONGEST_BYTES + 1))
    read_all(images, indexes)
    assert read_all(images, indexes)[1] == 1
    texts = RememberedTexts(LocalSource(str(images)), indexes)
    with pytest.raises(FileNotFoundError):
        texts.read_small("nothing.txt", 100)
    with pytest.raises(FileTooLarge):
        texts.read_small(long.name, 100)


def test_a_report_with_remembered_captions_is_the_same(images: Path, tmp_path: Path) -> None:
    generate_images(images / "more", count=3, captions="textfile")
    next(iter(images.glob("*.txt"))).write_bytes(b"\xff\xfe" + "sixteen bits".encode("utf-16-le"))
    next(iter((images / "more").glob("*.txt"))).unlink()
    reports = [only(report_of(entry(images, caption_strategy="textfile"), index_dir=tmp_path / "index")) for _ in range(2)]
    fresh = only(report_of(entry(images, caption_strategy="textfile")))
    assert reports[0].samples == reports[1].samples == fresh.samples and reports[1].left_out == fresh.left_out
    assert len(list((tmp_path / "index").iterdir())) == 2


def test_the_newest_of_several_folders_is_read_and_only_the_own_one_written(images: Path, tmp_path: Path) -> None:
    source = LocalSource(str(images))
    discover(source, index_dir=tmp_path / "shared")
    found = discover(source, index_dir=Indexes(tmp_path / "own", (tmp_path / "shared",)))
    assert found.opened == 0 and not (tmp_path / "own").exists()
    generate_images(images / "new", count=1)
    assert discover(source, index_dir=Indexes(tmp_path / "own", (tmp_path / "shared",))).opened == 1
    assert len(list((tmp_path / "own").iterdir())) == 1
    assert discover(source, index_dir=Indexes(tmp_path / "own", (tmp_path / "shared",))).opened == 0


def test_small_sources_are_not_remembered_where_that_is_said(images: Path, tmp_path: Path) -> None:
    discover(LocalSource(str(images)), index_dir=Indexes(tmp_path / "index", least_files=7))
    assert not (tmp_path / "index").exists()


def test_the_oldest_files_are_removed_beyond_the_limit(images: Path, tmp_path: Path) -> None:
    indexes = Indexes(tmp_path / "index", largest_bytes=1500)
    for number in range(6):
        generate_images(tmp_path / f"set{number}", count=4)
        discover(LocalSource(str(tmp_path / f"set{number}")), index_dir=indexes)
        newest = max((tmp_path / "index").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, ns=(number, number))
    left = sorted(path.stat().st_mtime_ns for path in (tmp_path / "index").iterdir())
    assert 1 <= len(left) < 6 and left[-1] == 5
    assert discover(LocalSource(str(tmp_path / "set5")), index_dir=indexes).opened == 0


def test_rows_of_earlier_versions_are_still_read(images: Path, tmp_path: Path) -> None:
    source = LocalSource(str(images))
    found = discover(source, index_dir=tmp_path / "index")
    [index] = (tmp_path / "index").iterdir()
    rows = {image.name: [image.size_bytes, image.version, image.width, image.height, image.remark] for image in found.images}
    index.write_text(json.dumps({"version": 2, "files": rows}))
    again = discover(source, index_dir=tmp_path / "index")
    assert again.opened == 0 and again.images == found.images


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(rows=document["rows"][:-1]),
        lambda document: document["rows"][2].pop(),
        lambda document: document["rows"].__setitem__(2, 5),
        lambda document: document["files"].__setitem__(0, 7),
        lambda document: document["rows"][2].__setitem__(0, -5),
        lambda document: document["rows"][3].__setitem__(0, 10**400),
        lambda document: document["rows"][3].__setitem__(0, 0),
        lambda document: document["rows"][2].__setitem__(0, True),
        lambda document: document["rows"][4].__setitem__(0, None),
    ],
)
def test_a_forged_index_never_reaches_the_sizes(images: Path, tmp_path: Path, change: Any) -> None:
    source = LocalSource(str(images))
    found = discover(source, index_dir=tmp_path / "index")
    [index] = (tmp_path / "index").iterdir()
    document = json.loads(index.read_text())
    change(document)
    index.write_text(json.dumps(document))
    assert discover(source, index_dir=tmp_path / "index").images == found.images


def test_an_index_that_is_a_pipe_is_not_waited_for(images: Path, tmp_path: Path) -> None:
    discover(LocalSource(str(images)), index_dir=tmp_path / "index")
    [index] = (tmp_path / "index").iterdir()
    index.unlink()
    os.mkfifo(index)
    assert discover(LocalSource(str(images)), index_dir=Indexes(None, (tmp_path / "index",))).opened == 6
