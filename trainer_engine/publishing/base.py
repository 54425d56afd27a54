"""What every store can do, and what can go wrong with one."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.contract.checkpoint_files import MANIFEST
from trainer_engine.contract.errors import LONGEST_MESSAGE
from trainer_engine.contract.files import sha256_of
from trainer_engine.contract.messages import repeated

Moved = Callable[[int], None]
"""Is told how many more bytes have gone over the line."""


class StoreError(Exception):
    """A store did not do what it was asked to. The message holds no secret."""

    def __init__(self, message: str, *, hint: str = "", hopeless: bool = False) -> None:
        self.message = repeated(message, LONGEST_MESSAGE)
        super().__init__(self.message)
        self.hint = hint
        self.hopeless = hopeless
        """Whether trying again is of no use before something is changed."""


@dataclass(frozen=True)
class LocalFile:
    """A file of the folder that is uploaded."""

    path: Path
    name: str
    """Below the folder, with slashes."""
    size: int
    sha256: str


class Store(ABC):
    """A place that is uploaded to, opened with its credentials."""

    @abstractmethod
    def send(self, folder: Path, remote: str, moved: Moved) -> str:
        """Upload every file of ``folder`` to the folder ``remote`` of the store; what is there already, and the same, is not sent again.

        Returns the address of the remote folder. Raises StoreError.
        """

    def read(self, path: str, limit: int) -> bytes:
        """A small file. Raises StoreError where it is not there, or larger than ``limit`` bytes."""
        raise StoreError("Checkpoints are not fetched from this store.", hopeless=True)

    def fetch(self, path: str, target: Path, size: int, moved: Moved) -> None:
        """Download one file that should have ``size`` bytes; never more are written. Raises StoreError."""
        raise StoreError("Checkpoints are not fetched from this store.", hopeless=True)


class ObjectStore(Store):
    """A store of single files. A checkpoint's manifest goes last, so that what has one is whole."""

    def send(self, folder: Path, remote: str, moved: Moved) -> str:
        for file in local_files(folder):
            with self.translated():
                path = f"{remote}/{file.name}" if remote else file.name
                if self.holds(path, file):
                    moved(file.size)
                else:
                    self.put(path, file, moved)
        return self.address(remote)

    @abstractmethod
    def holds(self, path: str, file: LocalFile) -> bool:
        """Whether the very same bytes lie there."""

    @abstractmethod
    def put(self, path: str, file: LocalFile, moved: Moved) -> None:
        """Upload one file, in place of what is there."""

    @abstractmethod
    def address(self, remote: str) -> str:
        """Of a folder, for people and scripts; without credentials."""

    @contextmanager
    @abstractmethod
    def translated(self) -> Iterator[None]:
        """What the library raises becomes StoreError."""
        yield


def local_files(folder: Path) -> Iterator[LocalFile]:
    """In the order in which they are sent. Hashes come from the manifest where there is one."""
    known = _manifest_hashes(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in sorted(paths, key=lambda path: path == folder / MANIFEST):
        name = path.relative_to(folder).as_posix()
        yield LocalFile(path, name, path.stat().st_size, known.get(name) or sha256_of(path))


def _manifest_hashes(folder: Path) -> dict[str, str]:
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        return {name: str(entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def joined(*parts: str) -> str:
    """Folders of a store, with one slash between them."""
    return "/".join(part.strip("/") for part in parts if part.strip("/"))
