"""The one resolver of paths that users give.

A relative path is tried as given from the home folder, then under ``config/``. The answer says which of the two was taken;
where both exist and differ it is a problem, not a guess. What comes out may be read, or written where that is asked for, by the rule
of the home's places. It is a real path (symbolic links followed), but for one that leaves the roots by a link of their owner: that
one stays as it was given, so that the rule can be asked again.
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
    """What a path must be where it exists."""

    FILE = "file"
    FOLDER = "folder"
    ANY = "file or folder"


class Origin(str, Enum):
    """From where a path was found."""

    HOME = "home"
    CONFIG = "config"
    ABSOLUTE = "absolute"


@dataclass(frozen=True)
class ResolvedPath:
    """A path that may be used."""

    path: Path
    """Absolute, symbolic links followed; as given where a link leads out of the roots."""
    given: str
    """As the user wrote it."""
    origin: Origin
    exists: bool


def expanded(given: str) -> Path:
    """The path as written, ``~`` for the user's home; other users' homes stay closed."""
    return Path.home() / given[2:] if given == "~" or given.startswith("~/") else Path(given)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def resolve(
    text: object, option: str, *, home: Home, must_exist: bool = False, kind: Kind = Kind.ANY, writing: bool = False
) -> ResolvedPath | Problem:
    """The path that ``text`` means, or the problem of ``option`` that keeps it from meaning one. Touches nothing.

    ``writing``: something will be written there, or below; fewer places are open to that.
    """
    wrong = wrong_text(text, option)
    if wrong is not None:
        return wrong
    given = str(text)
    tried = [(origin, path) for origin, path in _candidates(given, home)]
    refusals = [home.place_rule.refusal(path, writing=writing) for _, path in tried]
    found: list[ResolvedPath] = []
    for (origin, path), refusal in zip(tried, refusals, strict=True):
        resolved = ResolvedPath(path, given, origin, exists=False) if refusal else _look(given, origin, path, option, kind, home)
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
    """Why no file system can hold a path that is written so; None if one can."""
    expected = "a path"
    if not isinstance(text, str):
        return Problem.error(option, "not_text", f"{option} is not a path.", got=text, expected=expected)
    if not text.strip():
        return Problem.error(option, "missing", f"{option} is empty.", got=text, expected=expected)
    if "://" in text:
        message = f"{option} is an address, which is no path on this machine."
        return Problem.error(option, "not_a_path", message, got=text, expected=expected)
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        return Problem.error(option, "not_a_path", f"{option} holds characters that no path can hold.", got=text, expected=expected)
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


def _look(given: str, origin: Origin, path: Path, option: str, kind: Kind, home: Home) -> ResolvedPath | Problem:
    """What lies at a candidate that may be used."""
    try:
        real = _real(path)
        mode = real.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ResolvedPath(_kept(path, real, home), given, origin, exists=False)
    except OSError as error:
        reason = "its symbolic links go in a circle" if error.errno == errno.ELOOP else error.strerror or "the file system refuses"
        return Problem.error(option, "unreadable", f"{given!r} cannot be looked at: {reason}.", got=given)
    fits = {Kind.FILE: stat.S_ISREG(mode), Kind.FOLDER: stat.S_ISDIR(mode), Kind.ANY: stat.S_ISREG(mode) or stat.S_ISDIR(mode)}
    if not fits[kind]:
        return Problem.error(
            option, f"not_a_{kind.value.replace(' ', '_')}", f"{path} is not a {kind.value}.", got=given, expected=f"a {kind.value}"
        )
    return ResolvedPath(_kept(path, real, home), given, origin, exists=True)


def _kept(path: Path, real: Path, home: Home) -> Path:
    """The real path, unless the rule allows it only for the link that it is reached by."""
    return real if home.place_rule.may_read(real) else path


def _choose(existing: list[ResolvedPath], first: ResolvedPath, option: str) -> ResolvedPath | Problem:
    if len({one.path for one in existing}) > 1:
        both = " and ".join(str(one.path) for one in existing)
        message = f"{first.given!r} means two things: {both}."
        return Problem.error(option, "ambiguous_path", message, got=first.given, hint="give the absolute path, or remove one of the two")
    return existing[0] if existing else first


def outside(given: str, option: str, refusal: PlaceRefusal) -> Problem:
    """The problem of a path that the rule refuses."""
    return Problem.error(option, "outside_roots", f"{given!r} {refusal.message}.", got=given, hint=refusal.hint)
