"""Files at addresses that a CSV file lists. Each is downloaded once, into a folder of this machine."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.config.secrets import hidden_address
from trainer_engine.contract.files import sha256_of
from trainer_engine.datasets.egress import Reach
from trainer_engine.datasets.sources.base import FoundFile, LeftOut, Listing, Progress, Source, SourceKind, Suffixes
from trainer_engine.datasets.sources.local import LocalSource
from trainer_engine.datasets.tables import csv_rows

LONGEST_PART_BYTES = 120
"""Longest part of an address that becomes the name of a file or folder."""
SHORT_HASH = 8


class CsvFields(OptionGroup):
    """Fields of datasets of addresses."""

    csv_file: str = option(..., "CSV file with a row for each address. Its first line names the columns.")
    csv_url_column: str = option("url", "Column of the addresses.")
    csv_cache_dir: str = option(..., "Folder that files are downloaded into.")
    csv_hash_filenames: bool = option(True, "Name files by a hash of their address. Without it they are named by its path.")


class Address(NamedTuple):
    """A row of the file."""

    url: str
    stem: str
    """Name of its file in the folder without the suffix."""
    suffix: str
    """The suffix of a medium in its path. Without one it is empty, and the content gives the suffix."""

    @property
    def key(self) -> str:
        """The name of its file, or as much of it as is known before it is here."""
        return self.stem + self.suffix

    @property
    def shown(self) -> str:
        """The address without passwords."""
        return hidden_address(self.url)


@dataclass(frozen=True)
class CsvSource(Source):
    """The files at the addresses of a CSV file, as far as they have been downloaded."""

    place: str
    url_column: str
    folder: str
    hash_names: bool
    reach: Reach = field(default=Reach(), compare=False)

    @property
    def identity(self) -> str:
        return f"{os.path.realpath(self.folder)}!{os.path.realpath(self.place)}"

    def reached_by(self, reach: Reach) -> Source:
        return replace(self, reach=reach)

    @cached_property
    def addresses(self) -> Sequence[Address]:
        """The addresses, each once, in the order of the file. Raises UnusableTable."""
        from trainer_engine.datasets.media.base import media_suffixes

        urls = dict.fromkeys(cell.strip() for (cell,) in csv_rows(Path(self.place), (self.url_column,)) if cell and cell.strip())
        known = media_suffixes()
        found = [_address(url, known, hash_names=self.hash_names) for url in urls]
        count = Counter(one.key for one in found)
        return [one if count[one.key] == 1 else one._replace(stem=f"{one.stem}-{_hash(one.url)[:SHORT_HASH]}") for one in found]

    def list_files(self, suffixes: Suffixes) -> Listing:
        from trainer_engine.datasets.downloads import Failures

        here = self._here(suffixes)
        failures = Failures.read(Path(self.folder))
        listing = Listing()
        for address in self.addresses:
            found = here.get(address.key)
            if found:
                listing.files.append(found)
            elif address.suffix.lower() in suffixes.refused:
                listing.left_out.append(LeftOut(address.shown, suffixes.refused[address.suffix.lower()], broken=True))
            elif reason := failures.reason(address.url):
                listing.left_out.append(LeftOut(address.shown, reason, broken=True))
            else:
                listing.pending += 1
        listing.files.sort()
        listing.left_out.sort()
        return listing

    def fetch(self, suffixes: Suffixes, on_progress: Progress, should_stop: Callable[[], bool]) -> None:
        from trainer_engine.datasets.downloads import Failures, download_all

        here, failures = self._here(suffixes), Failures.read(Path(self.folder))
        refused = suffixes.refused
        absent = [one for one in self.addresses if one.key not in here and one.suffix.lower() not in refused]
        missing = [one for one in absent if not failures.reason(one.url)]
        if missing:
            download_all(missing, Path(self.folder), failures, self.reach, suffixes, on_progress, should_stop)

    def _here(self, suffixes: Suffixes) -> dict[str, FoundFile]:
        """Returns the files in the folder, by their names, and also by their names without suffixes."""
        if not os.path.isdir(self.folder):  # noqa: PTH112 - text, as names are
            return {}
        files = LocalSource(self.folder).list_files(suffixes).files
        return {**{os.path.splitext(file.name)[0]: file for file in files}, **{file.name: file for file in files}}  # noqa: PTH122

    def stat(self, name: str) -> FoundFile:
        return LocalSource(self.folder).stat(name)

    def open(self, name: str) -> BinaryIO:
        return LocalSource(self.folder).open(name)

    def location(self, name: str) -> str:
        return self.local_path(name)

    def local_path(self, name: str) -> str:
        return os.path.join(self.folder, name)  # noqa: PTH118 - text, for speed

    def sha256(self, name: str) -> str:
        return sha256_of(Path(self.local_path(name)))

    def addresses_by_name(self) -> Callable[[str], str]:
        """Returns a function that gives the address of a file by its name, or an empty text."""
        known = {one.key: one.url for one in self.addresses}
        return lambda name: known.get(name) or known.get(os.path.splitext(name)[0], "")  # noqa: PTH122 - text, for speed


def _address(url: str, known: Container[str], *, hash_names: bool) -> Address:
    path = _path_of(url)
    stem, suffix = os.path.splitext(path)  # noqa: PTH122 - text
    suffix = suffix if suffix.lower() in known else ""
    return Address(url, _hash(url) if hash_names or not suffix else stem, suffix)


def _path_of(url: str) -> str:
    """Returns the path of an address as the name of a file, or an empty text if it cannot be one."""
    try:
        parts = [unquote(part) for part in urlsplit(url).path.split("/") if part]
    except ValueError:
        return ""
    fits = all(
        part.isprintable() and not part.startswith(".") and not set("/\\") & set(part) and len(part.encode()) <= LONGEST_PART_BYTES
        for part in parts
    )
    return "/".join(parts) if fits and parts else ""


def _hash(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


def _open(fields: CsvFields) -> CsvSource:
    """Raises UnusableTable."""
    found = CsvSource(fields.csv_file, fields.csv_url_column, fields.csv_cache_dir, fields.csv_hash_filenames)
    if not found.addresses:
        raise ValueError(f"{fields.csv_file} has no address in its column {fields.csv_url_column!r}")
    return found


SOURCE = SourceKind(
    name="csv",
    help="addresses in a CSV file, which are downloaded once.",
    place_field="csv_file",
    place_noun="file",
    fields=CsvFields,
    paths={"csv_file": "file", "csv_cache_dir": "cache"},
    open=lambda entry: _open(entry.own(CsvFields)),
)
