"""What a name that nothing knows was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_ASKED = 20
"""Comparing one name with a few hundred takes about a millisecond; a document may hold tens of thousands of names."""
LONGEST_ASKED = 100


class Suggestions:
    """Answers for the first ``MOST_ASKED`` names of one document."""

    def __init__(self) -> None:
        self._left = MOST_ASKED

    def nearest(self, name: str, known: Iterable[str], *, otherwise: str = "", form: str = "{}") -> str:
        """``did you mean X?`` with X written as ``form`` has it; ``otherwise`` if nothing is near or too many names were asked for."""
        self._left -= 1
        if self._left < 0 or len(name) > LONGEST_ASKED:
            return otherwise
        near = difflib.get_close_matches(name, list(known), n=1)
        return f"did you mean {form.format(near[0])}?" if near else otherwise
