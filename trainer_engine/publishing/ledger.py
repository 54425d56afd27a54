"""What is to be uploaded, and what became of it: a JSON file in the output folder that outlives the run. Holds no secret."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.events import utc_now

VERSION = 1
RESULT = "result"


class UploadState(str, Enum):
    """How far an upload is."""

    PENDING = "pending"
    """To be made, now or by the next run in this folder."""
    DONE = "done"
    FAILED = "failed"
    """Refused: trying again is of no use before something is changed. The next run in this folder tries once more."""


@dataclass
class Upload:
    """One folder on its way to one place."""

    id: str
    """Place, folder and content: what has the same id is the same upload."""
    target: str
    """``PublishTarget.key``."""
    provider: str
    what: str
    """``checkpoint-<step>`` or ``result``."""
    step: int
    source: str
    """Name in the output folder, for people and listeners."""
    staged: str
    """Name of the folder of hard links."""
    remote: str
    """Folder at the store; empty for its top."""
    size_bytes: int
    state: UploadState = UploadState.PENDING
    attempts: int = 0
    address: str = ""
    """Where it is, once it is done."""
    trouble: str = ""
    """What went wrong the last time."""
    updated_at: str = ""
    """ISO 8601, UTC."""

    @property
    def is_pending(self) -> bool:
        return self.state is UploadState.PENDING

    def becomes(self, state: UploadState, *, address: str = "", trouble: str = "") -> None:
        self.state, self.address, self.trouble, self.updated_at = state, address, trouble, utc_now()


class Ledger:
    """The uploads of an output folder, oldest first. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        """An unreadable file counts as none: the worst that follows is a second upload of what is there."""
        self.path = path
        self.uploads: dict[str, Upload] = {}
        for upload in _read(path):
            self.uploads[upload.id] = upload

    def save(self) -> None:
        """Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        document = {"version": VERSION, "uploads": [asdict(upload) for upload in self.uploads.values()]}
        write_atomically(self.path, (json.dumps(document, indent=1) + "\n").encode())

    @property
    def pending(self) -> list[Upload]:
        return [upload for upload in self.uploads.values() if upload.is_pending]


def _read(path: Path) -> Iterable[Upload]:
    try:
        document = json.loads(path.read_bytes())
        entries = document["uploads"] if document["version"] == VERSION else []
        return [Upload(**{**entry, "state": UploadState(entry["state"])}) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError):
        return []
