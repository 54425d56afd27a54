"""Feeds the event streams. One tail per server process notices that the log grew and wakes every stream.

Streams at the same position share a read. SQLite reports a commit of another connection through ``PRAGMA data_version``, which costs
microseconds; other databases are asked for the newest event. Streams and polling read the same log.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import UUID

from django.db import DatabaseError, connection
from django.db.models import Max

from training.api import representations
from training.jobs.queue import current_job
from training.models import Event, Job

TAIL_SECONDS = 0.025
SLOW_TAIL_SECONDS = 0.1
"""Interval for databases other than SQLite."""
KEEP_ALIVE_SECONDS = 15.0
PAGE = 100
"""Events in one read, which takes a few milliseconds, so that the replay of a long log does not delay other streams."""
READERS = 2
MOST_STREAMS = 500
"""Largest number of streams at once, unless the server sets another."""


@dataclass(frozen=True)
class StreamPosition:
    """The position of a stream in the log."""

    job_id: UUID | None
    """None before the first job."""
    index: int
    """Index of the next event."""
    is_bound: bool
    """Whether the stream ends with this job instead of continuing with the next one."""
    as_links: bool = False


@dataclass(frozen=True)
class Frame:
    """One event of a stream."""

    job_id: UUID
    index: int
    type: str
    text: str
    """The event as JSON."""


@dataclass(frozen=True)
class Page:
    """The events after a position, and the position after them."""

    frames: tuple[Frame, ...]
    next_position: StreamPosition


def read(position: StreamPosition) -> Page:
    """The next events after a position. Without events, ``next_position`` may be the start of the next job."""
    job = Job.objects.filter(pk=position.job_id).first() if position.job_id else current_job()
    if job is None:
        return Page((), position)
    # The status is older than the events read after it, so that nothing can follow the events of a job that has ended.
    events = representations.encoded_events(job, position.index, PAGE, as_links=position.as_links)
    if events:
        frames = tuple(Frame(job.pk, index, kind, text) for index, kind, text in events)
        return Page(frames, StreamPosition(job.pk, frames[-1].index + 1, position.is_bound, position.as_links))
    following = Job.objects.filter(number__gt=job.number).order_by("number").first() if job.has_ended and not position.is_bound else None
    if following is None or position.index < job.next_index:
        return Page((), StreamPosition(job.pk, position.index, position.is_bound, position.as_links))
    return Page((), StreamPosition(following.pk, 0, False, position.as_links))


class Hub:
    """The streams of this process and their tail. Everything but the tail runs on the event loop."""

    def __init__(self) -> None:
        self.is_closing = False
        self.most_streams = MOST_STREAMS
        self._streams = 0
        self._ticket = asyncio.Event()
        self._readings: dict[StreamPosition, asyncio.Future[Page]] = {}
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="event-reader")
        self._tail: Tail | None = None

    @property
    def is_full(self) -> bool:
        """Whether the streams hold their maximum number of connections."""
        return self._streams >= self.most_streams

    async def follow(self, position: StreamPosition) -> AsyncIterator[tuple[Frame, ...]]:
        """All events from a position on, and an empty tuple after each 15 s without events. Ends when the server closes."""
        self._enter()
        try:
            clock = asyncio.get_running_loop().time
            said_at = clock()
            while not self.is_closing:
                ticket = self._ticket
                page = await self._read(position)
                if page.frames:
                    yield page.frames
                    said_at = clock()
                elif page.next_position == position and not await _woken(ticket, said_at + KEEP_ALIVE_SECONDS - clock()):
                    yield ()
                    said_at = clock()
                position = page.next_position
        finally:
            self._leave()

    async def _read(self, position: StreamPosition) -> Page:
        """Read a page. Streams at one position share the read until the log grows; a read that failed is tried again by the next stream."""
        if position not in self._readings:
            loop = asyncio.get_running_loop()
            self._readings[position] = loop.run_in_executor(self._readers, _read_in_thread, position)
        reading = self._readings[position]
        try:
            return await asyncio.shield(reading)
        except DatabaseError:
            if self._readings.get(position) is reading:
                del self._readings[position]
            raise

    def wake(self) -> None:
        """The log may have grown."""
        self._readings.clear()
        woken, self._ticket = self._ticket, asyncio.Event()
        woken.set()

    def close(self) -> None:
        """End every stream."""
        self.is_closing = True
        self.wake()

    def _enter(self) -> None:
        self._streams += 1
        if self._tail is None:
            loop = asyncio.get_running_loop()
            self._readings.clear()
            self._tail = Tail(lambda: loop.call_soon_threadsafe(self.wake))
            self._tail.start()

    def _leave(self) -> None:
        self._streams -= 1
        if self._streams == 0 and self._tail is not None:
            self._tail.stop()
            self._tail = None


async def _woken(ticket: asyncio.Event, seconds: float) -> bool:
    """Whether the log grew in time. The new events may be of another job, so the caller measures the silence."""
    try:
        await asyncio.wait_for(ticket.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True


def _read_in_thread(position: StreamPosition) -> Page:
    """A broken connection is closed, so that the next reading opens a new one."""
    try:
        return read(position)
    except DatabaseError:
        connection.close()
        raise


class Tail:
    """A thread that calls back when anything was written to the database."""

    def __init__(self, on_change: Callable[[], object]) -> None:
        self._on_change = on_change
        self._should_stop = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="event-tail", daemon=True).start()

    def stop(self) -> None:
        self._should_stop.set()

    def _run(self) -> None:
        name = str(connection.settings_dict["NAME"])
        watch = self._watch_file if connection.vendor == "sqlite" and "mode=memory" not in name and name != ":memory:" else self._watch_rows
        try:
            watch(name)
        except RuntimeError:
            return  # the event loop is closed: so is the server

    def _watch_file(self, name: str) -> None:
        database = sqlite3.connect(name, timeout=5, isolation_level=None)
        seen = -1
        try:
            while not self._should_stop.wait(TAIL_SECONDS):
                try:
                    version = int(database.execute("PRAGMA data_version").fetchone()[0])
                except sqlite3.OperationalError:
                    continue
                if version != seen:
                    seen = version
                    self._on_change()
        finally:
            database.close()

    def _watch_rows(self, name: str) -> None:
        seen: object = None
        try:
            while not self._should_stop.wait(SLOW_TAIL_SECONDS):
                try:
                    newest = Event.objects.aggregate(newest=Max("pk"))["newest"], Job.objects.aggregate(newest=Max("number"))["newest"]
                except DatabaseError:
                    connection.close()
                    continue
                if newest != seen:
                    seen = newest
                    self._on_change()
        finally:
            connection.close()


HUB = Hub()


def close_all() -> None:
    """End every stream of this process; called on the event loop before the server shuts down."""
    HUB.close()
