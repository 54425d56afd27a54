"""Decodes text that people wrote with any editor: UTF-8, UTF-16, and Latin-1 as Windows writes it."""

from __future__ import annotations

import re

NEWLINE = re.compile(r"\r\n|\r|\n")
"""Line ends that editors write. Other Unicode separators (U+0085, U+2028, form feed) are part of a line."""
WINDOWS = "cp1252"
"""Latin-1 with quotes and dashes in place of control characters."""
OTHER_ALPHABET = re.compile(rb"[\x80-\xff]{4}")
"""Four letters in a row beyond ASCII: words of Western languages have fewer, those of other alphabets nearly always have them."""
MOST_ACCENTS, LARGEST_SHARE = 3, 0.4
"""Western text has fewer letters beyond ASCII than this share, unless it is as short as three of them."""
CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")
"""Bytes that no text has."""


class NotText(ValueError):
    """Bytes are in no encoding that can be recognised. The message completes the sentence "FILE ..."."""


def decode(content: bytes) -> str:
    """Decodes UTF-8, UTF-16 with a byte order mark or a clear pattern of zero bytes, or else Latin-1. Raises NotText.

    The byte order mark is not part of the text.
    """
    if content.isascii() and b"\0" not in content:
        return content.decode("ascii")  # most captions, in a tenth of the time
    encoding = _encoding(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        western = _western(content) if encoding == "utf-8-sig" else None
        if western is None:
            raise NotText("is neither UTF-8 nor Latin-1 text") from None
        text = western
    if "\0" in text:
        raise NotText("contains zero bytes: it is UTF-16 without a byte order mark, or not text; save it as UTF-8")
    return text


def _encoding(content: bytes) -> str:
    """Returns the encoding. Text in which exactly every second byte is zero is UTF-16 of Western letters."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    even, odd = content[::2], content[1::2]
    if len(even) == len(odd) > 0:
        if not any(odd) and all(even):
            return "utf-16-le"
        if not any(even) and all(odd):
            return "utf-16-be"
    return "utf-8-sig"


def _western(content: bytes) -> str | None:
    """Returns Latin-1 text, or None for bytes that are more likely another encoding or no text at all."""
    beyond_ascii = sum(byte >= 0x80 for byte in content)
    if OTHER_ALPHABET.search(content) or beyond_ascii > max(MOST_ACCENTS, LARGEST_SHARE * len(content)):
        return None
    if b"\0" in content:
        return content.decode("latin-1")
    if CONTROLS.search(content):
        return None
    try:
        return content.decode(WINDOWS)
    except UnicodeDecodeError:
        return None
