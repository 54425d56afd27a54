"""Compresses entries without loss: numbers are split into planes of bytes, of which those that repeat are compressed.

The bytes with the sign and the exponent of neighbouring numbers are alike; the others are mostly noise and stay as they are. Where rows of
text embeddings are alike, each is first combined with the one before by exclusive or.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from torch import Tensor

Bytes: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"

LEAST_BYTES = 1 << 16
"""Smaller entries stay as they are: there is little to gain, and thousands of them are read in a second."""
WORTH_IT = 0.85
"""An entry is stored compressed if it takes at most this share of its size; a plane if it takes at most this share of its own."""
TRIED_BYTES = 1 << 15
"""Part of the middle of a plane that is compressed to see whether the plane is worth it."""
LEVEL = 1
"""Of zlib; higher ones take many times as long for some per cent."""
_HEAD = struct.Struct("<BQQ")
"""Bytes of a number, bytes of a row (0: rows are not combined), bytes of the whole."""
_PLANE = struct.Struct("<?Q")
"""Whether a plane is compressed, and its bytes."""


def pack(content: bytes, tensors: Mapping[str, Tensor]) -> bytes | None:
    """The safetensors of an entry, compressed; None if that is not worth it. ``tensors`` are those in ``content``."""
    if len(content) < LEAST_BYTES:
        return None
    largest = max(tensors.values(), key=lambda tensor: tensor.nbytes)
    size = largest.element_size()
    row = largest.shape[-1] * size if largest.ndim > 1 else 0
    values = np.frombuffer(content, np.uint8)
    kinds = {0: _planes(values, size)}
    if 0 < row < len(content):
        kinds[row] = _planes(np.concatenate([values[:row], values[row:] ^ values[:-row]]), size)
    best = min(kinds, key=lambda distance: sum(map(_share, kinds[distance])))
    parts = [_HEAD.pack(size, best, len(content))]
    for plane in kinds[best]:
        is_small = _share(plane) <= WORTH_IT
        stored = zlib.compress(plane.tobytes(), LEVEL) if is_small else plane.tobytes()
        parts += [_PLANE.pack(is_small, len(stored)), stored]
    packed = b"".join(parts)
    return packed if len(packed) <= WORTH_IT * len(content) else None


def unpack(packed: bytes) -> bytes:
    """The inverse of ``pack``."""
    size, row, length = _HEAD.unpack_from(packed)
    planes: list[Bytes] = []
    place = _HEAD.size
    for _ in range(size):
        is_small, stored = _PLANE.unpack_from(packed, place)
        place += _PLANE.size + stored
        plane = memoryview(packed)[place - stored : place]
        planes.append(np.frombuffer(zlib.decompress(plane) if is_small else plane, np.uint8))
    values: Bytes = np.stack(planes, axis=1).reshape(-1)[:length]
    if row:
        unit = np.uint64 if row % 8 == 0 else np.uint8  # eight bytes at a time where that is possible
        rows = _padded(values, row).view(unit).reshape(-1, row // unit().itemsize)
        return np.bitwise_xor.accumulate(rows, axis=0).tobytes()[:length]
    return values.tobytes()


def _planes(values: Bytes, size: int) -> Bytes:
    """(size, N): the first bytes of all numbers, the second ones, and so on."""
    return _padded(values, size).reshape(-1, size).T


def _share(plane: Bytes) -> float:
    """About what share of its size a plane takes when it is compressed."""
    middle = max(0, len(plane) - TRIED_BYTES) // 2
    tried = plane[middle : middle + TRIED_BYTES].tobytes()
    return len(zlib.compress(tried, LEVEL)) / len(tried)


def _padded(values: Bytes, size: int) -> Bytes:
    """With zeros up to a multiple of ``size``."""
    return np.pad(values, (0, -len(values) % size))
