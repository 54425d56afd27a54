"""The files of a run: listed, downloaded whole and in parts, and nothing else of its output folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from django.test import Client

from tests.helpers.checkpoint_folder import FILES, write_checkpoint
from tests.helpers.jobs import make_job
from training.jobs import results
from training.models import Event, Job, Status

pytestmark = [pytest.mark.django_db, pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")]
IMAGES = "validation_images"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A run with a checkpoint, images and an adapter, whose output folder holds files of others too."""
    job = make_job(tmp_path, Status.COMPLETED)
    output = Path(job.output_dir)
    write_checkpoint(output, 4)
    (output / "checkpoint-4" / "stranger.txt").write_text("not of the run")
    (output / IMAGES).mkdir()
    (output / IMAGES / "step_4.png").write_bytes(b"picture")
    (output / IMAGES / "notes.key").write_text("not of the run")
    (output / "pytorch_lora_weights.safetensors").write_bytes(bytes(range(256)) * 20)
    (output / "diary.txt").write_text("not of the run")
    artefacts = {
        "validation_images": str(output / IMAGES),
        "adapter": str(output / "pytorch_lora_weights.safetensors"),
        "checkpoint": str(output / "checkpoint-4"),
        "elsewhere": str(tmp_path / "other"),
        "all": str(output),
    }
    Event.objects.create(job=job, index=0, type="training.summary", timestamp="", payload={"data": {"artefacts": artefacts}})
    return job


def address(job: Job, path: str = "") -> str:
    return f"/api/training/jobs/{job.pk}/files{path}"


def content(answer: Any) -> bytes:
    return b"".join(answer)


def test_checkpoints_and_results_are_listed_and_nothing_else(client: Client, job: Job) -> None:
    answer = client.get(address(job)).json()
    found = {one["path"]: one["kind"] for one in answer["files"]}
    assert found == {
        "checkpoint-4/manifest.json": "checkpoint",
        **{f"checkpoint-4/{name}": "checkpoint" for name in FILES},
        "pytorch_lora_weights.safetensors": "result",
        "validation_images/step_4.png": "result",
    }
    assert answer["count"] == len(found)
    for one in answer["files"]:
        served = client.get(one["url"])
        assert served.status_code == 200 and len(content(served)) == one["size_bytes"] == int(served["Content-Length"])


def test_a_download_is_never_shown_as_a_page(client: Client, job: Job) -> None:
    served = client.get(address(job, "/validation_images/step_4.png"), HTTP_ACCEPT="image/png")
    assert content(served) == b"picture"
    assert served["Content-Disposition"] == "attachment" and served["Content-Type"] == "application/octet-stream"
    assert served["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("header", "part"),
    [("bytes=0-9", (0, 10)), ("bytes=5000-", (5000, 5120)), ("bytes=-7", (5113, 5120)), ("bytes=5119-99999", (5119, 5120))],
)
def test_a_download_goes_on_where_it_broke(client: Client, job: Job, header: str, part: tuple[int, int]) -> None:
    whole = bytes(range(256)) * 20
    served = client.get(address(job, "/pytorch_lora_weights.safetensors"), HTTP_RANGE=header)
    assert (served.status_code, content(served)) == (206, whole[slice(*part)])
    assert served["Content-Range"] == f"bytes {part[0]}-{part[1] - 1}/5120"


def test_a_download_that_is_complete_has_no_further_part(client: Client, job: Job) -> None:
    served = client.get(address(job, "/pytorch_lora_weights.safetensors"), HTTP_RANGE="bytes=5120-")
    assert (served.status_code, served["Content-Range"], served.content) == (416, "bytes */5120", b"")


def test_a_name_with_marks_has_an_address_and_one_that_is_no_text_is_passed_over(client: Client, job: Job) -> None:
    folder = Path(job.output_dir) / IMAGES
    (folder / "a#b?c%41.png").write_bytes(b"odd")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(b"x")
    (found,) = [one for one in client.get(address(job)).json()["files"] if "#" in one["path"]]
    assert content(client.get(found["url"])) == b"odd"


def test_a_file_that_is_swapped_for_a_link_while_it_is_opened_is_not_sent(
    client: Client, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(job.output_dir) / IMAGES / "step_4.png"
    (tmp_path / "key").write_text("secret")
    opened = results.open_regular

    def swap(real: str) -> BinaryIO:
        path.unlink()
        path.symlink_to(tmp_path / "key")
        return opened(real)

    monkeypatch.setattr(results, "open_regular", swap)
    assert client.get(address(job, f"/{IMAGES}/step_4.png")).status_code == 404


def test_a_part_of_a_file_that_has_changed_is_not_added_to_the_old_one(client: Client, job: Job) -> None:
    path = Path(job.output_dir, "pytorch_lora_weights.safetensors")
    tag = client.get(address(job, f"/{path.name}"))["ETag"]
    headers = {"HTTP_RANGE": "bytes=10-", "HTTP_IF_RANGE": tag}
    assert client.get(address(job, f"/{path.name}"), **headers).status_code == 206
    path.write_bytes(b"another adapter")
    served = client.get(address(job, f"/{path.name}"), **headers)
    assert (served.status_code, content(served)) == (200, b"another adapter")


@pytest.mark.parametrize(
    "path",
    ["/diary.txt", "/checkpoint-4/stranger.txt", "/validation_images/notes.key", "/../secret.json", "/checkpoint-4/../diary.txt"]
    + ["/%2e%2e/secret.json", "//etc/passwd", "/checkpoint-4", "/validation_images", "/checkpoint-9/manifest.json", "/.", "/%00"],
)
def test_nothing_else_is_opened(client: Client, job: Job, tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.json").write_text("{}")
    answer = client.get(address(job, path))
    assert answer.status_code in (400, 404) and b"not of the run" not in answer.content and b"root:" not in answer.content


def test_a_link_out_of_the_output_folder_is_not_followed(client: Client, job: Job, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "key.txt").write_text("secret")
    (Path(job.output_dir) / IMAGES / "key.txt").symlink_to(tmp_path / "other" / "key.txt")
    (Path(job.output_dir) / IMAGES / "folder").symlink_to(tmp_path / "other")
    os.mkfifo(Path(job.output_dir) / IMAGES / "pipe.txt")
    listed = {one["path"] for one in client.get(address(job)).json()["files"]}
    assert not [path for path in listed if "key" in path or "folder" in path or "pipe" in path]
    for name in ("key.txt", "folder/key.txt", "pipe.txt"):
        assert client.get(address(job, f"/{IMAGES}/{name}")).status_code == 404


def test_a_run_without_files_has_none(client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    assert client.get(address(job)).json() == {"job_id": str(job.pk), "output_dir": job.output_dir, "files": [], "count": 0}
    assert client.get("/api/training/jobs/none/files").status_code == 404
    assert client.get("/api/training/jobs/none/files/x").status_code == 404
