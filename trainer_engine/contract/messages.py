"""Text in messages: shortened, without passwords, and with the nearest known name as a suggestion."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

HIDDEN = "***"
LONGEST_LOOKED_AT = 4_000
"""Characters that can be shown at all; what stands behind them is cut off before anything is searched."""
USER = re.compile(r"""((?::|^|[\s"'=(,])[\\/]{2,}|:[\\/])[^\s\\/?#]*@""")
"""User and password between the slashes of an address and its host. Paths of files may have lost one of the slashes."""
BARE_USER = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}:[^\s\\/@]{1,200}@(?=\w)")
"""``user:password@host`` without the rest of an address: the last part of one that was taken for a path."""
USER_WITH_SLASH = re.compile(r"(:[\\/]+)[^\s\\/?#@:]*:(?!\d{1,5}(?:[\\/?#]|\Z))[^\s@]*@")
"""The same with a slash in the password, which is not allowed and is written all the same. A number there is a port."""
QUERY = re.compile(r"([?&#;][\w.-]*(?:token|key|sig|secret|password|passwd|pwd|auth|credential)[\w.-]*=)[^&#;\s\"']+", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """The text with ``***`` in place of user and password of every address, and of the values of a query that are credentials."""
    text = USER.sub(rf"\1{HIDDEN}@", text)
    text = USER_WITH_SLASH.sub(rf"\1{HIDDEN}@", text)
    text = BARE_USER.sub(f"{HIDDEN}@", text)
    return QUERY.sub(rf"\1{HIDDEN}", text)


def repeated(text: str, longest: int) -> str:
    """The text as a message may repeat it: without passwords, and cut to ``longest`` characters with its whole length said."""
    shown = without_passwords(text[:LONGEST_LOOKED_AT])
    if len(text) <= LONGEST_LOOKED_AT and len(shown) <= longest:
        return shown
    return f"{shown[:longest]}… ({len(text)} characters)"


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
