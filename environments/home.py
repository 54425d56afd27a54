"""The home folder that this process serves."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings

from environments.paths import Home


def current_home() -> Home:
    """The home from the current settings."""
    return Home(
        Path(settings.HOME),
        hooks=settings.HOOK_FOLDERS,
        any_script=settings.ALLOW_SCRIPTS,
        script_variables=settings.SCRIPT_VARIABLES,
        more_roots=settings.ROOTS,
        hub_folders=settings.HUB_FOLDERS,
    )
