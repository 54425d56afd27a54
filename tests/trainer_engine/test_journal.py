"""The journal: whole lines, numbered without gaps, cheap."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from trainer_engine.contract.events import Notification, ProgressEvent, decode
from trainer_engine.journal import BLOCK_BYTES, Journal


def note(text: str) -> Notification:
    return Notification(code="test", message=text)


def numbers(path: Path) -> list[int]:
    return [decode(line).seq for line in path.read_bytes().splitlines()]


def test_events_are_numbered_from_zero_without_gaps(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        for text in "abc":
            journal.tell(note(text))
    assert numbers(tmp_path / "journal.jsonl") == [0, 1, 2]


def test_counting_goes_on_where_an_earlier_process_ended(tmp_path: Path) -> None:
    for _ in range(3):
        with Journal(tmp_path / "journal.jsonl") as journal:
            journal.tell(note("hello"))
    assert numbers(tmp_path / "journal.jsonl") == [0, 1, 2]


@pytest.mark.parametrize("rest", [b"{", b'{"seq":7,"type":"notif', b"\xff" * 100, b"x" * (2 * BLOCK_BYTES)])
def test_a_line_that_was_cut_short_goes_away(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.tell(note("whole"))
    path.write_bytes(path.read_bytes() + rest)
    with Journal(path) as journal:
        journal.tell(note("next"))
    assert [json.loads(line)["message"] for line in path.read_bytes().splitlines()] == ["whole", "next"]
    assert numbers(path) == [0, 1]


def test_a_file_with_half_a_line_alone_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"seq":0')
    with Journal(path) as journal:
        journal.tell(note("first"))
    assert numbers(path) == [0]


def test_long_lines_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.tell(note("a"))
        journal.tell(note("b" * (3 * BLOCK_BYTES)))
    with Journal(path) as journal:
        assert journal.next_seq == 2


def test_text_that_is_no_unicode_does_not_stop_a_run(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.tell(note("a file called \udcff.png\nwith a second line"))
    assert len(path.read_bytes().splitlines()) == 1
    assert numbers(path) == [0]


def test_telling_a_step_costs_little(tmp_path: Path) -> None:
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
            journal.tell(event)
            costs.append(time.perf_counter() - began)
    print(f"median {sorted(costs)[250] * 1e6:.0f} us")
    assert sorted(costs)[50] < 500e-6
