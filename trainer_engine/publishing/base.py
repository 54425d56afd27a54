"""The interface of storage providers, and their errors."""

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
"""Called with the number of bytes transferred since the last call."""


class ProviderError(Exception):
    """A provider refused or failed. The message contains no secret."""

    def __init__(self, message: str, *, hint: str = "", permanent: bool = False) -> None:
        self.message = repeated(message, LONGEST_MESSAGE)
        super().__init__(self.message)
        self.hint = hint
        self.permanent = permanent
        """Whether a retry is useless until something is changed."""


@dataclass(frozen=True)
class LocalFile:
    """A file of a folder to upload."""

    path: Path
    name: str
    """Path relative to the folder, with slashes."""
    size: int
    sha256: str


class Provider(ABC):
    """A storage location, opened with its credentials."""

    @abstractmethod
    def send(self, folder: Path, remote: str, moved: Moved) -> str:
        """Upload every file of ``folder`` to the folder ``remote``. Files that already exist with the same content are skipped.

        Returns the address of the remote folder. Raises ProviderError.
        """

    def read(self, path: str, limit: int) -> bytes:
        """Read a small file. Raises ProviderError if it does not exist or is larger than ``limit`` bytes."""
        raise ProviderError("Checkpoints are not fetched from this provider.", permanent=True)

    def fetch(self, path: str, target: Path, size: int, moved: Moved) -> None:
        """Download a file of ``size`` bytes to ``target``; never writes more. Raises ProviderError."""
        raise ProviderError("Checkpoints are not fetched from this provider.", permanent=True)


class ObjectProvider(Provider):
    """A provider of single files. The manifest of a checkpoint is uploaded last, so that a folder with a manifest is complete."""

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
        """Whether a file with the same content exists at ``path``."""

    @abstractmethod
    def put(self, path: str, file: LocalFile, moved: Moved) -> None:
        """Upload one file and replace an existing one."""

    @abstractmethod
    def address(self, remote: str) -> str:
        """Address of a folder without credentials, for people and hooks."""

    @contextmanager
    @abstractmethod
    def translated(self) -> Iterator[None]:
        """A context that turns exceptions of the library into ProviderError."""
        yield


def local_files(folder: Path) -> Iterator[LocalFile]:
    """The files of a folder in the order of upload. Their hashes come from the manifest if the folder has one."""
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
    """Join folder names with single slashes."""
    return "/".join(part.strip("/") for part in parts if part.strip("/"))
