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
"""Suffixes of image files."""
OTHER_PICTURES = frozenset(
    (".svg", ".svgz", ".heic", ".heif", ".jxl", ".psd", ".eps", ".pdf", ".exr", ".hdr")
    + (".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2")
)
"""Suffixes of images in unsupported formats. The report names these files as left out."""


class FoundFile(NamedTuple):
    """A file in a folder."""

    name: str
    """Path relative to the dataset's folder, with ``/``. Bytes that are not UTF-8 are lone surrogates."""
    size_bytes: int
    mtime_ns: int


class LeftOut(NamedTuple):
    """A file that is not used, and why."""

    name: str
    reason: str
    broken: bool
    """Whether the file itself is broken, and not excluded by a filter in the configuration."""


@dataclass
class Listing:
    """The image files in a folder."""

    files: list[FoundFile] = field(default_factory=list)
    """Sorted by name, so that the order is the same on every machine."""
    left_out: list[LeftOut] = field(default_factory=list)


def list_images(root: str) -> Listing:
    """Lists every image file in a folder and its subfolders. Symbolic links are followed, but each folder is visited only once.

    Hidden files and folders (with a leading dot) are skipped. Unreadable ones are left out with the reason.
    Raises OSError if ``root`` itself cannot be listed.
    """
    listing = Listing()
    seen = {_identity(os.stat(root))}
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                waiting += list(_list_folder(entries, folder, seen, listing))
        except OSError as error:
            if not folder:
                raise
            listing.left_out.append(LeftOut(folder, f"the folder cannot be listed: {reason_of(error)}", broken=True))
    listing.files.sort()
    return listing


def _list_folder(entries: Iterator[os.DirEntry[str]], folder: str, seen: set[tuple[int, int]], listing: Listing) -> Iterator[str]:
    """Adds the files of one folder to the listing, and yields its subfolders that were not visited yet."""
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
                listing.left_out.append(LeftOut(name, f"{suffix} files are not supported", broken=True))
        except OSError as error:
            if suffix in SUFFIXES or entry.is_symlink():
                listing.left_out.append(LeftOut(name, f"it cannot be accessed: {reason_of(error)}", broken=True))


def _add(entry: os.DirEntry[str], name: str, listing: Listing) -> None:
    if not entry.is_file():
        dangling = entry.is_symlink() and not os.path.exists(entry.path)
        reason = "it is a link to a missing file" if dangling else "it is not a file"
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
    """Returns the system's description of an error in lower case."""
    return (error.strerror or str(error)).lower()


def printable(name: str) -> str:
    """Returns a file name as text for JSON, logs and terminals, with undecodable bytes as ``\\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
