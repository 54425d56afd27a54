"""Reads a foreign document value by value, and leaves out by name what was not taken."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from environments.imports.ledger import Ledger

NO_COUNTERPART = "this trainer has no option for it"
OFF: tuple[Any, ...] = ("", [], {}, None, False, 0)
"""Values with which an option of any format is off: leaving such an option out changes nothing."""


class Source:
    """One object of a document. Each value is taken once; ``finish`` leaves out the rest by name."""

    def __init__(self, values: Mapping[str, Any], path: str, ledger: Ledger, *, parents: Sequence[Source] = ()) -> None:
        self.values = {str(key): value for key, value in values.items()}
        self.path, self.ledger, self.parents = path, ledger, parents
        self._taken: set[str] = set()

    def name(self, key: str) -> str:
        """The path of a key in the document, as the report shows it."""
        return f"{self.path}.{key}" if self.path else key

    def holder(self, key: str) -> Source:
        """The object that has the key: this one, else the nearest of its parents, whose values are its defaults."""
        return next((one for one in (self, *self.parents) if one.values.get(key) is not None), self)

    def origin(self, key: str) -> str:
        """The path at which ``take`` finds the key."""
        return self.holder(key).name(key)

    def take(self, key: str) -> Any:
        """The value, or None."""
        holder = self.holder(key)
        holder._taken.add(key)
        return holder.values.get(key)

    def text(self, key: str) -> str | None:
        """The value as text; empty text is None. A number is its digits."""
        value = self.take(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str):
            return value.strip() or None
        self._check_absent(key, value, "text")
        return None

    def number(self, key: str) -> float | None:
        """The value as a finite number, also from text such as ``1e-4``, which YAML takes for text."""
        value = self.take(key)
        if isinstance(value, str) and value.strip():
            value = _parsed(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e18 and math.isfinite(value):
            return value
        self._check_absent(key, self.take(key), "a number")
        return None

    def whole(self, key: str) -> int | None:
        """The value as a whole number."""
        value = self.number(key)
        if value is not None and value == int(value):
            return int(value)
        self._check_absent(key, value, "a whole number")
        return None

    def flag(self, key: str) -> bool | None:
        """The value as true or false."""
        value = self.take(key)
        words = {"true": True, "false": False, 1: True, 0: False}
        known = value.strip().lower() if isinstance(value, str) else value
        if isinstance(known, (bool, str, int)) and known in words:
            return words[known]
        self._check_absent(key, value, "true or false")
        return None

    def section(self, key: str) -> Source:
        """The object of this name; an empty one without it."""
        value = self.take(key)
        if value is not None and not isinstance(value, Mapping):
            self.ledger.wrong(self.name(key), value, "an object")
        return Source(value if isinstance(value, Mapping) else {}, self.name(key), self.ledger)

    def sections(self, key: str, *, parents: Sequence[Source] = ()) -> list[Source]:
        """The objects of a list; empty without it. Their missing values are looked for in ``parents``."""
        value = self.take(key)
        if value is not None and not isinstance(value, list):
            self.ledger.wrong(self.name(key), value, "a list of objects")
        found = []
        for number, item in enumerate(value if isinstance(value, list) else []):
            name = f"{self.name(key)}[{number}]"
            if isinstance(item, Mapping):
                found.append(Source(item, name, self.ledger, parents=parents))
            else:
                self.ledger.wrong(name, item, "an object")
        return found

    def texts(self, key: str) -> list[str]:
        """The value as a list of texts; one text is a list of one."""
        value = self.take(key)
        items = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        if value is not None and not isinstance(value, (str, list)):
            self.ledger.wrong(self.name(key), value, "a list of texts")
        return [item for item in items if isinstance(item, str) and item.strip()]

    def leave(self, key: str, reason: str) -> None:
        """Takes a value and leaves it out, unless it is off."""
        holder = self.holder(key)
        value, is_taken = holder.values.get(key), key in holder._taken
        holder._taken.add(key)
        if value not in OFF and not (is_taken and holder is not self):
            self.ledger.leave(holder.name(key), value, reason)

    def finish(self, reasons: Mapping[str, str], defaults: Mapping[str, Any] | None = None) -> None:
        """Leaves out every value that was not taken, is not off, and is not the format's default."""
        for key, value in self._rest():
            if value in OFF or (defaults is not None and key in defaults and defaults[key] == value):
                continue
            self.ledger.leave(self.name(key), value, reasons.get(key, NO_COUNTERPART))

    def _rest(self) -> Iterator[tuple[str, Any]]:
        return iter([(key, value) for key, value in self.values.items() if key not in self._taken])

    def _check_absent(self, key: str, value: Any, expected: str) -> None:
        if value is not None and value != "":
            self.ledger.wrong(self.origin(key), value, expected)


def _parsed(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if math.isfinite(number) and number == int(number) and "e" not in text.lower() and "." not in text else number
