"""Names for the files at addresses of the web."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Container, Iterable
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from trainer_engine.config.secrets import HIDDEN, hidden_address

LONGEST_PART_BYTES = 120
"""Longest part of an address that becomes the name of a file or folder."""
SHORT_HASH = 8


class Address(NamedTuple):
    """A row of the file."""

    url: str
    stem: str
    """Name of its file in the folder without the suffix."""
    suffix: str
    """The suffix of a medium in its path. Without one it is empty, and the content gives the suffix."""

    @property
    def key(self) -> str:
        """The name of its file, or as much of it as is known before it is here."""
        return self.stem + self.suffix

    @property
    def shown(self) -> str:
        """The address without passwords; empty for what is none, which may be any word of the user's."""
        return hidden_address(self.url).removeprefix(HIDDEN)


def named_addresses(urls: Iterable[str], known: Container[str], *, hash_names: bool) -> list[Address]:
    """Returns the addresses with names that differ, in order. A name depends on its address, and on whether another one would have it.

    ``known`` are the suffixes of media, in lower case.
    """
    found = [_address(url, known, hash_names=hash_names) for url in urls]
    count = Counter(one.key for one in found)
    return [one if count[one.key] == 1 else one._replace(stem=f"{one.stem}-{hash_of(one.url)[:SHORT_HASH]}") for one in found]


def _address(url: str, known: Container[str], *, hash_names: bool) -> Address:
    path = _path_of(url)
    stem, suffix = os.path.splitext(path)  # noqa: PTH122 - text
    suffix = suffix if suffix.lower() in known else ""
    return Address(url, hash_of(url) if hash_names or not suffix else stem, suffix)


def _path_of(url: str) -> str:
    """Returns the path of an address as the name of a file, or an empty text if it cannot be one."""
    try:
        parts = [unquote(part) for part in urlsplit(url).path.split("/") if part]
    except ValueError:
        return ""
    fits = all(
        part.isprintable() and not part.startswith(".") and not set("/\\") & set(part) and len(part.encode()) <= LONGEST_PART_BYTES
        for part in parts
    )
    return "/".join(parts) if fits and parts else ""


def hash_of(url: str) -> str:
    """Returns the SHA-256 of an address in hexadecimal."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
