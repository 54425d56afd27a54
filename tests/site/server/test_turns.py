"""So many requests at once in Django, and everybody gets a turn."""

from __future__ import annotations

import asyncio
from typing import Any

from simpletuner_site.server.turns import Turns


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
