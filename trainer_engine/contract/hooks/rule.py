"""Which programs a run may start as hooks. The server's operator decides; a configuration cannot."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

LONGEST_FIRST_LINE = 256
"""Bytes of a ``#!`` line that the operating system reads."""


@dataclass(frozen=True)
class Refusal:
    """Why a program is not started, and what to do about it."""

    code: str
    message: str
    hint: str


class HookRule(BaseModel):
    """What may run, as the server's operator has set it. Part of ``job.json``; the engine checks it again before every start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anything: bool = False
    """``simpletuner server --allow-scripts``, and ``simpletuner train``."""
    folders: tuple[str, ...] = ()
    """Absolute paths without symbolic links; programs in them and below them may run."""
    variables: tuple[str, ...] = ()
    """Names of variables of the server's environment that hooks get in addition to the usual few."""

    def refusal(self, program: Path) -> Refusal | None:
        """Why ``program`` is not allowed to run or cannot run; None if it can. Symbolic links are followed first.

        A path outside the folders is refused before the disk is read, so that the answer does not reveal which files exist.
        """
        real = Path(os.path.realpath(program))
        if not (self.anything or any(real.is_relative_to(folder) for folder in self.folders)):
            folders = ", ".join(self.folders) or "no folder"
            message = f"{program} may not be run: programs may lie in {folders}"
            hint = "ask the server's operator to put it there, to list its folder in SIMPLETUNER_HOOKS, or to start with --allow-scripts"
            return Refusal("script_not_allowed", message, hint)
        try:
            mode = real.stat().st_mode
        except OSError as error:
            return Refusal("script_not_found", f"{program} cannot be found: {error.strerror or error}", "write its absolute path")
        if not stat.S_ISREG(mode):
            return Refusal("script_not_a_file", f"{program} is not a file", "name the program itself")
        if _is_python(real):
            missing = not os.access(real, os.R_OK)
            return Refusal("script_not_readable", f"{program} may not be read", f"chmod +r {real}") if missing else None
        if not os.access(real, os.X_OK):
            return Refusal("script_not_executable", f"{program} may not be executed", f"chmod +x {real}")
        return None


def start_of_command(program: Path) -> list[str]:
    """The start of a command line. A Python file without an interpreter line or execute permission runs with this Python."""
    real = Path(os.path.realpath(program))
    if _is_python(real) and not (os.access(real, os.X_OK) and _names_an_interpreter(real)):
        return [sys.executable, str(real)]
    return [str(real)]


def _is_python(real: Path) -> bool:
    return real.suffix == ".py"


def _names_an_interpreter(real: Path) -> bool:
    try:
        with real.open("rb") as file:
            first = file.readline(LONGEST_FIRST_LINE)
    except OSError:
        return False
    words = first[2:].decode("utf-8", "replace").split() if first.startswith(b"#!") else []
    return bool(words) and os.access(words[0], os.X_OK)


NOTHING = HookRule()
EVERYTHING = HookRule(anything=True)
