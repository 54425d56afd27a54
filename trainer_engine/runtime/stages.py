"""Reports the stages of a run as events: start, progress and end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trainer_engine.contract.events import REASON_IN_ERROR, Severity, StageEvent, StageKey, StageStatus
from trainer_engine.runtime.control import Stopped
from trainer_engine.runtime.events import EventSink

EMIT_EVERY_SECONDS = 0.25

Advance = Callable[[int, int], None]
"""Reports progress: (items done, items in total)."""


def advance_in_part(advance: Advance, number: int, parts: int) -> Advance:
    """Progress of part ``number`` (from 0) of a stage with ``parts`` parts of the same size."""
    return lambda done, total: advance(number * total + done, parts * total)


def advance_after(advance: Advance, before: int, total: int) -> Advance:
    """Progress of a part of a stage that starts after ``before`` of ``total`` items."""
    return lambda done, _: advance(before + done, total)


STAGES_THAT_WRITE = frozenset(
    (
        StageKey.DATA_BACKEND,
        StageKey.TEXT_EMBED_CACHE,
        StageKey.VAE_CACHE,
        StageKey.RESUME_CHECKPOINT,
        StageKey.BENCHMARK_BASE_MODEL,
        StageKey.VALIDATION,
        StageKey.FINAL_VALIDATION,
        StageKey.CHECKPOINT_SAVE,
        StageKey.MODEL_SAVE,
        StageKey.PUBLISHING,
    )
)


def nothing() -> None:
    """Do nothing before a stage that writes files."""


class Stages:
    """Emits stage events. ``before_writing`` is called before each stage that writes files and may raise to prevent it."""

    def __init__(self, sink: EventSink, before_writing: Callable[[], None] = nothing) -> None:
        self.sink = sink
        self._before_writing = before_writing

    @contextmanager
    def stage(self, key: StageKey, label: str = "", *, failure: Severity = Severity.ERROR) -> Iterator[Advance]:
        """Report the block as a stage; yields the function that reports its progress.

        An exception in the block fails the stage with the severity ``failure``.
        """
        if key in STAGES_THAT_WRITE:
            self._before_writing()
        progress = _StageProgress(self.sink, key, label)
        progress.emit(StageStatus.RUNNING)
        try:
            yield progress.advance
        except Exception as error:
            ends_the_run = failure is Severity.ERROR  # then an error event follows
            progress.emit(StageStatus.FAILED, message=REASON_IN_ERROR if ends_the_run else str(error), severity=failure)
            raise
        except Stopped:
            progress.emit(StageStatus.FAILED, message="The run was stopped.", severity=Severity.WARNING)
            raise
        progress.emit(StageStatus.COMPLETED)


class _StageProgress:
    """Emits the events of one stage."""

    def __init__(self, sink: EventSink, key: StageKey, label: str) -> None:
        self.sink, self.key, self.label = sink, key, label
        self.current = self.total = self._first = 0
        self._began = self._emitted = time.monotonic()
        self._has_advanced = False

    def advance(self, current: int, total: int) -> None:
        """Record progress; emits an event at most every ``EMIT_EVERY_SECONDS``."""
        if not self._has_advanced:
            self._has_advanced, self._first, self._began = True, current, time.monotonic()
        self.current, self.total = current, total
        if time.monotonic() - self._emitted >= EMIT_EVERY_SECONDS and current < total:
            self.emit(StageStatus.RUNNING)

    def emit(self, status: StageStatus, *, message: str = "", severity: Severity | None = None) -> None:
        self._emitted = time.monotonic()
        severity = severity or (Severity.ERROR if status is StageStatus.FAILED else Severity.INFO)
        done = self.current - self._first
        running = status is StageStatus.RUNNING and done > 0
        eta = (self._emitted - self._began) / done * (self.total - self.current) if running else None
        self.sink.emit(
            StageEvent(
                key=self.key,
                label=self.label,
                status=status,
                current=self.current,
                total=self.total,
                eta_seconds=None if eta is None else round(eta, 1),
                message=message,
                severity=severity,
            )
        )
