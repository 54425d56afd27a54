"""Shards keep every entry that was written, notice every changed bit, and are shared by readers and writers in many processes."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.trainer_engine.datasets.shards.entries import address, content, is_read, only, written
from trainer_engine.datasets.shards.folder import ShardFolder
from trainer_engine.datasets.shards.record import HEADER_BYTES, MAGIC, ROW_BYTES, Row, header_of, packed_row, read_header, rows_in
from trainer_engine.datasets.shards.shard import INDEX, SHARD, Reading, read_content, remove
from trainer_engine.datasets.shards.writer import Entry, ShardWriter, locked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shards"


# ---- the format ----


def test_every_flipped_bit_of_a_header_is_noticed() -> None:
    header = header_of(address(1), content(1), written=1_700_000_000)
    assert read_header(header, 5) == (Row(address(1), 5, len(content(1)), 1_700_000_000, 0), hashlib.sha256(content(1)).digest())
    for bit in range(8 * HEADER_BYTES):
        changed = bytearray(header)
        changed[bit // 8] ^= 1 << bit % 8
        assert read_header(bytes(changed), 5) is None, bit
    assert read_header(header[:-1], 5) is None


def test_every_flipped_bit_of_a_row_is_noticed_and_an_incomplete_row_is_passed_over() -> None:
    rows = [Row(address(number), number, 9, 1_700_000_000, number % 2) for number in range(3)]
    packed = b"".join(map(packed_row, rows))
    assert list(rows_in(packed)) == rows and list(rows_in(packed[:-1])) == rows[:2]
    for bit in range(8 * ROW_BYTES):
        changed = bytearray(packed)
        changed[ROW_BYTES + bit // 8] ^= 1 << bit % 8
        assert list(rows_in(bytes(changed))) == [rows[0], None, rows[2]], bit


# ---- writing and reading ----


def test_entries_are_found_by_their_address_in_shards_of_limited_size(folder: Path) -> None:
    written(folder, range(200), limit=20_000)
    shards = list(folder.glob(f"*{SHARD}"))
    assert len(shards) > 2 and all(path.stat().st_size < 50_000 for path in shards)
    found = ShardFolder(folder)
    assert address(7) in found and address(200) not in found
    assert all(is_read(found, number) for number in range(200)) and not is_read(found, 200)
    assert len(found.places()) == 200


def test_a_shard_stays_open_for_a_thread_that_reads_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that open a shard at the same time replace each other's stream, which must not close it for the others."""
    written(folder, range(3))
    found = ShardFolder(folder)
    read = read_content

    def read_later(shard: int, row: Row) -> bytes | None:
        found._open.clear()  # as another thread does that has opened the shard too, or many others
        return read(shard, row)

    monkeypatch.setattr("trainer_engine.datasets.shards.folder.read_content", read_later)
    assert all(is_read(found, number) for number in range(3))


def test_the_next_writer_goes_on_with_a_shard_that_has_room(folder: Path) -> None:
    for number in range(20):
        written(folder, [number])
    assert len(list(folder.iterdir())) == 2
    assert all(is_read(ShardFolder(folder), number) for number in range(20))


def test_two_writers_at_once_have_a_shard_each_and_a_reader_finds_the_entries_of_both(folder: Path) -> None:
    reader, one, two = ShardFolder(folder), ShardWriter(folder), ShardWriter(folder)
    assert not one.others_write() and two.others_write()
    for number in range(0, 60, 2):
        one.append([Entry(address(number), content(number))])
        two.append([Entry(address(number + 1), content(number + 1))])
        assert is_read(reader, number) and is_read(reader, number + 1)
    one.close()
    two.close()
    assert len(list(folder.glob(f"*{SHARD}"))) == 2
    assert all(is_read(ShardFolder(folder), number) for number in range(60))


def test_a_writer_that_wrote_nothing_leaves_nothing(folder: Path) -> None:
    writer = ShardWriter(folder)
    assert not writer.others_write()
    writer.close()
    writer.append([])
    assert list(folder.iterdir()) == []


def test_an_entry_larger_than_a_shard_is_stored(folder: Path) -> None:
    writer = ShardWriter(folder, 1000)
    writer.append(Entry(address(number), bytes(5000)) for number in range(3))
    writer.close()
    assert [len(found[1]) for number in range(3) if (found := ShardFolder(folder).read(address(number)))] == [5000] * 3


