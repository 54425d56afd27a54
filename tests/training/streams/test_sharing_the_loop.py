"""Whoever replays a long log lets others in between, and gets the text that is stored."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.jobs import make_job
from training.api import representations
from training.jobs import log
from training.models import Event
from training.streams import tail
from training.streams.consumers import EventSocket, EventSource, Streaming, batches
from training.streams.tail import Frame, StreamPosition

JOB = uuid.uuid4()


def frames(count: int, size: int = 10) -> tuple[Frame, ...]:
    return tuple(Frame(JOB, index, "training.progress", "x" * size) for index in range(count))


def test_batches_are_small_whole_and_in_order() -> None:
    assert [len(batch) for batch in batches(frames(45))] == [20, 20, 5]
    assert [len(batch) for batch in batches(frames(3, size=1_000_000))] == [1, 1, 1]
    assert list(batches(())) == []
    assert [frame.index for batch in batches(frames(100)) for frame in batch] == list(range(100))


@pytest.mark.parametrize("kind", [EventSource, EventSocket])
def test_a_replay_lets_others_have_the_event_loop(kind: type[Streaming], monkeypatch: pytest.MonkeyPatch) -> None:
    async def follow(position: StreamPosition) -> AsyncIterator[tuple[Frame, ...]]:
        yield frames(1_000)

    async def send(message: Any) -> None:
        sent.append(message)

    async def other() -> None:
        while True:
            turns.append(None)
            await asyncio.sleep(0)

    async def replay() -> None:
        beside = asyncio.ensure_future(other())
        consumer = kind()
        consumer.base_send = send
        await consumer._write(StreamPosition(JOB, 0, is_bound=True))
        beside.cancel()

    sent: list[Any] = []
    turns: list[None] = []
    monkeypatch.setattr(tail.HUB, "follow", follow)
    asyncio.run(replay())
    assert len(turns) >= 1_000 / 20
    text = "".join(message.get("text") or message.get("body", b"").decode() for message in sent)
    assert text.count("xxxxxxxxxx") == 1_000


@pytest.mark.django_db
def test_a_stored_payload_is_shown_as_it_was_written(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    payloads: list[dict[str, Any]] = [
        {},
        {"title": "é \N{GRINNING FACE} \\ \" \u2028", "message": "<b>", "data": {"loss": 1e-7, "big": 2**70, "none": None, "list": [True]}},
        {"title": "t", "images": [{"file": "gone.png", "mime_type": "image/png"}]},
        {"title": 'speaks of "images"', "data": {"images": 3}},
        {"title": "many", "images": []},
    ]  # fmt: skip
    rows = [Event(job=job, index=index, type="a.b", timestamp="2026", payload=payload) for index, payload in enumerate(payloads)]
    Event.objects.bulk_create(rows)
    texts = [text for _, _, text in representations.encoded_events(job, 0, 100)]
    assert [json.loads(text) for text in texts] == [
        representations.event(job, (row.index, row.type, row.timestamp, row.severity, json.loads(json.dumps(row.payload)))) for row in rows
    ]
    assert len(representations.encoded_events(job, 3, 1)) == 1


@pytest.mark.django_db
def test_the_server_s_own_events_are_read_back(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    log.append(job.pk, [log.error_event("disk", 'It said "no".', "delete something")])
    ((_, _, text),) = representations.encoded_events(job, 0, 10)
    assert json.loads(text)["message"] == 'It said "no".' and json.loads(text)["job_id"] == str(job.pk)


def test_freezing_leaves_loaded_modules_out_of_collections() -> None:
    code = (
        "import gc; from simpletuner_site.server import boot; boot.freeze_garbage(); print(gc.get_freeze_count(), len(gc.get_objects(2)))"
    )
    frozen, left = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(frozen) > 10 * int(left)
