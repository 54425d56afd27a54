"""Commands with ``{placeholders}``: split into arguments first and filled in afterwards, so that a value never spans two arguments."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from string import Formatter

from trainer_engine.contract.suggestions import Suggestions


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
