"""An ended job is deleted with everything that the server keeps of it; what the run saved for the user stays."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from django.test import Client
from rest_framework.test import APIClient

from environments.home import current_home
from environments.secrets import store
from tests.helpers.jobs import make_job, start_fake
from training.engine import process
from training.jobs import log
from training.models import TERMINAL, Checkpoint, Event, Job, Status, WebhookChannel, WebhookDelivery
from training.upkeep import deletion
from training.upkeep.deletion import JobIsActive, delete_job, remove_run_folder

pytestmark = pytest.mark.django_db


def ended(home: Path, status: Status = Status.COMPLETED, events: int = 5) -> Job:
    """A job with a row in every table and a file in every folder."""
    job = make_job(home / "state", status)
    log.append(job.pk, [log.warning_event("test", str(number)) for number in range(events)])
    Checkpoint.objects.create(job=job, name="checkpoint-1", path="x", step=1)
    channel = WebhookChannel.objects.create(job=job, place=0, target={"kind": "raw", "url": "http://127.0.0.1/x"})
    WebhookDelivery.objects.create(channel=channel, index=1)
    store.write(current_home(), store.of_job(job.pk), {"hub_token": "secret"})
    folder = job.folder.create()
    folder.journal.write_text("{}\n")
    (folder.media / "a.png").write_bytes(b"x")
    (Path(job.output_dir) / "checkpoint-1").mkdir(parents=True)
    return job


@pytest.mark.parametrize("status", TERMINAL)
def test_everything_of_an_ended_job_goes_but_its_results(home: Path, status: Status) -> None:
    job, other = ended(home, status), ended(home)
    answer = APIClient().delete(f"/api/training/jobs/{job.pk}")
    assert answer.status_code == 200 and answer.json()["job_id"] == str(job.pk)
    assert [row.pk for row in Job.objects.all()] == [other.pk]
    for rows in (Event, Checkpoint, WebhookChannel):
        assert set(rows.objects.values_list("job_id", flat=True)) == {other.pk}
    assert WebhookDelivery.objects.count() == 1
    assert not job.folder.path.exists() and other.folder.journal.exists()
    assert store.read(current_home(), store.of_job(job.pk)) == {} != store.read(current_home(), store.of_job(other.pk))
    assert (Path(job.output_dir) / "checkpoint-1").is_dir() and answer.json()["output_dir"] == job.output_dir
    assert APIClient().delete(f"/api/training/jobs/{job.pk}").status_code == 404
    assert APIClient().get(f"/api/training/events?job_id={job.pk}").status_code == 404


@pytest.mark.parametrize("status", [one for one in Status if one not in TERMINAL])
def test_a_job_that_waits_or_trains_is_not_deleted(home: Path, status: Status) -> None:
    job = ended(home, status)
    answer = APIClient().delete(f"/api/training/jobs/{job.pk}")
    assert answer.status_code == 409 and "Cancel it first" in answer.json()["detail"]
    assert Event.objects.filter(job=job).count() == 5 and job.folder.path.exists()


def test_a_job_whose_engine_is_still_there_is_not_deleted(home: Path) -> None:
    job = ended(home)
    identity = start_fake(job, "completes", steps=1000)
    try:
        with pytest.raises(JobIsActive):
            delete_job(job)
    finally:
        process.kill(identity, job.folder)
        os.waitpid(identity.pid, 0)
    delete_job(Job.objects.get(pk=job.pk))
    assert not Job.objects.exists()


def test_many_events_are_deleted_in_several_transactions(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "ROWS_AT_ONCE", 3)
    job = ended(home, events=10)
    delete_job(job)
    delete_job(job)
    assert not Event.objects.exists()


@pytest.mark.parametrize("job_id", [str(uuid.UUID(int=7)), "nonsense", "..%2f..", "0"])
def test_an_unknown_job_is_not_found(home: Path, job_id: str) -> None:
    assert APIClient().delete(f"/api/training/jobs/{job_id}").status_code == 404


def test_no_folder_but_those_of_runs_is_removed(home: Path, tmp_path: Path) -> None:
    runs, foreign = home / "state/runs", tmp_path / "foreign"
    for folder in (runs, foreign):
        folder.mkdir()
        (folder / "file").write_text("stays")
    (runs / "linked").symlink_to(foreign)
    for path in (runs / "linked", foreign, home / "state", runs / "..", runs / "nowhere", Path("/")):
        assert not remove_run_folder(path)
    assert (foreign / "file").exists() and (runs / "file").exists()


def test_an_ended_run_is_deleted_by_its_button_and_from_the_list(home: Path, client: Client) -> None:
    one, two, active = ended(home), ended(home), ended(home, Status.RUNNING)
    page = client.get(f"/admin/training/job/{one.pk}/change/").content
    assert b"Delete this run" in page
    assert b"Delete this run" not in client.get(f"/admin/training/job/{active.pk}/change/").content
    client.get(f"/admin/training/job/{one.pk}/delete-run/")
    assert Job.objects.filter(pk=one.pk).exists(), "a link deletes nothing"
    answer = client.post(f"/admin/training/job/{one.pk}/delete-run/")
    assert answer.status_code == 302 and answer.url == "/admin/training/job/"
    chosen = {"action": "delete_ended", "_selected_action": [str(two.pk), str(active.pk)]}
    listed = client.post("/admin/training/job/", chosen, follow=True).content
    assert b"was deleted" in listed and b"Cancel it first" in listed
    assert [job.pk for job in Job.objects.all()] == [active.pk]
