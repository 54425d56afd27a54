"""Files that users name are read up to a limit; files of a run are written completely or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from trainer_engine.contract import files
from trainer_engine.contract.atomic import means_full, write_atomically
from trainer_engine.contract.files import FileTooLarge, UnreadableFile, read_small, read_small_json, read_small_text, sha256_of

SECRET = "hf_averysecrettoken"


def test_a_small_file_is_read_completely(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1, 2]}')
    assert read_small(path, 1024) == path.read_bytes()
    assert read_small_json(path) == {"a": [1, 2]}


def test_a_sparse_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(FileTooLarge, match="larger than 4 MiB"):
        read_small(path)
    with pytest.raises(FileTooLarge, match="larger than 64 KiB"):
        read_small_text(path, 64 << 10)


def test_a_file_without_a_size_is_read_to_the_limit_alone() -> None:
    """The system makes the content of these files up: their size is 0."""
    path = Path("/proc/self/smaps")
    if not path.exists():
        pytest.skip("this system has no /proc")
    with pytest.raises(FileTooLarge):
        read_small(path, 16)


def test_pipes_devices_and_folders_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path, Path("/dev/stdin"), Path("/dev/null")):
        with pytest.raises(OSError, match="not a file"):
            read_small(path)


@pytest.mark.parametrize(
    "content",
    [
        SECRET.encode(),
        b'{"auths": "' + SECRET.encode() + b'"',
        SECRET.encode() + b"\xff",
        b"[" * 100_000,
        b"9" * 10_000,
        b'{"a": 1} ' + SECRET.encode(),
        b'["\\x' + SECRET.encode() + b'"]',
    ],
)
def test_an_error_repeats_nothing_of_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile) as caught:
        read_small_json(path)
    assert SECRET not in str(caught.value) and "averysecret" not in repr(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError('I/O error: Os { code: 28, kind: StorageFull, message: "No space left on device" }'),
        RuntimeError('I/O error: No space left on device (os error 28) at path "/disk/transformer/.tmp91gjc5"'),
        RuntimeError("I/O error: Disk quota exceeded (os error 122)"),
    ],
)
def test_a_full_disk_is_recognised_in_several_forms(error: Exception) -> None:
    assert means_full(error)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), RuntimeError("error 28: no such tensor"), ValueError("28")])
def test_other_errors_are_not_taken_for_a_full_disk(error: Exception) -> None:
    assert not means_full(error)


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_beside(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with (tmp_path / "closed").open("wb") as closed, pytest.raises(OSError, match="read"):
        write_atomically(tmp_path / "file", closed)
    (tmp_path / "closed").unlink()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\ud800", "file/inside", "missing"], ids=ascii)
def test_a_name_that_no_file_can_have_is_no_file_and_no_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert not any(look(tmp_path / name) for look in (files.is_file, files.is_folder, files.exists))


def test_a_file_that_becomes_a_pipe_before_it_is_opened_is_refused_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    regular = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda path: regular)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UnreadableFile, match="not a file"):
        read_small(tmp_path / "pipe")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("size", [0, 1, files.CHUNK_BYTES, files.CHUNK_BYTES + 1])
def test_a_hash_covers_every_byte_at_the_edges_of_a_chunk(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("size", [files.LARGEST_BYTES, files.LARGEST_BYTES + 1])
def test_the_limit_of_a_file_is_its_largest_size(tmp_path: Path, size: int) -> None:
    with (tmp_path / "file").open("wb") as stream:
        stream.truncate(size)
    if size > files.LARGEST_BYTES:
        with pytest.raises(FileTooLarge):
            read_small(tmp_path / "file")
    else:
        assert len(read_small(tmp_path / "file")) == size


@pytest.mark.parametrize(("text", "key"), [('{"a": 1, "b": 2, "a": 3}', "'a'"), ('[{"x": {"k": 1, "k": 1}}]', "'k'")])
def test_a_key_that_occurs_twice_is_refused_by_its_name(tmp_path: Path, text: str, key: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(UnreadableFile, match=f"the key {key} occurs twice"):
        read_small_json(tmp_path / "file")
