"""One tail a server process: it notices that the log grew and wakes every stream, and streams that are equally far share a reading.

SQLite tells of another connection's commit through ``PRAGMA data_version``, which costs microseconds; other databases are asked for
the newest event. The log is the only source: what a stream tells is what polling tells.
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
"""For databases that have to be asked."""
KEEP_ALIVE_SECONDS = 15.0
PAGE = 100
"""Events of a reading: some milliseconds, so that whoever replays a long log holds nobody else up."""
READERS = 2
MOST_STREAMS = 500
"""At once, in a server that says nothing else."""


@dataclass(frozen=True)
class Place:
    """How far a stream is."""

    job_id: UUID | None
    """None while there has never been a job."""
    index: int
    """The next one wanted."""
    is_bound: bool
    """Whether the stream is of this job alone, or goes on to the next one."""
    as_links: bool = False


@dataclass(frozen=True)
class Frame:
    """One event on its way out."""

    job_id: UUID
    index: int
    type: str
    text: str
    """The event as JSON."""


@dataclass(frozen=True)
class Page:
    """What follows a place."""

    frames: tuple[Frame, ...]
    next_place: Place


def read(place: Place) -> Page:
    """The next events after a place; where there are none, perhaps another place to go on from."""
    job = Job.objects.filter(pk=place.job_id).first() if place.job_id else current_job()
    if job is None:
        return Page((), place)
    # The status is older than the events read after it, so that nothing can follow the events of a job that has ended.
    events = representations.encoded_events(job, place.index, PAGE, as_links=place.as_links)
    if events:
        frames = tuple(Frame(job.pk, index, kind, text) for index, kind, text in events)
        return Page(frames, Place(job.pk, frames[-1].index + 1, place.is_bound, place.as_links))
    following = Job.objects.filter(number__gt=job.number).order_by("number").first() if job.has_ended and not place.is_bound else None
    if following is None or place.index < job.next_index:
        return Page((), Place(job.pk, place.index, place.is_bound, place.as_links))
    return Page((), Place(following.pk, 0, False, place.as_links))


class Hub:
    """The streams of this process and the tail that feeds them. Everything but the tail runs on the event loop."""

    def __init__(self) -> None:
        self.is_closing = False
        self.most_streams = MOST_STREAMS
        self._streams = 0
        self._ticket = asyncio.Event()
        self._readings: dict[Place, asyncio.Future[Page]] = {}
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="event-reader")
        self._tail: Tail | None = None

    @property
    def is_full(self) -> bool:
        """Whether another stream would take what is left for other requests."""
        return self._streams >= self.most_streams

    async def follow(self, place: Place) -> AsyncIterator[tuple[Frame, ...]]:
        """Everything from a place on, for ever; an empty tuple every 15 s of silence. Ends when the server closes."""
        self._enter()
        try:
            clock = asyncio.get_running_loop().time
            said_at = clock()
            while not self.is_closing:
                ticket = self._ticket
                page = await self._read(place)
                if page.frames:
                    yield page.frames
                    said_at = clock()
                elif page.next_place == place and not await _woken(ticket, said_at + KEEP_ALIVE_SECONDS - clock()):
                    yield ()
                    said_at = clock()
                place = page.next_place
        finally:
            self._leave()

    async def _read(self, place: Place) -> Page:
        """Streams at one place share the reading until the log grows."""
        if place not in self._readings:
            loop = asyncio.get_running_loop()
            self._readings[place] = loop.run_in_executor(self._readers, _read_in_thread, place)
        return await asyncio.shield(self._readings[place])

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
    """Whether the log grew in time; the growth may have been another job's, so the silence is measured by the caller."""
    try:
        await asyncio.wait_for(ticket.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True


def _read_in_thread(place: Place) -> Page:
    """A broken connection is closed, so that the next reading opens a new one."""
    try:
        return read(place)
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
