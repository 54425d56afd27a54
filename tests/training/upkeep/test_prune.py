"""Ended runs are thinned and their folders removed by age and size; indexes of events keep their meaning."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from rest_framework.test import APIClient

from simpletuner_site.environment import BadEnvironment, read_environment
from tests.helpers.jobs import make_job
from trainer_engine.contract.events import ProgressEvent
from trainer_engine.report.journal import read_contents
from training.jobs import log
from training.models import Event, Job, Status
from training.upkeep import thinning
from training.upkeep.prune import PrunePolicy, prune
from training.upkeep.thinning import kept_positions, thin_events, thin_journal

pytestmark = pytest.mark.django_db
NOW = datetime(2030, 1, 1, tzinfo=timezone.utc)


@pytest.fixture(autouse=True)
def few_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thinning, "KEPT", 10)


def progress(step: int) -> ProgressEvent:
    rates = {"samples_per_second": 1.0, "seconds_per_step": 1.0, "eta_seconds": 1.0}
    return ProgressEvent(step=step, total_steps=500, epoch=1, loss=0.5, learning_rate=1e-4, grad_norm=1.0, **rates)


def journal_line(number: int, event: Any) -> str:
    line = {"seq": number, "type": event.type.value, "timestamp": "2030-01-01T00:00:00Z", "data": event.data()}
    return json.dumps(line, separators=(",", ":"))


def run(home: Path, *, days: float, steps: int = 100, status: Status = Status.COMPLETED) -> Job:
    """A run that ended so many days before ``NOW``, with a warning after every seventh step."""
    job = make_job(home / "state", status, finished_at=NOW - timedelta(days=days))
    events: list[Any] = []
    lines: list[str] = []
    for step in range(1, steps + 1):
        events.append(log.from_server(progress(step)))
        lines.append(journal_line(len(lines), progress(step)))
        if step % 7 == 0:
            events.append(log.warning_event("seventh", f"after step {step}"))
    log.append(job.pk, events)
    job.folder.create().journal.write_text("\n".join(lines) + "\n")
    job.folder.log.write_bytes(b"x" * 1000)
    job.refresh_from_db()
    return job


def answered(job: Job, since: int = 0) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = APIClient().get(f"/api/training/events?job_id={job.pk}&since_index={since}").json()["events"]
    return events


def steps_of(job: Job) -> list[int]:
    return [event["data"]["step"] for event in answered(job) if event["type"] == "training.progress"]


def missing_indexes(events: list[dict[str, Any]], end: int) -> set[int]:
    return set(range(end)) - {event["index"] for event in events}


def announced(events: list[dict[str, Any]]) -> dict[range, int]:
    """The ranges that events say are thinned -> how many events are gone of each."""
    return {range(event["thinned"]["since_index"], event["index"]): event["thinned"]["count"] for event in events if "thinned" in event}


@pytest.mark.parametrize("count", [0, 1, 10, 11, 12, 100, 1000, 12_345])
def test_positions_that_stay_are_few_and_spread_from_the_first_to_the_last(count: int) -> None:
    kept = kept_positions(count)
    assert len(kept) <= 11 and kept == sorted(set(kept)) and len(kept) >= min(count, 10)
    assert not count or (kept[0], kept[-1]) == (0, count - 1)
    assert kept_positions(len(kept)) == list(range(len(kept))), "what was thinned stays as it is"


def test_thinned_events_keep_their_indexes_and_say_what_is_gone(home: Path) -> None:
    job = run(home, days=40)
    before = {event["index"]: event for event in answered(job)}
    removed = thin_events(job)
    events = answered(job)
    assert removed == 90 and len(events) == len(before) - removed
    for event in events:
        thinned = event.pop("thinned", None)
        assert event == before[event["index"]] and (thinned is None or event["type"] == "training.progress")
    events = answered(job)
    gone = missing_indexes(events, job.next_index)
    ranges = announced(events)
    assert sum(ranges.values()) == len(gone) == removed
    assert all(sum(index in gone for index in indexes) == count for indexes, count in ranges.items())
    assert [event["message"] for event in events if event["type"] == "notification"] == [f"after step {step}" for step in range(7, 101, 7)]
    assert (steps_of(job)[0], steps_of(job)[-1]) == (1, 100)
    middle = events[8]["index"] - 1
    assert answered(job, middle)[0]["index"] == events[8]["index"], "an index that is gone leads to the next event"
    assert thin_events(job) == 0


def test_thinning_that_was_interrupted_goes_on_and_counts_right(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = run(home, days=40)
    monkeypatch.setattr(thinning, "ROWS_AT_ONCE", 5)
    done: list[int] = []
    between = thinning._thin_between

    def breaks(*args: Any) -> int:
        done.append(1)
        if len(done) == 6:
            raise KeyboardInterrupt
        return between(*args)

    monkeypatch.setattr(thinning, "_thin_between", breaks)
    with pytest.raises(KeyboardInterrupt):
        thin_events(job)
    monkeypatch.setattr(thinning, "_thin_between", between)
    thin_events(job)
    events = answered(job)
    gone, ranges = missing_indexes(events, job.next_index), announced(events)
    assert sum(ranges.values()) == len(gone)
    assert all(any(index in indexes for indexes in ranges) for index in gone)


def test_a_thinned_journal_draws_the_same_course(home: Path) -> None:
    job = run(home, days=40)
    journal = job.folder.journal
    saved, size = thin_journal(journal), journal.stat().st_size
    contents = read_contents(journal)
    assert saved > 5 * size and list(contents.steps) == steps_after(job) and contents.total_steps == 500
    assert thin_journal(journal) == 0 and thin_journal(journal.with_name("nowhere")) == 0


def steps_after(job: Job) -> list[int]:
    """The steps that the log keeps are those that the journal keeps."""
    thin_events(job)
    return steps_of(job)


def test_a_pass_thins_old_runs_and_leaves_young_and_active_ones_alone(home: Path) -> None:
    old, young, active = run(home, days=31), run(home, days=29), run(home, days=50, status=Status.RUNNING)
    planned = prune(PrunePolicy(), remove_now=False, now=NOW.timestamp())
    assert planned.thinned_runs == 1 and len(steps_of(old)) == 100
    done = prune(PrunePolicy(), remove_now=True, now=NOW.timestamp())
    assert (done.thinned_runs, done.thinned_events, done.removed_folders) == (1, 90, 0) and done.bytes > 1000
    assert [len(steps_of(job)) for job in (old, young, active)] == [10, 100, 100]
    assert old.folder.log.exists()
    assert prune(PrunePolicy(), remove_now=True, now=NOW.timestamp()).thinned_events == 0


def test_folders_go_by_age_and_by_size_the_oldest_first(home: Path) -> None:
    jobs = [run(home, days=days, steps=1) for days in (100, 60, 40, 1)]
    active = run(home, days=200, steps=1, status=Status.RUNNING)
    by_age = PrunePolicy(thin_events_days=0, keep_runs_days=90)
    assert prune(by_age, remove_now=False, now=NOW.timestamp()).removed_folders == 1
    assert jobs[0].folder.path.exists()
    assert prune(by_age, remove_now=True, now=NOW.timestamp()).removed_folders == 1
    by_size = PrunePolicy(thin_events_days=0, keep_runs_gb=2800e-9)
    done = prune(by_size, remove_now=True, now=NOW.timestamp())
    assert [job.folder.path.exists() for job in [*jobs, active]] == [False, False, True, True, True] and done.removed_folders == 1
    assert Job.objects.count() == 5 and Event.objects.filter(job=jobs[0]).exists(), "the log stays"
    log_text = APIClient().get(f"/api/training/jobs/{jobs[0].pk}/log")
    assert log_text.status_code == 200 and log_text.content == b""


def test_folders_of_runs_without_a_job_go_once_they_have_ended(home: Path) -> None:
    runs = home / "state/runs"
    for name in ("ended", "unknown"):
        (runs / name).mkdir(parents=True)
        (runs / name / "journal.jsonl").write_text("")
    (runs / "ended" / "exit.json").write_text('{"exit_code": 0}')
    policy = PrunePolicy(keep_runs_days=1)
    later = datetime.now(timezone.utc) + timedelta(days=2)
    assert prune(policy, remove_now=True, now=later.timestamp()).removed_folders == 1
    assert [folder.name for folder in runs.iterdir()] == ["unknown"]


@pytest.mark.parametrize(
    ("text", "value"), [("12", 12.0), ("0.5", 0.5), ("", 0.0), ("0", 0.0), ("-1", None), ("nan", None), ("many", None), ("1e9", None)]
)
def test_the_policy_is_read_from_variables(text: str, value: float | None) -> None:
    variables = {"SIMPLETUNER_KEEP_RUNS_GB": text}
    if value is None:
        with pytest.raises(BadEnvironment, match="SIMPLETUNER_KEEP_RUNS_GB"):
            read_environment(variables)
    else:
        assert PrunePolicy(**dict(read_environment(variables).prune)) == PrunePolicy(keep_runs_gb=value)
    assert PrunePolicy(**dict(read_environment({}).prune)) == PrunePolicy(thin_events_days=30)
