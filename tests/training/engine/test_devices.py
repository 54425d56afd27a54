"""Runs that train at the same time get GPUs of their own."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.jobs import make_job
from trainer_engine.contract.run import RunFolder
from training.engine import devices, launcher, process
from training.engine.devices import CUDA, HIP, ROCR, VisibleGpus, gpus_of, least_used, one_at_a_time
from training.engine.launcher import LaunchSettings
from training.engine.machines import Machines
from training.engine.process import EngineIdentity
from training.jobs.follower import Follower
from training.models import Job, Status

SLEEPS = "import time; time.sleep(120)"


AMD, NVIDIA = ("kfd", "dri/renderD128", "dri/renderD129", "dri/card1"), ("nvidia3", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm")


@pytest.fixture(autouse=True)
def only_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of other tests and people, and GPUs of this machine, are not seen."""
    monkeypatch.setattr(devices, "DEVICES", tmp_path / "dev")
    monkeypatch.setattr(process, "ENGINE_MODULE", f"engine-{uuid.uuid4()}")


@pytest.fixture
def started() -> Iterator[list[tuple[EngineIdentity, RunFolder]]]:
    found: list[tuple[EngineIdentity, RunFolder]] = []
    yield found
    for identity, folder in found:
        process.kill(identity, folder)
        process.wait_until_gone(identity, folder, seconds=20)


def command(folder: Path) -> list[str]:
    return [sys.executable, "-c", SLEEPS, process.ENGINE_MODULE, str(folder)]


def start(folder: Path, seen: dict[str, str], started: list[tuple[EngineIdentity, RunFolder]]) -> None:
    """A process that looks like the engine of a run, with what its variables let it see."""
    run = RunFolder(folder).create()
    started.append((process.start(run, command(run.path), seen), run))


def machine(folder: Path, *names: str) -> Path:
    """A folder of device files."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def least(gpus: VisibleGpus) -> str:
    return least_used(gpus, process.engine_environments())


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({CUDA: "0,1"}, ("0", "1")),
        ({CUDA: " 3 , GPU-abc ,"}, ("3", "GPU-abc")),
        ({CUDA: "0,-1,1"}, ("0",)),
        ({CUDA: ""}, ()),
        ({CUDA: "-1"}, ()),
        ({}, ("0", "1", "2")),
        ({HIP: "1"}, ("0", "1", "2")),
    ],
)
def test_nvidia_s_gpus_are_those_that_an_engine_would_see(tmp_path: Path, variables: dict[str, str], names: tuple[str, ...]) -> None:
    found = gpus_of(variables, machine(tmp_path, *NVIDIA))
    assert (found.names, found.cards, found.variable) == (names, names, CUDA)


@pytest.mark.parametrize(
    ("variables", "names", "cards"),
    [
        ({}, ("0", "1"), ("0", "1")),
        ({HIP: "1"}, ("1",), ("1",)),
        ({CUDA: "1"}, ("1",), ("1",)),
        ({HIP: "0", CUDA: "1"}, ("0",), ("0",)),
        ({ROCR: "1,GPU-abc"}, ("0", "1"), ("1", "GPU-abc")),
        ({ROCR: "1,0", HIP: "0"}, ("0",), ("1",)),
        ({ROCR: "1", HIP: "GPU-abc"}, ("GPU-abc",), ("GPU-abc",)),
        ({HIP: "-1"}, (), ()),
        ({ROCR: ""}, (), ()),
    ],
)
def test_amd_s_gpus_are_those_that_hip_would_count(
    tmp_path: Path, variables: dict[str, str], names: tuple[str, ...], cards: tuple[str, ...]
) -> None:
    found = gpus_of(variables, machine(tmp_path, *AMD))
    assert (found.names, found.cards, found.variable) == (names, cards, HIP)


def test_torch_for_rocm_reads_the_variables_in_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parser is asked as if it were built for AMD's cards. It counts what ``ROCR_VISIBLE_DEVICES`` leaves, as HIP does."""
    import torch

    files = machine(tmp_path, *AMD)
    monkeypatch.setattr(torch.version, "hip", "6.2")
    for name in (CUDA, HIP, ROCR):
        monkeypatch.delenv(name, raising=False)
    for variables in ({HIP: "1"}, {ROCR: "1,0"}, {ROCR: "1,0", HIP: "1"}, {CUDA: "1"}, {HIP: "0", CUDA: "1"}, {HIP: "0,-1,1"}):
        with monkeypatch.context() as patched:
            for name, value in variables.items():
                patched.setenv(name, value)
            seen = torch.cuda._parse_visible_devices()
        assert tuple(map(str, seen)) == gpus_of(variables, files).names, variables


