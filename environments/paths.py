"""Resolves all paths that users give.

A relative path is tried below the home folder, then below ``config/``. The result says which of the two was taken; if both exist
and differ, that is a problem. The home's path rule allows reading (or writing, if requested) the result. It is a real path with
symbolic links followed, except for a path that leaves the roots by a link of their owner: that one stays as given, so that the rule
can be applied again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from environments.places import SHIPPED_SCRIPTS, Home, default_roots
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.path_rule import PlaceRefusal

__all__ = ["SHIPPED_SCRIPTS", "Home", "Kind", "Origin", "ResolvedPath", "default_roots", "expanded", "outside", "resolve"]

LONGEST_PATH_BYTES = 4000
LONGEST_NAME_BYTES = 255


class Kind(str, Enum):
    """What a path must be if it exists."""

    FILE = "file"
    FOLDER = "folder"
    ANY = "file or folder"


class Origin(str, Enum):
    """Where a path was found."""

    HOME = "home"
    CONFIG = "config"
    ABSOLUTE = "absolute"


@dataclass(frozen=True)
class ResolvedPath:
    """A path that may be used."""

    path: Path
    """Absolute, symbolic links followed; as given if a link leads out of the roots."""
    given: str
    """As the user wrote it."""
    origin: Origin
    exists: bool


def expanded(given: str) -> Path:
    """The path with ``~`` replaced by the user's home; ``~other`` is not expanded."""
    return Path.home() / given[2:] if given == "~" or given.startswith("~/") else Path(given)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def resolve(
    text: object, option: str, *, home: Home, must_exist: bool = False, kind: Kind = Kind.ANY, writing: bool = False
) -> ResolvedPath | Problem:
    """The path of ``text``, or a problem of ``option``. Touches nothing.

    ``writing`` means that something will be written there or below, which fewer places allow.
    """
    wrong = wrong_text(text, option)
    if wrong is not None:
        return wrong
    given = str(text)
    tried = [(origin, path) for origin, path in _candidates(given, home)]
    refusals = [home.place_rule.refusal(path, writing=writing) for _, path in tried]
    found: list[ResolvedPath] = []
    for (origin, path), refusal in zip(tried, refusals, strict=True):
        resolved = ResolvedPath(path, given, origin, exists=False) if refusal else _candidate(given, origin, path, option, kind, home)
        if isinstance(resolved, Problem):
            return resolved
        found.append(resolved)
    existing = [one for one in found if one.exists]
    if refusals[0] is not None and not existing:
        return outside(given, option, refusals[0])
    chosen = _choose(existing, found[0], option)
    if isinstance(chosen, Problem):
        return chosen
    if must_exist and not chosen.exists:
        places = " nor ".join(str(path) for _, path in tried)
        message = f"{given!r} does not exist: neither {places}." if len(tried) > 1 else f"{given!r} does not exist."
        return Problem.error(option, "not_found", message, got=given, expected=f"an existing {kind.value}")
    return chosen


def wrong_text(text: object, option: str) -> Problem | None:
    """The problem with a text that cannot be a path; None if it can."""
    expected = "a path"
    if not isinstance(text, str):
        return Problem.error(option, "not_text", f"{option} is not a path.", got=text, expected=expected)
    if not text.strip():
        return Problem.error(option, "missing", f"{option} is empty.", got=text, expected=expected)
    if "://" in text:
        message = f"{option} is an address, not a path on this machine."
        return Problem.error(option, "not_a_path", message, got=text, expected=expected)
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        return Problem.error(option, "not_a_path", f"{option} contains characters that no path can hold.", got=text, expected=expected)
    longest = max(len(part) for part in encoded.split(b"/"))
    if longest > LONGEST_NAME_BYTES or len(encoded) > LONGEST_PATH_BYTES:
        return Problem.error(
            option, "too_long", f"{option} is longer than file systems allow.", got=text, expected="names of at most 255 bytes"
        )
    return None


def _candidates(given: str, home: Home) -> Iterator[tuple[Origin, Path]]:
    path = expanded(given)
    if path.is_absolute():
        yield Origin.ABSOLUTE, path
        return
    yield Origin.HOME, home.root / path
    yield Origin.CONFIG, home.config / path


def _candidate(given: str, origin: Origin, path: Path, option: str, kind: Kind, home: Home) -> ResolvedPath | Problem:
    """A candidate path, with whether it exists; or the problem with it."""
    try:
        real = _real(path)
        mode = real.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ResolvedPath(_kept(path, real, home), given, origin, exists=False)
    except OSError as error:
        reason = "its symbolic links form a loop" if error.errno == errno.ELOOP else error.strerror or "the file system refuses"
        return Problem.error(option, "unreadable", f"{given!r} cannot be read: {reason}.", got=given)
    fits = {Kind.FILE: stat.S_ISREG(mode), Kind.FOLDER: stat.S_ISDIR(mode), Kind.ANY: stat.S_ISREG(mode) or stat.S_ISDIR(mode)}
    if not fits[kind]:
        return Problem.error(
            option, f"not_a_{kind.value.replace(' ', '_')}", f"{path} is not a {kind.value}.", got=given, expected=f"a {kind.value}"
        )
    return ResolvedPath(_kept(path, real, home), given, origin, exists=True)


def _kept(path: Path, real: Path, home: Home) -> Path:
    """The real path, unless the rule allows only the link to it."""
    return real if home.place_rule.may_read(real) else path


def _choose(existing: list[ResolvedPath], first: ResolvedPath, option: str) -> ResolvedPath | Problem:
    if len({one.path for one in existing}) > 1:
        both = " and ".join(str(one.path) for one in existing)
        message = f"{first.given!r} is ambiguous: {both}."
        return Problem.error(option, "ambiguous_path", message, got=first.given, hint="give the absolute path, or remove one of the two")
    return existing[0] if existing else first


def outside(given: str, option: str, refusal: PlaceRefusal) -> Problem:
    """The problem with a path that the rule refuses."""
    return Problem.error(option, "outside_roots", f"{given!r} {refusal.message}.", got=given, hint=refusal.hint)
