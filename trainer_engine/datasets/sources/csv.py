"""Files at addresses that a CSV file lists. Each is downloaded once, into a folder of this machine, up to a limit for the dataset."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from trainer_engine.config.addresses import DOWNLOAD_VARIABLE, GB, Reach
from trainer_engine.config.option import OptionGroup, option
from trainer_engine.contract.errors import DatasetUnusable, Problem
from trainer_engine.contract.files import sha256_of
from trainer_engine.datasets.dead_addresses import Failures
from trainer_engine.datasets.sources.addresses import Address, named_addresses
from trainer_engine.datasets.sources.base import Fetching, FoundFile, LeftOut, Listing, Pending, Source, SourceKind, Suffixes
from trainer_engine.datasets.sources.local import LocalSource
from trainer_engine.datasets.tables import csv_rows

if TYPE_CHECKING:
    from trainer_engine.config.datasets import ImageSet, ReferenceSet

SUFFIX = ".csv"
USUAL_FILE_BYTES = 500_000
"""What a file is taken for as long as none of the dataset is here."""


class CsvFields(OptionGroup):
    """Fields of datasets of addresses."""

    csv_file: str = option(..., "CSV file (.csv) with a row for each address. Its first line names the columns.")
    csv_url_column: str = option("url", "Column of the addresses.")
    csv_cache_dir: str = option(..., "Folder that files are downloaded into.")
    csv_hash_filenames: bool = option(True, "Name files by a hash of their address. Without it they are named by its path.")


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

        return named_addresses(dict.fromkeys(url for url in self._cells if url), media_suffixes(), hash_names=self.hash_names)

    @cached_property
    def _cells(self) -> Sequence[str]:
        """The column of the addresses, without spaces around them. Raises UnusableTable."""
        return [(cell or "").strip() for (cell,) in csv_rows(Path(self.place), (self.url_column,))]

    @cached_property
    def _rows(self) -> Mapping[str, int]:
        """Address -> number of its first row, from 1. Only rows that cannot be named by their address need it."""
        return {url: row for row, url in reversed([*enumerate(self._cells, 1)])}

    def list_files(self, suffixes: Suffixes) -> Listing:
        here = self._here(suffixes)
        failures = Failures.read(Path(self.folder))
        listing, pending = Listing(), 0
        listing.left_out += [LeftOut(f"row {row}", "it has no address", broken=True) for row, url in enumerate(self._cells, 1) if not url]
        for address in self.addresses:
            found = here.get(address.key)
            if found:
                listing.files.append(found)
            elif reason := _refusal(address, suffixes) or failures.reason(address.url):
                listing.left_out.append(LeftOut(address.shown or f"row {self._rows[address.url]}", reason, broken=True))
            else:
                pending += 1
        if pending:
            listing.pending = self._pending(pending, listing.files)
        listing.files.sort()
        listing.left_out.sort()
        return listing

    def _pending(self, count: int, here: Sequence[FoundFile]) -> Pending:
        """Raises OSError if the files that are here take as much as all of them may."""
        taken, largest = sum(file.size_bytes for file in here), self.reach.largest_set_bytes
        if 0 < largest <= taken:
            raise OSError(too_large(largest))
        expected = count * (taken // len(here) if here else USUAL_FILE_BYTES)
        return Pending(count, min(expected, largest - taken) if largest else expected, largest)

    def download(self, suffixes: Suffixes, fetching: Fetching) -> None:
        """Downloads what is missing. Raises OSError if nothing can be stored, SetTooLarge beyond the limit of the dataset."""
        from trainer_engine.datasets.downloads import Allowance, download_all

        here, failures = self._here(suffixes), Failures.read(Path(self.folder))
        absent = [one for one in self.addresses if one.key not in here and not _refusal(one, suffixes)]
        missing = [one for one in absent if not failures.reason(one.url)]
        if missing:
            taken = sum(here[one.key].size_bytes for one in self.addresses if one.key in here)
            allowance = Allowance(fetching.reach.largest_set_bytes, taken)
            download_all(missing, Path(self.folder), failures, suffixes, fetching, allowance)

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


def _refusal(address: Address, suffixes: Suffixes) -> str:
    """Returns why a file is of no use to the dataset, by the suffix in its address; an empty text if it may be of use."""
    suffix = address.suffix.lower()
    unknown = f"{suffix} files are not read in this set" if suffix and suffix not in suffixes.usable else ""
    return suffixes.refused.get(suffix, unknown)


def too_large(largest: int) -> str:
    """Says that the files of a dataset take more than they may, as the end of a sentence."""
    return f"its files take more than {largest / GB:g} GB, the limit for one dataset ({DOWNLOAD_VARIABLE})"


def _fetch(entry: ImageSet | ReferenceSet, suffixes: Suffixes, fetching: Fetching) -> None:
    from trainer_engine.datasets.downloads import SetTooLarge

    try:
        _open(entry.own(CsvFields)).download(suffixes, fetching)
    except SetTooLarge as error:
        message = f"dataset {entry.id}: {too_large(fetching.reach.largest_set_bytes)}; what was downloaded stays."
        hint = "list fewer addresses, or let the server's operator raise the limit"
        raise DatasetUnusable([Problem.error(entry.place_option, "download_limit", message, got=entry.place, hint=hint)]) from error


def _open(fields: CsvFields) -> CsvSource:
    """Raises UnusableTable; ValueError for a file of another name, whose lines are not for messages and reports."""
    if not fields.csv_file.lower().endswith(SUFFIX):
        raise ValueError(f"csv_file does not end with {SUFFIX}, so it is not opened")
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
    fetch=_fetch,
)
