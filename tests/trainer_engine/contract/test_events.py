"""Every event becomes one line of JSON and back."""

from __future__ import annotations

import json
import math
from datetime import datetime

import pytest

from trainer_engine.contract.events import (
    STAGE_LABELS,
    CheckpointEvent,
    ErrorEvent,
    Event,
    ImageEvent,
    MediaFile,
    Notification,
    ProgressEvent,
    StageEvent,
    StageKey,
    StageStatus,
    StatusEvent,
    SummaryEvent,
    decode,
    encode,
)

PROGRESS = ProgressEvent(
    step=3,
    total_steps=10,
    epoch=1,
    loss=0.5,
    learning_rate=1e-4,
    grad_norm=0.1,
    samples_per_second=2.0,
    seconds_per_step=0.5,
    eta_seconds=3.5,
)
EVERY: list[Event] = [
    StageEvent(key=StageKey.VAE_CACHE, status=StageStatus.RUNNING, current=1, total=4),
    StatusEvent(status="running"),
    PROGRESS,
    CheckpointEvent(path="/out/checkpoint-3", label="checkpoint-3", step=3, size_bytes=12),
    SummaryEvent(steps=10, seconds=1.5, final_loss=0.2, artefacts={"pipeline": "/out/pipeline"}),
    ImageEvent(
        step=20,
        global_step=3,
        resolution=(64, 64),
        validation_type="final",
        prompt="a <token>",
        step_label="20/20",
        images=[MediaFile(file="media/a.png")],
    ),
    Notification(message="hello", code="note"),
    ErrorEvent(message="the disk is full", code="disk_full", hint="free some space"),
]


@pytest.mark.parametrize("event", EVERY, ids=lambda event: event.type.value)
def test_an_event_is_one_line_that_reads_back(event: Event) -> None:
    line = encode(event, seq=7)
    assert "\n" not in line
    entry = decode(line)
    assert (entry.seq, entry.type, (entry.title, entry.message)) == (7, event.type.value, event.words())
    assert datetime.fromisoformat(entry.timestamp).utcoffset() is not None
    assert entry.data == json.loads(line)["data"]


def test_the_list_above_holds_every_kind_of_event() -> None:
    assert {type(event) for event in EVERY} == set(Event.__subclasses__())


def test_a_stage_carries_its_progress_at_the_top_level() -> None:
    entry = decode(encode(EVERY[0], seq=0))
    stage = entry.extra["stage"]
    assert (stage["key"], stage["status"]) == ("init_vae_cache", "running")
    assert (stage["progress"]["current"], stage["progress"]["total"], stage["progress"]["percent"]) == (1, 4, 25.0)


def test_a_frequent_event_states_its_own_type_and_text() -> None:
    stage, step = decode(encode(EVERY[0], seq=0)), decode(encode(PROGRESS, seq=1))
    assert (stage.title, stage.message) == ("Caching image latents", "Caching image latents: running, 1 of 4.")
    assert (step.title, step.message) == ("Step 3 of 10", "Step 3 of 10: loss 0.5.")


def test_a_completed_stage_without_a_count_is_complete() -> None:
    entry = decode(encode(StageEvent(key=StageKey.MODEL_SAVE, status=StageStatus.COMPLETED), seq=0))
    assert entry.extra["stage"]["progress"]["percent"] == 100.0


def test_a_loss_that_is_not_a_number_becomes_null() -> None:
    entry = decode(encode(PROGRESS.model_copy(update={"loss": math.nan, "grad_norm": math.inf}), seq=0))
    assert entry.data["loss"] is None
    assert entry.data["grad_norm"] is None


def test_a_text_with_line_ends_stays_one_line() -> None:
    line = encode(Notification(message="two\nlines\u2028and a separator"), seq=0)
    assert len(line.split("\n")) == 1
    assert decode(line).message.startswith("two\nlines")


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"seq": 1}', "not json", '"text"', "[" * 100_000, '{"a":' * 9000])
def test_a_line_that_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        decode(line)


def test_every_stage_has_a_label() -> None:
    assert set(STAGE_LABELS) == set(StageKey)
