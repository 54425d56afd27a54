"""The buttons of a run act once they are pressed, and only with a token of the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.test import Client

from environments import services as environments
from environments.create.plan import NewEnvironment
from tests.helpers.jobs import make_job
from tests.training.api.test_resuming import save
from tests.training.conftest import Training
from trainer_engine.contract.commands import Command, take
from training.jobs import queue
from training.models import Job, Status
from training.pages.buttons import ALL, buttons_of

pytestmark = pytest.mark.django_db


def press(client: Client, job: Job, slug: str, **fields: str) -> tuple[Any, list[str]]:
    """The answer, and the messages for the next page."""
    client.cookies.pop("messages", None)
    answer = client.post(f"/runs/{job.number}/{slug}", fields)
    return answer, [str(message) for message in get_messages(answer.wsgi_request)]


def status(job: Job) -> str:
    return Job.objects.get(pk=job.pk).status


def shown(status: Status, folder: Path, **values: Any) -> list[str]:
    return [button.slug for button in buttons_of(make_job(folder, status, **values))]


def test_each_status_has_its_buttons(home: Path, tmp_path: Path) -> None:
    environments.create_environment(NewEnvironment(name="demo", model_family="pixart_sigma", model_type="full"), actor="test")
    for one in (Status.STARTING, Status.RUNNING):
        assert shown(one, tmp_path) == ["sample", "save", "stop", "cancel"]
    assert shown(Status.STOPPING, tmp_path) == ["cancel"]
    assert shown(Status.QUEUED, tmp_path) == ["dequeue"]
    Job.objects.all().delete()
    assert shown(Status.QUEUED, tmp_path) == ["sample", "save", "dequeue"]
    for one in (Status.COMPLETED, Status.STOPPED, Status.CANCELLED, Status.ERROR):
        assert shown(one, tmp_path) == ["delete"]
        assert shown(one, tmp_path, environment="demo") == ["start-again", "delete"]
        assert shown(one, tmp_path, environment="demo", checkpoint="checkpoint-4") == ["go-on", "start-again", "delete"]
        assert shown(one, tmp_path, environment="gone", checkpoint="checkpoint-4") == ["delete"]


def test_the_list_has_the_buttons_that_end_a_run(home: Path, tmp_path: Path) -> None:
    running, queued, ended = (make_job(tmp_path, one) for one in (Status.RUNNING, Status.QUEUED, Status.COMPLETED))
    assert [[button.slug for button in buttons_of(job, on_list=True)] for job in (running, queued, ended)] == [
        ["stop", "cancel"],
        ["dequeue"],
        [],
    ]


@pytest.mark.parametrize(("slug", "command"), [("sample", Command.VALIDATE), ("save", Command.CHECKPOINT)])
def test_sample_and_save_send_the_run_a_command(home: Path, client: Client, tmp_path: Path, slug: str, command: Command) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    answer, says = press(client, job, slug)
    assert (answer.status_code, answer["Location"]) == (302, f"/runs/{job.number}") and "after the current step" in says[0]
    assert take(job.folder) == [command]


def test_stop_and_cancel_end_the_run(home: Path, client: Client, tmp_path: Path) -> None:
    stopped, cancelled = make_job(tmp_path, Status.RUNNING), make_job(tmp_path, Status.RUNNING)
    _, says = press(client, stopped, "stop")
    assert status(stopped) == Status.STOPPING and "saves a checkpoint" in says[0] and take(stopped.folder) == [Command.STOP]
    _, says = press(client, cancelled, "cancel")
    assert status(cancelled) == Status.CANCELLED and says == [f"Run {cancelled.number} was cancelled."]


def test_a_queued_run_is_taken_out_of_the_queue(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    _, says = press(client, job, "dequeue")
    assert status(job) == Status.CANCELLED and says == [f"Run {job.number} is taken out of the queue."]


def test_a_waiting_run_goes_before_the_others(home: Path, client: Client, tmp_path: Path) -> None:
    make_job(tmp_path, Status.RUNNING)
    first, second, third = (make_job(tmp_path) for _ in range(3))
    assert [any(button.slug == "go-first" for button in buttons_of(job, on_list=True)) for job in (first, second, third)] == [
        False,
        True,
        True,
    ]
    _, says = press(client, third, "go-first")
    assert says == [f"Run {third.number} is the next to start."]
    assert [job.pk for job in queue.waiting()] == [third.pk, first.pk, second.pk]
    assert "does nothing now" in press(client, third, "go-first")[1][0]


def test_a_button_of_an_old_page_does_nothing_and_says_so(home: Path, client: Client, tmp_path: Path) -> None:
    running, ended = make_job(tmp_path, Status.RUNNING), make_job(tmp_path, Status.COMPLETED)
    for job, slug in ((running, "dequeue"), (running, "delete"), (running, "start-again")):
        answer, says = press(client, job, slug)
        assert answer.status_code == 302 and "does nothing now" in says[0], slug
    for slug in ("stop", "cancel", "sample", "save"):
        assert "does nothing now" in press(client, ended, slug)[1][0]
    assert (status(running), status(ended)) == (Status.RUNNING, Status.COMPLETED)
    assert not running.folder.commands.exists()


def test_start_again_starts_the_environment_and_shows_the_new_run(training: Training, client: Client, tmp_path: Path) -> None:
    environments.create_environment(NewEnvironment(name="demo", model_family="pixart_sigma", model_type="full"), actor="test")
    config = {name.lstrip("-"): value for name, value in training.form.items() if not name.startswith("__")}
    environments.update_environment("demo", config=config, actor="test")
    job = make_job(tmp_path, Status.STOPPED, environment="demo")
    answer, says = press(client, job, "start-again")
    started = Job.objects.get(number=job.number + 1)
    assert answer["Location"] == f"/runs/{started.number}" and says == [f"Run {started.number} was started from demo."]
    assert started.environment == "demo" and started.status == Status.QUEUED


def test_go_on_resumes_with_the_options_of_the_run(training: Training, client: Client) -> None:
    job = Job.objects.get(pk=training.start()["job_id"])
    Job.objects.filter(pk=job.pk).update(status=Status.STOPPED, checkpoint="checkpoint-4")
    save(job)
    row = environments.find(job.environment)
    environments.update_environment(row.name, config={**row.config, "seed": 99}, actor="test")
    answer, says = press(client, job, "go-on")
    started = Job.objects.get(number=job.number + 1)
    assert answer["Location"] == f"/runs/{started.number}"
    assert says == [f"Run {started.number} goes on from the newest checkpoint of run {job.number}."]
    assert started.options == {**job.options, "resume_from_checkpoint": "latest"}


def test_a_start_that_finds_its_disk_full_says_so(training: Training, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job.objects.get(pk=training.start()["job_id"])
    Job.objects.filter(pk=job.pk).update(status=Status.STOPPED, checkpoint="checkpoint-4")
    save(job)
    row = environments.find(job.environment)
    environments.update_environment(row.name, config={**row.config, "seed": 99}, actor="test")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "config.json")

    monkeypatch.setattr("environments.writing.write_config", full)
    answer, says = press(client, job, "go-on")
    assert answer.status_code == 302 and "No space left" in says[0] and Job.objects.count() == 1


def test_a_start_that_is_refused_names_its_problems(home: Path, client: Client, tmp_path: Path) -> None:
    environments.create_environment(NewEnvironment(name="demo", model_family="pixart_sigma", model_type="full"), actor="test")
    job = make_job(tmp_path, Status.ERROR, environment="demo")
    answer, says = press(client, job, "start-again")
    assert answer["Location"] == f"/runs/{job.number}" and "Cannot start" in says[0] and len(says) > 1
    assert Job.objects.count() == 1
    assert "Cannot start training" in client.get(answer["Location"]).content.decode()


def test_delete_removes_the_run_and_leads_to_the_list(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.COMPLETED)
    answer, says = press(client, job, "delete")
    assert answer["Location"] == "/" and job.output_dir in says[0] and not Job.objects.exists()


def test_a_button_of_the_list_leads_back_to_it(home: Path, client: Client, tmp_path: Path) -> None:
    assert press(client, make_job(tmp_path, Status.RUNNING), "stop", back="list")[0]["Location"] == "/"
    for back in ("//evil.example", "https://evil.example/", "/admin/"):
        job = make_job(tmp_path, Status.RUNNING)
        assert press(client, job, "stop", back=back)[0]["Location"] == f"/runs/{job.number}"


@pytest.mark.parametrize("slug", [button.slug for button in ALL])
def test_only_a_post_with_the_token_of_the_page_presses_a_button(home: Path, tmp_path: Path, slug: str) -> None:
    job = make_job(tmp_path, Status.COMPLETED if slug in ("delete", "start-again") else Status.RUNNING)
    strict = Client(enforce_csrf_checks=True)
    before = status(job)
    assert strict.get(f"/runs/{job.number}/{slug}").status_code == 405
    assert strict.head(f"/runs/{job.number}/{slug}").status_code == 405
    assert strict.post(f"/runs/{job.number}/{slug}").status_code == 403
    assert status(job) == before and not job.folder.commands.exists()


def test_the_token_of_the_page_presses_its_buttons(home: Path, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    strict = Client(enforce_csrf_checks=True)
    page = strict.get(f"/runs/{job.number}").content.decode()
    token = page.split('name="csrfmiddlewaretoken" value="')[1].split('"')[0]
    assert page.count("csrfmiddlewaretoken") == len(buttons_of(job))
    assert strict.post(f"/runs/{job.number}/stop", {"csrfmiddlewaretoken": token}).status_code == 302
    assert status(job) == Status.STOPPING


def test_cancel_and_delete_ask_before_they_act(home: Path, client: Client, tmp_path: Path) -> None:
    for one, slug in ((Status.RUNNING, "cancel"), (Status.COMPLETED, "delete")):
        job = make_job(tmp_path, one)
        page = client.get(f"/runs/{job.number}").content.decode()
        asked = page[page.index(f'id="ask-{job.number}-{slug}"') :].split("</details>")[0]
        assert f'action="/runs/{job.number}/{slug}"' in asked and "<summary" in asked and re.search(r"<p>[^<]+\?", asked)
    assert all(button.question for button in ALL if button.is_dangerous)


@pytest.mark.parametrize("slug", ["nothing", "stop-", "-", "a" * 20])
def test_a_button_that_does_not_exist_is_not_found(home: Path, client: Client, tmp_path: Path, slug: str) -> None:
    job = make_job(tmp_path)
    assert client.post(f"/runs/{job.number}/{slug}").status_code == 404
    assert client.post(f"/runs/{job.number + 1}/stop").status_code == 404
