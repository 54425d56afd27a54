"""True and false as people write them, in options and in the JSON that options hold."""

from __future__ import annotations

TRUE_WORDS = frozenset({"1", "true", "yes", "y", "on"})
FALSE_WORDS = frozenset({"0", "false", "no", "n", "off"})


class WrongValue(ValueError):
    """A value that an option cannot take; the message says why, ``code`` for programs."""

    def __init__(self, message: str, *, code: str = "wrong_type", hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


def parse_bool(value: object) -> bool:
    """Raises WrongValue for anything but a boolean or one of the usual words."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, (str, int)) else None
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise WrongValue("is neither true nor false", code="not_a_boolean", hint="write true or false")
