"""Runs in the admin: seen, stopped, and started from an environment's page."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import pytest
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory

from environments import services as environments
from environments.admin.actions import Onward, find_object_action
from environments.create.plan import NewEnvironment
from tests.helpers.jobs import make_job
from tests.training.conftest import Training
from tests.training.pages.test_run_page import PROGRESS, append, image, progress
from trainer_engine.contract.events import ErrorEvent, Notification
from training.errors import CannotStart
from training.jobs import log
from training.models import Checkpoint, Event, Job, Status
from training.pages.event_lines import LINES

pytestmark = pytest.mark.django_db


def test_the_list_and_a_job_can_be_read(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, progress={"step": 3, "total_steps": 9, "loss": 0.5}, environment="demo")
    log.append(job.pk, [log.status_event(Status.QUEUED, "<b>waits</b>")])
    listed = client.get("/admin/training/job/")
    assert listed.status_code == 200 and b"3 of 9" in listed.content and f"/api/training/jobs/{job.pk}/log".encode() in listed.content
    page = client.get(f"/admin/training/job/{job.pk}/change/").content
    assert b"&lt;b&gt;waits" in page and b"Take out of the queue" in page and b"Stop: save and end" not in page
    assert client.post("/admin/training/job/add/").status_code == 403
    assert client.post(f"/admin/training/job/{job.pk}/delete/").status_code == 403


def test_a_job_is_cancelled_by_its_button_and_not_by_a_link(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    client.get(f"/admin/training/job/{job.pk}/cancel/")
    assert Job.objects.get(pk=job.pk).status == Status.QUEUED
    client.post(f"/admin/training/job/{job.pk}/cancel/")
    assert Job.objects.get(pk=job.pk).status == Status.CANCELLED


def test_jobs_are_stopped_from_the_list(home: Path, client: Client, tmp_path: Path) -> None:
    jobs = [make_job(tmp_path) for _ in range(2)]
    client.post("/admin/training/job/", {"action": "stop", "_selected_action": [str(job.pk) for job in jobs]})
    assert set(Job.objects.values_list("status", flat=True)) == {Status.CANCELLED}


def admin_request() -> HttpRequest:
    """A request that can be given messages."""
    request = RequestFactory().post("/admin/")
    SessionMiddleware(lambda _: HttpResponse()).process_request(request)
    MessageMiddleware(lambda _: HttpResponse()).process_request(request)
    return request


def test_an_environment_is_started_by_its_button(training: Training, client: Client) -> None:
    environments.create_environment(
        NewEnvironment(name="demo", model_family="pixart_sigma", model_type="full", description=""), actor="test"
    )
    action = find_object_action("start")
    assert action is not None and action.is_primary
    with pytest.raises(CannotStart, match="problems"):
        action.run(admin_request(), environments.find("demo"))
    config = {name.lstrip("-"): value for name, value in training.form.items() if not name.startswith("__")}
    environments.update_environment("demo", config=config, actor="test")
    said = action.run(admin_request(), environments.find("demo"))
    job = Job.objects.get()
    assert job.environment == "demo" and said == Onward(f"Training demo as run {job.number}.", f"/runs/{job.number}")


def test_starting_from_the_page_trains_the_values_that_were_typed(training: Training, client: Client) -> None:
    environments.create_environment(NewEnvironment(name="demo", model_family="pixart_sigma", model_type="full"), actor="test")
    config = {name.lstrip("-"): value for name, value in training.form.items() if not name.startswith("__")}
    row, _ = environments.update_environment("demo", config=config, actor="test")
    address = f"/admin/environments/environment/{row.pk}/change/"
    assert b"Save and start" in client.get(address).content
    sent = {f"option_{name}": value for name, value in config.items()} | {"option_max_train_steps": "100", "tags_text": "", "_act": "start"}
    datasets = (training.home / "config" / "datasets.json").read_text()
    answer = client.post(address, {**sent, "datasets_text": datasets, "description": ""}, follow=True)
    page, job = answer.content.decode(), Job.objects.get()
    assert answer.redirect_chain[-1][0] == f"/runs/{job.number}", "a start leads to its run"
    assert "Saved demo." in page and f"Training demo as run {job.number}." in page
    assert Job.objects.get().options["max_train_steps"] == 100


def test_checking_from_the_page_saves_and_shows_every_problem_and_starts_nothing(training: Training, client: Client) -> None:
    environments.create_environment(NewEnvironment(name="demo", model_family="pixart_sigma", model_type="full"), actor="test")
    config = {name.lstrip("-"): value for name, value in training.form.items() if not name.startswith("__")}
    row, _ = environments.update_environment("demo", config=config, actor="test")
    address = f"/admin/environments/environment/{row.pk}/change/"
    assert b"Save and check" in client.get(address).content
    sent = {f"option_{name}": value for name, value in config.items()} | {"tags_text": "", "description": "", "_act": "check"}
    sent["datasets_text"] = (training.home / "config" / "datasets.json").read_text()
    advised = {"option_lr_warmup_steps": "50", "option_lr_scheduler": "cosine", "option_max_train_steps": "30"}
    page = client.post(address, {**sent, **advised}, follow=True).content.decode()
    assert "Saved demo." in page and "No problem was found: demo can be started." in page and "Note: lr_warmup_steps" in page
    shutil.rmtree(training.home / "pictures")
    page = client.post(address, {**sent, "option_max_train_steps": "31"}, follow=True).content.decode()
    assert "demo can be started." not in page and 'class="error"' in page
    assert environments.find("demo").config["max_train_steps"] == 31 and not Job.objects.exists()


def test_the_admin_leads_to_the_page_of_a_run(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, environment="demo")
    assert f'href="/runs/{job.number}"' in client.get("/admin/training/job/").content.decode()
    page = client.get(f"/admin/training/job/{job.pk}/change/").content.decode()
    assert f'<a href="/runs/{job.number}">Watch this run</a>' in page and f"Run {job.number} – demo" in page


def test_a_job_without_pictures_says_when_they_appear(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    page = client.get(f"/admin/training/job/{job.pk}/change/").content.decode()
    assert "after the first validation or checkpoint, or after 120 seconds of training." in page and "reload" not in page
    answer = client.get(f"/api/training/jobs/{job.pk}/curves.svg", headers={"Accept": "application/json"})
    assert answer.status_code == 404 and "after the first validation or checkpoint" in answer.json()["detail"]


def test_the_schema_names_every_call_and_every_option(home: Path, client: Client) -> None:
    from trainer_engine.config.options import REGISTRY

    schema = client.get("/openapi.json").json()
    paths = {path for path, calls in schema["paths"].items() if path.startswith("/api/training")}
    for name in ("validate", "start", "status", "events", "events/stream", "stop", "cancel", "checkpoints", "jobs", "queue"):
        assert any(path.rstrip("/") == f"/api/training/{name}" for path in paths), (name, paths)
    start = next(calls["post"] for path, calls in schema["paths"].items() if path.rstrip("/") == "/api/training/start")
    assert start["tags"] == ["training"]
    for kind in ("multipart/form-data", "application/json", "application/x-www-form-urlencoded"):
        assert {f"--{name}" for name in REGISTRY} <= set(start["requestBody"]["content"][kind]["schema"]["properties"])
    assert {"200", "403", "422"} <= set(start["responses"])
    assert len(start["requestBody"]["content"]["application/json"]["schema"]["example"]) < 10


def test_actions_touch_the_selected_jobs_alone_and_say_what_they_did(home: Path, client: Client, tmp_path: Path) -> None:
    queued, running, ended, other = (
        make_job(tmp_path, status) for status in (Status.QUEUED, Status.RUNNING, Status.COMPLETED, Status.QUEUED)
    )
    chosen = {"_selected_action": [str(job.pk) for job in (queued, running, ended)]}
    page = client.post("/admin/training/job/", {"action": "stop", **chosen}, follow=True).content.decode()
    assert page.count("was asked to stop") == 2
    page = client.post("/admin/training/job/", {"action": "cancel", **chosen}, follow=True).content.decode()
    assert page.count("was cancelled") == 1
    statuses = [Job.objects.get(pk=job.pk).status for job in (queued, running, ended, other)]
    assert statuses == [Status.CANCELLED, Status.CANCELLED, Status.COMPLETED, Status.QUEUED]


def test_a_button_for_a_job_that_is_gone_leads_back_to_the_list(home: Path, client: Client) -> None:
    for button in ("stop", "cancel"):
        answer = client.post(f"/admin/training/job/{uuid.UUID(int=3)}/{button}/", follow=True)
        assert answer.status_code == 200 and answer.redirect_chain[-1][0] in ("/admin/", "/admin/training/job/")


def test_a_form_without_its_token_presses_no_button(home: Path, tmp_path: Path) -> None:
    """The guard, which stands before Django, already refuses pages of other sites."""
    job = make_job(tmp_path)
    strict = Client(enforce_csrf_checks=True)
    assert strict.post(f"/admin/training/job/{job.pk}/cancel/").status_code == 403
    assert Job.objects.get(pk=job.pk).status == Status.QUEUED


@pytest.mark.parametrize(
    ("progress", "says"),
    [
        (None, "–"),
        ({"step": 0, "total_steps": 0}, "0 of 0"),
        ({"step": 5, "total_steps": 10, "loss": None}, "not finite"),
        ({"step": 5, "total_steps": 10, "loss": 0.25, "learning_rate": 1e-5, "eta_seconds": 3723}, "1:02:03 left"),
    ],
)
def test_the_page_of_a_job_shows_any_progress(
    home: Path, client: Client, tmp_path: Path, progress: dict[str, Any] | None, says: str
) -> None:
    job = make_job(tmp_path, Status.RUNNING, progress=progress)
    assert says in client.get(f"/admin/training/job/{job.pk}/change/").content.decode()
    assert client.get("/admin/training/job/").status_code == 200


def test_deleted_checkpoints_are_marked_and_the_last_one_is_named(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.COMPLETED)
    for step, is_final in ((5, False), (9, True)):
        path = tmp_path / f"checkpoint-{step}"
        Checkpoint.objects.create(job=job, name=path.name, path=str(path), step=step, is_final=is_final, size_bytes=2048)
    (tmp_path / "checkpoint-9").mkdir()
    page = client.get(f"/admin/training/job/{job.pk}/change/").content.decode()
    assert "deleted since" in page and "the last of the run" in page


def test_secrets_of_a_job_s_options_are_not_on_its_page(home: Path, client: Client, tmp_path: Path) -> None:
    hook = '[{"webhook_type": "raw", "callback_url": "http://127.0.0.1:9/", "auth_token": "canary"}]'
    job = make_job(tmp_path, options={"webhook_config": hook, "seed": 7})
    page = client.get(f"/admin/training/job/{job.pk}/change/").content.decode()
    assert "canary" not in page and "***" in page


def test_the_page_of_a_run_has_times_with_their_zone_and_no_empty_history(db: None, home: Path, client: Client) -> None:
    job = Job.objects.create(number=7, environment="demo")
    Event.objects.create(job=job, index=0, type="notification", timestamp="2026-11-29T18:03:11+00:00", payload={"message": "hello"})
    page = client.get(f"/admin/training/job/{job.pk}/change/").content.decode()
    assert "Run 7" in page and "Times are UTC" in page
    assert (
        '<time datetime="2026-11-29T18:03:11+00:00">2026-11-29 18:03:11 UTC</time>' in page
        and '<span class="text">hello</span>' in page
        and "/history/" not in page
    )


# ---- what a person needs to know next ----
def page_of(client: Client, job: Job) -> str:
    return client.get(f"/admin/training/job/{job.pk}/change/").content.decode()


def test_a_job_in_the_queue_says_what_it_waits_for(home: Path, client: Client, tmp_path: Path) -> None:
    running = make_job(tmp_path, Status.RUNNING)
    first, second = make_job(tmp_path), make_job(tmp_path)
    assert f"Position 1 in the queue; waits for run {running.number}." in page_of(client, first)
    page = page_of(client, second)
    assert f"Position 2 in the queue; waits for run {running.number}." in page
    assert "Go first" in page and "Stop: save and end" not in page
    assert "Stop: save and end" in page_of(client, running) and "Position" not in page_of(client, running)
    client.post(f"/runs/{second.number}/go-first")
    assert "Position 1" in page_of(client, second)


@pytest.mark.parametrize("status", [Status.STOPPED, Status.ERROR])
def test_a_job_that_ended_early_offers_how_it_goes_on(training: Training, client: Client, tmp_path: Path, status: Status) -> None:
    environments.create_environment(NewEnvironment("demo", "pixart_sigma", model_type="full"), actor="test")
    job = make_job(tmp_path, status, environment="demo", checkpoint="checkpoint-5", hint="free some memory", message="no memory")
    page = page_of(client, job)
    assert f'action="/runs/{job.number}/go-on"' in page and f'action="/runs/{job.number}/start-again"' in page
    assert "free some memory" in page and "Stop: save and end" not in page
    without = page_of(client, make_job(tmp_path, status))
    assert "/go-on" not in without and "/start-again" not in without


def test_what_was_asked_for_is_a_table_with_the_differences_first(home: Path, client: Client, tmp_path: Path) -> None:
    base = {"model_family": "pixart_sigma", "max_grad_norm": 0.01, "train_batch_size": 2, "seed": 7}
    make_job(tmp_path, Status.COMPLETED, environment="demo", options=base)
    page = page_of(client, make_job(tmp_path, environment="demo", options={**base, "seed": 9, "instance_prompt": "<b>x"}))
    first, rest = page.split('class="run-options"')[1:3]
    assert "<th>run 1</th>" in first and "<code>seed</code></th><td>9</td><td>42</td><td>7</td>" in first
    assert "<code>train_batch_size</code>" in first and "<code>max_grad_norm</code>" not in first, "that is the family's default"
    assert "<code>max_grad_norm</code></th><td>0.01</td>" in rest and "<b>x" not in page


def test_a_run_shows_its_loss_from_the_second_step_on(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    assert 'class="run-spark"' not in page_of(client, job)
    append(job, *(progress(step, 1 / step) for step in (1, 2, 3)))
    Job.objects.filter(pk=job.pk).update(progress=PROGRESS)
    page = page_of(client, Job.objects.get(pk=job.pk))
    assert "Loss from 1 to 0.3333" in page and "<polyline points=" in page and f'href="/runs/{job.number}">live curves' in page


def test_the_events_of_a_run_are_folded_filtered_and_keep_their_errors(home: Path, client: Client, tmp_path: Path) -> None:
    """They are those of the run's own page."""
    job = make_job(tmp_path, Status.RUNNING)
    append(job, ErrorEvent(code="out_of_memory", message="No memory <b>"), *(progress(step) for step in range(1, 90)), image(5))
    append(job, *(Notification(message=f"By the way, {number}.") for number in range(70)))
    page = page_of(client, job)
    events = page.split('id="events"')[1].split("</section>")[0]
    assert events.count('<span class="text">') == LINES + 1 and "By the way, 69." in events and "By the way, 9." not in events
    assert "Errors before these" in events and "No memory &lt;b&gt;" in events and "<b>" not in events.replace("</b>", "")
    assert 'href="?events=news&amp;before=' in events and 'href="?events=problems#events"' in events
    everything = client.get(f"/admin/training/job/{job.pk}/change/?events=everything&before=92").content.decode()
    assert '<span class="count">89 events</span>' in everything and f'src="/api/training/jobs/{job.pk}/media/' in everything
    assert client.get(f"/runs/{job.number}?events=everything&before=92").content.decode().count('class="thumb"') == everything.count(
        'class="thumb"'
    )
    assert client.get(f"/admin/training/job/{job.pk}/change/?events=x&before=y").status_code == 200


def test_an_open_page_gets_an_empty_answer_until_something_of_it_has_changed(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    address = f"/admin/training/job/{job.pk}/change/"

    def asked(etag: str) -> tuple[int, str]:
        answer = client.get(address, headers={"If-None-Match": etag})
        assert (answer.status_code == 304) == (answer.content == b"")
        return answer.status_code, answer["ETag"]

    status, etag = asked("")
    assert status == 200 and f'data-goes-on="{escape(etag)}"' in client.get(address).content.decode()
    assert asked(etag) == (304, etag)
    changes: list[Callable[[], object]] = [
        lambda: append(job, progress(1)),
        lambda: (job.folder.create(), job.folder.curves.write_text("<svg/>")),
        lambda: Job.objects.filter(pk=job.pk).update(status=Status.STOPPING),
        lambda: Job.objects.filter(pk=job.pk).update(status=Status.COMPLETED, message="done"),
    ]
    for change in changes:
        change()
        status, newer = asked(etag)
        assert status == 200 and newer != etag and asked(newer) == (304, newer)
        etag = newer
    assert "data-goes-on" not in client.get(address).content.decode()
    assert f"curves.svg?at={job.folder.curves.stat().st_mtime_ns}" in client.get(address).content.decode()
