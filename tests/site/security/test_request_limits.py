"""Long bodies are answered with 413, whether or not they say how long they are."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from simpletuner_site.edge.uploads import BodySizes
from simpletuner_site.security.request_limits import BodyLimit, Downloads, Turns

LIMIT = 1000


def post(
    chunks: list[bytes], headers: list[tuple[bytes, bytes]] | None = None, *, answers_first: bool = False
) -> tuple[list[dict[str, Any]], int]:
    """What is sent, and how many bytes the application got to see."""
    sent: list[dict[str, Any]] = []
    waiting = list(chunks)
    seen = 0

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        nonlocal seen
        if answers_first:
            await send({"type": "http.response.start", "status": 200})
        while True:
            message = await receive()
            seen += len(message["body"])
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    asyncio.run(BodyLimit(inner, BodySizes(LIMIT, 2 * LIMIT))({"type": "http", "headers": headers or []}, receive, send))
    return sent, seen


def test_a_body_of_the_limit_is_read() -> None:
    sent, seen = post([b"x" * 600, b"x" * 400], [(b"content-length", b"1000")])
    assert (sent[0]["status"], seen) == (200, 1000)


def test_an_announced_body_that_is_too_long_is_refused_unread() -> None:
    sent, seen = post([b"x"], [(b"content-length", b"1001")])
    assert (sent[0]["status"], seen) == (413, 0)
    answer = json.loads(sent[1]["body"])
    assert "longer than" in answer["detail"]
    assert answer["problems"] == []


def test_a_body_that_turns_out_too_long_is_refused_before_it_is_whole() -> None:
    sent, seen = post([b"x" * 600, b"x" * 600, b"x" * 600])
    assert (sent[0]["status"], seen) == (413, 600)


def test_a_length_that_is_no_number_decides_nothing() -> None:
    assert post([b"x"], [(b"content-length", b"many")])[0][0]["status"] == 200


def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    sent, _ = post([b"x" * 2000], answers_first=True)
    assert [message["status"] for message in sent if "status" in message] == [200]


def test_sockets_are_left_alone() -> None:
    seen: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def nothing(*arguments: Any) -> Any:
        raise AssertionError

    asyncio.run(BodyLimit(inner, BodySizes(0, 0))({"type": "websocket", "headers": []}, nothing, nothing))
    assert seen == ["websocket"]


async def nothing(*arguments: Any) -> Any:
    return {}


def test_no_more_than_the_limit_run_at_once_and_all_run() -> None:
    running, most, done = 0, 0, 0

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        done += 1

    async def all_at_once() -> None:
        turns = Turns(inner, 3)
        await asyncio.gather(*(turns({}, nothing, nothing) for _ in range(50)))

    asyncio.run(all_at_once())
    assert (most, done, running) == (3, 50, 0)


def test_a_request_that_is_given_up_while_it_waits_takes_no_turn() -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await gate.wait()

    async def give_up() -> None:
        turns = Turns(inner, 1)
        first = asyncio.ensure_future(turns({}, nothing, nothing))
        second = asyncio.ensure_future(turns({}, nothing, nothing))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        gate.set()
        await first
        await asyncio.wait_for(turns({}, nothing, nothing), 5)

    gate = asyncio.Event()
    asyncio.run(give_up())


def test_downloads_beyond_a_few_are_refused_and_other_calls_are_not() -> None:
    async def run() -> list[int]:
        statuses: list[int] = []
        done = asyncio.Event()

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            if "/files/" in scope["path"]:
                await done.wait()
            await send({"type": "http.response.start", "status": 200})

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        app = Downloads(inner, most_at_once=2)

        def asked(path: str) -> asyncio.Task[None]:
            return asyncio.create_task(app({"type": "http", "path": path}, send, send))

        under_way = [asked("/api/training/jobs/one/files/checkpoint-1/ema.safetensors") for _ in range(2)]
        await asyncio.sleep(0)
        await asked("/api/training/jobs/one/files/a")
        await asked("/api/training/status")
        done.set()
        await asyncio.gather(*under_way)
        await asked("/api/training/jobs/one/files/a")
        return statuses

    assert asyncio.run(run()) == [503, 200, 200, 200, 200]
