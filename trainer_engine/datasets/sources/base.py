"""What a source of files offers. A new one is a file in this folder that declares ``SOURCE``; docs/new-dataset-source.md builds one."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, ClassVar, NamedTuple, cast

from trainer_engine.config.addresses import Reach
from trainer_engine.config.dataset_tables import SourceSpec, source_specs
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import FileTooLarge, sha256_of_stream
from trainer_engine.contract.path_rule import PlaceRule

if TYPE_CHECKING:
    from trainer_engine.config.datasets import ImageSet, ReferenceSet

MOST_CHOICES = 20
"""Choices that a message names."""
Progress = Callable[[str, int, int], None]
"""(label of the work, number done, total)"""
Version = int | str
"""Changes whenever the content of a file does: a modification time in ns, an ETag, a checksum. It says nothing about other files."""


class FoundFile(NamedTuple):
    """A file of a source."""

    name: str
    """Path relative to the source's place, with ``/`` and a suffix. It stays the same as long as the file is meant to be the same, and it
    identifies the sample wherever something is random. Bytes that are not UTF-8 are lone surrogates."""
    size_bytes: int
    version: Version
    size: tuple[int, int] | None = None
    """(width, height) in pixels, as it is shown, if the source or a table knows it. An image is then measured without being opened."""


class LeftOut(NamedTuple):
    """A file that is not used, and why."""

    name: str
    reason: str
    broken: bool
    """Whether the file itself is broken, and not excluded by a filter in the configuration."""


@dataclass(frozen=True)
class Pending:
    """Files that a run fetches when it starts. It is false if there are none."""

    files: int = 0
    size_bytes: int = 0
    """What they may take, estimated."""
    largest_bytes: int = 0
    """Limit of all files of the dataset, with those that are here; 0: none."""

    def __bool__(self) -> bool:
        return self.files > 0


NONE_PENDING = Pending()


@dataclass
class Listing:
    """The files of a source that may hold samples."""

    files: list[FoundFile] = field(default_factory=list)
    """Sorted by name, so that the order is the same on every machine."""
    left_out: list[LeftOut] = field(default_factory=list)
    pending: Pending = NONE_PENDING
    """The files that a run fetches when it starts. They are in neither list."""


@dataclass(frozen=True)
class Suffixes:
    """The suffixes, in lower case with their dot, of files that a source lists. It ignores all others."""

    usable: frozenset[str]
    refused: Mapping[str, str]
    """Suffix -> why such a file is left out."""


class NotFetched(OSError):
    """The files are not on this machine yet. A run fetches them when it starts."""


class MeasuredLater(NotFetched):
    """Measuring the files takes too long for ``validate``. A run does it when it starts."""


class WrongField(ValueError):
    """A field of a dataset does not fit what lies in its place, such as the name of a column that is not there."""

    def __init__(self, field: str, code: str, message: str, *, choices: Iterable[str] = ()) -> None:
        named = sorted(choices)
        listed = ", ".join(named[:MOST_CHOICES])
        super().__init__(f"{message}; there is {listed}" if named else message)
        self.field, self.code = field, code
        self.expected = f"one of {listed}" if named else ""


@dataclass(frozen=True)
class Fetching:
    """What a source needs to download the files of a dataset."""

    on_progress: Callable[[int, int], None]
    """(bytes or files done, the same in total)"""
    raise_if_stopped: Callable[[], None]
    """Called between pieces of a download, also in threads. It raises Stopped if the run shall end."""
    reach: Reach = Reach()


class Source(ABC):
    """The files of one dataset, wherever they lie.

    Sources of the same place are equal and have the same hash. Methods may be called from several threads at once. They raise OSError
    for a file or a place that cannot be read; its text is shown to people.
    """

    place: str
    """Where the files lie, for messages: a folder, an archive, an address. It contains no secret."""
    is_generated = False
    """Whether the engine makes the files from those of another source, so that they may not exist before a run starts."""
    is_quick: ClassVar[bool] = False
    """Whether ``stat`` takes microseconds, so that texts that were read before are recognised by their version."""

    @property
    def identity(self) -> str:
        """Names the place among all others on this machine. The measurements of its files are cached under it."""
        return self.place

    def reached_by(self, reach: Reach) -> Source:
        """Returns the source with the machines that it may connect to. One that connects to none is returned as it is."""
        return self

    def within(self, places: PlaceRule) -> Source:
        """Returns the source with the places from which ``read_small`` may read. One in which nothing is a link is returned as it is."""
        return self

    def refuse_closed(self, name: str) -> None:
        """Raises OSError if a link leads from this file to where nothing may be read."""
        return

    @abstractmethod
    def list_files(self, suffixes: Suffixes) -> Listing:
        """Lists the files with these suffixes. A file that cannot be used is left out with the reason. Raises OSError."""

    @abstractmethod
    def stat(self, name: str) -> FoundFile:
        """Returns the size and version of a file; a source may answer from its listing. Raises OSError."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Opens a file for reading at any position. The caller closes it. Raises OSError, FileNotFoundError if there is no such file."""

    def read_small(self, name: str, largest: int) -> bytes:
        """Returns the content of a small file, such as a caption. Raises OSError, FileTooLarge above ``largest`` bytes."""
        with self.open(name) as stream:
            content = stream.read(largest + 1)
        if len(content) > largest:
            raise FileTooLarge(largest)
        return content

    def size_of(self, name: str) -> int:
        """Returns the size of a file in bytes, if the listing has 0 because it would have to open each file. Raises OSError."""
        return self.stat(name).size_bytes

    def bytes_to_measure(self) -> int:
        """Returns how many bytes must be read to measure all files, if reading headers is not enough; otherwise 0. Raises OSError."""
        return 0

    def location(self, name: str) -> str:
        """Returns the place of a file, for messages and as the key of its content hash."""
        return f"{self.place}/{name}"

    def local_path(self, name: str) -> str | None:
        """Returns the absolute path of a file on this machine, or None if it has none."""
        return None

    def sha256(self, name: str) -> str:
        """Returns the SHA-256 of a file's bytes. Addresses of cached latents contain it, wherever the bytes lie. Raises OSError."""
        with self.open(name) as stream:
            return sha256_of_stream(stream)


