"""The folder that a server is started for, and what it may read and write besides."""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from trainer_engine.contract.hooks import HookRule
from trainer_engine.contract.path_rule import ClosedPlace, PlaceRule, Reason

PACKAGES = ("environments", "training", "simpletuner_site", "trainer_engine")
CODE_BESIDE = ("tests", "docs", "manage.py", "Makefile")
"""Of a checkout, besides the packages: what people run or read. A home may be the checkout itself."""
INSTALLED = Path(__file__).resolve().parents[1]
SHIPPED_SCRIPTS = INSTALLED / "environments" / "examples" / "external-validation"
SYSTEM_FOLDERS = ("/etc", "/proc", "/sys", "/dev", "/boot", "/run")
HUB_FOLDER = ".cache/huggingface"
KEY_FILES = ("token", "stored_tokens")
"""In the folder of the Hugging Face libraries."""


def default_roots() -> tuple[Path, ...]:
    """Where data, models and results may lie besides the server's home."""
    return (Path.home(), Path("/workspace"), Path("/data"), Path("/mnt"), Path(tempfile.gettempdir()))


def default_hub_folders() -> tuple[Path, ...]:
    return (Path.home() / HUB_FOLDER,)


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
    more_roots: tuple[Path, ...] = ()
    """What ``--root`` and ``SIMPLETUNER_ROOTS`` allow besides ``roots``."""
    hub_folders: tuple[Path, ...] = field(default_factory=default_hub_folders)
    """Where the Hugging Face libraries keep tokens and, in ``hub``, models; or a cache of models itself."""
    any_place: bool = False
    """Every path may be used: ``simpletuner train``."""

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
    def script_rule(self) -> HookRule:
        """Which programs a run may start."""
        folders = tuple(_real(folder) for folder in self.hook_folders)
        return HookRule(anything=self.any_script, folders=folders, variables=self.script_variables)

    @cached_property
    def place_rule(self) -> PlaceRule:
        """What may be read and written for a user, as the disk is now."""
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
        """Where dot files of the user's home lead that are links, ``~/.bashrc -> dotfiles/bashrc``; not what holds models or a root."""
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
    """Real folders and files of this project and of the Python that runs it. A home may be the checkout: then its code alone counts."""
    prefixes = (sys.prefix, sys.base_prefix, *(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "scripts")))
    found = dict.fromkeys(path for path in map(os.path.realpath, prefixes) if path != os.path.sep)
    code = [INSTALLED / name for name in (*PACKAGES, *CODE_BESIDE) if (INSTALLED / name).exists()]
    if (INSTALLED / "pyproject.toml").is_file():
        code += [INSTALLED / ".git", *([INSTALLED] if home != str(INSTALLED) else [])]
    return (*found, *map(str, code))


def _real(path: Path) -> str:
    return os.path.realpath(path)
