"""The grid and the curves of a run, as files at an address and in the admin."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.test import Client

from tests.helpers.jobs import make_job
from trainer_engine.contract.events import MEDIA_TYPES, ImageEvent, MediaFile, Notification
from training.jobs import log
from training.models import Checkpoint, Job, Status

pytestmark = pytest.mark.django_db
KINDS = {"grid.png": "image/png", "curves.svg": "image/svg+xml"}


def put(job: Job, name: str, content: bytes = b"picture") -> Path:
    path = job.folder.create().path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_is_served_as_what_it_is_and_can_do_nothing(home: Path, client: Client, tmp_path: Path, name: str) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    put(job, name)
    answer = client.get(f"/api/training/jobs/{job.pk}/{name}")
    assert (answer.status_code, answer.content, answer["Content-Type"]) == (200, b"picture", KINDS[name])
    assert answer["X-Content-Type-Options"] == "nosniff" and answer["Cache-Control"] == "no-cache"
    assert answer["Content-Security-Policy"].startswith("default-src 'none'") and "script-src" not in answer["Content-Security-Policy"]
    assert client.head(f"/api/training/jobs/{job.pk}/{name}").status_code == 200


@pytest.mark.parametrize("accept", ["image/png", "image/svg+xml", "image/*", "text/plain"])
def test_a_client_that_accepts_files_alone_is_sent_them(home: Path, client: Client, tmp_path: Path, accept: str) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    for name in KINDS:
        missing = client.get(f"/api/training/jobs/{job.pk}/{name}", headers={"accept": accept})
        assert (missing.status_code, missing["Content-Type"]) == (404, "application/json")
        put(job, name)
        assert client.get(f"/api/training/jobs/{job.pk}/{name}", headers={"accept": accept}).content == b"picture"
    assert client.get(f"/api/training/jobs/{job.pk}/log", headers={"accept": accept}).status_code == 200
    image = client.get(f"/api/training/jobs/{job.pk}/media/0/0", headers={"accept": accept})
    assert (image.status_code, image["Content-Type"]) == (404, "application/json")


def test_a_client_that_has_the_picture_is_sent_it_again_once_it_is_new(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    put(job, "grid.png")
    address = f"/api/training/jobs/{job.pk}/grid.png"
    first = client.get(address)
    for known in ({"HTTP_IF_NONE_MATCH": first["ETag"]}, {"HTTP_IF_MODIFIED_SINCE": first["Last-Modified"]}):
        again = client.get(address, **known)
        assert (again.status_code, again.content) == (304, b"")
    put(job, "grid.png", b"another")
    assert client.get(address, HTTP_IF_NONE_MATCH=first["ETag"]).content == b"another"


@pytest.mark.parametrize("name", KINDS)
def test_before_there_is_a_picture_the_answer_says_when(home: Path, client: Client, tmp_path: Path, name: str) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    answer = client.get(f"/api/training/jobs/{job.pk}/{name}")
    assert answer.status_code == 404 and answer["Content-Type"] == "application/json"
    assert f"no {name} of this job yet" in answer.json()["detail"]


def test_an_old_run_without_a_picture_is_reported_with_the_command_that_renders_it(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path / "with space", Status.COMPLETED)
    detail = client.get(f"/api/training/jobs/{job.pk}/grid.png").json()["detail"]
    assert f"python -m trainer_engine.report '{job.run_dir}'" in detail


def test_a_job_that_is_not_there_is_not_found(home: Path, client: Client) -> None:
    answer = client.get("/api/training/jobs/nothing/curves.svg")
    assert answer.status_code == 404 and "not found" in answer.json()["detail"]


def test_the_schema_says_what_is_sent(home: Path, client: Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for name, kind in KINDS.items():
        answers = next(calls["get"] for path, calls in paths.items() if path.rstrip("/").endswith(f"/{name}"))["responses"]
        assert list(answers["200"]["content"]) == [kind] and "404" in answers


def test_the_admin_shows_progress_checkpoints_and_both_pictures(home: Path, client: Client, tmp_path: Path) -> None:
    progress = {"step": 30, "total_steps": 120, "loss": 0.25, "learning_rate": 1e-4, "eta_seconds": 3725.0}
    job = make_job(tmp_path, Status.RUNNING, progress=progress)
    for name in KINDS:
        put(job, name)
    for step in range(10, 80, 10):
        Checkpoint.objects.create(job=job, name=f"checkpoint-{step}", path=str(tmp_path / f"{step}"), step=step, size_bytes=3 << 20)
    (tmp_path / "70").mkdir()
    page = client.get(f"/admin/training/job/{job.pk}/change/").content.decode()
    for name in KINDS:
        assert f'src="/api/training/jobs/{job.pk}/{name}?' in page
    assert '<progress class="run-progress" max="100" value="25.0">' in page
    assert "step 30 of 120 · 25.0 % · loss 0.25 · learning rate 0.0001 · 1:02:05 left" in page
    newest = page[page.index('<table class="run-checkpoints') :].split("</table>")[0]
    assert newest.count("<tr>") == 6 and newest.index("checkpoint-70") < newest.index("checkpoint-30")
    assert "checkpoint-20" not in newest and newest.count("deleted since") == 4 and "3.0" in newest


def put_clip(job: Job, step: int, *endings: str) -> None:
    """Log an event of a clip with one file for each ending."""
    videos = [MediaFile(file=f"media/{step}{ending}", mime_type=MEDIA_TYPES[ending]) for ending in endings]
    title = f'Validation (step 5/5): "{step}"'
    event = ImageEvent(
        title=title, step=5, global_step=step, resolution=(1, 1), validation_type="final", prompt="", step_label="", videos=videos
    )
    log.append(job.pk, [log.from_server(event)])


def test_the_admin_plays_the_newest_clips_and_links_their_mp4_files(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    log.append(job.pk, [log.from_server(Notification(message="first"))])
    put_clip(job, 0, ".gif")
    for step in range(1, 7):
        put_clip(job, step, ".gif", ".mp4")
    page = client.get(f"/admin/training/job/{job.pk}/change/").content.decode()
    links = re.findall(r'<a href="([^"]*)"><img class="run-clip" src="([^"]*)" alt="([^"]*)"', page)
    start = f"/api/training/jobs/{job.pk}/media"
    wanted = [(f"{start}/{place}/1", f"{start}/{place}/0", f"Validation (step 5/5): &quot;{place - 1}&quot;") for place in range(7, 1, -1)]
    assert links == wanted


def test_a_clip_without_an_mp4_file_links_its_gif(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    put_clip(job, 3, ".gif")
    page = client.get(f"/admin/training/job/{job.pk}/change/").content.decode()
    address = f"/api/training/jobs/{job.pk}/media/0/0"
    assert f'<a href="{address}"><img class="run-clip" src="{address}"' in page


def test_the_schema_names_every_type_of_media(home: Path, client: Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    (answers,) = [calls["get"]["responses"] for path, calls in paths.items() if "/media/" in path]
    assert set(answers["200"]["content"]) == {*MEDIA_TYPES.values(), "application/octet-stream"}


def test_the_admin_names_the_command_that_renders_pictures_of_an_old_run(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.COMPLETED)
    page = client.get(f"/admin/training/job/{job.pk}/change/").content.decode()
    assert "<img" not in page and page.count(f"trainer_engine.report {job.run_dir}") == 2
    waiting = make_job(tmp_path)
    assert "after the first validation or checkpoint" in client.get(f"/admin/training/job/{waiting.pk}/change/").content.decode()
