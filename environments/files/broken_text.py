"""Hides what looks like a secret in a configuration that cannot be parsed.

It hides too much rather than too little: the value after the name of a secret field, and the rest of the text if that value is not
a string or word or does not end like a value. An option may be JSON within a string, so quotes may follow backslashes.
"""

from __future__ import annotations

import re

from trainer_engine.config.options import REGISTRY
from trainer_engine.config.secrets import HIDDEN, hidden_address

# NOTE: each pattern is linear in the text, which may be megabytes long: runs are bounded, or tried from their first character only.
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{0,20}://[^\s\"'<>\\]+", re.IGNORECASE)
QUOTE = re.compile(r"(?<!\\)(\\*)([\"'])")
LITERAL = re.compile(r"null|true|false|-?[0-9][0-9.eE+-]*")
AFTER_VALUE = re.compile(r"\s*(?:$|[}\]\\\"']|,\s*(?:$|[{}\[\]\\\"']))")
"""What follows a value that is complete."""


def _field() -> re.Pattern[str]:
    names = sorted({name for spec in REGISTRY.values() for name in (*spec.secret, *spec.secret_paths)}, key=len, reverse=True)
    any_of_them = "|".join(name.replace("_", "[-_]") for name in names)
    # A lookahead with a reference to its group is Python 3.10's way to match a run once and never shorter.
    run = r"(?=(?P<spaces>\s*))(?P=spaces)(?=(?P<level>\\*))(?P=level)"
    return re.compile(rf"(?<![a-z0-9])(?:{any_of_them}){run}(?:[\s\\\"']*[:=]+|[\"'])\s*", re.IGNORECASE)


FIELD = _field()
"""The name of a secret field, up to the start of its value."""


def without_secrets_in_text(text: str | None) -> str | None:
    """The text with ``***`` for values of secret fields and for passwords in addresses."""
    if text is None:
        return None
    parts, done = [], 0
    while found := FIELD.search(text, done):
        end, shown = _value(text, found.end(), found["level"])
        parts += [text[done : found.end()], shown]
        done = end
    cleaned = "".join([*parts, text[done:]])
    return ADDRESS.sub(lambda address: hidden_address(address[0]), cleaned)


def _value(text: str, start: int, level: str) -> tuple[int, str]:
    """(end of a value, its replacement). ``level`` holds the backslashes before the quotes of its name."""
    opening, literal = QUOTE.match(text, start), LITERAL.match(text, start)
    shown, end = f'{level}"{HIDDEN}{level}"', start
    if opening:
        shown, end = f"{opening[0]}{HIDDEN}{opening[0]}", _end_of_string(text, opening)
    elif literal:
        end = literal.end()
    if end == start or not AFTER_VALUE.match(text, end):
        end = len(text)
    return end, shown if end > start else ""


def _end_of_string(text: str, opening: re.Match[str]) -> int:
    """The position after the quote that closes a string. A backslash within it is written as 2 (level + 1) backslashes."""
    level, quote = len(opening[1]), opening[2]
    for found in QUOTE.finditer(text, opening.end()):
        beyond = len(found[1]) - level
        if found[2] == quote and beyond < 0:
            break  # the enclosing string ends first
        if found[2] == quote and beyond % (2 * (level + 1)) == 0:
            return found.end()
    return len(text)
