"""The records of a shard, and the rows of its index.

A record is a header of 96 bytes and the content of one entry. The header has a checksum of its own and the SHA-256 of the content, so that
a changed bit of either is noticed. A row of the index repeats where a record lies; it is never trusted without the record's header.
"""

from __future__ import annotations

import hashlib
import struct
import time
import zlib
from collections.abc import Iterator
from typing import NamedTuple

MAGIC = b"STSHARD1"
_FIELDS = struct.Struct("<8s32sQIB3x32s")
"""Magic, address, bytes of the content, seconds since 1970 when it was written, coding, SHA-256 of the content."""
_CHECK_BYTES = 8
HEADER_BYTES = _FIELDS.size + _CHECK_BYTES
_ROW = struct.Struct("<32sQQIB3x")
"""Address, offset of the record, bytes of the content, time, coding; the CRC-32 of these bytes follows."""
_CRC = struct.Struct("<I")
_CHECKED_ROW = struct.Struct(f"{_ROW.format}I")
ROW_BYTES = _CHECKED_ROW.size

PLAIN, PACKED = 0, 1
"""Codings: safetensors as they are, or compressed."""


class Row(NamedTuple):
    """One entry: what it is, and where it lies in its shard."""

    address: bytes
    """32 bytes."""
    offset: int
    length: int
    """Bytes of the content."""
    written: int
    """Seconds since 1970."""
    coding: int = PLAIN

    @property
    def end(self) -> int:
        return self.offset + HEADER_BYTES + self.length

    @property
    def record_bytes(self) -> int:
        return HEADER_BYTES + self.length


def header_of(address: bytes, content: bytes, coding: int = PLAIN, written: int | None = None) -> bytes:
    """The header that stands before ``content``."""
    seconds = int(time.time()) if written is None else written
    fields = _FIELDS.pack(MAGIC, address, len(content), seconds, coding, hashlib.sha256(content).digest())
    return fields + hashlib.sha256(fields).digest()[:_CHECK_BYTES]


def read_header(header: bytes, offset: int) -> tuple[Row, bytes] | None:
    """(row, SHA-256 of the content) of the record at ``offset``; None if the header is damaged or is none."""
    if len(header) < HEADER_BYTES or hashlib.sha256(header[: _FIELDS.size]).digest()[:_CHECK_BYTES] != header[_FIELDS.size : HEADER_BYTES]:
        return None
    magic, address, length, written, coding, digest = _FIELDS.unpack_from(header)
    return (Row(address, offset, length, written, coding), digest) if magic == MAGIC else None


def is_content(header: bytes, content: bytes, row: Row) -> bool:
    """Whether a header and a content as read are what was written for this row."""
    fields = header[: _FIELDS.size]
    return (
        hashlib.sha256(fields).digest()[:_CHECK_BYTES] == header[_FIELDS.size :]
        and fields.startswith(MAGIC + row.address)
        and fields.endswith(hashlib.sha256(content).digest())
        and len(content) == row.length
    )


def packed_row(row: Row) -> bytes:
    """A row as its index holds it."""
    fields = _ROW.pack(*row)
    return fields + _CRC.pack(zlib.crc32(fields))


def rows_in(index: bytes) -> Iterator[Row | None]:
    """The rows of an index, None for each one that is damaged. An incomplete row at the end is passed over: it is being written."""
    complete = memoryview(index)[: len(index) - len(index) % ROW_BYTES]
    starts = range(0, len(complete), ROW_BYTES)
    for start, (address, offset, length, written, coding, crc) in zip(starts, _CHECKED_ROW.iter_unpack(complete), strict=True):
        is_whole = zlib.crc32(complete[start : start + _ROW.size]) == crc
        yield Row(address, offset, length, written, coding) if is_whole else None
