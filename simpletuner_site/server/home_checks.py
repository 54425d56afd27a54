"""Checks before the server starts: folders that must not be combined."""

from __future__ import annotations

import os
from pathlib import Path

from environments.places import INSTALLED, PACKAGES, Home
from simpletuner_site.environment import BadEnvironment, ProcessEnvironment

ANY_WRITE_BIT = 0o222


def check_places(process: ProcessEnvironment) -> None:
    """Raises BadEnvironment for hooks folders that requests could write to, and for roots that would open closed places."""
    if process.needs_token and process.allow_scripts:
        raise BadEnvironment("--allow-scripts and a token exclude each other: a server that other machines can reach starts no hooks")
    home = Home(process.home, hooks=process.hooks, more_roots=process.roots, hub_folders=process.hub_folders)
    _check_roots(home)
    if not process.allow_scripts:
        _check_hooks(home)


def _check_roots(home: Home) -> None:
    never = {
        **dict.fromkeys(home.hook_folders, "a hooks folder"),
        home.state: "the server's own state",
        **{INSTALLED / name: "the program itself" for name in PACKAGES},
    }
    for root in home.more_roots:
        real = Path(os.path.realpath(root))
        if real.is_file():
            raise BadEnvironment(f"--root or SIMPLETUNER_ROOTS lists {root}, which is a file; name its folder")
        for folder, what in never.items():
            if real.is_relative_to(os.path.realpath(folder)):
                raise BadEnvironment(f"--root or SIMPLETUNER_ROOTS lists {root}, which lies in {what} ({folder}); name another folder")


def _check_hooks(home: Home) -> None:
    for folder in home.hooks:
        real = Path(os.path.realpath(folder))
        roots = [Path(root) for root in home.place_rule.roots]
        below = next((root for root in roots if root.is_relative_to(real)), None)
        if below is not None:
            raise BadEnvironment(
                f"SIMPLETUNER_HOOKS lists {folder}, but the server uses {below} for data and results; give hooks a folder of their own"
            )
        above = next((root for root in roots if real.is_relative_to(root)), None)
        if above is not None and _may_be_written(real):
            raise BadEnvironment(
                f"SIMPLETUNER_HOOKS lists {folder}, which lies in {above}, where runs write, and this account may write to it. "
                f"Use {home.state / 'hooks'} or a folder elsewhere such as /opt/hooks, or take the permission away: chmod a-w {real}"
            )


def _may_be_written(folder: Path) -> bool:
    """Whether this account may create files there. The mode counts for root too, who could change it, but not by accident."""
    if not folder.exists():
        return True
    return bool(folder.stat().st_mode & ANY_WRITE_BIT) and os.access(folder, os.W_OK)
