"""Text that should be a configuration and cannot be read as one, with what looks like a secret in it hidden.

Nothing can be parsed here, so too much is hidden rather than too little: after the name of a secret field its value, and the rest of
the text where that is no string or word, or does not end as values do. An option may be JSON within a string, so quotes may have
backslashes before them.
"""

from __future__ import annotations

import re

from trainer_engine.config.options import REGISTRY
from trainer_engine.config.secrets import HIDDEN, hidden_address

# NOTE: each pattern is linear in the text, which may be megabytes of anything: runs are bounded, or tried from their first character alone.
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{0,20}://[^\s\"'<>\\]+", re.IGNORECASE)
QUOTE = re.compile(r"(?<!\\)(\\*)([\"'])")
LITERAL = re.compile(r"null|true|false|-?[0-9][0-9.eE+-]*")
AFTER_VALUE = re.compile(r"\s*(?:$|[}\]\\\"']|,\s*(?:$|[{}\[\]\\\"']))")
"""What stands behind a value that ends where it seems to."""


def _field() -> re.Pattern[str]:
    names = sorted({name for spec in REGISTRY.values() for name in (*spec.secret, *spec.secret_paths)}, key=len, reverse=True)
    any_of_them = "|".join(name.replace("_", "[-_]") for name in names)
    # A lookahead with a reference to its group is Python 3.10's way to match a run once and never shorter.
    run = r"(?=(?P<spaces>\s*))(?P=spaces)(?=(?P<level>\\*))(?P=level)"
    return re.compile(rf"(?<![a-z0-9])(?:{any_of_them}){run}(?:[\s\\\"']*[:=]+|[\"'])\s*", re.IGNORECASE)


FIELD = _field()
"""The name of a secret field, to where its value begins."""


def without_secrets_in_text(text: str | None) -> str | None:
    """The text with ``***`` in place of values of secret fields, and of passwords in addresses."""
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
    """(where a value ends, what stands in its place). ``level``: the backslashes before the quotes of its name."""
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
    """Behind the quote that closes a string. A backslash within it is written with 2 (level + 1) of them."""
    level, quote = len(opening[1]), opening[2]
    for found in QUOTE.finditer(text, opening.end()):
        beyond = len(found[1]) - level
        if found[2] == quote and beyond < 0:
            break  # the string around it ends before
        if found[2] == quote and beyond % (2 * (level + 1)) == 0:
            return found.end()
    return len(text)
