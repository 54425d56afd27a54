"""The launcher: what an engine is started with, by the server and by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from environments.models import Environment, Revision
from simpletuner_site.train.command import launch_of as command_launch_of
from simpletuner_site.train.command import open_config
from tests.helpers.object_store import BUCKET, object_server
from tests.training.conftest import Training
from tests.training.engine.test_command_line import options
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.datasets.secrets import STORED_AS
from trainer_engine.config.secrets import VARIABLE
from trainer_engine.contract.hooks import NOTHING
from trainer_engine.contract.path_rule import EVERYWHERE
from trainer_engine.contract.run import JobSpec, RunFolder
from training.engine import launcher, process
from training.engine.accelerate_file import UnreadableAccelerateConfig
from training.engine.launcher import LaunchSettings, unused_keys
from training.engine.machines import Machines
from training.engine.process import EngineIdentity
from training.jobs.follower import launch_of as follower_launch_of
from training.models import Event, Job
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


@pytest.mark.parametrize(
    ("entry", "is_withheld"),
    [
        ({"type": "huggingface", "dataset_name": "owner/gated"}, False),
        ({"type": "huggingface", "dataset_name": "/data/rows"}, True),
        ({"instance_data_dir": "/data/cats", "conditioning": [{"type": "depth"}]}, False),
        ({"instance_data_dir": "/data/cats", "conditioning": [{"type": "canny"}]}, True),
    ],
)
def test_the_token_of_the_hub_reaches_a_run_whose_datasets_come_from_there(entry: dict[str, Any], is_withheld: bool) -> None:
    given = options(**LOCAL)
    dataloader, _ = parse_dataloader([{"id": "images", "instance_prompt": "x", "caption_strategy": "instanceprompt", **entry}], given)
    assert ("HF_TOKEN" in LaunchSettings.of(given, dataloader).withheld) is is_withheld


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


def test_keys_of_a_bucket_reach_the_engine_in_its_environment_alone(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []

    def record_start(_folder: RunFolder, _command: object, variables: dict[str, str], *_: object) -> EngineIdentity:
        given.append(variables)
        return EngineIdentity(1, 0, "")

    monkeypatch.setattr(process, "start", record_start)
    file = training.home / "config/datasets.json"
    [images, texts] = json.loads(file.read_text())
    with object_server() as store:
        for path in (training.home / "pictures").rglob("*.*"):
            store.put(f"pictures/{path.name}", path.read_bytes())
        del images["instance_data_dir"]
        keys = {"aws_access_key_id": "canary-id", "aws_secret_access_key": "canary-key"}
        images |= {"type": "aws", "aws_bucket_name": BUCKET, "aws_data_prefix": "pictures", "aws_endpoint_url": store.url, **keys}
        file.write_text(json.dumps([images, texts]))
        answer = training.start()
    job = Job.objects.get(pk=answer["job_id"])
    launcher.start(job.folder, follower_launch_of(job))
    rows = [str(list(model.objects.values())) for model in (Job, Event, Environment, Revision)]
    written = [path.read_text() for path in job.folder.path.rglob("*") if path.is_file()]
    assert "canary" not in "".join([*rows, *written]) and "canary" not in json.dumps(answer)
    job_file = JobSpec.read(job.folder)
    assert job_file.datasets[0]["aws_secret_access_key"] == "***"
    [stored] = json.loads(json.loads(given[0][VARIABLE])[STORED_AS])
    assert {name: stored[name] for name in keys} == keys


def launch_with(training: Training, accelerate: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[list[str]]]:
    """Starts a job whose accelerate file is replaced after the start was accepted; returns its folder and the commands."""
    commands: list[list[str]] = []

    def record_start(_folder: RunFolder, command: list[str], *_: object) -> EngineIdentity:
        commands.append(command)
        return EngineIdentity(1, 0, "")

    monkeypatch.setattr(process, "start", record_start)
    file = training.home / "config/accelerate.yaml"
    file.write_text(json.dumps({"compute_environment": "LOCAL_MACHINE", "num_processes": 2}))
    job = Job.objects.get(pk=training.start(**{"--accelerate_config": "config/accelerate.yaml"})["job_id"])
    file.write_text(json.dumps(accelerate))
    launcher.start(job.folder, follower_launch_of(job))
    return job.folder.path, commands


@pytest.mark.parametrize(
    "changed",
    [
        {"num_machines": 2, "machine_rank": 1, "main_process_ip": "203.0.113.9", "num_processes": 2},
        {"deepspeed_config": {"deepspeed_hostfile": "/tmp/hosts"}},
    ],
)
def test_a_file_that_changes_after_it_was_checked_is_refused_at_the_launch(
    training: Training, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    with pytest.raises(UnreadableAccelerateConfig):
        launch_with(training, changed, monkeypatch)


def test_accelerate_reads_what_was_checked(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, [command] = launch_with(training, {"num_processes": 3, "mixed_precision": "no"}, monkeypatch)
    file = Path(command[command.index("--config_file") + 1])
    assert file.parent == folder and json.loads(file.read_text()) == {"num_processes": 3, "mixed_precision": "no"}
    assert file.stat().st_mode & 0o077 == 0