@dataclass(frozen=True)
class RemoteFacts:
    """What the server of a dataset says before anything is downloaded."""

    problems: Sequence[Problem] = ()
    folder: str = ""
    """Where a run stores what it downloads."""
    size_bytes: int = 0
    """What a run downloads; 0 if it is not known."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceKind(SourceSpec):
    """The declaration of a source."""

    open: Callable[[ImageSet | ReferenceSet], Source]
    """Makes the source of a dataset. Raises OSError or ValueError, whose text says why its place cannot be used; NotFetched until
    ``fetch`` has run."""
    fetch: Callable[[ImageSet | ReferenceSet, Suffixes, Fetching], None] | None = None
    """Downloads the files of a dataset, when a run starts; None if they are read where they lie. ``validate`` never calls it.

    A file that cannot be downloaded is left out of the next listing. Raises DatasetUnusable, DiskFull, Stopped; OSError or ValueError for
    a place that cannot be used."""
    ask: Callable[[ImageSet | ReferenceSet, Mapping[str, str]], RemoteFacts] | None = None
    """Says what is known of a dataset that is not fetched yet, as far as its server answers in seconds, given the environment variables.
    ``validate`` calls it."""


def kind_of(entry: ImageSet | ReferenceSet) -> SourceKind:
    """Returns the declaration of the source that ``type`` chooses."""
    return cast(SourceKind, source_specs()[entry.type])


def open_source(entry: ImageSet | ReferenceSet) -> Source:
    """Returns the source that ``type`` chooses. Raises OSError or ValueError if its place cannot be used."""
    return kind_of(entry).open(entry)


class SourceFile(NamedTuple):
    """A file with the source that it is in."""

    source: Source
    name: str
    size_bytes: int

    def open(self) -> BinaryIO:
        """Opens the file for reading at any position. Raises OSError."""
        return self.source.open(self.name)

    @property
    def location(self) -> str:
        return self.source.location(self.name)


def reason_of(error: OSError) -> str:
    """Returns why something failed: the system's description in lower case, or the text of an error that names files and columns."""
    text = error.strerror or str(error)
    return text.lower() if error.errno and text == os.strerror(error.errno) else text


def printable(name: str) -> str:
    """Returns a file name as text for JSON, logs and terminals, with undecodable bytes as ``\\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
