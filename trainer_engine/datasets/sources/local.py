"""Image files in a folder of this machine."""

# ruff: noqa: PTH110, PTH116, PTH118, PTH122, PTH123
# Paths are text here: over 20,000 files, Path objects cost as much as reading the headers.
from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".tif", ".tiff")
    + (".bmp", ".dib", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".qoi")
)
"""Files that are taken for images."""
OTHER_PICTURES = frozenset(
    (".svg", ".svgz", ".heic", ".heif", ".jxl", ".psd", ".eps", ".pdf", ".exr", ".hdr")
    + (".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2")
)
"""Pictures in formats that are not read; named in the report, so that nobody wonders where they went."""


class FoundFile(NamedTuple):
    """A file as the folder lists it."""

    name: str
    """Relative to the dataset's folder, with ``/``; bytes that are no UTF-8 as lone surrogates, as the system gives them."""
    size_bytes: int
    mtime_ns: int


class LeftOut(NamedTuple):
    """A file that is not trained on, and why."""

    name: str
    reason: str
    broken: bool
    """Whether the file is at fault, and not a filter that somebody set."""


@dataclass
class Listing:
    """What a folder holds."""

    files: list[FoundFile] = field(default_factory=list)
    """Sorted by name, so that every machine sees the same order."""
    left_out: list[LeftOut] = field(default_factory=list)


def list_images(root: str) -> Listing:
    """Every image file below a folder. Symbolic links are followed, each folder once, so that circles end.

    Hidden files and folders (a leading dot) are skipped. What the system refuses to show is left out with its reason.
    Raises OSError where ``root`` itself cannot be listed.
    """
    listing = Listing()
    seen = {_identity(os.stat(root))}
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                waiting += list(_look_at(entries, folder, seen, listing))
        except OSError as error:
            if not folder:
                raise
            listing.left_out.append(LeftOut(folder, f"the folder cannot be listed: {reason_of(error)}", broken=True))
    listing.files.sort()
    return listing


def _look_at(entries: Iterator[os.DirEntry[str]], folder: str, seen: set[tuple[int, int]], listing: Listing) -> Iterator[str]:
    """Sort what one folder holds; yields the folders in it that were not seen yet."""
    for entry in entries:
        if entry.name.startswith("."):
            continue
        name = f"{folder}/{entry.name}" if folder else entry.name
        suffix = os.path.splitext(entry.name)[1].lower()
        try:
            if entry.is_dir():
                identity = _identity(entry.stat())
                if identity not in seen:
                    seen.add(identity)
                    yield name
            elif suffix in SUFFIXES:
                _add(entry, name, listing)
            elif suffix in OTHER_PICTURES:
                listing.left_out.append(LeftOut(name, f"{suffix} files are not read", broken=True))
        except OSError as error:
            if suffix in SUFFIXES or entry.is_symlink():
                listing.left_out.append(LeftOut(name, f"it cannot be looked at: {reason_of(error)}", broken=True))


def _add(entry: os.DirEntry[str], name: str, listing: Listing) -> None:
    if not entry.is_file():
        dangling = entry.is_symlink() and not os.path.exists(entry.path)
        reason = "it is a link to something that is not there" if dangling else "it is not a file"
        listing.left_out.append(LeftOut(name, reason, broken=True))
        return
    status = entry.stat()
    if status.st_size == 0:
        listing.left_out.append(LeftOut(name, "the file is empty (0 bytes)", broken=True))
        return
    listing.files.append(FoundFile(name, status.st_size, status.st_mtime_ns))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def reason_of(error: OSError) -> str:
    """What the system says, for people."""
    return (error.strerror or str(error)).lower()


def printable(name: str) -> str:
    """A file name as text that JSON, logs and terminals can hold: undecodable bytes as ``\\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
