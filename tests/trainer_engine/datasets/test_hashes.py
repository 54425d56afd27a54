from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from trainer_engine.datasets.hashes import FileHashes


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = b"\0image" * 500_000
    assert FileHashes(tmp_path / "hashes.jsonl").of(written(tmp_path / "a.png", content)) == hashlib.sha256(content).hexdigest()


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    path, index = written(tmp_path / "a.png", b"before"), tmp_path / "hashes.jsonl"
    first, times = FileHashes(index).of(path), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(b"after!")
    os.utime(path, ns=times)
    assert FileHashes(index).of(path) == first


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path, hashes = written(tmp_path / "a.png", b"before"), FileHashes(tmp_path / "hashes.jsonl")
    first = hashes.of(path)
    path.write_bytes(b"something else")
    assert hashes.of(path) != first


def test_a_line_that_was_cut_short_is_ignored(tmp_path: Path) -> None:
    path, index = written(tmp_path / "a.png", b"before"), tmp_path / "hashes.jsonl"
    first = FileHashes(index).of(path)
    index.write_bytes(index.read_bytes() + b'["/half a li')
    assert FileHashes(index).of(path) == first


def test_lines_of_several_threads_do_not_mix(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{number}.png", bytes([number])) for number in range(40)]
    hashes = FileHashes(tmp_path / "hashes.jsonl")
    threads = [threading.Thread(target=lambda part=paths[start::4]: [hashes.of(path) for path in part]) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len((tmp_path / "hashes.jsonl").read_text().splitlines()) == 40


def test_files_of_the_hub_cache_are_known_by_their_name(tmp_path: Path) -> None:
    blob = written(tmp_path / "models--a--b" / "blobs" / ("5" * 64), b"many gigabytes")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    hashes = FileHashes(tmp_path / "hashes.jsonl")
    assert hashes.of(link) == "5" * 64
    assert not hashes.index.exists()


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileHashes(tmp_path / "hashes.jsonl").of(tmp_path / "gone.png")


def test_a_path_with_separators_of_unicode_is_remembered(tmp_path: Path) -> None:
    path = written(tmp_path / "one\u2028line\u0085of\x0ca name.png", b"before")
    first = FileHashes(tmp_path / "hashes.jsonl").of(path)
    status = path.stat()
    path.write_bytes(b"beyond")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert FileHashes(tmp_path / "hashes.jsonl").of(path) == first, "the same size and time: it is not read again"


@pytest.mark.parametrize("line", ["5", "null", "{}", '["/a", null, 2, "x"]', '["/a", Infinity, 2, "x"]', "[" * 9000, '["/a", 1]', "\0\0\0"])
def test_a_line_of_something_else_is_ignored(tmp_path: Path, line: str) -> None:
    path, index = written(tmp_path / "a.png", b"before"), tmp_path / "hashes.jsonl"
    first = FileHashes(index).of(path)
    index.write_text(f"{line}\n{index.read_text()}")
    status = path.stat()
    assert FileHashes(index).known(str(path), status.st_size, status.st_mtime_ns) == first


def test_the_newest_line_of_a_file_counts(tmp_path: Path) -> None:
    path, index = written(tmp_path / "a.png", b"before"), tmp_path / "hashes.jsonl"
    FileHashes(index).of(path)
    path.write_bytes(b"after all")
    newest, status = FileHashes(index).of(path), path.stat()
    assert len(index.read_text().splitlines()) == 2
    assert FileHashes(index).known(str(path), status.st_size, status.st_mtime_ns) == newest
    assert FileHashes(index).known(str(path), status.st_size, status.st_mtime_ns + 1) is None


def test_two_halves_of_a_line_are_no_hash(tmp_path: Path) -> None:
    path, index = written(tmp_path / "a.png", b"before"), tmp_path / "hashes.jsonl"
    first, status = FileHashes(index).of(path), path.stat()
    halves = f'["/half", 1, 2,\n"{"f" * 64}"]\n["/two", 1, 2, "x"], ["/more", 1, 2, "x"]\n'
    index.write_text(f"{halves}{index.read_text()}")
    found = FileHashes(index)
    assert found.known(str(path), status.st_size, status.st_mtime_ns) == first
    assert [found.known(name, 1, 2) for name in ("/half", "/two", "/more")] == [None] * 3


def test_many_lines_are_read_as_each_of_them_alone(tmp_path: Path) -> None:
    names = ["/a b", "/\u2028", "/\udce9", "/é", '/"quoted"', "/\\n"]
    rows = [[name, number, version, f"{number:064x}"] for number, name in enumerate(names) for version in (number, f"v{number}")]
    lines = [json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogateescape") for row in rows]
    for name, ending in {"whole": [], "cut off": [b'["/cut", 1, 2'], "odd": [b"5", b"{}"]}.items():
        index = tmp_path / name
        index.write_bytes(b"\n".join([*lines, *ending]))
        found = FileHashes(index)
        newest = [row for row in rows if isinstance(row[2], str)]
        assert [found.known(*row[:3]) for row in newest] == [row[3] for row in newest], name
