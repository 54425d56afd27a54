"""The one resolver of paths that users give.

A relative path is tried as given from the home folder, then under ``config/``. The answer says which of the two was taken;
where both exist and differ it is a problem, not a guess. What comes out is a real path (symbolic links followed) that lies
under one of the allowed roots and in none of the folders that are nobody's training data.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from trainer_engine.contract.errors import Problem
from trainer_engine.contract.scripts import ScriptRule

SHIPPED_SCRIPTS = Path(__file__).resolve().parent / "examples" / "external-validation"
LONGEST_PATH_BYTES = 4000
LONGEST_NAME_BYTES = 255
DENIED = ("/etc", "/proc", "/sys", "/dev", "/boot", "/run")
PRIVATE = (
    ".ssh",
    ".gnupg",
    ".aws",
    ".kube",
    ".docker",
    ".netrc",
    ".git-credentials",
    ".cache/huggingface/token",
    ".cache/huggingface/stored_tokens",
)
"""Below the user's home: what holds keys."""


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


def default_roots() -> tuple[Path, ...]:
    """Where data, models and results may lie besides the server's home."""
    return (Path.home(), Path("/workspace"), Path("/data"), Path("/mnt"), Path(tempfile.gettempdir()))


@dataclass(frozen=True)
class Home:
    """The folder that the server was started for."""

    root: Path
    roots: tuple[Path, ...] = field(default_factory=default_roots)
    """Allowed besides ``root``."""
    hooks: tuple[Path, ...] = ()
    """Folders whose programs runs may start, besides ``state/hooks`` and the samples."""
    any_script: bool = False
    """Runs may start every program."""
    script_variables: tuple[str, ...] = ()
    """Names of variables that these programs get besides the usual few."""

    @property
    def config(self) -> Path:
        """One folder an environment."""
        return self.root / "config"

    @property
    def state(self) -> Path:
        """Database, secrets and runs; no path of a user may lie here."""
        return self.root / "state"

    @property
    def hook_folders(self) -> tuple[Path, ...]:
        """Where programs lie that runs may start."""
        return (self.state / "hooks", *self.hooks, SHIPPED_SCRIPTS)

    @property
    def script_rule(self) -> ScriptRule:
        """Which programs a run may start."""
        folders = tuple(str(_real(folder)) for folder in self.hook_folders)
        return ScriptRule(anything=self.any_script, folders=folders, variables=self.script_variables)

    @property
    def allowed(self) -> tuple[Path, ...]:
        return tuple(_real(root) for root in (self.root, *self.roots))

    @property
    def denied(self) -> tuple[Path, ...]:
        private = (Path.home() / name for name in PRIVATE)
        return tuple(_real(path) for path in (*map(Path, DENIED), self.state, *private))

    def holds(self, real: Path) -> bool:
        """Whether a real path may be read and written for a user."""
        return any(real.is_relative_to(root) for root in self.allowed) and not any(real.is_relative_to(root) for root in self.denied)


@dataclass(frozen=True)
class ResolvedPath:
    """A path that may be used."""

    path: Path
    """Absolute, symbolic links followed."""
    given: str
    """As the user wrote it."""
    origin: Origin
    exists: bool


def expanded(given: str) -> Path:
    """The path as written, ``~`` for the user's home; other users' homes stay closed."""
    return Path.home() / given[2:] if given == "~" or given.startswith("~/") else Path(given)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def resolve(text: object, option: str, *, home: Home, must_exist: bool = False, kind: Kind = Kind.ANY) -> ResolvedPath | Problem:
    """The real path that ``text`` means, or the problem of ``option`` that keeps it from meaning one. Touches nothing."""
    wrong = wrong_text(text, option)
    if wrong is not None:
        return wrong
    given = str(text)
    tried = [(origin, path) for origin, path in _candidates(given, home)]
    found: list[ResolvedPath] = []
    for origin, path in tried:
        resolved = _look(given, origin, path, option, kind)
        if isinstance(resolved, Problem):
            return resolved
        found.append(resolved)
    chosen = _choose([one for one in found if one.exists], found[0], option)
    if isinstance(chosen, Problem):
        return chosen
    if not home.holds(chosen.path):
        return _outside(chosen, option, home)
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


def _look(given: str, origin: Origin, path: Path, option: str, kind: Kind) -> ResolvedPath | Problem:
    """What lies at a candidate."""
    try:
        real = _real(path)
        mode = real.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ResolvedPath(real, given, origin, exists=False)
    except OSError as error:
        reason = "its symbolic links go in a circle" if error.errno == errno.ELOOP else error.strerror or "the file system refuses"
        return Problem.error(option, "unreadable", f"{given!r} cannot be looked at: {reason}.", got=given)
    fits = {Kind.FILE: stat.S_ISREG(mode), Kind.FOLDER: stat.S_ISDIR(mode), Kind.ANY: stat.S_ISREG(mode) or stat.S_ISDIR(mode)}
    if not fits[kind]:
        return Problem.error(
            option, f"not_a_{kind.value.replace(' ', '_')}", f"{path} is not a {kind.value}.", got=given, expected=f"a {kind.value}"
        )
    return ResolvedPath(real, given, origin, exists=True)


def _choose(existing: list[ResolvedPath], first: ResolvedPath, option: str) -> ResolvedPath | Problem:
    if len({one.path for one in existing}) > 1:
        both = " and ".join(str(one.path) for one in existing)
        message = f"{first.given!r} means two things: {both}."
        return Problem.error(option, "ambiguous_path", message, got=first.given, hint="give the absolute path, or remove one of the two")
    return existing[0] if existing else first


def _outside(chosen: ResolvedPath, option: str, home: Home) -> Problem:
    roots = ", ".join(dict.fromkeys(str(root) for root in home.allowed))
    message = f"{chosen.given!r} leads to a place that the server does not touch."
    return Problem.error(
        option,
        "outside_roots",
        message,
        got=chosen.given,
        expected=f"a path under {roots}",
        hint="the server's own state and system folders are closed",
    )
