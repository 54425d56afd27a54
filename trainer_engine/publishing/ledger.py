"""Records all uploads of an output folder and their states in a JSON file that outlives the run. It contains no secret."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.events import utc_now

VERSION = 1
RESULT = "result"


class UploadState(str, Enum):
    """State of an upload."""

    PENDING = "pending"
    """Not uploaded yet; this run or the next one in the folder tries it."""
    DONE = "done"
    FAILED = "failed"
    """Failed permanently. The next run in the folder tries it once more."""


@dataclass
class Upload:
    """The upload of one folder to one target."""

    id: str
    """Identifies target, folder and content."""
    target: str
    """``PublishTarget.key``."""
    provider: str
    what: str
    """``checkpoint-<step>`` or ``result``."""
    step: int
    source: str
    """Name of the folder in the output folder; empty for the result."""
    staged: str
    """Name of the folder of hard links that is uploaded."""
    remote: str
    """Folder at the provider; empty for the top level."""
    size_bytes: int
    state: UploadState = UploadState.PENDING
    attempts: int = 0
    address: str = ""
    """Address of the uploaded folder; empty until the state is ``done``."""
    trouble: str = ""
    """Error of the last attempt."""
    updated_at: str = ""
    """ISO 8601, UTC."""

    @property
    def is_pending(self) -> bool:
        return self.state is UploadState.PENDING

    def becomes(self, state: UploadState, *, address: str = "", trouble: str = "") -> None:
        """Change the state, with its address or error and the time."""
        self.state, self.address, self.trouble, self.updated_at = state, address, trouble, utc_now()


class Ledger:
    """The uploads of an output folder, oldest first. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        """Read the ledger. An unreadable file counts as empty; at worst, existing files are uploaded again."""
        self.path = path
        self.uploads: dict[str, Upload] = {}
        for upload in _read(path):
            self.uploads[upload.id] = upload

    def save(self) -> None:
        """Write the ledger. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        document = {"version": VERSION, "uploads": [asdict(upload) for upload in self.uploads.values()]}
        write_atomically(self.path, (json.dumps(document, indent=1) + "\n").encode())

    @property
    def pending(self) -> list[Upload]:
        return [upload for upload in self.uploads.values() if upload.is_pending]


class _Document(BaseModel):
    version: Literal[1]
    uploads: list[Upload]


def _read(path: Path) -> Iterable[Upload]:
    try:
        return _Document.model_validate_json(path.read_bytes()).uploads
    except (OSError, ValueError):
        return []
