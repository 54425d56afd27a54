"""The export of an adapter from a page: what is exported, where to, and how a failure is said."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.jobs import make_job
from training.jobs import export
from training.jobs.export import ADAPTER, NotExported, export_for_comfyui, newest_adapter
from training.jobs.results import list_files
from training.models import Checkpoint, Job, Status
from training.pages.buttons import buttons_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def job(home: Path) -> Job:
    """A run with two checkpoints, of which the older one is left."""
    job = make_job(home / "output", Status.COMPLETED, environment="cats")
    Path(job.output_dir).mkdir(parents=True, exist_ok=True)
    for step in (5, 10):
        folder = Path(job.output_dir, f"checkpoint-{step}")
        Checkpoint.objects.create(job=job, name=folder.name, path=str(folder), step=step)
        if step == 5:
            folder.mkdir()
            (folder / ADAPTER).write_bytes(b"weights")
    return job


def answering(monkeypatch: pytest.MonkeyPatch, code: int = 0, said: str = "") -> list[list[str]]:
    """Stands for the program that loads torch; the browser test runs the real one."""
    asked: list[list[str]] = []

    def run(command: list[str], **values: Any) -> Any:
        asked.append(command)
        assert "SECRET_OF_THE_SERVER" not in values["env"]
        if not code:
            Path(command[-1]).write_bytes(b"exported")
        return subprocess.CompletedProcess(command, code, "", said)

    monkeypatch.setenv("SECRET_OF_THE_SERVER", "x")
    monkeypatch.setattr(export.subprocess, "run", run)
    return asked


def test_the_newest_adapter_that_is_left_is_exported_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch)
    assert newest_adapter(job) == Path(job.output_dir, "checkpoint-5", ADAPTER)
    assert export_for_comfyui(job) == "comfyui/cats-checkpoint-5.safetensors" == export_for_comfyui(job)
    assert len(asked) == 1 and asked[0][2:6] == ["trainer_engine.export", str(newest_adapter(job)), "--to", "comfyui"]
    assert [str(one.path) for one in list_files(job)] == ["comfyui/cats-checkpoint-5.safetensors"]


def test_an_export_of_former_weights_of_the_same_name_is_made_anew(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch)
    target = Path(job.output_dir, export_for_comfyui(job))
    target.write_bytes(b"of the former run")
    saved = Path(job.output_dir, "checkpoint-5", ADAPTER)
    os.utime(saved, ns=(0, target.stat().st_mtime_ns + 1))
    export_for_comfyui(job)
    assert len(asked) == 2 and target.read_bytes() == b"exported"


def test_a_failure_is_said_in_the_words_of_the_program(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, 20, "Traceback\nComfyUI has no keys for an adapter on a ControlNet.\n")
    with pytest.raises(NotExported, match="no keys for an adapter on a ControlNet"):
        export_for_comfyui(job)


def test_no_link_leads_an_export_out_of_the_output_folder(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch)
    (tmp_path / "elsewhere").mkdir()
    Path(job.output_dir, "comfyui").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotExported, match="leads out"):
        export_for_comfyui(job)
    assert asked == [] and list((tmp_path / "elsewhere").iterdir()) == []


def test_a_run_without_an_adapter_has_no_button(job: Job) -> None:
    assert "export" in [button.slug for button in buttons_of(job)]
    Path(job.output_dir, "checkpoint-5", ADAPTER).unlink()
    assert "export" not in [button.slug for button in buttons_of(job)]
    with pytest.raises(NotExported, match="no adapter"):
        export_for_comfyui(job)
