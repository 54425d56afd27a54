"""Atomic writes keep the mode of a file, never lose a race for a new name, and work on file systems without hard links."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainer_engine.contract.atomic import why_not_written, write_atomically

WRITERS = 8


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def race(action: Callable[[int], None], count: int = WRITERS) -> None:
    """Runs an action in several threads that start together."""
    barrier = threading.Barrier(count)

    def start(number: int) -> None:
        barrier.wait()
        action(number)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(("folder_mode", "expected"), [(0o755, 0o644), (0o750, 0o640), (0o700, 0o600)])
def test_a_new_file_is_no_more_open_than_its_folder(tmp_path: Path, umask: None, folder_mode: int, expected: int) -> None:
    tmp_path.chmod(folder_mode)
    write_atomically(tmp_path / "new", b"x")
    assert mode_of(tmp_path / "new") == expected


def test_a_rewritten_file_keeps_its_mode(tmp_path: Path, umask: None) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"old")
    path.chmod(0o664)
    write_atomically(path, b"new")
    assert (path.read_bytes(), mode_of(path)) == (b"new", 0o664)


def test_a_private_file_is_private_even_if_the_old_one_was_open(tmp_path: Path, umask: None) -> None:
    path = tmp_path / "secrets.json"
    path.write_bytes(b"old")
    path.chmod(0o666)
    write_atomically(path, b"new", mode=0o600)
    assert mode_of(path) == 0o600


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path, umask: None) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"precious")
    target.chmod(0o666)
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert not link.is_symlink() and (link.read_bytes(), mode_of(link)) == (b"new", 0o600)
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["x" * 255, "名" * 85])
def test_the_longest_file_names_can_be_written(tmp_path: Path, name: str) -> None:
    write_atomically(tmp_path / name, b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("links", [True, False], ids=["with links", "without links"])
def test_one_of_several_writers_of_a_new_file_wins(tmp_path: Path, request: pytest.FixtureRequest, links: bool) -> None:
    if not links:
        request.getfixturevalue("without_links")
    path, outcomes = tmp_path / "claim", []

    def claim(number: int) -> None:
        try:
            write_atomically(path, str(number).encode(), is_new=True)
            outcomes.append(number)
        except FileExistsError:
            outcomes.append(None)

    race(claim)
    (winner,) = [number for number in outcomes if number is not None]
    assert len(outcomes) == WRITERS and path.read_bytes() == str(winner).encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["claim"]


def test_a_dangling_link_counts_as_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "claim").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "claim", b"x", is_new=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_missing_folder_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing/file", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "The disk of /out is full."),
        (errno.EDQUOT, "The disk of /out is full."),
        (errno.EROFS, "The disk of /out is read-only."),
        (errno.EACCES, "/out cannot be written: Permission denied."),
    ],
)
def test_the_reason_names_the_folder_and_never_the_temporary_file(number: int, reason: str) -> None:
    error = OSError(number, os.strerror(number), "/out/.state.json.ab12.tmp")
    assert why_not_written(Path("/out"), error) == reason
