"""Commands to a running engine. Each is a small file, which the engine reads after an optimizer step."""

from __future__ import annotations

import os
import time
import uuid
from enum import Enum
from pathlib import Path

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.run import RunFolder

SUFFIX = ".command"


class Command(str, Enum):
    """An action that a run can do between two optimizer steps."""

    CHECKPOINT = "checkpoint"
    VALIDATE = "validate"
    STOP = "stop"


def request(folder: RunFolder, command: Command) -> None:
    """Writes a command. Writing the same command again before the engine reads it has no effect."""
    folder.commands.mkdir(parents=True, exist_ok=True)
    name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}-{command.value}{SUFFIX}"
    write_atomically(folder.commands / name, b"")


def take(folder: RunFolder) -> list[Command]:
    """Removes and returns the commands, oldest first, without duplicates. Other files remain.

    A command whose file cannot be removed is ignored, except for stop, which may be repeated.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder.commands) if entry.name.endswith(SUFFIX))
    except OSError:
        return []
    known = {command.value: command for command in Command}
    taken: dict[Command, None] = {}
    for name in names:
        command = known.get(name[: -len(SUFFIX)].rsplit("-", 1)[-1])
        if command is None or name.startswith("."):
            continue
        if _remove(folder.commands / name) or command is Command.STOP:
            taken[command] = None
    return list(taken)


def _remove(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True
