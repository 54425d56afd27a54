"""Whatever stands in a journal, the log takes it or reports it, and every reader of the log goes on answering."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from tests.helpers.jobs import leased_job
from trainer_engine.config.webhooks import WebhookTarget
from trainer_engine.contract.events import CheckpointEvent, Event, ProgressEvent, StageEvent, StageKey, StageStatus, StatusEvent, encode
from training.api import media, representations, run_overview
from training.engine.journal import BrokenLine, read_entries
from training.jobs import log
from training.jobs.ingest import ingest
from training.models import Checkpoint, Job, Status
from training.webhooks import outbox

LINE: dict[str, Any] = {
    "seq": 0, "type": "notification", "timestamp": "2026-01-01T00:00:00.000000+00:00", "severity": "info",
    "title": "t", "message": "m", "body": "", "data": {},
}  # fmt: skip
TEXT = st.text(max_size=12) | st.sampled_from(["\ud800", "\0", "a\nb", "é", "1", "2026-01-01", "9999-12-31T23:59:59+00:00"])
NUMBER = st.integers(-(2**70), 2**70) | st.floats()
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(TEXT, part, max_size=3),
    max_leaves=8,
)
ADDED = ("stage", "checkpoint", "images", "videos")
TYPES = ("training.progress", "lifecycle.stage", "training.checkpoint", "validation.image", "training.status", "error")


def new_job(folder: Path, status: Status = Status.RUNNING) -> Job:
    job = leased_job(folder, status=status)
    job.folder.create()
    outbox.open_channels(job, [WebhookTarget("raw", "http://127.0.0.1:9/hook")], interval=1)
    return job


def take(job: Job, *lines: str | Event) -> Job:
    """The job after its journal grew by these lines."""
    texts = [line if isinstance(line, str) else encode(line, seq=number) for number, line in enumerate(lines)]
    job.folder.journal.write_text("\n".join(texts) + "\n")
    assert ingest(job.pk, "me", 0, read_entries(job.folder.journal, 0))
    return Job.objects.get(pk=job.pk)


def read_everywhere(job: Job) -> list[dict[str, Any]]:
    """The events of a job, after everybody who shows them was asked."""
    json.dumps(representations.job_status(job), allow_nan=False).encode()
    json.dumps(representations.job_rows(Job.objects.all())).encode()
    run_overview.progress(job)
    run_overview.newest_checkpoints(job)
    events = []
    for _, _, text in representations.encoded_events(job, 0, 100, as_links=True):
        events.append(json.loads(text.encode()))
        media.files_of(job, events[-1])
    return events


@pytest.mark.django_db
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    line=st.fixed_dictionaries(dict.fromkeys(LINE, JSON)),
    kept=st.sets(st.sampled_from(sorted(LINE))),
    kind=st.sampled_from(TYPES),
    added=st.dictionaries(st.sampled_from(ADDED), JSON),
    data=st.dictionaries(st.sampled_from(list(ProgressEvent.model_fields)), JSON),
)
def test_no_line_of_a_journal_stops_the_log_or_its_readers(
    tmp_path_factory: pytest.TempPathFactory, line: dict[str, Any], kept: set[str], kind: str, added: dict[str, Any], data: dict[str, Any]
) -> None:
    usual = {**LINE, "type": kind, "data": data}
    document = line | {key: usual[key] for key in kept} | added
    job = take(new_job(tmp_path_factory.mktemp("run")), json.dumps(document), encode(StatusEvent(status="stopping"), seq=2**40))
    shown = read_everywhere(job)
    assert shown[-1]["type"] == "training.status"
    Job.objects.all().delete()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seq": True}, "seq"),
        ({"seq": -1}, "seq"),
        ({"seq": 2**63}, "seq"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"timestamp": "2026-01-01T00:00:00"}, "timestamp"),
        ({"timestamp": "0001-01-01T00:00:00+14:00"}, "timestamp"),
        ({"type": "a\nid: 5"}, "type"),
        ({"type": "x" * 41}, "type"),
        ({"severity": None}, "severity"),
        ({"severity": "critical"}, "severity"),
        ({"title": 5}, "title"),
        ({"images": None}, "images"),
        ({"images": [{"file": 5}]}, "images"),
        ({"images": [{"file": "a.png", "mime_type": "text/html;base64,eA==\r\nx: y"}]}, "images"),
        ({"checkpoint": {"path": "/x", "step": "many"}}, "checkpoint"),
        ({"checkpoint": {"path": "/x", "size_bytes": 2**63}}, "checkpoint"),
        ({"type": "training.progress", "data": {"step": "1"}}, "step"),
        ({"type": "training.progress", "data": {"metrics": None}}, "metrics"),
        ({"data": {"loss": float("nan")}}, "nan"),
        ({"data": {"loss": float("inf")}}, "inf"),
        ({"data": json.loads('{"a":' * 70 + "1" + "}" * 70)}, "deeper"),
    ],
)
def test_a_line_that_nobody_could_show_is_broken_and_says_which_field(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps({**LINE, **changed}) + "\n" + json.dumps(LINE) + "\n")
    broken, good = read_entries(path, 0).entries
    assert isinstance(broken, BrokenLine) and named in broken.reason
    assert not isinstance(good, BrokenLine)


def test_every_event_of_the_contract_is_read(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "key": StageKey.VAE_CACHE, "status": StageStatus.RUNNING, "step": 1, "total_steps": 2, "epoch": 1, "loss": None,
        "learning_rate": 0, "grad_norm": None, "samples_per_second": 1, "seconds_per_step": 1, "eta_seconds": 0, "path": "/x", "label": "l",
        "size_bytes": 1, "steps": 1, "seconds": 1.5, "final_loss": None, "global_step": 1, "resolution": (64, 64), "prompt": "p",
        "validation_type": "final", "step_label": "1/1", "code": "c",
    }  # fmt: skip
    lines = []
    for kind in Event.__subclasses__():
        needed = {name: values[name] for name in kind.model_fields if name in values}
        if kind is StatusEvent:
            needed["status"] = "running"
        lines.append(encode(kind(**needed), seq=len(lines)))
    path = tmp_path / "journal.jsonl"
    path.write_text("\n".join(lines) + "\n")
    entries = read_entries(path, 0).entries
    assert len(entries) == len(Event.__subclasses__()) and not any(isinstance(entry, BrokenLine) for entry in entries)


@pytest.mark.django_db
def test_half_a_surrogate_pair_reaches_every_reader_as_an_escape(tmp_path: Path) -> None:
    line = {**LINE, "type": "validation.image", "title": "a \udcff b", "images": [{"file": "gone.png"}]}
    job = take(new_job(tmp_path), json.dumps(line))
    ((_, _, text),) = representations.encoded_events(job, 0, 10)
    assert "\\udcff" in text
    client = APIClient()
    for address in ("events", "events?format=json"):
        answer = client.get(f"/api/training/{address}", HTTP_HOST="localhost")
        assert answer.status_code == 200 and "\\udcff" in answer.content.decode()


@pytest.mark.django_db
def test_a_first_progress_event_moves_the_job_to_running_by_itself(tmp_path: Path) -> None:
    progress = ProgressEvent(
        step=3, total_steps=8, epoch=1, loss=0.5, learning_rate=1e-4, grad_norm=None,
        samples_per_second=1.0, seconds_per_step=1.0, eta_seconds=5.0, metrics={"snr": 2.0},
    )  # fmt: skip
    job = take(new_job(tmp_path, Status.STARTING), progress)
    assert job.status == Status.RUNNING
    assert [event["type"] for event in read_everywhere(job)] == ["training.status", "training.progress"]
    shown = representations.job_status(job)["progress"]
    assert (shown["percent"], shown["step"], shown["metrics"]["snr"]) == (37.5, 3, 2.0)


@pytest.mark.django_db
@pytest.mark.parametrize("status", ["completed", "stopped", "error", "cancelled", "queued", "starting", "sleeping", ""])
def test_an_engine_cannot_end_its_job_or_send_it_back(tmp_path: Path, status: str) -> None:
    job = take(new_job(tmp_path), StatusEvent(status=status))
    assert job.status == Status.RUNNING and not job.events.exists()


@pytest.mark.django_db
def test_a_checkpoint_that_is_announced_twice_is_one_row_with_the_last_words(tmp_path: Path) -> None:
    first = CheckpointEvent(path="/out/checkpoint-5", label="rolling", step=5, size_bytes=7)
    job = take(new_job(tmp_path), first, first.model_copy(update={"is_final": True, "size_bytes": 9}))
    row = Checkpoint.objects.get()
    assert (row.name, row.is_final, row.size_bytes, job.checkpoint) == ("checkpoint-5", True, 9, "checkpoint-5")


@pytest.mark.django_db
def test_stages_keep_their_last_progress_under_their_key(tmp_path: Path) -> None:
    stages = [StageEvent(key=StageKey.VAE_CACHE, status=StageStatus.RUNNING, current=current, total=4) for current in (0, 3)]
    load = StageEvent(key=StageKey.LOAD_BASE_MODEL, status=StageStatus.COMPLETED)
    job = take(new_job(tmp_path), *stages, load, json.dumps({**LINE, "seq": 9, "type": "lifecycle.stage", "stage": {"key": "odd"}}))
    assert job.startup["init_vae_cache"] | {"label": ""} == {
        "label": "", "progress_type": "counted", "status": "running", "percent": 75.0, "current": 3, "total": 4,
    }  # fmt: skip
    assert job.startup["init_load_base_model"]["progress_type"] == "indeterminate"
    assert set(job.startup) == {"init_vae_cache", "init_load_base_model"}


@pytest.mark.django_db
def test_a_reading_by_a_former_follower_writes_nothing(tmp_path: Path) -> None:
    job = new_job(tmp_path)
    job.folder.journal.write_text(json.dumps(LINE) + "\n")
    reading = read_entries(job.folder.journal, 0)
    for change in ({"lease_owner": "other"}, {"lease_owner": "me", "status": Status.CANCELLED}):
        Job.objects.filter(pk=job.pk).update(**change)
        assert not ingest(job.pk, "me", 0, reading)
    assert not ingest(uuid.uuid4(), "me", 0, reading)
    assert not job.events.exists()


@pytest.mark.django_db
def test_the_server_s_events_stand_between_those_of_the_journal(tmp_path: Path) -> None:
    job = take(new_job(tmp_path), json.dumps(LINE))
    log.append(job.pk, [log.warning_event("disk_is_low", "soon full")])
    job.folder.journal.write_text(json.dumps(LINE) + "\n" + json.dumps({**LINE, "seq": 1}) + "\n")
    reading = read_entries(job.folder.journal, job.journal_offset)
    assert ingest(job.pk, "me", job.journal_offset, reading)
    assert list(job.events.order_by("index").values_list("index", "seq")) == [(0, 0), (1, None), (2, 1)]
