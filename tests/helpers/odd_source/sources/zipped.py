"""The files in a zip archive, which is never unpacked."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.datasets.sources.base import FoundFile, LeftOut, Listing, Source, SourceKind, Suffixes

LARGEST_BYTES = 1 << 28
"""A member that would take more memory is left out."""
ENCRYPTED = 0x1


class ZipFields(OptionGroup):
    """Fields of datasets in a zip archive."""

    archive: str = option(..., "Path of the zip archive.")
    archive_folder: str = option("", "Only the files in this folder of the archive, with all its subfolders. Empty: all files.")


@dataclass(frozen=True)
class ZipSource(Source):
    """A zip archive on this machine. Names are those in the archive, relative to ``folder``."""

    place: str
    folder: str

    @property
    def identity(self) -> str:
        return f"{os.path.realpath(self.place)}!{self.folder}"

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.place)
        except zipfile.BadZipFile as error:
            raise OSError(str(error)) from error

    def list_files(self, suffixes: Suffixes) -> Listing:
        listing = Listing()
        for member in self._archive.infolist():
            name = member.filename.removeprefix(self.folder)
            suffix = os.path.splitext(name)[1].lower()
            if member.is_dir() or not member.filename.startswith(self.folder) or name.startswith("."):
                continue
            if suffix in suffixes.refused:
                listing.left_out.append(LeftOut(name, suffixes.refused[suffix], broken=True))
            elif suffix in suffixes.usable and member.flag_bits & ENCRYPTED:
                listing.left_out.append(LeftOut(name, "it is encrypted", broken=True))
            elif suffix in suffixes.usable and member.file_size > LARGEST_BYTES:
                listing.left_out.append(LeftOut(name, f"it unpacks to more than {LARGEST_BYTES >> 20} MiB", broken=True))
            elif suffix in suffixes.usable:
                listing.files.append(_found(name, member))
        listing.files.sort()
        return listing

    def stat(self, name: str) -> FoundFile:
        return _found(name, self._member(name))

    def open(self, name: str) -> BinaryIO:
        try:
            return io.BytesIO(self._archive.read(self._member(name)))
        except (zipfile.BadZipFile, RuntimeError) as error:
            raise OSError(str(error)) from error

    def _member(self, name: str) -> zipfile.ZipInfo:
        try:
            return self._archive.getinfo(f"{self.folder}{name}")
        except KeyError:
            raise FileNotFoundError(2, "it is not in the archive", name) from None


def _found(name: str, member: zipfile.ZipInfo) -> FoundFile:
    return FoundFile(name, member.file_size, f"{member.CRC:08x}")


def _open(fields: ZipFields) -> ZipSource:
    return ZipSource(fields.archive, f"{fields.archive_folder.strip('/')}/".removeprefix("/"))


SOURCE = SourceKind(
    name="zip",
    help="a zip archive on this machine.",
    place_field="archive",
    place_noun="archive",
    fields=ZipFields,
    paths={"archive": "file"},
    open=lambda entry: _open(entry.own(ZipFields)),
)
