"""Seeds that belong to a purpose: the same on every machine, and independent of each other."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, *parts: int | str) -> int:
    """A 63-bit seed that depends on every part."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
