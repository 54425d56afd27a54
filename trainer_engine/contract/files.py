"""Looks at paths that users gave. ``pathlib`` raises for names that are too long and for folders that may not be entered."""

from __future__ import annotations

from pathlib import Path


def is_file(path: Path) -> bool:
    """False also where the file system refuses to say, or can hold no such name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """False also where the file system refuses to say, or can hold no such name."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def exists(path: Path) -> bool:
    """False also where the file system refuses to say, or can hold no such name."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
