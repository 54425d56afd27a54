"""Sets Django up for one home, and tunes the interpreter for a server."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from simpletuner_site.environment import NEEDS_TOKEN, read_environment
from trainer_engine.contract.atomic import PRIVATE_FOLDER_MODE, PRIVATE_MODE

SETTINGS = "simpletuner_site.settings"
DATABASE = "simpletuner.sqlite3"


def boot(
    home: Path,
    slots: int | None = None,
    *,
    allow_scripts: bool = False,
    roots: Sequence[Path] = (),
    hosts: Sequence[str] = (),
    needs_token: bool = False,
) -> None:
    """Create ``config/`` and ``state/``, and set Django up. Child processes inherit the settings.

    A new ``config/`` gets a sample list of webhook targets, which users can edit and name in ``webhook_config``.

    Raises OSError if the home cannot be written, and BadEnvironment if variables contradict each other.
    """
    home = home.expanduser().absolute()
    is_new = not (home / "config").exists()
    make_folders(home)
    if not os.environ.get("DATABASE_URL"):
        _make_database_private(home / "state" / DATABASE)
    os.environ["SIMPLETUNER_HOME"] = str(home)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", SETTINGS)
    if slots is not None:
        os.environ["SIMPLETUNER_SLOTS"] = str(slots)
    if allow_scripts:
        os.environ["SIMPLETUNER_ALLOW_SCRIPTS"] = "1"
    if needs_token:
        os.environ[NEEDS_TOKEN] = "1"
    if hosts:
        os.environ["SIMPLETUNER_ALLOWED_HOSTS"] = ",".join(filter(None, [os.environ.get("SIMPLETUNER_ALLOWED_HOSTS", ""), *hosts]))
    if roots:
        listed = [os.environ.get("SIMPLETUNER_ROOTS", ""), *(str(root.expanduser().absolute()) for root in roots)]
        os.environ["SIMPLETUNER_ROOTS"] = os.pathsep.join(filter(None, listed))
    from simpletuner_site.server.home_checks import check_places

    check_places(read_environment())
    import django

    django.setup()
    if is_new:
        from environments.paths import Home
        from environments.resolve.webhook_targets import place_sample

        place_sample(Home(home))


def take_token() -> str:
    """The token of ``SIMPLETUNER_TOKEN``, which is removed, so that no worker, run or hook inherits it."""
    return os.environ.pop("SIMPLETUNER_TOKEN", "")


def make_folders(home: Path) -> None:
    """Create ``config/`` and ``state/``; ``state/`` is readable by this account only. Raises OSError."""
    (home / "config").mkdir(parents=True, exist_ok=True)
    for folder in (home / "state", home / "state" / "hooks"):
        folder.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
    with suppress(PermissionError):  # it belongs to another account and stays as it is
        (home / "state").chmod(PRIVATE_FOLDER_MODE)


def _make_database_private(file: Path) -> None:
    """Make the database readable by this account only; SQLite gives its other files the same mode."""
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE))
    for path in (file, *(file.with_name(f"{file.name}{end}") for end in ("-wal", "-shm"))):
        with suppress(FileNotFoundError, PermissionError):
            path.chmod(PRIVATE_MODE)


SWITCH_SECONDS = 0.001
"""How long a thread may run before another gets its turn. Python's 5 ms would add up over the thread switches of a request."""


def share_interpreter() -> None:
    """Let threads switch more often."""
    sys.setswitchinterval(SWITCH_SECONDS)


def freeze_garbage() -> None:
    """Exclude the current objects, which live as long as the process, from garbage collection.

    A full collection blocks all threads, for a tenth of a second with the server's modules and URL table.
    """
    gc.collect()
    gc.freeze()
