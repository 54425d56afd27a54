"""The event stream for clients: WebSocket and server-sent events on one address."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID

from channels.consumer import AsyncConsumer, get_handler_name
from channels.db import database_sync_to_async
from channels.exceptions import StopConsumer
from django.db import DatabaseError

from training.api.parse import LARGEST_INDEX, named_job, wants_links, whole_number
from training.errors import TooManyStreams, TrainingRefused
from training.models import Job
from training.streams import tail
from training.streams.backpressure import ClientTooSlow, grant_farewell, wait_for_reader
from training.streams.tail import Frame, StreamPosition

logger = logging.getLogger(__name__)
GOING_AWAY, SERVER_ERROR, TRY_AGAIN_LATER = 1001, 1011, 1013
REFUSED = 4000
"""Added to an HTTP status gives the close code of a refused WebSocket: 4404, 4422."""
FAREWELL_SECONDS = 0.1
BATCH_FRAMES, BATCH_CHARACTERS = 20, 32 * 1024
RESUME = "last-event-id"


def position_of(query: Mapping[str, str], last_event_id: str) -> StreamPosition:
    """The position at which a client wants to begin. Raises JobNotFound, BadValue.

    ``Last-Event-ID`` wins over ``since_index``: a browser that reconnects sends the address of its first visit again.
    """
    as_links = wants_links(query)
    since = whole_number(query.get("since_index"), "since_index", default=0)
    named = named_job(query["job_id"]).pk if query.get("job_id") else None
    resumed = _resumed(last_event_id, named)
    if resumed is not None:
        return StreamPosition(*resumed, is_bound=named is not None, as_links=as_links)
    return StreamPosition(named, since, is_bound=named is not None, as_links=as_links)


def _resumed(last_event_id: str, named: UUID | None) -> tuple[UUID | None, int] | None:
    """The job and the index after an event id; None if the id is empty or unknown."""
    job_text, _, index_text = last_event_id.strip().rpartition(":")
    if not (index_text.isascii() and index_text.isdigit() and len(index_text) < len(str(LARGEST_INDEX))):
        return None
    if not job_text:
        return named, int(index_text) + 1
    try:
        job_id = UUID(job_text)
    except ValueError:
        return None
    if (named is not None and named != job_id) or not Job.objects.filter(pk=job_id).exists():
        return None
    return job_id, int(index_text) + 1


def batches(frames: Iterable[Frame]) -> Iterator[list[Frame]]:
    """Frames in order, in batches that are small enough not to block the event loop."""
    batch: list[Frame] = []
    size = 0
    for frame in frames:
        batch.append(frame)
        size += len(frame.text)
        if size > BATCH_CHARACTERS or len(batch) >= BATCH_FRAMES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Streaming(AsyncConsumer):  # type: ignore[misc]
    """Base of both kinds of stream: a task that writes while the connection is read."""

    writer: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Run until the client leaves or the writer is done. No coroutine stays pending, because Python would crash at exit with one.

        These streams use no channel layer.
        """
        self.scope, self.base_send = scope, send
        try:
            while (message := await self._next(receive)) is not None:
                await getattr(self, get_handler_name(message))(message)
        except StopConsumer:
            return
        finally:
            await self._end_writer()

    async def _end_writer(self) -> None:
        """Stop the writer. When the server closes, Daphne cancels this consumer, and the writer gets a moment to send its last frame."""
        if self.writer is None or self.writer.done():
            return
        if tail.HUB.is_closing:
            await asyncio.wait([self.writer], timeout=FAREWELL_SECONDS)
        self.writer.cancel()
        await asyncio.wait([self.writer])

    async def _next(self, receive: Any) -> Any:
        """The client's next message; None once the writer is done."""
        listening = asyncio.ensure_future(receive())
        try:
            await asyncio.wait([task for task in (listening, self.writer) if task is not None], return_when=asyncio.FIRST_COMPLETED)
            return listening.result() if listening.done() else None
        finally:
            listening.cancel()

    async def wanted_position(self) -> StreamPosition:
        """The position that the request asks for. Raises TooManyStreams, BadValue, JobNotFound."""
        if tail.HUB.is_full:
            raise TooManyStreams
        query = dict(parse_qsl(self.scope.get("query_string", b"").decode("latin-1")))
        headers = {name.lower(): value.decode("latin-1") for name, value in self.scope["headers"]}
        last_event_id = headers.get(RESUME.encode()) or query.get("last_event_id", "")
        found: StreamPosition = await database_sync_to_async(position_of)(query, last_event_id)
        return found

    def begin(self, position: StreamPosition) -> None:
        self.writer = asyncio.ensure_future(self._write(position))

    async def _write(self, position: StreamPosition) -> None:
        code = GOING_AWAY
        try:
            async for frames in tail.HUB.follow(position):
                for batch in batches(frames):
                    await self.send_frames(batch, is_bound=position.is_bound)
                    await wait_for_reader(self.base_send)
                    await asyncio.sleep(0)  # lets other requests run between two batches
                if not frames:
                    await self.send_silence()
        except ClientTooSlow:
            grant_farewell(self.base_send)
            code = TRY_AGAIN_LATER
        except DatabaseError as error:
            logger.warning("a stream ended because the log could not be read: %s", error)
            code = SERVER_ERROR
        await self.send_end(code)

    async def send_frames(self, frames: Sequence[Frame], *, is_bound: bool) -> None:
        raise NotImplementedError

    async def send_silence(self) -> None:
        """Called after each 15 s without events."""

    async def send_end(self, code: int) -> None:
        raise NotImplementedError