# ---- damage ----


def test_a_missing_or_cut_off_index_is_made_again_from_the_shard(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(folder, range(50))
    index = only(folder, INDEX)
    complete = index.read_bytes()
    for length in (0, 1, 700, len(complete) - 1):
        index.write_bytes(complete[:length])
        assert all(is_read(ShardFolder(folder), number) for number in range(50))
    index.unlink()
    with caplog.at_level(logging.WARNING):
        assert all(is_read(ShardFolder(folder), number) for number in range(50))
    assert "is missing or damaged" in caplog.text
    written(folder, [50])
    assert len(index.read_bytes()) == 51 * ROW_BYTES, "the next writer repairs it"


def test_a_damaged_row_of_the_index_costs_no_entry(folder: Path) -> None:
    written(folder, range(50))
    index = only(folder, INDEX)
    packed = bytearray(index.read_bytes())
    packed[3 * ROW_BYTES + 5] ^= 1
    index.write_bytes(packed)
    assert all(is_read(ShardFolder(folder), number) for number in range(50))


@pytest.mark.slow
def test_a_thousand_flipped_bits_are_all_noticed_and_cost_no_other_entry(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(folder, range(120))
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    rows = [row for row in rows_in(whole[only(folder, INDEX)]) if row]
    dice = random.Random(3)
    for _ in range(1000):
        path = dice.choice(sorted(whole))
        position = dice.randrange(len(whole[path]))
        changed = bytearray(whole[path])
        changed[position] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        hit = {number for number, row in enumerate(rows) if path.suffix == SHARD and row.offset <= position < row.end}
        caplog.clear()
        found = ShardFolder(folder)
        with caplog.at_level(logging.WARNING):
            near = {*hit, *(dice.randrange(120) for _ in range(5))}
            lost = {number for number in near if not is_read(found, number)}
        assert lost == hit and len(caplog.records) == 1, (path, position)
        path.write_bytes(whole[path])
        for bad in folder.glob("*.bad"):
            bad.unlink()


def test_a_damaged_record_is_remembered_by_every_process_and_written_again(folder: Path) -> None:
    written(folder, range(10))
    shard = only(folder, SHARD)
    changed = bytearray(shard.read_bytes())
    changed[-1] ^= 1
    shard.write_bytes(changed)
    reader, other = ShardFolder(folder), ShardFolder(folder)
    other.refresh()
    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(lambda _: is_read(reader, 9), range(8)))
    assert (folder / shard.name).with_suffix(".bad").stat().st_size == ROW_BYTES
    assert address(9) not in ShardFolder(folder)
    written(folder, [9])
    assert is_read(ShardFolder(folder), 9) and is_read(reader, 9) and is_read(other, 9)


def test_an_entry_that_is_there_twice_is_read_where_it_is_sound(folder: Path) -> None:
    one, two = ShardWriter(folder), ShardWriter(folder)
    assert not one.others_write() and two.others_write()
    for writer in (one, two):
        writer.append([Entry(address(1), content(1))])
    for shard in sorted(folder.glob(f"*{SHARD}")):
        assert is_read(ShardFolder(folder), 1)
        changed = bytearray(shard.read_bytes())
        changed[HEADER_BYTES + 3] ^= 1
        shard.write_bytes(changed)
    assert not is_read(ShardFolder(folder), 1)
    one.close()
    two.close()


def test_records_behind_a_damaged_header_are_found_without_an_index(folder: Path) -> None:
    written(folder, range(30))
    shard = only(folder, SHARD)
    first = [row for row in rows_in(only(folder, INDEX).read_bytes()) if row]
    only(folder, INDEX).unlink()
    changed = bytearray(shard.read_bytes())
    changed[first[4].offset + 41] ^= 4
    shard.write_bytes(changed)
    assert [number for number in range(30) if not is_read(ShardFolder(folder), number)] == [4]


def test_content_that_looks_like_a_record_is_none(folder: Path) -> None:
    inner = header_of(address(5), b"inner") + b"inner"
    writer = ShardWriter(folder)
    writer.append([Entry(address(1), MAGIC + bytes(200)), Entry(address(2), inner), Entry(address(3), b"end")])
    writer.close()
    only(folder, INDEX).unlink()
    found = ShardFolder(folder)
    assert {place.row.address for place in found.places()} == {address(1), address(2), address(3)}


@pytest.mark.parametrize("kept", [HEADER_BYTES - 1, HEADER_BYTES + 10, 0])
def test_an_incomplete_last_record_is_cut_off_by_the_next_writer(folder: Path, kept: int) -> None:
    written(folder, range(5))
    shard = only(folder, SHARD)
    record = header_of(address(5), content(5)) + content(5)
    with shard.open("ab") as stream:
        stream.write(record[:kept])
    assert [number for number in range(6) if is_read(ShardFolder(folder), number)] == [0, 1, 2, 3, 4]
    written(folder, [6])
    assert [number for number in range(7) if is_read(ShardFolder(folder), number)] == [0, 1, 2, 3, 4, 6]


def test_entries_that_were_written_but_not_indexed_are_kept(folder: Path) -> None:
    """A writer may be killed between the two."""
    written(folder, range(5))
    with only(folder, SHARD).open("ab") as stream:
        stream.write(header_of(address(5), content(5)) + content(5))
    reader = ShardFolder(folder)
    assert is_read(reader, 5)
    written(folder, [6])
    assert all(is_read(one, number) for one in (reader, ShardFolder(folder)) for number in range(7))


def test_a_shard_that_was_cut_off_loses_only_what_lay_behind(folder: Path) -> None:
    written(folder, range(20))
    rows = [row for row in rows_in(only(folder, INDEX).read_bytes()) if row]
    os.truncate(only(folder, SHARD), rows[12].offset + 30)
    assert [number for number in range(20) if is_read(ShardFolder(folder), number)] == list(range(12))
    written(folder, range(12, 20))
    assert all(is_read(ShardFolder(folder), number) for number in range(20))


def test_a_reader_follows_entries_that_move_to_another_shard(folder: Path) -> None:
    written(folder, range(10))
    reader = ShardFolder(folder)
    reader.refresh()
    old = only(folder, SHARD)
    writer = ShardWriter(folder)
    with locked(old) as mine:
        assert mine is not None
        writer.append(Entry(address(number), content(number)) for number in range(9))
        remove(old)
    writer.close()
    assert [number for number in range(10) if is_read(reader, number)] == list(range(9))


def test_a_pipe_in_place_of_a_shard_or_an_index_stops_nobody(folder: Path) -> None:
    written(folder, range(3))
    os.mkfifo(folder / f"0000-pipe{SHARD}")
    os.mkfifo(folder / f"0000-pipe{INDEX}")
    assert all(is_read(ShardFolder(folder), number) for number in range(3))
    assert len(ShardFolder(folder).places()) == 3


def test_reading_on_takes_up_only_what_is_new(folder: Path) -> None:
    written(folder, range(3))
    reading = Reading(only(folder, SHARD))
    assert reading.read_on() and len(reading.rows) == 3
    assert not reading.read_on() and reading.rows == []
    written(folder, [3])
    assert reading.read_on() and [row.address for row in reading.rows] == [address(3)]


# ---- many processes ----

WRITING = """
import hashlib, random, sys
from pathlib import Path
from trainer_engine.datasets.shards.writer import Entry, ShardWriter
folder, number, step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
writer = ShardWriter(folder, 50_000)
print("ready", flush=True)
while True:
    numbers = [number, number + step]
    contents = [random.Random(one).randbytes(50 + one * 37 % 550) for one in numbers]
    writer.append(Entry(hashlib.sha256(str(one).encode()).digest(), made) for one, made in zip(numbers, contents))
    print(numbers[-1], flush=True)
    number += 2 * step
"""


def until_killed(folder: Path, start: int, step: int, groups: int) -> Iterator[int]:
    """Entries that a process says it has written before it is killed."""
    command = [sys.executable, "-c", WRITING, str(folder), str(start), str(step)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[4]) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        for _ in range(groups):
            last = int(process.stdout.readline())
            yield from (last - step, last)
        process.kill()


def test_writers_that_are_killed_lose_nothing_that_they_have_written(folder: Path) -> None:
    done: list[int] = []
    for turn in range(4):
        done += until_killed(folder, 10_000 * turn, 1, groups=3 + turn)
    found = ShardFolder(folder)
    assert all(is_read(found, number) for number in done)
    assert len(list(folder.glob(f"*{SHARD}"))) <= 2, "each went on with the shard of the one before"
