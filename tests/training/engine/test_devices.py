"""Runs that train at the same time get GPUs of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.jobs import make_job
from trainer_engine.contract.run import RunFolder
from training.engine import devices, launcher, process
from training.engine.devices import VISIBLE, least_used, listed_gpus, one_at_a_time
from training.engine.launcher import LaunchSettings
from training.engine.machines import Machines
from training.engine.process import EngineIdentity
from training.jobs.follower import Follower
from training.models import Job, Status

SLEEPS = "import time; time.sleep(120)"


@pytest.fixture
def started() -> Iterator[list[tuple[EngineIdentity, RunFolder]]]:
    found: list[tuple[EngineIdentity, RunFolder]] = []
    yield found
    for identity, folder in found:
        process.kill(identity, folder)
        process.wait_until_gone(identity, folder, seconds=20)


def start(folder: Path, gpu: str | None, started: list[tuple[EngineIdentity, RunFolder]]) -> RunFolder:
    """A process that looks like the engine of a run, with one GPU or with all."""
    run = RunFolder(folder).create()
    command = [sys.executable, "-c", SLEEPS, "trainer_engine", str(run.path)]
    started.append((process.start(run, command, {} if gpu is None else {VISIBLE: gpu}), run))
    return run


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({VISIBLE: "0,1"}, ("0", "1")),
        ({VISIBLE: " 3 , GPU-abc ,"}, ("3", "GPU-abc")),
        ({VISIBLE: "0,-1,1"}, ("0",)),
        ({VISIBLE: ""}, ()),
        ({VISIBLE: "-1"}, ()),
        ({}, ("0", "1", "2")),
    ],
)
def test_the_gpus_are_those_that_an_engine_would_see(tmp_path: Path, variables: dict[str, str], names: tuple[str, ...]) -> None:
    for name in ("nvidia3", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert listed_gpus(variables, tmp_path) == names


def test_each_run_gets_the_gpu_that_the_fewest_others_see(tmp_path: Path, started: list[tuple[EngineIdentity, RunFolder]]) -> None:
    gpus = ("0", "1", "2")
    assert least_used(gpus, []) == "0" and least_used(gpus, [RunFolder(tmp_path / "never started")]) == "0"
    first = start(tmp_path / "a", "0", started)
    assert least_used(gpus, [first]) == "1"
    second = start(tmp_path / "b", "1,2", started)
    assert least_used(gpus, [first, second]) == "0", "all have one run, so the first of them"
    third = start(tmp_path / "c", "0", started)
    assert least_used(gpus, [first, second, third]) == "1"
    identity, folder = started[0]
    process.kill(identity, folder)
    assert process.wait_until_gone(identity, folder, seconds=20)
    assert least_used(("0", "1"), [first, second]) == "0", "a run that has ended sees none"


def test_a_run_that_sees_all_gpus_counts_for_each(
    tmp_path: Path, started: list[tuple[EngineIdentity, RunFolder]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    every, one = start(tmp_path / "a", None, started), start(tmp_path / "b", "0", started)
    assert least_used(("0", "1"), [every, one]) == "1"


def test_two_workers_choose_one_after_the_other(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from training.engine.devices import one_at_a_time as o\nwith o(Path({str(tmp_path)!r})): print('in')"
    root = Path(devices.__file__).parents[2]
    with one_at_a_time(tmp_path):
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(3)
    assert other.communicate(timeout=60)[0] == b"in\n"


@pytest.mark.parametrize(
    ("settings", "takes_one"),
    [
        (LaunchSettings(), True),
        (LaunchSettings(num_processes=2), False),
        (LaunchSettings(accelerate_config="a.yaml"), False),
        (LaunchSettings(machines=Machines(count=2)), False),
    ],
)
def test_a_run_of_several_processes_is_given_no_single_gpu(settings: LaunchSettings, takes_one: bool) -> None:
    assert settings.takes_one_gpu is takes_one


@pytest.mark.django_db
@pytest.mark.parametrize(("slots", "seen"), [(2, ["0", "1"]), (1, ["0,1", "0,1"])])
def test_runs_of_a_server_with_several_slots_see_one_gpu_each(
    home: Path,
    tmp_path: Path,
    started: list[tuple[EngineIdentity, RunFolder]],
    monkeypatch: pytest.MonkeyPatch,
    settings: object,
    slots: int,
    seen: list[str],
) -> None:
    """The follower starts them as a worker does; what each process sees is read from the system."""
    monkeypatch.setenv(VISIBLE, "0,1")
    monkeypatch.setattr(
        launcher, "launch_command", lambda run_dir, *_, **__: ([sys.executable, "-c", SLEEPS, "trainer_engine", str(run_dir)], {})
    )
    settings.SLOTS = slots  # type: ignore[attr-defined]
    found = []
    for _ in range(2):
        job = make_job(tmp_path, Status.STARTING, lease_owner="me", options={"model_family": "pixart_sigma"})
        identity = Follower(job, "me")._launch()
        assert identity is not None
        started.append((identity, job.folder))
        Job.objects.filter(pk=job.pk).update(engine_pid=identity.pid)
        found.append(psutil.Process(identity.pid).environ()[VISIBLE])
    assert found == seen
