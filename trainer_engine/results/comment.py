"""Writes the user's comment into the headers of results."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path

from trainer_engine.config.model_comment import comment_of, filled, missing_variables
from trainer_engine.contract.atomic import sync_folder
from trainer_engine.contract.events import Notification, Severity
from trainer_engine.contract.safetensors_header import METADATA, header_bytes, read_header
from trainer_engine.runtime.events import EventSink

KEY = "modelspec.comment"
"""The key of Stability AI's model metadata for a comment."""


def make_comment(
    text: str | None, position: Callable[[], tuple[int, int]], variables: Mapping[str, str], sink: EventSink
) -> Callable[[], str]:
    """Returns a function that gives the comment at the current step of a run; an empty text without one.

    ``position`` gives step and epoch. ``variables``: the environment variables that comments may contain. Warns of those that are not set.
    """
    comment = comment_of(text)
    missing = missing_variables(comment, variables)
    if missing:
        message = f"modelspec_comment names variables that are not set where the run takes place: {', '.join(missing)}. They are empty."
        sink.emit(Notification(code="comment_variable_missing", title="Comment", message=message, severity=Severity.WARNING))

    def at_this_step() -> str:
        step, epoch = position()
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return filled(comment, {"current_step": str(step), "current_epoch": str(epoch), "timestamp": now}, variables)

    return at_this_step


def comment_header(comment: str) -> dict[str, str]:
    """Returns the entry of a header that holds the comment; none for an empty one."""
    return {KEY: comment} if comment else {}


def write_comment(folder: Path, comment: str) -> None:
    """Puts the comment into every safetensors file of a folder that a library has written. Each file is replaced as a whole.

    Without a comment the folder is left alone.
    """
    if not comment:
        return
    for path in sorted(folder.glob("*.safetensors")):
        staging = path.with_name(f".{path.name}.tmp-comment")
        try:
            _copy_with(comment, path, staging)
            staging.replace(path)
        finally:
            staging.unlink(missing_ok=True)
    sync_folder(folder)


def _copy_with(comment: str, source: Path, target: Path) -> None:
    with source.open("rb") as old, target.open("wb") as new:
        header, _ = read_header(old.read)
        header[METADATA] = {**header.get(METADATA, {}), **comment_header(comment)}
        new.write(header_bytes(header))
        shutil.copyfileobj(old, new, 1 << 20)
        new.flush()
        os.fsync(new.fileno())
