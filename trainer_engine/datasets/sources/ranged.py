"""A file that is read in ranges over a network."""

from __future__ import annotations

import io
from collections.abc import Callable

FIRST_BYTES = 16 << 10
"""Enough for the header of most images, and for their last bytes."""
MOST_BYTES = 8 << 20
ReadRange = Callable[[int, int], bytes]
"""(first byte, number of bytes) -> exactly these bytes. Raises OSError."""


class RangedFile(io.RawIOBase):
    """A file of a known size. Reads in sequence take ever larger ranges, a read elsewhere begins with a small one again."""

    def __init__(self, read_range: ReadRange, size: int) -> None:
        super().__init__()
        self._read_range = read_range
        self._size = size
        self._position = 0
        self._start, self._block = 0, b""
        self._next_bytes = FIRST_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("a position before the start of the file")
        self._position = base + offset
        return self._position

    def read(self, count: int | None = -1, /) -> bytes:
        """Returns up to ``count`` bytes, fewer only at the end of the file."""
        left = max(0, self._size - self._position)
        wanted = left if count is None or count < 0 else min(count, left)
        parts = []
        while wanted > 0:
            part = self._at_position(wanted)
            parts.append(part)
            self._position += len(part)
            wanted -= len(part)
        return b"".join(parts)

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # typeshed's buffer is any writable one
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _at_position(self, wanted: int) -> bytes:
        """Returns some of the bytes at the position, at least one."""
        offset = self._position - self._start
        if not 0 <= offset < len(self._block):
            follows = self._block and self._position == self._start + len(self._block)
            self._next_bytes = min(self._next_bytes * 4, MOST_BYTES) if follows else FIRST_BYTES
            count = min(max(self._next_bytes, min(wanted, MOST_BYTES)), self._size - self._position)
            self._block, self._start, offset = self._read_range(self._position, count), self._position, 0
        return self._block[offset : offset + wanted]
