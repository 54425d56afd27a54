"""The home folder of a server, and the other places that it may read and write."""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from trainer_engine.contract.hooks import NOTHING, HookRule
from trainer_engine.contract.path_rule import ClosedPlace, PlaceRule, Reason

PACKAGES = ("environments", "training", "simpletuner_site", "trainer_engine")
CODE_BESIDE = ("tests", "docs", "manage.py", "Makefile")
"""Further files of a checkout that people run or read. A home may be the checkout itself."""
INSTALLED = Path(__file__).resolve().parents[1]
SHIPPED_SCRIPTS = INSTALLED / "environments" / "examples" / "external-validation"
SYSTEM_FOLDERS = ("/etc", "/proc", "/sys", "/dev", "/boot", "/run")
HUB_FOLDER = ".cache/huggingface"
KEY_FILES = ("token", "stored_tokens")
"""Files with keys in the folder of the Hugging Face libraries."""


def default_roots() -> tuple[Path, ...]:
    """The default places for data, models and results outside the server's home."""
    return (Path.home(), Path("/workspace"), Path("/data"), Path("/mnt"), Path(tempfile.gettempdir()))


def default_hub_folders() -> tuple[Path, ...]:
    return (Path.home() / HUB_FOLDER,)


@dataclass(frozen=True)
class Home:
    """The folder that the server was started for."""

    root: Path
    roots: tuple[Path, ...] = field(default_factory=default_roots)
    """Allowed in addition to ``root``."""
    hooks: tuple[Path, ...] = ()
    """Folders whose hooks runs may start, in addition to ``state/hooks`` and the samples."""
    any_script: bool = False
    """Whether runs may start every program."""
    no_script: bool = False
    """Whether runs may start no program at all, because other machines can reach the server."""
    script_variables: tuple[str, ...] = ()
    """Names of further environment variables that hooks get."""
    more_roots: tuple[Path, ...] = ()
    """Further roots from ``--root`` and ``SIMPLETUNER_ROOTS``."""
    hub_folders: tuple[Path, ...] = field(default_factory=default_hub_folders)
    """Where the Hugging Face libraries keep tokens and, in ``hub``, models; or a cache of models itself."""
    any_place: bool = False
    """Whether every path may be used, as in ``simpletuner train``."""

    @property
    def config(self) -> Path:
        """The folder with one subfolder per environment."""
        return self.root / "config"

    @property
    def state(self) -> Path:
        """The folder of database, secrets and runs; user paths may not lead here."""
        return self.root / "state"

    @property
    def hook_folders(self) -> tuple[Path, ...]:
        """The folders of the hooks that runs may start."""
        return (self.state / "hooks", *self.hooks, SHIPPED_SCRIPTS)

    @property
    def script_rule(self) -> HookRule:
        """Which programs a run may start."""
        if self.no_script:
            return NOTHING
        folders = tuple(_real(folder) for folder in self.hook_folders)
        return HookRule(anything=self.any_script, folders=folders, variables=self.script_variables)

    @cached_property
    def place_rule(self) -> PlaceRule:
        """The places that may be read and written for a user, for the current state of the disk."""
        return PlaceRule(
            anywhere=self.any_place,
            roots=tuple(dict.fromkeys(_real(root) for root in (self.root, *self.roots, *self.more_roots))),
            closed=tuple(self._closed()),
            homes=(_real(Path.home()),),
            models=tuple(_real(folder) for folder in self.hub_folders),
        )

    def _closed(self) -> Iterator[ClosedPlace]:
        for name in SYSTEM_FOLDERS:
            yield ClosedPlace(path=_real(Path(name)), reason=Reason.SYSTEM, reading=True)
        yield ClosedPlace(path=_real(self.state), reason=Reason.STATE, reading=True)
        for folder in self.hub_folders:
            yield ClosedPlace(path=_real(folder), reason=Reason.HUB_CACHE)
            for name in KEY_FILES:
                yield ClosedPlace(path=_real(folder / name), reason=Reason.KEYS, reading=True)
        yield from (ClosedPlace(path=path, reason=Reason.DOT_FOLDER, reading=True) for path in self._linked_dot_folders())
        for hooks in self.hook_folders:
            yield ClosedPlace(path=_real(hooks), reason=Reason.HOOKS)
        yield from (ClosedPlace(path=path, reason=Reason.INSTALLATION) for path in installation(_real(self.root)))

    def _linked_dot_folders(self) -> Iterator[str]:
        """Targets of linked dot files in the user's home (``~/.bashrc -> dotfiles/bashrc``), without those that hold models or a root."""
        try:
            links = [entry.path for entry in os.scandir(Path.home()) if entry.name.startswith(".") and entry.is_symlink()]
        except OSError:
            return
        kept = [_real(folder) for folder in (self.root, *self.roots, *self.more_roots, *self.hub_folders)]
        for target in map(os.path.realpath, links):
            if not any(Path(folder).is_relative_to(target) for folder in kept):
                yield target


@lru_cache(maxsize=8)
def installation(home: str) -> tuple[str, ...]:
    """Real paths of this project and its Python. If the home is the checkout, only its code counts."""
    prefixes = (sys.prefix, sys.base_prefix, *(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "scripts")))
    found = dict.fromkeys(path for path in map(os.path.realpath, prefixes) if path != os.path.sep)
    code = [INSTALLED / name for name in (*PACKAGES, *CODE_BESIDE) if (INSTALLED / name).exists()]
    if (INSTALLED / "pyproject.toml").is_file():
        code += [INSTALLED / ".git", *([INSTALLED] if home != str(INSTALLED) else [])]
    return (*found, *map(str, code))


def _real(path: Path) -> str:
    return os.path.realpath(path)
