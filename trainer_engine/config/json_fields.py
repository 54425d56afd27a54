"""Values in the JSON of options: names, booleans, and lists of objects. Messages never repeat the JSON, since it may hold keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import read_document

TRUE_WORDS = frozenset({"1", "true", "yes", "y", "on"})
FALSE_WORDS = frozenset({"0", "false", "no", "n", "off"})


class WrongValue(ValueError):
    """A value that an option cannot take. The message says why for people, and ``code`` for programs."""

    def __init__(self, message: str, *, code: str = "wrong_type", hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


def folded(word: object) -> str:
    """A name or a choice as it is compared with others: without spaces around it, in lower case, with ``_`` for ``-``."""
    return str(word).strip().lower().replace("-", "_")


def parse_bool(value: object) -> bool:
    """Parses a boolean, or one of the usual words for one. Raises WrongValue for anything else."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, (str, int)) else None
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise WrongValue("is neither true nor false", code="not_a_boolean", hint="write true or false")


def read_json(text: str, where: str) -> tuple[object, list[Problem]]:
    """Parses the JSON in an option's text. Returns the document, or None and the problem."""
    try:
        return read_document(text), []
    except ValueError as error:
        return None, [Problem.error(where, "not_json", f"This is not valid JSON: {error}", expected="a list of objects")]


def entries_of(document: object, where: str, what: str, most: int) -> tuple[list[Mapping[str, Any]], list[Problem]]:
    """Returns the objects of a list, or a single object as a list of one. ``what`` names them in problems."""
    entries = document if isinstance(document, list) else [document]
    objects = [entry for entry in entries if isinstance(entry, Mapping)]
    if len(objects) < len(entries):
        message, expected = f"{what} must be JSON objects.", "a list of objects, or one object"
        return [], [Problem.error(where, "not_an_object", message, got=type(document).__name__, expected=expected)]
    if len(objects) > most:
        message = f"{len(objects)} entries are more than a run can have."
        return [], [Problem.error(where, "too_many", message, got=len(objects), expected=f"at most {most}")]
    return objects, []
