"""The report about a run's datasets at its address: the engine's, or that of validate while the run waits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from tests.helpers.clips import needs_pyav
from tests.helpers.jobs import make_job
from tests.helpers.tiny_run import tiny_datasets, tiny_options, train_here
from tests.helpers.video_files import write_video
from tests.training.api.test_answers_have_their_shape import mismatches
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.run import RunFolder
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.summary import report_document
from training.api.dataset_report import DatasetReportSerializer
from training.models import Status

pytestmark = pytest.mark.django_db


def document_of(place: Path, family: str = "pixart_sigma", **fields: Any) -> dict[str, Any]:
    options = parse_options(tiny_options(place, model_family=family))
    spec = find_spec(options.model.model_family)
    assert spec is not None
    dataloader, _ = parse_dataloader(tiny_datasets(place, **fields), options)
    return report_document(examine(dataloader, options, spec), options)


@pytest.mark.parametrize("fields", [{}, {"end_step": 100, "repeats": 2}])
def test_a_waiting_run_shows_what_validate_found(home: Path, client: Client, tmp_path: Path, fields: dict[str, Any]) -> None:
    job = make_job(tmp_path, Status.QUEUED, plan={**document_of(tmp_path, **fields), "memory": {"bytes": 1}})
    answer = client.get(f"/api/training/jobs/{job.pk}/datasets").json()
    assert (answer["found_by"], answer["job_id"], answer["datasets"][0]["usable"]) == ("validate", str(job.pk), 8)
    assert list(mismatches(DatasetReportSerializer(), answer, "report")) == [] and "memory" not in answer


def test_a_run_shows_what_its_engine_found(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING, plan=document_of(tmp_path))
    found = {**document_of(tmp_path), "steps": 77}
    job.folder.create().datasets.write_text(json.dumps(found))
    answer = client.get(f"/api/training/jobs/{job.pk}/datasets/").json()
    assert (answer["found_by"], answer["steps"]) == ("engine", 77)
    assert list(mismatches(DatasetReportSerializer(), answer, "report")) == []


@needs_pyav
def test_the_report_of_clips_has_their_frames_and_the_shape_of_the_schema(home: Path, client: Client, tmp_path: Path) -> None:
    for length in (5, 9):
        write_video(tmp_path / "clips" / f"of_{length}.mp4", length)
    fields = {"dataset_type": "video", "video": {"num_frames": 5, "bucket_strategy": "resolution_frames"}}
    plan = document_of(tmp_path, "wan", instance_data_dir=str(tmp_path / "clips"), **fields)
    job = make_job(tmp_path, Status.QUEUED, plan=plan)
    answer = client.get(f"/api/training/jobs/{job.pk}/datasets").json()
    [clips] = answer["datasets"]
    assert (clips["frames"], clips["frame_rate"]) == ({"fewest": 5, "most": 9, "total": 14}, {"lowest": 10.0, "highest": 10.0})
    assert [bucket["frames"] for bucket in clips["buckets"]] == [5, 9]
    assert list(mismatches(DatasetReportSerializer(), answer, "report")) == []


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b'{"steps": 1}'])
def test_a_damaged_report_is_not_shown(home: Path, client: Client, tmp_path: Path, content: bytes) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    job.folder.create().datasets.write_bytes(content)
    answer = client.get(f"/api/training/jobs/{job.pk}/datasets")
    assert answer.status_code == 404 and "no report" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["nothing", "00000000-0000-0000-0000-000000000000"])
def test_a_job_that_is_not_there_is_not_found(home: Path, client: Client, name: str) -> None:
    answer = client.get(f"/api/training/jobs/{name}/datasets")
    assert answer.status_code == 404 and "not found" in answer.json()["detail"]


def test_the_schema_describes_the_report(home: Path, client: Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    call = next(calls["get"] for path, calls in paths.items() if path.rstrip("/").endswith("/jobs/{job_id}/datasets"))
    assert call["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/DatasetReport")


def test_the_engine_writes_what_validate_reports(tmp_path: Path) -> None:
    wanted = document_of(tmp_path)
    train_here(tmp_path, max_train_steps=4)
    written = [path for path in tmp_path.rglob("datasets.json") if path == RunFolder(path.parent).datasets]
    assert [json.loads(path.read_bytes()) for path in written] == [json.loads(json.dumps(wanted))]
