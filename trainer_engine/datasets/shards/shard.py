"""One shard on disk: ``<name>.shard`` holds records, ``<name>.index`` a row for each, ``<name>.bad`` rows of damaged ones.

Records are only appended. The index is a help: one that is missing, cut off or damaged is made again from the shard. Entries that were
written but have no row yet, because their writer was killed, are found by reading on behind the last row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.files import open_regular
from trainer_engine.datasets.shards.record import HEADER_BYTES, MAGIC, ROW_BYTES, Row, is_content, packed_row, read_header, rows_in

SHARD, INDEX, BAD = ".shard", ".index", ".bad"
READ_AT_ONCE_BYTES = 1 << 14
"""Records up to this size are read by one call and then divided; of larger ones the copy would take longer than a second call."""
SEARCHED_BYTES = 1 << 20
"""Read at once in search of the next record behind a damaged one."""


@dataclass
class Reading:
    """What a process knows of one shard; ``read_on`` continues where the last reading ended."""

    path: Path
    found: list[Row] = field(default_factory=list)
    """The rows that the last reading found, in order."""
    bad: set[int] = field(default_factory=set)
    """Offsets of the records that are known to be damaged."""
    end: int = 0
    """Bytes of the shard that are known."""
    index_bytes: int = 0
    """Bytes of the index that are known."""
    is_rebuilt: bool = False
    """Whether the last reading found that the index is missing or damaged, and read the shard instead."""

    @property
    def rows(self) -> list[Row]:
        """The rows that the last reading found, without those of damaged records."""
        return [row for row in self.found if row.offset not in self.bad] if self.bad else self.found

    def read_on(self) -> bool:
        """Reads what is new since the last reading. Returns whether anything is. Raises OSError if the shard is gone."""
        self.found, self.is_rebuilt = [], False
        if self.path.stat().st_size <= self.end:
            return False
        index = _read_from(self.path.with_suffix(INDEX), self.index_bytes)
        size = self.path.stat().st_size  # after the index: its rows are written last
        rows = list(rows_in(index or b""))
        self.is_rebuilt = index is None or None in rows
        new = [row for row in rows if row is not None and self.end <= row.offset <= size - row.record_bytes]
        with open_regular(self.path) as stream:
            shard = stream.fileno()
            if self.is_rebuilt or not _is_seamless(new, self.end):
                new = list(scan(shard, self.end, size))
            new += [row for row in scan(shard, new[-1].end if new else self.end, size) if is_sound(shard, row)]
        self.index_bytes += len(rows) * ROW_BYTES
        self.end = new[-1].end if new else self.end
        self.found, self.bad = new, bad_offsets(self.path)
        return True


def _is_seamless(rows: list[Row], start: int) -> bool:
    """Whether each record begins where the one before ends. If not, the index was written anew since it was last read."""
    end = start
    for row in rows:
        if row.offset != end:
            return False
        end = row.end
    return True


def scan(shard: int, start: int, end: int) -> Iterator[Row]:
    """The records of an open shard from ``start`` on, by their headers. Damaged ones are passed over, and so is an incomplete last one."""
    offset = start
    while offset + HEADER_BYTES <= end:
        found = read_header(os.pread(shard, HEADER_BYTES, offset), offset)
        if found is None:
            offset = _next_record(shard, offset + 1, end)
        elif found[0].end > end:
            return
        else:
            yield found[0]
            offset = found[0].end


def _next_record(shard: int, start: int, end: int) -> int:
    """Where the next record may begin; ``end`` if none follows."""
    for place in range(start, end, SEARCHED_BYTES):
        found = os.pread(shard, SEARCHED_BYTES + len(MAGIC) - 1, place).find(MAGIC)
        if found >= 0:
            return place + found
    return end


def read_content(shard: int, row: Row) -> bytes | None:
    """The content of a record of an open shard; None if it is damaged. Raises OSError."""
    if row.length <= READ_AT_ONCE_BYTES:
        record = os.pread(shard, HEADER_BYTES + row.length, row.offset)
        header, content = record[:HEADER_BYTES], record[HEADER_BYTES:]
    else:
        header, content = os.pread(shard, HEADER_BYTES, row.offset), os.pread(shard, row.length, row.offset + HEADER_BYTES)
    return content if is_content(header, content, row) else None


def is_sound(shard: int, row: Row) -> bool:
    return read_content(shard, row) is not None


def bad_offsets(shard: Path) -> set[int]:
    """Offsets of the records that were found to be damaged."""
    return {row.offset for row in rows_in(_read_from(shard.with_suffix(BAD), 0) or b"") if row is not None}


def mark_bad(shard: Path, row: Row) -> None:
    """Remembers that a record is damaged, for every process. Raises OSError."""
    with shard.with_suffix(BAD).open("ab", buffering=0) as stream:
        stream.write(packed_row(row))


def write_index(shard: Path, rows: list[Row]) -> None:
    """Writes the index of a shard that no process appends to. Raises OSError."""
    write_atomically(shard.with_suffix(INDEX), b"".join(map(packed_row, rows)))


def remove(shard: Path) -> None:
    """Removes a shard and its index. Whoever has it open can go on reading it."""
    for suffix in (SHARD, INDEX, BAD):
        shard.with_suffix(suffix).unlink(missing_ok=True)


def _read_from(path: Path, start: int) -> bytes | None:
    """A file from a byte on; None if there is no such file."""
    try:
        with open_regular(path) as stream:
            stream.seek(start)
            return stream.read()
    except FileNotFoundError:
        return None
