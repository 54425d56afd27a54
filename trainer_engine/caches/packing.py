"""Compresses entries without loss: floating-point numbers are split into planes of bytes, which repeat more than the numbers do.

The bytes of the sign and exponent of neighbouring numbers are alike, and rows of text embeddings are alike where prompts are padded. So
each row is combined with the one before by exclusive or, the bytes are sorted by their place in the number, and zlib does the rest.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np
from torch import Tensor

LEAST_BYTES = 1 << 16
"""Smaller entries stay as they are: there is little to gain, and thousands of them are read in a second."""
WORTH_IT = 0.85
"""An entry is stored compressed if it takes at most this share of its size."""
LEVEL = 1
"""Of zlib; higher ones take many times as long for some per cent."""
_HEAD = struct.Struct("<BQQ")
"""Bytes of a number, bytes of a row (0: rows are not combined), bytes of the whole."""


def pack(content: bytes, tensors: Mapping[str, Tensor]) -> bytes | None:
    """The safetensors of an entry, compressed; None if that is not worth it. ``tensors`` are those in ``content``."""
    if len(content) < LEAST_BYTES:
        return None
    largest = max(tensors.values(), key=lambda tensor: tensor.nbytes)
    size = largest.element_size()
    row = largest.shape[-1] * size if largest.ndim > 1 else 0
    packed = min((_packed(content, size, distance) for distance in {0, row}), key=len)
    return packed if len(packed) <= WORTH_IT * len(content) else None


def _packed(content: bytes, size: int, row: int) -> bytes:
    values = np.frombuffer(content, np.uint8)
    if row and len(values) > row:
        values = np.concatenate([values[:row], values[row:] ^ values[:-row]])
    planes = _padded(values, size).reshape(-1, size).T
    return _HEAD.pack(size, row, len(content)) + zlib.compress(planes.tobytes(), LEVEL)


def unpack(packed: bytes) -> bytes:
    """The inverse of ``pack``."""
    size, row, length = _HEAD.unpack_from(packed)
    planes = np.frombuffer(zlib.decompress(memoryview(packed)[_HEAD.size :]), np.uint8)
    values = planes.reshape(size, -1).T.reshape(-1)[:length]
    if row and length > row:
        values = np.bitwise_xor.accumulate(_padded(values, row).reshape(-1, row), axis=0).reshape(-1)[:length]
    return values.tobytes()


def _padded(values: np.ndarray[tuple[int], np.dtype[np.uint8]], size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """With zeros up to a multiple of ``size``."""
    return np.pad(values, (0, -len(values) % size))
