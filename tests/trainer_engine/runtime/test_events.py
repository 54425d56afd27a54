"""The journal writes complete lines, numbers them without gaps, and is cheap."""

from __future__ import annotations

import errno
import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainer_engine.contract.atomic import why_not_written
from trainer_engine.contract.events import Notification, ProgressEvent, StageEvent, StageKey, StageStatus, decode, utc_now
from trainer_engine.runtime.events import BLOCK_BYTES, MOST_WAITING, Journal


def note(text: str) -> Notification:
    return Notification(code="test", message=text)


def numbers(path: Path) -> list[int]:
    return [decode(line).seq for line in path.read_bytes().splitlines()]


def test_journal_numbers_events_from_zero_without_gaps(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        for text in "abc":
            journal.emit(note(text))
    assert numbers(tmp_path / "journal.jsonl") == [0, 1, 2]


def test_journal_continues_the_numbers_of_an_earlier_process(tmp_path: Path) -> None:
    for _ in range(3):
        with Journal(tmp_path / "journal.jsonl") as journal:
            journal.emit(note("hello"))
    assert numbers(tmp_path / "journal.jsonl") == [0, 1, 2]


@pytest.mark.parametrize("rest", [b"{", b'{"seq":7,"type":"notif', b"\xff" * 100, b"x" * (2 * BLOCK_BYTES)])
def test_journal_cuts_off_a_partial_line(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.emit(note("whole"))
    path.write_bytes(path.read_bytes() + rest)
    with Journal(path) as journal:
        journal.emit(note("next"))
    assert [json.loads(line)["message"] for line in path.read_bytes().splitlines()] == ["whole", "next"]
    assert numbers(path) == [0, 1]


@pytest.mark.parametrize(
    "damage",
    [b"\0" * 300 + b"\n", b"{}\n", b"\xff\n" * 3, b"[" * 9000 + b"\n", b'{"seq":"x"}\n', b"\n\n", (b"x" * BLOCK_BYTES + b"\n") * 3 + b"{"],
    ids=lambda content: repr(content[:9]),
)
@pytest.mark.parametrize("events", [0, 1, 3])
def test_journal_cuts_off_lines_that_a_power_failure_damaged(tmp_path: Path, damage: bytes, events: int) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        for number in range(events):
            journal.emit(note(f"event {number}"))
    kept = path.read_bytes()
    path.write_bytes(kept + damage)
    with Journal(path) as journal:
        journal.emit(note("next"))
    assert path.read_bytes().startswith(kept) and numbers(path) == list(range(events + 1))


def test_journal_with_only_a_partial_line_starts_from_zero(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"seq":0')
    with Journal(path) as journal:
        journal.emit(note("first"))
    assert numbers(path) == [0]


def test_journal_continues_after_a_long_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.emit(note("a"))
        journal.emit(note("b" * (3 * BLOCK_BYTES)))
    with Journal(path) as journal:
        assert journal.next_seq == 2


def test_journal_escapes_text_that_is_not_unicode(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.emit(note("a file called \udcff.png\nwith a second line"))
    assert len(path.read_bytes().splitlines()) == 1
    assert numbers(path) == [0]


def test_emitting_a_step_is_cheap(tmp_path: Path) -> None:
    event = ProgressEvent(
        step=1,
        total_steps=2,
        epoch=1,
        loss=0.5,
        learning_rate=1e-4,
        grad_norm=1.0,
        samples_per_second=1.0,
        seconds_per_step=1.0,
        eta_seconds=1.0,
        memory={"resident": 1},
    )
    with Journal(tmp_path / "journal.jsonl") as journal:
        costs = []
        for _ in range(500):
            began = time.perf_counter()
            journal.emit(event)
            costs.append(time.perf_counter() - began)
    print(f"median {sorted(costs)[250] * 1e6:.0f} us")
    assert sorted(costs)[50] < 500e-6


def stage(current: int) -> StageEvent:
    return StageEvent(key=StageKey.VAE_CACHE, status=StageStatus.RUNNING, current=current, total=10**6)


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Every write beyond it fails with EFBIG, after part of it was written: what a full disk does, without one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_journal_writes_events_of_a_full_disk_later_in_order(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.emit(note("first"))
        size = path.stat().st_size
        with files_no_larger_than(size + 20):
            for text in "abc":
                journal.emit(note(text))
            assert journal.catch_up() is not None
            assert path.stat().st_size == size, "no half line is left"
        journal.emit(note("last"))
        assert journal.catch_up() is None
    assert [json.loads(line)["message"] for line in path.read_bytes().splitlines()] == ["first", "a", "b", "c", "last"]
    assert numbers(path) == [0, 1, 2, 3, 4]


def test_waiting_events_keep_their_timestamps(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        with files_no_larger_than(10):
            journal.emit(note("early"))
            between = utc_now()
        journal.emit(note("late"))
    early, late = (decode(line).timestamp for line in path.read_bytes().splitlines())
    assert early <= between <= late


def test_full_memory_drops_only_progress_events(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        with files_no_larger_than(10):
            for number in range(MOST_WAITING + 500):
                journal.emit(stage(number + 1))
            journal.emit(note("kept"))
        assert journal.catch_up() is None
    lines = path.read_bytes().splitlines()
    assert len(lines) == MOST_WAITING + 1
    assert decode(lines[-1]).message == "kept"
    assert numbers(path) == list(range(MOST_WAITING + 1))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE])
def test_emit_never_raises_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "journal.jsonl"

    def refuse(descriptor: int, line: bytes) -> int:
        raise OSError(number, os.strerror(number))

    with Journal(path) as journal:
        with monkeypatch.context() as patched:
            patched.setattr("trainer_engine.runtime.events.os.write", refuse)
            journal.emit(note("kept"))
            trouble = journal.catch_up()
        assert trouble is not None and trouble.errno == number
        assert str(tmp_path) in why_not_written(tmp_path, trouble)
        assert journal.catch_up() is None
    assert numbers(path) == [0]
