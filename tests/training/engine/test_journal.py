"""Reading a journal that is being written."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_engine.contract.events import JournalEntry, Notification, encode
from training.engine.journal import BrokenLine, read_entries


def line(seq: int, message: str = "hello") -> bytes:
    return encode(Notification(message=message), seq=seq).encode() + b"\n"


def test_a_journal_that_is_not_there_is_empty(tmp_path: Path) -> None:
    reading = read_entries(tmp_path / "journal.jsonl", 0)
    assert reading.entries == () and reading.offset == 0


def test_a_line_that_is_still_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole, half = line(0), line(1)
    path.write_bytes(whole + half[:-5])
    reading = read_entries(path, 0)
    assert [entry.seq for entry in reading.entries] == [0]
    assert reading.offset == len(whole)
    path.write_bytes(whole + half)
    assert [entry.seq for entry in read_entries(path, reading.offset).entries] == [1]


def test_a_broken_line_is_named_and_passed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(line(0) + b'{"seq": 1, "type": \n' + b"\xff\xfe\n" + b"[1]\n" + line(2))
    reading = read_entries(path, 0)
    kinds = [type(entry) for entry in reading.entries]
    assert kinds == [JournalEntry, BrokenLine, BrokenLine, BrokenLine, JournalEntry]
    assert reading.entries[1].offset == len(line(0))
    assert reading.offset == path.stat().st_size


def test_fields_of_wrong_types_are_a_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(line(0).replace(b'"seq":0', b'"seq":"0"'))
    assert isinstance(read_entries(path, 0).entries[0], BrokenLine)


def test_a_line_longer_than_a_chunk_is_read_completely(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(line(0, "x" * 700_000) + line(1))
    first = read_entries(path, 0)
    assert len(first.entries[0].message) == 700_000
    assert [entry.seq for entry in read_entries(path, first.offset).entries] in ([1], [])


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(min_value=0, max_value=4000), max_size=8), count=st.integers(min_value=1, max_value=20))
def test_however_a_journal_arrives_each_line_is_read_once(tmp_path_factory, cuts: list[int], count: int) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    content = b"".join(line(seq, "é" * seq) for seq in range(count))
    offset, seen = 0, []
    for end in [*sorted(min(cut, len(content)) for cut in cuts), len(content)]:
        path.write_bytes(content[:end])
        reading = read_entries(path, offset)
        offset = reading.offset
        seen += [entry.seq for entry in reading.entries]
    assert seen == list(range(count))
