"""Folders as people leave them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from trainer_engine.contract.path_rule import ClosedPlace, PlaceRule, Reason
from trainer_engine.datasets.index_file import Indexes
from trainer_engine.datasets.media.base import suffixes_of
from trainer_engine.datasets.sources.base import Listing, printable
from trainer_engine.datasets.sources.local import LocalSource
from trainer_engine.datasets.texts import RememberedTexts


def list_images(root: str) -> Listing:
    return LocalSource(root).list_files(suffixes_of(["image"]))


def names_in(root: Path) -> list[str]:
    return [file.name for file in list_images(str(root)).files]


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_images_are_found_in_all_folders_and_sorted(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "deep/er/c.webp", "notes.txt", "no_ending"):
        touch(tmp_path / name)
    assert names_in(tmp_path) == ["a.jpg", "b.PNG", "deep/er/c.webp"]


def test_size_and_time_are_those_of_the_file(tmp_path: Path) -> None:
    path = touch(tmp_path / "a.jpg", b"12345")
    [file] = list_images(str(tmp_path)).files
    assert (file.size_bytes, file.version) == (5, path.stat().st_mtime_ns)


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    for name in ("._a.jpg", ".thumbs/b.jpg"):
        touch(tmp_path / name)
    assert names_in(tmp_path) == []


def test_circles_of_links_end(tmp_path: Path) -> None:
    touch(tmp_path / "folder" / "a.jpg")
    (tmp_path / "folder" / "round").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    listing = list_images(str(tmp_path))
    assert [file.name for file in listing.files] == ["folder/a.jpg"]
    assert "self.jpg" in [file.name for file in listing.left_out]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "a.jpg")
    root = tmp_path / "root"
    root.mkdir()
    for name in ("one", "two"):
        (root / name).symlink_to(tmp_path / "elsewhere")
    assert len(names_in(root)) == 1


def test_unusable_files_are_listed_with_their_reason(tmp_path: Path) -> None:
    touch(tmp_path / "empty.jpg", b"")
    touch(tmp_path / "drawing.svg")
    touch(tmp_path / "phone.HEIC")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.png")
    reasons = {file.name: file.reason for file in list_images(str(tmp_path)).left_out}
    assert sorted(reasons) == ["dangling.png", "drawing.svg", "empty.jpg", "phone.HEIC", "pipe.png"]
    assert "0 bytes" in reasons["empty.jpg"] and "not supported" in reasons["drawing.svg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_closed_folder_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "open.jpg")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    listing = list_images(str(tmp_path))
    closed.chmod(0o700)
    assert [file.name for file in listing.left_out] == ["closed"]


def test_names_that_are_no_text_survive(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    with open(raw, "wb") as stream:
        stream.write(b"x")
    [name] = names_in(tmp_path)
    assert os.fsencode(name) == b"caf\xe9.jpg"
    assert printable(name) == "caf\\xe9.jpg"
    printable(name).encode()


def test_long_names_and_deep_folders_survive(tmp_path: Path) -> None:
    touch(tmp_path / ("x" * 251 + ".jpg"))
    deep = tmp_path.joinpath(*["d" * 100] * 30)
    touch(deep / "bottom.jpg")
    assert len(names_in(tmp_path)) == 2


def test_a_missing_folder_is_reported_to_the_caller(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list_images(str(tmp_path / "missing"))
    with pytest.raises(NotADirectoryError):
        list_images(str(touch(tmp_path / "file")))


def within_home(root: Path, **fields: Any) -> PlaceRule:
    """The rule of a server whose home is ``root``, and whose state nobody may read."""
    state = ClosedPlace(path=os.path.realpath(root / "state"), reason=Reason.STATE, reading=True)
    return PlaceRule(roots=(os.path.realpath(root),), closed=(state,), **fields)


@pytest.mark.parametrize("link", ["a.txt", "sub", "sub/deep"])
def test_a_text_is_not_read_where_a_link_leads_to_a_closed_place(tmp_path: Path, link: str) -> None:
    secret = touch(tmp_path / "state" / "deep" / "a.txt", b"secret").parent.parent
    images = tmp_path / "images"
    touch(images / "plain.txt", b"a cat")
    (images / link).parent.mkdir(exist_ok=True)
    (images / link).symlink_to({"a.txt": secret / "deep/a.txt", "sub": secret, "sub/deep": secret / "deep"}[link])
    name = "a.txt" if link == "a.txt" else "sub/deep/a.txt"
    assert LocalSource(str(images)).read_small(name, 100) == b"secret", "without a rule every place is open"
    source = LocalSource(str(images)).within(within_home(tmp_path))
    with pytest.raises(OSError, match="server's own state"):
        source.read_small(name, 100)
    assert source.read_small("plain.txt", 100) == b"a cat"
    assert source == LocalSource(str(images)), "the rule makes no other source of it"


def test_a_text_is_read_where_a_link_stays_among_open_places(tmp_path: Path) -> None:
    touch(tmp_path / "captions" / "a.txt", b"a cat")
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.txt").symlink_to(tmp_path / "captions" / "a.txt")
    assert LocalSource(str(images)).within(within_home(tmp_path)).read_small("a.txt", 100) == b"a cat"


def test_a_remembered_text_is_judged_each_time(tmp_path: Path) -> None:
    touch(tmp_path / "state" / "a.txt", b"secret")
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.txt").symlink_to(tmp_path / "state" / "a.txt")
    indexes = Indexes(tmp_path / "index")
    remembered = RememberedTexts(LocalSource(str(images)), indexes)
    assert remembered.read_small("a.txt", 100) == b"secret"
    remembered.save()
    again = RememberedTexts(LocalSource(str(images)).within(within_home(tmp_path)), indexes)
    with pytest.raises(OSError, match="server's own state"):
        again.read_small("a.txt", 100)
