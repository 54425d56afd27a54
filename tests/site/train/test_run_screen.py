"""What a terminal and a log file get to see of a run."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from simpletuner_site.train.follow import Interrupts, follow, show_entry
from simpletuner_site.train.report import print_ending
from simpletuner_site.train.run_screen import RunScreen, numbers_of, short_time
from trainer_engine.contract.events import (
    CheckpointEvent,
    ErrorEvent,
    Event,
    Notification,
    ProgressEvent,
    Severity,
    StageEvent,
    StageKey,
    StageStatus,
    decode,
    encode,
)
from trainer_engine.contract.run import RunFolder
from training.engine import process
from training.engine.journal import BrokenLine


def as_api(event: Event) -> dict[str, Any]:
    shared = {"type": event.type.value, "severity": event.severity.value, "title": event.title, "message": event.message}
    return {**shared, "body": event.body, "data": event.data(), **event.added()}


def progress(step: int, **changes: Any) -> ProgressEvent:
    numbers = {"epoch": 1, "loss": 0.5, "learning_rate": 1e-4, "grad_norm": 1.0, "samples_per_second": 8.0}
    return ProgressEvent(step=step, total_steps=100, **{**numbers, "seconds_per_step": 0.25, "eta_seconds": 75.0, **changes})


def shown(*events: Event, terminal: bool = False) -> str:
    output = io.StringIO()
    with RunScreen(Console(file=output, force_terminal=terminal, width=120, color_system=None)) as screen:
        for event in events:
            screen.show(as_api(event))
    return output.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (123, "2:03"), (3723, "1:02:03"), (None, "-"), (-1, "-")])
def test_time_left_is_short(seconds: float | None, text: str) -> None:
    assert short_time(seconds) == text


def test_fast_steps_are_counted_a_second_and_slow_ones_in_seconds() -> None:
    assert numbers_of(progress(1).data()) == "loss 0.5000  4.0 steps/s  1:15 left"
    assert "2.5 s/step" in numbers_of(progress(1, seconds_per_step=2.5).data())
    assert numbers_of(progress(1, loss=None, seconds_per_step=0.0).data()).startswith("loss not finite  -")


def test_a_log_file_gets_the_first_and_the_last_step_and_none_in_between() -> None:
    lines = shown(*[progress(step) for step in range(1, 101)]).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1/100", "step 100/100"]


def test_a_terminal_gets_a_bar() -> None:
    assert "Training" in shown(progress(50), terminal=True)


def test_a_stage_is_a_line_when_it_ends() -> None:
    began = StageEvent(key=StageKey.VAE_CACHE, status=StageStatus.RUNNING, current=0, total=36)
    ended = StageEvent(key=StageKey.VAE_CACHE, status=StageStatus.COMPLETED, current=36, total=36)
    text = shown(began, ended)
    assert text.count("Caching image latents") == 1
    assert "✓ Caching image latents (36)" in text


def test_a_failed_stage_is_marked() -> None:
    assert "✗ Loading the base model" in shown(StageEvent(key=StageKey.LOAD_BASE_MODEL, status=StageStatus.FAILED))


def test_checkpoints_warnings_and_errors_are_reported() -> None:
    saved = CheckpointEvent(path="/out/checkpoint-50", label="checkpoint-50", step=50, size_bytes=2_500_000)
    warning = Notification(severity=Severity.WARNING, message="a file [was] left out")
    quiet = Notification(message="nothing to see")
    text = shown(saved, warning, quiet, ErrorEvent(code="disk_full", message="The disk is full."))
    assert "checkpoint-50 saved at step 50 (2.5 MB)" in text
    assert "! a file [was] left out" in text
    assert "! The disk is full." in text
    assert "nothing to see" not in text


ODD = ["[/]", "[/red]", "a\\[/b]", ":smile:", "[link=x]y[/link]", "\\"]
MARKUP = st.text(st.sampled_from("[]/\\ab:="), max_size=16) | st.sampled_from(ODD)


@settings(deadline=None)
@given(text=MARKUP.filter(str.strip))
def test_any_text_of_a_run_is_shown_as_it_is(text: str) -> None:
    """A library's message, a file's name or a dataset's id may look like the markup of the screen."""
    saved = CheckpointEvent(path="/out/x", label=text, step=1, size_bytes=1)
    stages = [StageEvent(key=StageKey.VAE_CACHE, status=status, label=text) for status in (StageStatus.RUNNING, StageStatus.FAILED)]
    failed = ErrorEvent(code="failure", message=text)
    plain = shown(saved, *stages, failed)
    assert f"✓ {text} saved at step 1" in plain and f"✗ {text}" in plain and f"! {text}" in plain
    assert text in shown(stages[0], saved, failed, terminal=True)


def test_a_broken_line_of_the_journal_is_shown_and_the_rest_follows() -> None:
    output = io.StringIO()
    with RunScreen(Console(file=output, width=120)) as screen:
        show_entry(screen, BrokenLine(7, "these fields [/have] wrong values"))
        show_entry(screen, decode(encode(ErrorEvent(code="failure", message="the end"), seq=0)))
    assert "broken at byte 7: these fields [/have] wrong values" in output.getvalue() and "! the end" in output.getvalue()


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"exit_code": 0}', b"\xff"])
def test_a_run_without_a_report_ends_with_the_code_of_its_process_and_the_end_of_its_log(tmp_path: Path, content: bytes | None) -> None:
    folder = RunFolder(tmp_path / "[/run]").create()
    if content is not None:
        folder.exit_file.write_bytes(content)
    identity = process.start(folder, [sys.executable, "-c", "print('[/last] words'); raise SystemExit(60)"])
    output = io.StringIO()
    console = Console(file=output, width=300)
    with RunScreen(console) as screen:
        code = follow(identity, folder, screen, Interrupts())
    print_ending(console, folder, code)
    assert code == 60
    assert f"died (exit code 60) without a report. The end of {folder.log}" in output.getvalue() and "[/last] words" in output.getvalue()
