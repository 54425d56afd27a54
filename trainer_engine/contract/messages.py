"""Text in messages: shortened, without passwords, and with the nearest known name as a suggestion."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

HIDDEN = "***"
LONGEST_LOOKED_AT = 4_000
"""Number of characters that are examined. The rest of a text is cut off before it is searched."""
USER = re.compile(r"""((?::|^|[\s"'=(,])[\\/]{2,}|:[\\/])[^\s\\/?#]*@""")
"""Matches user and password in a URL, between the slashes and the host. A URL taken for a path may have lost a slash."""
BARE_USER = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}:[^\s\\/@]{1,200}@(?=\w)")
"""Matches ``user:password@host`` without a scheme: the last part of a URL that was taken for a path."""
USER_WITH_SLASH = re.compile(r"(:[\\/]+)[^\s\\/?#@:]*:(?!\d{1,5}(?:[\\/?#]|\Z))[^\s@]*@")
"""Matches the same with a slash in the password, which is invalid but occurs. A number instead of a password is a port."""
QUERY = re.compile(r"([?&#;][\w.-]*(?:token|key|sig|secret|password|passwd|pwd|auth|credential)[\w.-]*=)[^&#;\s\"']+", re.IGNORECASE)


CUT_ADDRESS = re.compile(r"[^\s\\/\"'(),;&=]*\Z")
"""Matches what may be the first part of an address whose end was cut off."""


def without_passwords(text: str) -> str:
    """Returns the text with ``***`` in place of user and password of every URL, and of credentials in queries."""
    text = USER.sub(rf"\1{HIDDEN}@", text)
    text = USER_WITH_SLASH.sub(rf"\1{HIDDEN}@", text)
    text = BARE_USER.sub(f"{HIDDEN}@", text)
    return QUERY.sub(rf"\1{HIDDEN}", text)


def repeated(text: str, longest: int) -> str:
    """Returns the text without passwords, and shortened to ``longest`` characters with its full length in parentheses."""
    if len(text) <= LONGEST_LOOKED_AT:
        shown = without_passwords(text)
        if len(shown) <= longest:
            return shown
    else:
        shown = without_passwords(CUT_ADDRESS.sub("", text[:LONGEST_LOOKED_AT]) or text[:longest])
    return f"{shown[:longest]}… ({len(text)} characters)"


MOST_ASKED = 20
"""Limit of names to compare. Each takes about a millisecond, and a document may have tens of thousands of names."""
LONGEST_ASKED = 100


class Suggestions:
    """Suggests known names for the first ``MOST_ASKED`` unknown names of a document."""

    def __init__(self) -> None:
        self._left = MOST_ASKED

    def nearest(self, name: str, known: Iterable[str], *, otherwise: str = "", form: str = "{}") -> str:
        """Returns ``did you mean X?`` with X formatted by ``form``, or ``otherwise`` if no name is near or the limit is reached."""
        self._left -= 1
        if self._left < 0 or len(name) > LONGEST_ASKED:
            return otherwise
        near = difflib.get_close_matches(name, list(known), n=1)
        return f"did you mean {form.format(near[0])}?" if near else otherwise
