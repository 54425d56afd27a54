"""The home folder that this process serves."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings

from environments.paths import Home, default_roots


def current_home() -> Home:
    """The home from the current settings."""
    return Home(
        Path(settings.HOME),
        roots=default_roots() if settings.USUAL_ROOTS_ARE_OPEN else (),
        hooks=settings.HOOK_FOLDERS,
        any_script=settings.ALLOW_SCRIPTS,
        no_script=settings.HOOKS_ARE_OFF,
        script_variables=settings.SCRIPT_VARIABLES,
        more_roots=settings.ROOTS,
        hub_folders=settings.HUB_FOLDERS,
    )
