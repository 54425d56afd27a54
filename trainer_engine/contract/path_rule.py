"""Decides which paths a run and the server may read and write. Server and engine use the same rule.

A path is allowed if it lies in a root, and in no closed place that is at least as deep as that root. The server's operator can therefore
open a folder inside a closed place by making it a root, and a closed place inside a root remains closed. Symbolic links are resolved first.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pydantic import BaseModel, ConfigDict

HOME_PARENTS = ("/home", "/Users")
"""Folders that contain home folders."""
MOST_LINKS = 40
SYSTEM_UID = 0
SETTING = "--root DIR, or SIMPLETUNER_ROOTS"


class Reason(str, Enum):
    """Why a place is closed. The value completes the sentence "PATH lies in ..."."""

    SYSTEM = "a system folder"
    STATE = "the server's own state"
    INSTALLATION = "the installation of SimpleTuner or Python"
    HOOKS = "a hooks folder, whose programs runs may start"
    HUB_CACHE = "the cache of the Hugging Face hub, which only downloads write to"
    KEYS = "a file of keys"
    DOT_FOLDER = "what a dot file or folder of a home links to"


OPENED_BY_ROOT = frozenset((Reason.SYSTEM, Reason.INSTALLATION))
"""Reasons that a root inside the closed place overrides, such as ``/run/media/me/disk`` or a home inside a checkout."""


@dataclass(frozen=True)
class PlaceRefusal:
    """Why a path may not be used, and what to do."""

    message: str
    """Continues a sentence that starts with the path."""
    hint: str


class ClosedPlace(BaseModel):
    """A file or folder that may not be written to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """Resolved absolute path. Everything in it is closed too."""
    reason: Reason
    reading: bool = False
    """Whether reading is refused too."""


class PlaceRule(BaseModel):
    """The paths that may be read and written. Part of ``job.json``; the engine checks it when it starts and before it writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anywhere: bool = False
    """Whether every path is allowed, as for ``simpletuner train``, which runs in the user's own shell."""
    roots: tuple[str, ...] = ()
    """Resolved absolute paths of the allowed folders."""
    closed: tuple[ClosedPlace, ...] = ()
    homes: tuple[str, ...] = ()
    """Home folders in addition to those in ``HOME_PARENTS``. Their dot files and dot folders are closed."""
    models: tuple[str, ...] = ()
    """Folders of downloaded models, which may be read even in a dot folder."""

    def refusal(self, path: Path, *, writing: bool) -> PlaceRefusal | None:
        """Returns why ``path`` may not be used, or None if it may. The path need not exist."""
        if self.anywhere:
            return None
        real = Path(os.path.realpath(path))
        root = _deepest(real, self.roots)
        closed = self._closed(real, root, writing=writing)
        if closed is not None:
            return closed
        hidden = self._in_dot_folder(real, root, writing=writing)
        if hidden is not None:
            return hidden
        if root is not None:
            return None
        leaves_by = _link_out(path, self.roots)
        if leaves_by is None:
            return PlaceRefusal(
                f"lies outside the folders that this server uses ({', '.join(dict.fromkeys(self.roots)) or 'none'})",
                f"whoever starts the server can allow more folders: {SETTING}",
            )
        if leaves_by.is_of_owner:
            folder = leaves_by.path.parent
            above = _deepest(folder, self.roots)
            return self._closed(folder, above, writing=writing) or self._in_dot_folder(leaves_by.path, above, writing=writing)
        return PlaceRefusal(
            f"leads out of the folders that this server uses, through the link {leaves_by.path}, which is not of that folder's owner",
            f"let the owner make the link, or whoever starts the server allow the folder itself: {SETTING}",
        )

    def may_read(self, path: Path) -> bool:
        return self.refusal(path, writing=False) is None

    def may_write(self, path: Path) -> bool:
        return self.refusal(path, writing=True) is None

    def _closed(self, real: Path, root: str | None, *, writing: bool) -> PlaceRefusal | None:
        asked = [place for place in self.closed if writing or place.reading]
        numbers = {_number(step) for step in (real, *real.parents)} - {None}
        for place in asked:
            opened = root is not None and place.reason in OPENED_BY_ROOT and _is_deeper(root, place.path)
            # The inode also identifies a folder under another name: in a bind mount, or on a disk that ignores case.
            if not opened and (_is_below(real, place.path) or _number(Path(place.path)) in numbers):
                hint = "choose another folder"
                if place.reason in OPENED_BY_ROOT:
                    hint += f", or let whoever starts the server allow one that lies in it: {SETTING}"
                return PlaceRefusal(f"lies in {place.reason.value} ({place.path})", hint)
        return None

    def _in_dot_folder(self, real: Path, root: str | None, *, writing: bool) -> PlaceRefusal | None:
        """Refuses dot files and folders of a home, and for writing those in subfolders too. A root inside the home allows its contents."""
        home = _deepest(real, (*self.homes, *_homes_on_the_way(real)))
        if home is None or (root is not None and _is_deeper(root, home)):
            return None
        parts = real.relative_to(home).parts
        looked_at = parts if writing else parts[:1]
        number = next((number for number, part in enumerate(looked_at) if part.startswith(".")), None)
        if number is None or (not writing and _deepest(real, self.models) is not None):
            return None
        message = f"lies in {Path(home, *parts[: number + 1])}, a dot folder of a home, where programs keep keys and settings"
        hint = f"choose a folder without a dot, or let whoever starts the server allow this one: {SETTING}"
        return PlaceRefusal(message, hint)


EVERYWHERE = PlaceRule(anywhere=True)


def _is_below(real: Path, folder: str) -> bool:
    return f"{real}/".startswith(folder if folder.endswith("/") else f"{folder}/")


def _is_deeper(one: str, other: str) -> bool:
    return one != other and _is_below(Path(one), other)


def _deepest(real: Path, folders: Iterable[str]) -> str | None:
    holding = [folder for folder in folders if _is_below(real, folder)]
    return max(holding, key=lambda folder: len(Path(folder).parts), default=None)


def _homes_on_the_way(real: Path) -> Iterator[str]:
    for parent in HOME_PARENTS:
        if _is_below(real, parent) and real != Path(parent):
            yield str(Path(parent, real.relative_to(parent).parts[0]))


def _number(path: Path) -> tuple[int, int] | None:
    """Returns device and inode of a path, or None if it does not exist or cannot be accessed."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


@dataclass(frozen=True)
class _LinkOut:
    """The symbolic link by which a path leaves the roots."""

    path: Path
    is_of_owner: bool
    """Whether it and every link after it belong to the owner of their root, or to the system."""


def _link_out(path: Path, roots: tuple[str, ...]) -> _LinkOut | None:
    """Returns the link by which a path in a root leads outside all roots, or None if the path never enters a root."""
    waiting = [*reversed(path.absolute().parts[1:])]
    place, owner, found = Path("/"), None, None
    for _ in range(MOST_LINKS * 100):
        if not waiting:
            return found
        part = waiting.pop()
        if part == "..":
            place = place.parent
            continue
        step = place / part
        try:
            target = step.readlink()
        except OSError:
            place = step
            continue
        root = _deepest(place, roots)
        owner = owner if root is None else _owner(Path(root))
        if owner is not None:
            is_of_owner = step.lstat().st_uid in (owner, SYSTEM_UID)
            found = _LinkOut(step, is_of_owner) if found is None or not is_of_owner else found
        waiting += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        place = Path("/") if target.is_absolute() else place
    return None  # a cycle of links


def _owner(root: Path) -> int | None:
    try:
        return root.stat().st_uid
    except OSError:
        return None
