"""The key that signs sessions and queued tasks. It is created once per home and readable by its owner only."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from trainer_engine.contract.atomic import PRIVATE_FOLDER_MODE

KEY_BYTES = 48


def load_secret_key(state: Path) -> str:
    """The key in ``state/secret_key``, created on first use with mode 0600. Two processes that start at once get the same key."""
    path = state / "secret_key"
    try:
        return _read(path)
    except FileNotFoundError:
        state.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
    fresh = state / f"secret_key.{os.getpid()}"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_urlsafe(KEY_BYTES))
    try:
        os.link(fresh, path)  # fails if another process was first, whose key is then used
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
    return _read(path)


def _read(path: Path) -> str:
    key = path.read_text(encoding="ascii").strip()
    if len(key) < KEY_BYTES:
        raise ValueError(f"{path} holds no valid key; delete it to create a new one (sessions end, queued tasks are lost)")
    return key
