"""The streams without a server: who is refused, where a client resumes, and what a broken database ends."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from channels.testing import ApplicationCommunicator
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.jobs import make_job
from training.errors import TrainingRefused
from training.jobs import log
from training.models import Job, Status
from training.streams import tail
from training.streams.consumers import EventSocket, EventSource, position_of
from training.streams.tail import Hub, StreamPosition, read

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(tail, "HUB", Hub())
    return tail.HUB


def job_with(folder: Path, *titles: str, **values: Any) -> Job:
    job = make_job(folder, Status.RUNNING, **values)
    log.append(job.pk, [log.warning_event("test", title) for title in titles])
    return job


def messages(events: list[dict[str, Any]]) -> list[str]:
    return [event["message"] for event in events]


class Client:
    """One request for the stream."""

    def __init__(self, kind: str, query: str = "", *, method: str = "GET", last_event_id: str = "") -> None:
        headers = [(b"last-event-id", last_event_id.encode("latin-1"))] if last_event_id else []
        scope = {"type": kind, "method": method, "path": "/", "query_string": query.encode(), "headers": headers}
        self.communicator = ApplicationCommunicator((EventSocket if kind == "websocket" else EventSource).as_asgi(), scope)

    async def begin(self) -> dict[str, Any]:
        """The first answer."""
        await self.communicator.send_input({"type": f"{self.communicator.scope['type']}.{'connect' if self.is_socket else 'request'}"})
        return await self.next()

    @property
    def is_socket(self) -> bool:
        return self.communicator.scope["type"] == "websocket"

    async def next(self) -> dict[str, Any]:
        message: dict[str, Any] = await self.communicator.receive_output(timeout=20)
        return message

    async def events(self, count: int) -> list[tuple[str, dict[str, Any]]]:
        """(id, event) of the next server-sent events."""
        found: list[tuple[str, dict[str, Any]]] = []
        while len(found) < count:
            for block in (await self.next())["body"].decode().split("\n\n"):
                fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
                if "data" in fields:
                    found.append((fields["id"], json.loads(fields["data"])))
        return found

    async def leave(self) -> None:
        await self.communicator.send_input({"type": f"{self.communicator.scope['type']}.disconnect", "code": 1000})
        await self.communicator.wait(timeout=10)


def run(client: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(client())


REFUSED = [
    ("job_id=nobody", 404, ""),
    (f"job_id={uuid.UUID(int=7)}", 404, ""),
    ("since_index=-1", 422, "since_index"),
    ("media=video", 422, "media"),
]


@pytest.mark.parametrize(("query", "status", "option"), REFUSED)
def test_a_refused_event_source_gets_status_and_problems_as_json(query: str, status: int, option: str) -> None:
    async def talk() -> tuple[dict[str, Any], dict[str, Any]]:
        client = Client("http", query)
        return await client.begin(), await client.next()

    start, body = run(talk)
    answer = json.loads(body["body"])
    assert start["status"] == status and answer["detail"]
    assert [problem["option"] for problem in answer["problems"]] == ([option] if option else [])


@pytest.mark.parametrize(("query", "status", "option"), REFUSED)
def test_a_refused_websocket_is_closed_with_the_status_in_its_code(query: str, status: int, option: str) -> None:
    async def talk() -> tuple[dict[str, Any], dict[str, Any]]:
        client = Client("websocket", query)
        return await client.begin(), await client.next()

    accepted, closed = run(talk)
    assert accepted["type"] == "websocket.accept"
    assert (closed["type"], closed["code"]) == ("websocket.close", 4000 + status) and closed["reason"]


def test_a_stream_above_the_limit_is_refused_and_one_that_ends_makes_room(tmp_path: Path, hub: Hub) -> None:
    job_with(tmp_path, "one")
    hub.most_streams = 1

    async def talk() -> list[Any]:
        first, second, third = Client("http"), Client("http"), Client("http")
        statuses = [(await first.begin())["status"], (await first.events(1) and await second.begin())["status"]]
        await first.leave()
        statuses.append((await third.begin())["status"])
        await third.leave()
        return statuses

    assert run(talk) == [200, 503, 200]


def test_an_event_source_takes_get_alone() -> None:
    start = run(Client("http", method="POST").begin)
    assert start["status"] == 405 and (b"allow", b"GET") in start["headers"]


def test_a_reconnected_event_source_continues_behind_its_last_event(tmp_path: Path) -> None:
    job = job_with(tmp_path, "one", "two", "three")

    async def talk(query: str, last: str, count: int) -> list[tuple[str, dict[str, Any]]]:
        client = Client("http", query, last_event_id=last)
        await client.begin()
        found = await client.events(count)
        await client.leave()
        return found

    free, bound, given_up = (
        run(lambda: talk("", f"{job.pk}:0", 2)),
        run(lambda: talk(f"job_id={job.pk}&since_index=0", "1", 1)),
        run(lambda: talk("since_index=2", f"{uuid.uuid4()}:0", 1)),
    )
    assert [name for name, _ in free] == [f"{job.pk}:1", f"{job.pk}:2"] and messages([event for _, event in free]) == ["two", "three"]
    assert [(name, event["message"]) for name, event in bound] == [("2", "three")]
    assert [event["message"] for _, event in given_up] == ["three"]


def test_a_stream_goes_to_the_next_job_once_its_own_has_ended(tmp_path: Path) -> None:
    first, second = job_with(tmp_path, "one"), job_with(tmp_path, "two")
    Job.objects.filter(pk=first.pk).update(status=Status.COMPLETED)

    async def talk() -> list[str]:
        client = Client("websocket", "since_index=0")
        client.communicator.scope["query_string"] = f"last_event_id={first.pk}:0".encode()
        await client.begin()
        said = [json.loads((await client.next())["text"])]
        await client.leave()
        return [one["job_id"] + one["event"]["message"] for one in said]

    assert run(talk) == [f"{second.pk}two"]


def test_a_message_of_a_client_is_ignored(tmp_path: Path) -> None:
    job_with(tmp_path, "one", "two")

    async def talk() -> str:
        client = Client("websocket")
        await client.begin()
        await client.communicator.send_input({"type": "websocket.receive", "text": '{"stop": true}'})
        frame = await client.next()
        await client.leave()
        return str(frame["text"])

    assert json.loads(run(talk))["event"]["index"] == 0


def test_a_stream_ends_with_a_code_if_the_log_cannot_be_read_and_the_next_one_reads_again(tmp_path: Path, hub: Hub) -> None:
    """A failed read must not be handed to the clients that come back: nothing is written meanwhile that would clear it."""
    job_with(tmp_path, "one", "two")

    def rename(old: str, new: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")

    async def talk() -> tuple[Any, Any]:
        other = Client("websocket")  # keeps the tail alive, so that the hub keeps its readings
        await other.begin()
        await other.next()
        hub.wake = lambda: None  # type: ignore[method-assign]
        await asyncio.to_thread(rename, "training_event", "hidden_event")
        try:
            broken = Client("websocket", "since_index=1")
            await broken.begin()
            closed = await broken.next()
        finally:
            await asyncio.to_thread(rename, "hidden_event", "training_event")
        again = Client("websocket", "since_index=1")
        await again.begin()
        frame = await again.next()
        await again.leave()
        await other.leave()
        return closed, frame

    closed, frame = run(talk)
    assert (closed["type"], closed["code"]) == ("websocket.close", 1011)
    assert json.loads(frame["text"])["event"]["message"] == "two"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    query=st.dictionaries(st.sampled_from(["job_id", "since_index", "media"]), st.text(max_size=24) | st.integers().map(str)),
    last=st.text(max_size=60) | st.tuples(st.uuids() | st.just(""), st.integers()).map(lambda pair: f"{pair[0]}:{pair[1]}"),
)
def test_any_position_is_read_or_refused(query: dict[str, str], last: str) -> None:
    try:
        position = position_of(query, last)
    except TrainingRefused as refusal:
        assert refusal.status_code in (404, 422)
        return
    assert position.index >= 0 and read(position).frames == ()


def test_a_job_s_last_events_are_read_before_the_stream_moves_on(tmp_path: Path) -> None:
    first, second = job_with(tmp_path, "one"), job_with(tmp_path)
    Job.objects.filter(pk=first.pk).update(status=Status.ERROR)
    at_start = StreamPosition(first.pk, 0, is_bound=False)
    page = read(at_start)
    assert [frame.index for frame in page.frames] == [0] and page.next_position.job_id == first.pk
    assert read(page.next_position).next_position == StreamPosition(second.pk, 0, is_bound=False)
    bound = StreamPosition(first.pk, 1, is_bound=True)
    assert read(bound).next_position == bound
