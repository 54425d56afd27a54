from __future__ import annotations

import errno
from pathlib import Path

import pytest

from trainer_engine.contract.atomic import means_full, write_atomically


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
def test_a_full_disk_is_told_in_several_ways(error: Exception) -> None:
    assert means_full(error)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), RuntimeError("error 28: no such tensor"), ValueError("28")])
def test_other_errors_are_not_taken_for_a_full_disk(error: Exception) -> None:
    assert not means_full(error)


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_beside(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "file", "no bytes")  # type: ignore[arg-type]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
