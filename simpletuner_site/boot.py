"""From a command line to a Django that is set up for one home."""

from __future__ import annotations

import os
from pathlib import Path

SETTINGS = "simpletuner_site.settings"


def boot(home: Path, slots: int | None = None, *, allow_scripts: bool = False) -> None:
    """Make ``config/`` and ``state/``, and set Django up. The processes that this one starts inherit the choice.

    A new ``config/`` gets a sample of webhook targets, which a person may edit and name in ``webhook_config``.

    Raises OSError where the home cannot be written.
    """
    home = home.expanduser().absolute()
    is_new = not (home / "config").exists()
    for name in ("config", "state", "state/hooks"):
        (home / name).mkdir(parents=True, exist_ok=True)
    os.environ["SIMPLETUNER_HOME"] = str(home)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", SETTINGS)
    if slots is not None:
        os.environ["SIMPLETUNER_SLOTS"] = str(slots)
    if allow_scripts:
        os.environ["SIMPLETUNER_ALLOW_SCRIPTS"] = "1"
    import django

    django.setup()
    if is_new:
        from environments.paths import Home
        from environments.webhook_targets import place_sample

        place_sample(Home(home))
