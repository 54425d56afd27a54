"""The launcher: what an engine is started with, by the server and by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simpletuner_site.train.command import launch_of as command_launch_of
from simpletuner_site.train.command import open_config
from tests.training.conftest import Training
from tests.training.engine.test_command_line import options
from trainer_engine.contract.hooks import NOTHING
from trainer_engine.contract.path_rule import EVERYWHERE
from trainer_engine.contract.run import JobSpec, RunFolder
from training.engine import launcher, process
from training.engine.command_line import Machines
from training.engine.launcher import LaunchSettings, unused_keys
from training.engine.process import EngineIdentity
from training.jobs.follower import launch_of as follower_launch_of
from training.models import Job
from training.preflight.run import examine_run

LOCAL = {"pretrained_model_name_or_path": "/models/base"}
HUB = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@pytest.mark.parametrize(
    ("values", "withheld"),
    [
        (LOCAL, ("WANDB_API_KEY", *HUB)),
        ({**LOCAL, "report_to": "tensorboard"}, ("WANDB_API_KEY", *HUB)),
        ({**LOCAL, "report_to": "wandb"}, HUB),
        ({}, ("WANDB_API_KEY",)),
        ({"pretrained_model_name_or_path": "owner/name"}, ("WANDB_API_KEY",)),
        ({**LOCAL, "pretrained_vae_model_name_or_path": "owner/name"}, ("WANDB_API_KEY",)),
        ({**LOCAL, "push_to_hub": True, "report_to": "tensorboard,wandb"}, ()),
        ({**LOCAL, "resume_from_checkpoint": "hf://owner/name/checkpoint-5"}, ("WANDB_API_KEY",)),
        ({**LOCAL, "evaluation_type": "clip", "validation_prompt": "a cat"}, ("WANDB_API_KEY",)),
        ({**LOCAL, "validation_adapter_path": "owner/name:file.safetensors"}, ("WANDB_API_KEY",)),
    ],
)
def test_a_key_is_withheld_from_a_run_that_speaks_to_no_such_service(values: dict[str, Any], withheld: tuple[str, ...]) -> None:
    assert unused_keys(options(**values)) == withheld


def test_an_engine_is_started_without_what_is_withheld(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "SLURM_JWT", "HF_HOME"):
        monkeypatch.setenv(name, "hunter2")
    folder = RunFolder(tmp_path).create()
    identity = process.start(folder, ["env"], withheld=("HF_TOKEN", "WANDB_API_KEY"))
    assert process.wait_until_gone(identity, folder, seconds=30)
    variables = folder.log.read_text()
    assert "HF_HOME=hunter2" in variables
    assert not any(f"{name}=" in variables for name in ("HF_TOKEN", "WANDB_API_KEY", "SLURM_JWT"))


def test_settings_survive_the_job_row() -> None:
    spread = {"num_processes": 3, "num_machines": 2, "machine_rank": 1, "main_process_ip": "10.0.0.1", "main_process_port": 29600}
    settings = LaunchSettings.of(options(accelerate_config="/etc/accelerate.yaml", **spread, **LOCAL))
    machines = Machines(2, 1, "10.0.0.1", 29600)
    assert settings == LaunchSettings(3, "/etc/accelerate.yaml", ("WANDB_API_KEY", *HUB), machines)
    assert LaunchSettings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings
    assert LaunchSettings.from_dict({}) == LaunchSettings()


def test_the_server_and_the_command_line_write_the_same_job_file(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[RunFolder] = []

    def record_start(folder: RunFolder, *_: object) -> EngineIdentity:
        started.append(folder)
        return EngineIdentity(1, 0, "")

    monkeypatch.setattr(process, "start", record_start)
    config = training.home / "config/boats/config.json"
    config.parent.mkdir()
    hooks = [{"webhook_type": "raw", "callback_url": "http://127.0.0.1:9/", "auth_token": "hunter2"}]
    form = {**training.form, "--num_processes": "2", "--webhook_config": json.dumps(hooks), "--hub_model_id": "me/boats"}
    config.write_text(json.dumps(form))

    job = Job.objects.get(pk=training.start(**form)["job_id"])
    launcher.start(job.folder, follower_launch_of(job))
    place, resolved = open_config(config, training.home)
    report = examine_run(resolved, place)
    assert report.resolved.options is not None, [str(problem) for problem in report.errors]
    launch = command_launch_of(report, report.resolved.options, place, "boats")
    launcher.start(RunFolder(training.home / "state/runs/by-command"), launch)

    by_server, by_command = (JobSpec.read(folder) for folder in started)
    # The name and the two rules are what differs between a server and a user's own shell.
    same = {"job_id": "", "environment": "", "scripts": NOTHING, "places": EVERYWHERE}
    assert by_server.model_copy(update=same) == by_command.model_copy(update=same)
    assert LaunchSettings.from_dict(job.launch) == launch.settings
    assert all(b"hunter2" not in folder.job_file.read_bytes() for folder in started)
