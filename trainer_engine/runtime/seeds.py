"""Derives seeds without torch: the plan of an epoch is made without it, too."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, *parts: int | str) -> int:
    """A 63-bit seed that depends on ``seed`` and on every part, and is the same on every machine."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
