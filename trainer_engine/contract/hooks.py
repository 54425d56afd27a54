"""Hooks: commands that a run starts, how their templates are filled, and which programs may run."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from pydantic import BaseModel, ConfigDict

from trainer_engine.contract.messages import Suggestions

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
    """Whether every program may run: with ``simpletuner server --allow-scripts``, and with ``simpletuner train``."""
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
            if not self.folders:
                hint = "a server that other machines can reach runs none; remove the option"
                return Refusal("script_not_allowed", f"{program} may not be run: hooks are off", hint)
            message = f"{program} may not be run: programs may lie in {', '.join(self.folders)}"
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


class BadTemplate(ValueError):
    """A template that cannot be a command line. The message says why; ``code`` is a stable code."""

    def __init__(self, message: str, *, code: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


@dataclass(frozen=True)
class Template:
    """The arguments of a command, program first, with their placeholders."""

    arguments: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, known: Collection[str]) -> Template:
        """Split ``text`` into arguments. Quotes group as in a shell; ``$`` and ``*`` have no special meaning.

        ``known`` lists the placeholders that exist. Raises BadTemplate.
        """
        try:
            arguments = tuple(shlex.split(text))
        except ValueError as error:
            message = f"cannot be split into arguments: {str(error).lower()}"
            raise BadTemplate(message, code="unbalanced_quotes", hint="close the quote, or put a backslash before it") from error
        if not arguments or not arguments[0].strip():
            raise BadTemplate("names no program", code="empty_command", hint="write the program's path, then its arguments")
        for argument in arguments:
            for name in _placeholders(argument):
                if name not in known:
                    raise _unknown(name, known)
        if _placeholders(arguments[0]):
            message = f"takes its program, {arguments[0]}, from a placeholder"
            raise BadTemplate(message, code="program_is_a_placeholder", hint="write the program's path; only arguments are filled in")
        return cls(arguments)

    @property
    def program(self) -> str:
        """The program as it is written in the template."""
        return _filled(self.arguments[0], {})

    @property
    def placeholders(self) -> frozenset[str]:
        return frozenset(name for argument in self.arguments for name in _placeholders(argument))

    def with_program(self, path: str) -> Template:
        """The same arguments with another program."""
        return Template((path.replace("{", "{{").replace("}", "}}"), *self.arguments[1:]))

    def fill(self, values: Mapping[str, str]) -> list[str]:
        """The arguments with their values; a missing value becomes empty."""
        return [_filled(argument, values) for argument in self.arguments]

    def __str__(self) -> str:
        """Text from which ``parse`` makes the same template."""
        return shlex.join(self.arguments)


def _placeholders(argument: str) -> list[str]:
    try:
        parts = list(Formatter().parse(argument))
    except ValueError as error:
        message = f"has an unmatched brace in {argument}"
        raise BadTemplate(message, code="unbalanced_braces", hint="write {{ and }} for braces that are not placeholders") from error
    for _, name, form, conversion in parts:
        if form or conversion:
            message = f"gives {{{name}}} a format"
            raise BadTemplate(message, code="unknown_placeholder", hint=f"write {{{name}}}; values are filled in as they are")
    return [name for _, name, _, _ in parts if name is not None]


def _unknown(name: str, known: Collection[str]) -> BadTemplate:
    hint = Suggestions().nearest(name, known, otherwise="docs/hooks.md lists the placeholders", form="{{{}}}")
    return BadTemplate(f"has an unknown placeholder: {{{name}}}", code="unknown_placeholder", hint=hint)


def _filled(argument: str, values: Mapping[str, str]) -> str:
    return "".join(text + (values.get(name, "") if name is not None else "") for text, name, _, _ in Formatter().parse(argument))
