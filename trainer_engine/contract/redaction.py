"""Text that is repeated to people: shortened, and without the passwords of the addresses in it."""

from __future__ import annotations

import re

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
