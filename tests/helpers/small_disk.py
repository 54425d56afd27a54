"""Small file systems that tests fill up."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_file_system(disk: Path, *, megabytes: int, files: int = 400) -> Iterator[Path]:
    """A file system in memory, mounted at ``disk``; the test is skipped where this may not be done."""
    disk.mkdir()
    if not shutil.which("mount"):
        pytest.skip("there is no mount command")
    options = f"size={megabytes}m,nr_inodes={files}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill_up(disk: Path) -> Path:
    """Take every byte that is left, down to parts of a block that other files hold; the file that does."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        for block in (1 << 16, 1 << 10, 1):
            try:
                while stream.write(bytes(block)):
                    pass
            except OSError:
                continue
    return filler