class EventSocket(Streaming):
    """WebSocket: frames ``{"job_id", "event"}``. Messages of the client are ignored."""

    async def websocket_connect(self, message: Mapping[str, Any]) -> None:
        await self.send({"type": "websocket.accept"})
        try:
            position = await self.wanted_position()
        except TrainingRefused as refusal:
            await self.send({"type": "websocket.close", "code": REFUSED + refusal.status_code, "reason": str(refusal.detail)[:120]})
            raise StopConsumer from None
        self.begin(position)

    async def websocket_receive(self, message: Mapping[str, Any]) -> None:
        """Ignore the message."""

    async def websocket_disconnect(self, message: Mapping[str, Any]) -> None:
        raise StopConsumer

    async def send_frames(self, frames: Sequence[Frame], *, is_bound: bool) -> None:
        for frame in frames:
            await self.send({"type": "websocket.send", "text": f'{{"job_id":"{frame.job_id}","event":{frame.text}}}'})

    async def send_end(self, code: int) -> None:
        await self.send({"type": "websocket.close", "code": code})


class EventSource(Streaming):
    """Server-sent events: ``event:`` the type, ``data:`` the event, ``id:`` where to resume."""

    def __init__(self) -> None:
        self.has_begun = False

    async def http_request(self, message: Mapping[str, Any]) -> None:
        if message.get("more_body") or self.has_begun:
            return
        self.has_begun = True
        if self.scope["method"] != "GET":
            await self._refuse(405, {"detail": f'Method "{self.scope["method"]}" not allowed.', "problems": []})
        try:
            position = await self.wanted_position()
        except TrainingRefused as refusal:
            problems = [problem.as_dict() for problem in refusal.problems]
            await self._refuse(refusal.status_code, {"detail": str(refusal.detail), "problems": problems})
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send_text("retry: 1000\n\n")
        self.begin(position)

    async def http_disconnect(self, message: Mapping[str, Any]) -> None:
        raise StopConsumer

    async def send_frames(self, frames: Sequence[Frame], *, is_bound: bool) -> None:
        lines = []
        for frame in frames:
            name = str(frame.index) if is_bound else f"{frame.job_id}:{frame.index}"
            lines.append(f"event: {frame.type}\nid: {name}\ndata: {frame.text}\n\n")
        await self._send_text("".join(lines))

    async def send_silence(self) -> None:
        await self._send_text(": still here\n\n")

    async def send_end(self, code: int) -> None:
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_text(self, text: str) -> None:
        await self.send({"type": "http.response.body", "body": text.encode(), "more_body": True})

    async def _refuse(self, status: int, body: dict[str, Any]) -> None:
        headers = [(b"content-type", b"application/json")] + ([(b"allow", b"GET")] if status == 405 else [])
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": json.dumps(body).encode()})
        raise StopConsumer
