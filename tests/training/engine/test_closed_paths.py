"""Places that a run may not use, as ``validate`` and a start say it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from environments.home import current_home
from environments.places import SHIPPED_SCRIPTS
from tests.training.conftest import Training
from trainer_engine.contract.run import JobSpec, RunFolder
from training.jobs.follower import Follower
from training.models import Job


def problems(training: Training, **changes: object) -> list[dict[str, str]]:
    answer = training.post("/validate", {**training.form, **changes})
    found: list[dict[str, str]] = answer.json()["problems"]
    return found


@pytest.mark.parametrize("folder", ["state/hooks", "state", "~/.config", str(SHIPPED_SCRIPTS), "~/.cache/huggingface/hub"])
@pytest.mark.parametrize("option", ["output_dir", "cache_dir", "cache_dir_vae", "cache_dir_text", "group_offload_to_disk_path"])
def test_output_options_refuse_folders_of_programs_and_keys(training: Training, option: str, folder: str) -> None:
    found = [problem for problem in problems(training, **{f"--{option}": folder}) if problem["option"] == option]
    assert [problem["code"] for problem in found] == ["outside_roots"]
    assert training.post("/start", {**training.form, f"--{option}": folder}).status_code == 422
    assert not Job.objects.exists()


def test_a_refusal_is_listed_once_where_the_stored_configuration_has_the_same_path(training: Training) -> None:
    folder = training.home / "config" / "demo"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**training.form, "--output_dir": "/srv/results"}))
    assert training.client.post("/api/configs/demo/activate").status_code == 200
    found = [problem for problem in problems(training, **{"--output_dir": "/srv/results"}) if problem["option"] == "output_dir"]
    assert len(found) == 1
    assert "outside the folders that this server uses" in found[0]["message"] and "--root DIR" in found[0]["hint"]


def test_trackers_do_not_write_through_a_link_to_a_closed_place(training: Training) -> None:
    output = training.home / "output" / "run"
    output.mkdir(parents=True)
    (training.home / "state" / "hooks").mkdir()
    (output / "logs").symlink_to(training.home / "state" / "hooks")
    found = problems(training, **{"--report_to": "tensorboard"})
    assert ("logging_dir", "outside_roots") in [(problem["option"], problem["code"]) for problem in found]
    assert not problems(training, **{"--report_to": "none"})


def test_a_job_takes_the_rule_of_places_along(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    training.start()
    job = Job.objects.get()
    monkeypatch.setattr("training.engine.process.start", lambda *_, **__: None)
    Follower(job, "test")._launch()
    spec = JobSpec.read(RunFolder(Path(job.run_dir)))
    assert spec.places == current_home().place_rule and not spec.places.anywhere
    assert not spec.places.may_write(training.home / "state" / "hooks" / "checkpoint-5")


def test_two_names_of_one_folder_are_one_where_pictures_would_become_data(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links of the owner that lead out of every root are kept as they were given."""
    monkeypatch.setattr("environments.places.default_roots", lambda: ())
    (training.home / "pictures").rename(tmp_path / "pictures")
    for name in ("pictures", "other"):
        (training.home / name).symlink_to(tmp_path / "pictures")
    found = problems(training, **{"--output_dir": "other/output"})
    assert ("output_dir", "among_images") in [(problem["option"], problem["code"]) for problem in found]
