"""Status, events, checkpoints, history: answers match the log and the disk."""

from __future__ import annotations

import base64
import json
import uuid
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.helpers.jobs import leased_job, make_job, start_fake
from tests.training.conftest import Training
from trainer_engine.contract.events import ImageEvent, MediaFile, Notification
from trainer_engine.contract.files import open_regular, sha256_of
from training.jobs import log, results
from training.jobs.follower import Follower
from training.models import Event, Job, Status

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


@pytest.fixture
def api(home: Path, transactional_db: None) -> Training:
    from rest_framework.test import APIClient

    return Training(home, APIClient(), {})


def finished(folder: Path, **values: Any) -> Job:
    job = leased_job(folder, **values)
    start_fake(job, steps=4)
    Follower(job, "me").follow(20)
    return Job.objects.get(pk=job.pk)


def write_checkpoint(folder: Path, step: int, **more: Any) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"numbers")
    manifest = {
        "version": 1,
        "step": step,
        "epoch": 1,
        "loss": 0.5,
        "learning_rate": 1e-4,
        "model_family": "pixart_sigma",
        "model_type": "full",
        "created_at": "2026-01-01T00:00:00+00:00",
        "files": {"weights": {"size": 7, "sha256": sha256_of(path / "weights")}},
        **more,
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def test_an_idle_server_reports_idle(api: Training) -> None:
    said = api.get("/status").json()
    assert said == {"status": "idle", "config": {}, "job_id": None, "job_info": None, "progress": None, "startup_progress": {}}
    assert api.get("/events?since_index=3").json() == {"events": [], "job_id": None, "next_index": 3}
    assert api.post("/stop").json() == {"message": "No active training job to stop"}
    idle = api.post("/cancel", accept="*/*")
    assert idle.status_code == 200 and "alert alert-info" in idle.content.decode() and "No Active Training" in idle.content.decode()
    assert api.post("/checkpoints").json() == {"output_dir": None, "checkpoints": [], "total": 0}
    assert api.get("/jobs").json() == {"jobs": [], "count": 0}
    assert api.get("/queue").json() == {"running": [], "queued": []}


def test_a_finished_run_stays_visible_with_its_numbers(api: Training, tmp_path: Path) -> None:
    job = finished(tmp_path, plan={"epochs": 2}, environment="demo")
    said = api.get("/status/").json()
    assert (said["status"], said["job_id"]) == ("completed", str(job.pk))
    assert said["config"] == {"--seed": 7}
    assert said["progress"]["percent"] == 100.0 and said["progress"]["total_epochs"] == 2
    assert set(said["progress"]) == {
        "percent", "step", "total_steps", "epoch", "total_epochs", "loss", "learning_rate", "eta_seconds", "samples_per_second", "metrics",
    }  # fmt: skip
    stage = said["startup_progress"]["init_vae_cache"]
    assert set(stage) == {"label", "progress_type", "status", "percent", "current", "total"}
    info = said["job_info"]
    assert info["checkpoint"] == "checkpoint-4" and info["error"] is None and info["finished_at"] and info["started_at"]
    assert api.get(f"/jobs/{job.pk}").json() == said


def test_a_new_job_is_shown_instead_of_the_one_that_ended(api: Training, tmp_path: Path) -> None:
    finished(tmp_path)
    waiting = make_job(tmp_path)
    assert api.get("/status").json()["job_id"] == str(waiting.pk)
    running = make_job(tmp_path, Status.RUNNING)
    assert api.get("/status").json()["job_id"] == str(running.pk)
    jobs = api.get("/jobs").json()
    assert jobs["count"] == 3 and [row["number"] for row in jobs["jobs"]] == [3, 2, 1]


def test_events_are_numbered_without_gaps_and_read_in_pages(api: Training, tmp_path: Path) -> None:
    job = finished(tmp_path)
    whole = api.get("/events?since_index=0").json()
    assert [event["index"] for event in whole["events"]] == list(range(job.next_index))
    assert whole["next_index"] == job.next_index and whole["job_id"] == str(job.pk)
    assert {"index", "type", "job_id", "timestamp", "severity", "title", "message", "body", "data"} <= set(whole["events"][0])
    pages, since = [], 0
    while page := api.get(f"/events?since_index={since}&limit=3").json():
        if not page["events"]:
            break
        pages += page["events"]
        since = page["next_index"]
    assert pages == whole["events"]
    assert api.get("/events/?since_index=99").json() == {"events": [], "job_id": str(job.pk), "next_index": 99}


@pytest.mark.parametrize(
    "query",
    [
        "since_index=-1",
        "since_index=x",
        "since_index=1.5",
        "since_index=99999999999999999999",
        "limit=0",
        "limit=x",
        "media=x",
        "limit=",
    ],
)
def test_a_bad_number_is_named(api: Training, query: str) -> None:
    answer = api.get(f"/events?{query}")
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["option"] == query.split("=")[0]


@pytest.mark.parametrize("text", [str(uuid.UUID(int=7)), "nonsense", "%00", "x" * 500])
def test_an_unknown_job_is_a_404_with_json(api: Training, text: str) -> None:
    for path in (f"/events?job_id={text}", f"/jobs/{text}", f"/jobs/{text}/log", f"/checkpoints?job_id={text}"):
        answer = api.get(path)
        assert answer.status_code == 404 and answer.json()["detail"], path
    assert api.post("/cancel", {"job_id": text}).status_code in (404, 422)
    html = api.post("/cancel", {"--job_id": str(uuid.UUID(int=7))}, accept="*/*")
    assert html.status_code == 404 and "alert-danger" in html.content.decode()


def test_images_are_data_uris_or_links_and_never_leave_their_folders(
    api: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    job.folder.create()
    (job.folder.media / "a.png").write_bytes(PIXEL)
    Path(job.output_dir).mkdir()
    (Path(job.output_dir) / "b.png").write_bytes(PIXEL)
    (tmp_path / "secret.png").write_bytes(b"secret")
    names = ["media/a.png", str(Path(job.output_dir) / "b.png"), "../../secret.png", str(tmp_path / "secret.png"), "media/gone.png"]
    event = ImageEvent(
        step=5,
        global_step=5,
        resolution=(1, 1),
        validation_type="final",
        prompt="<b>",
        step_label="5/5",
        images=[MediaFile(file=name) for name in names],
    )
    log.append(job.pk, [log.from_server(Notification(message="first")), log.from_server(event)])
    shown = api.get("/events?since_index=1").json()["events"][0]["images"]
    uri = f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"
    assert [image["src"] for image in shown] == [uri, uri, "", "", ""]
    links = api.get("/events?since_index=1&media=url").json()["events"][0]["images"]
    answers = [api.client.get(image["src"]) for image in links]
    assert [answer.status_code for answer in answers] == [200, 200, 404, 404, 404]
    assert b"".join(answers[0].streaming_content) == PIXEL
    assert api.get(f"/jobs/{job.pk}/media/0/0").status_code == 404
    assert api.get(f"/jobs/{job.pk}/media/1/9").status_code == 404
    monkeypatch.setattr("training.api.media.locate", lambda *_: tmp_path / "gone-since.png")
    assert api.client.get(links[0]["src"]).status_code == 404


@pytest.mark.parametrize("form", ["inline", "link"])
def test_a_picture_that_is_swapped_for_a_link_while_it_is_opened_is_not_shown(
    api: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    job = job_with_clip(tmp_path, {"a.png": PIXEL}, {"a.png": "image/png"})
    (tmp_path / "key").write_bytes(b"secret")

    def swap(real: str) -> BinaryIO:
        (job.folder.media / "a.png").unlink()
        (job.folder.media / "a.png").symlink_to(tmp_path / "key")
        return open_regular(real)

    monkeypatch.setattr(results, "open_regular", swap)
    if form == "link":
        assert api.get(f"/jobs/{job.pk}/media/0/0").status_code == 404
    else:
        assert api.get("/events").json()["events"][0]["videos"][0]["src"] == ""


def job_with_clip(tmp_path: Path, files: dict[str, bytes], types: dict[str, str]) -> Job:
    """A job with one event that names files in its media folder."""
    job = make_job(tmp_path, Status.RUNNING)
    job.folder.create()
    for name, content in files.items():
        (job.folder.media / name).write_bytes(content)
    event = ImageEvent(
        step=5,
        global_step=5,
        resolution=(1, 1),
        validation_type="final",
        prompt="p",
        step_label="5/5",
        videos=[MediaFile(file=f"media/{name}", mime_type=types[name]) for name in files],
    )
    log.append(job.pk, [log.from_server(event)])
    return job


def test_a_clip_is_shown_as_a_gif_and_an_mp4_file_with_their_types(api: Training, tmp_path: Path) -> None:
    files = {"a.gif": b"GIF89a", "a.mp4": b"\0\0\0\x20ftyp"}
    job_with_clip(tmp_path, files, {"a.gif": "image/gif", "a.mp4": "video/mp4"})
    shown = api.get("/events").json()["events"][0]["videos"]
    assert [(one["mime_type"], base64.b64decode(one["src"].partition(",")[2])) for one in shown] == [
        ("image/gif", files["a.gif"]),
        ("video/mp4", files["a.mp4"]),
    ]
    assert [one["src"].partition(";")[0] for one in shown] == ["data:image/gif", "data:video/mp4"]
    links = api.get("/events?media=url").json()["events"][0]["videos"]
    answers = [api.client.get(one["src"]) for one in links]
    assert [(answer["Content-Type"], b"".join(answer.streaming_content)) for answer in answers] == [
        ("image/gif", files["a.gif"]),
        ("video/mp4", files["a.mp4"]),
    ]
    assert {answer["X-Content-Type-Options"] for answer in answers} == {"nosniff"}


@pytest.mark.parametrize(
    ("asked", "first", "behind"),
    [
        ("bytes=0-", 0, 10),
        ("bytes=0-0", 0, 1),
        ("bytes=3-5", 3, 6),
        ("bytes=8-99", 8, 10),
        ("bytes=-4", 6, 10),
        ("bytes=-99", 0, 10),
    ],
)
def test_a_player_gets_the_part_of_a_clip_that_it_asks_for(api: Training, tmp_path: Path, asked: str, first: int, behind: int) -> None:
    job = job_with_clip(tmp_path, {"a.mp4": b"0123456789"}, {"a.mp4": "video/mp4"})
    answer = api.client.get(f"/api/training/jobs/{job.pk}/media/0/0", headers={"range": asked})
    assert (answer.status_code, answer.content) == (206, b"0123456789"[first:behind])
    assert answer["Content-Range"] == f"bytes {first}-{behind - 1}/10" and answer["Content-Length"] == str(behind - first)
    assert (answer["Content-Type"], answer["X-Content-Type-Options"]) == ("video/mp4", "nosniff")


@pytest.mark.parametrize(
    "asked", ["", "bytes", "bytes=-", "bytes=5-3", "bytes=10-", "bytes=-0", "bytes=0-1,4-5", "rows=0-1", f"bytes=0-{'9' * 99}"]
)
def test_a_part_that_cannot_be_given_is_answered_with_the_whole_file(api: Training, tmp_path: Path, asked: str) -> None:
    job = job_with_clip(tmp_path, {"a.mp4": b"0123456789"}, {"a.mp4": "video/mp4"})
    answer = api.client.get(f"/api/training/jobs/{job.pk}/media/0/0", headers={"range": asked})
    assert (answer.status_code, b"".join(answer.streaming_content)) == (200, b"0123456789")
    assert answer["Accept-Ranges"] == "bytes" and "Content-Range" not in answer


def test_one_answer_holds_a_few_megabytes_of_a_long_clip(api: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.api.media.LARGEST_PART_BYTES", 4)
    job = job_with_clip(tmp_path, {"a.mp4": b"0123456789"}, {"a.mp4": "video/mp4"})
    answer = api.client.get(f"/api/training/jobs/{job.pk}/media/0/0", headers={"range": "bytes=2-"})
    assert (answer.content, answer["Content-Range"]) == (b"2345", "bytes 2-5/10")


@pytest.mark.parametrize("stated", ["image/svg+xml", "text/html", "image/x-anything", "video/html", "image/png; charset=x", "VIDEO/MP4"])
def test_a_type_that_no_run_writes_is_served_without_it(api: Training, tmp_path: Path, stated: str) -> None:
    job = job_with_clip(tmp_path, {"a.mp4": b"<script>"}, {"a.mp4": stated})
    answer = api.get(f"/jobs/{job.pk}/media/0/0", accept="*/*")
    assert (answer["Content-Type"], answer["X-Content-Type-Options"]) == ("application/octet-stream", "nosniff")


def test_a_large_clip_is_a_link_where_media_are_inline(api: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.api.media.LARGEST_INLINE_BYTES", 8)
    job = job_with_clip(tmp_path, {"a.gif": b"GIF89a+++", "a.mp4": b"12345678"}, {"a.gif": "image/gif", "a.mp4": "video/mp4"})
    gif, mp4 = api.get("/events").json()["events"][0]["videos"]
    assert gif == {"src": f"/api/training/jobs/{job.pk}/media/0/0", "mime_type": "image/gif"}
    assert mp4["src"] == f"data:video/mp4;base64,{base64.b64encode(b'12345678').decode()}"
    assert b"".join(api.client.get(gif["src"]).streaming_content) == b"GIF89a+++"


def test_a_large_image_stays_inline(api: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.api.media.LARGEST_INLINE_BYTES", 8)
    job = make_job(tmp_path, Status.RUNNING)
    (job.folder.create().media / "a.png").write_bytes(PIXEL)
    about: dict[str, Any] = {"resolution": (1, 1), "validation_type": "final", "prompt": "p", "step_label": "5/5"}
    event = ImageEvent(step=5, global_step=5, images=[MediaFile(file="media/a.png")], **about)
    log.append(job.pk, [log.from_server(event)])
    (image,) = api.get("/events").json()["events"][0]["images"]
    assert image["src"] == f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"


def test_the_log_is_text(api: Training, tmp_path: Path) -> None:
    job = finished(tmp_path)
    answer = api.get(f"/jobs/{job.pk}/log", accept="*/*")
    assert answer["Content-Type"].startswith("text/plain") and b"training" in answer.content
    assert api.get(f"/jobs/{make_job(tmp_path).pk}/log").content == b""


def test_checkpoints_are_listed_newest_first_and_checked_by_hash(api: Training, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    for step in (5, 20, 10):
        write_checkpoint(Path(job.output_dir), step)
    listed = api.post("/checkpoints").json()
    assert listed["total"] == 3 and listed["output_dir"] == job.output_dir
    assert [row["step"] for row in listed["checkpoints"]] == [20, 10, 5]
    assert [row["is_latest"] for row in listed["checkpoints"]] == [True, False, False]
    assert set(listed["checkpoints"][0]) == {
        "name", "path", "step", "epoch", "loss", "learning_rate", "timestamp", "size_bytes", "is_latest", "verified",
        "is_best", "eval_loss", "is_rolling",
    }  # fmt: skip
    assert api.get(f"/checkpoints?output_dir={job.output_dir}").json() == listed
    for folder in ("/etc", "~nosuchuser/x", "~root", "%00", "n" * 300, "%ED%A0%80"):
        assert api.get(f"/checkpoints?output_dir={folder}").status_code == 404
    assert api.get("/checkpoints/validate/checkpoint-20").json()["valid"] is True
    (Path(job.output_dir) / "checkpoint-20" / "weights").write_bytes(b"Numbers")
    verdict = api.get(f"/checkpoints/validate/checkpoint-20?job_id={job.pk}").json()
    assert verdict["valid"] is False and "weights" in verdict["message"]
    for name in ("checkpoint-7", "..", "%2e%2e%2f", "manifest.json"):
        assert api.get(f"/checkpoints/validate/{name}").status_code == 404


def test_the_checkpoint_of_the_lowest_evaluation_loss_is_the_best(api: Training, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    for step, loss in ((5, 0.5), (10, 0.25), (20, 0.75), (30, None)):
        evaluation = {"loss": loss, "measure": "ab", "datasets": ["held-out"]} if loss else None
        write_checkpoint(Path(job.output_dir), step, evaluation=evaluation)
    rows = api.get("/checkpoints").json()["checkpoints"]
    assert [(row["step"], row["eval_loss"], row["is_best"]) for row in rows] == [
        (30, None, False),
        (20, 0.75, False),
        (10, 0.25, True),
        (5, 0.5, False),
    ]


def test_a_queued_job_is_stopped_by_leaving_the_queue(api: Training, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    said = api.post("/stop").json()
    assert said["status"] == "cancelled" and said["job_id"] == str(job.pk)
    again = api.post("/cancel", {"job_id": str(job.pk)}, format="json")
    assert again.status_code == 200 and again.json()["status"] == "cancelled"
    assert Event.objects.get(job=job).payload["data"]["status"] == "cancelled"


def test_a_running_job_is_stopped_and_cancelled_by_its_id(api: Training, tmp_path: Path) -> None:
    job = leased_job(tmp_path, status=Status.RUNNING)
    start_fake(job, "deaf", steps=10_000)
    said = api.post("/stop", {}).json()
    assert said == {"message": f"Training job {job.pk} stop requested", "job_id": str(job.pk), "status": "stopping"}
    answer = api.post("/cancel", {"job_id": str(job.pk)}, accept="*/*").content.decode()
    assert "alert alert-warning" in answer and "Training Cancelled" in answer and f"Job ID: {job.pk}" in answer
    job.refresh_from_db()
    assert (job.status, job.engine_pid) == (Status.CANCELLED, None)


def test_methods_that_mean_nothing_are_405_with_json(api: Training) -> None:
    for path in ("/start", "/validate", "/stop", "/cancel"):
        answer = api.get(path)
        assert answer.status_code == 405 and answer.json()["detail"]
    assert api.post("/status").status_code == 405


def test_a_browser_sees_every_call_as_a_page(api: Training, tmp_path: Path) -> None:
    finished(tmp_path)
    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    for path in ("/status", "/events", "/jobs", "/queue", "/checkpoints"):
        answer = api.get(path, accept=browser)
        assert answer.status_code == 200 and b"<html" in answer.content, path
    assert b"<html" in api.get("/start", accept=browser).content


def test_status_asks_the_database_little(api: Training, tmp_path: Path, django_assert_max_num_queries: Any) -> None:
    finished(tmp_path)
    with django_assert_max_num_queries(2):
        api.get("/status")
    with django_assert_max_num_queries(3):
        json.loads(api.get("/events?since_index=2").content)