def test_a_machine_without_gpus_has_none(tmp_path: Path) -> None:
    assert gpus_of({}, tmp_path).names == () and gpus_of({}, machine(tmp_path, "dri/renderD128")).names == ()


def test_each_run_gets_the_gpu_that_the_fewest_others_see(tmp_path: Path, started: list[tuple[EngineIdentity, RunFolder]]) -> None:
    """They need not be runs of this server: the folders of some lie elsewhere, as those of a shell."""
    gpus = VisibleGpus(CUDA, ("0", "1", "2"), ("0", "1", "2"))
    assert least(gpus) == "0"
    start(tmp_path / "a", gpus.only("0"), started)
    assert least(gpus) == "1"
    start(tmp_path / "elsewhere/b", {CUDA: "1,2"}, started)
    assert least(gpus) == "0", "all have one run, so the first of them"
    start(tmp_path / "elsewhere/c", {CUDA: "0"}, started)
    assert least(gpus) == "1"
    for identity, folder in (started[0], started[2]):
        process.kill(identity, folder)
        assert process.wait_until_gone(identity, folder, seconds=20)
    assert least(gpus) == "0", "a run that has ended sees none"


def test_the_ranks_of_a_run_count_once(tmp_path: Path, started: list[tuple[EngineIdentity, RunFolder]]) -> None:
    for _ in range(2):
        start(tmp_path / "a", {CUDA: "0"}, started)
    assert [one[CUDA] for one in process.engine_environments()] == ["0"]


def test_a_run_that_sees_all_gpus_counts_for_each(
    tmp_path: Path, started: list[tuple[EngineIdentity, RunFolder]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (CUDA, HIP, ROCR):
        monkeypatch.delenv(name, raising=False)
    start(tmp_path / "a", {}, started)
    start(tmp_path / "b", {CUDA: "0"}, started)
    assert least(VisibleGpus(CUDA, ("0", "1"), ("0", "1"))) == "1"


def test_amd_s_cards_are_told_apart_however_a_run_names_them(tmp_path: Path) -> None:
    gpus = gpus_of({}, machine(tmp_path, *AMD))
    assert least_used(gpus, [{ROCR: "0", HIP: "0"}]) == "1" and least_used(gpus, [{ROCR: "1", HIP: "0"}]) == "0"
    assert least_used(gpus, [{HIP: "0"}, {ROCR: "1"}, {ROCR: "1"}]) == "0"
    assert gpus.only("1") == {HIP: "1"}


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
@pytest.mark.parametrize("variable", [CUDA, HIP])
def test_runs_of_a_server_with_several_slots_see_one_gpu_each(
    home: Path,
    tmp_path: Path,
    started: list[tuple[EngineIdentity, RunFolder]],
    monkeypatch: pytest.MonkeyPatch,
    settings: object,
    slots: int,
    seen: list[str],
    variable: str,
) -> None:
    """The follower starts them as a worker does; what each process sees is read from the system."""
    for name in (CUDA, HIP, ROCR):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "0,1")
    monkeypatch.setattr(launcher, "launch_command", lambda run_dir, *_, **__: (command(run_dir), {}))
    settings.SLOTS = slots  # type: ignore[attr-defined]
    found = []
    for _ in range(2):
        job = make_job(tmp_path, Status.STARTING, lease_owner="me", options={"model_family": "pixart_sigma"})
        identity = Follower(job, "me")._launch()
        assert identity is not None
        started.append((identity, job.folder))
        Job.objects.filter(pk=job.pk).update(engine_pid=identity.pid)
        found.append(psutil.Process(identity.pid).environ()[variable])
    assert found == seen


@pytest.mark.django_db
def test_a_run_of_a_shell_keeps_its_gpu_to_itself(
    home: Path, tmp_path: Path, started: list[tuple[EngineIdentity, RunFolder]], monkeypatch: pytest.MonkeyPatch, settings: object
) -> None:
    """It has no job on the server."""
    monkeypatch.setenv(CUDA, "0,1")
    monkeypatch.setattr(launcher, "launch_command", lambda run_dir, *_, **__: (command(run_dir), {}))
    settings.SLOTS = 2  # type: ignore[attr-defined]
    start(tmp_path / "shell", {CUDA: "0"}, started)
    job = make_job(tmp_path, Status.STARTING, lease_owner="me", options={"model_family": "pixart_sigma"})
    identity = Follower(job, "me")._launch()
    assert identity is not None
    started.append((identity, job.folder))
    assert psutil.Process(identity.pid).environ()[CUDA] == "1"
