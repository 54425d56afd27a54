"""ControlRequests collects signals and command files."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from trainer_engine.contract.commands import Command, request
from trainer_engine.contract.run import RunFolder
from trainer_engine.runtime.control import LOOK_AGAIN_SECONDS, ControlRequests, Stopped
from trainer_engine.runtime.environment import read_environment


@pytest.fixture
def listening(tmp_path: Path, own_signals: None) -> ControlRequests:
    """Requests that hear this process's signals."""
    requests = ControlRequests(RunFolder(tmp_path).create())
    requests.listen()
    return requests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_interrupts_the_preparation(listening: ControlRequests, number: int) -> None:
    with pytest.raises(Stopped):
        os.kill(os.getpid(), number)
        time.sleep(1)


def test_signal_while_training_is_only_recorded(listening: ControlRequests) -> None:
    listening.training_begins()
    os.kill(os.getpid(), signal.SIGTERM)
    assert listening.stop_asked()
    assert listening.take_up() == {Command.STOP}
    assert listening.take_up() == {Command.STOP}


def test_second_signal_has_no_effect(listening: ControlRequests) -> None:
    with pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert listening.stop_asked()


def test_signal_in_an_uninterrupted_block_stops_the_run_after_the_block(listening: ControlRequests) -> None:
    reached: list[str] = []
    with pytest.raises(Stopped), listening.uninterrupted():
        with listening.uninterrupted():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            reached.append("inner")
        reached.append("outer")
    assert reached == ["inner", "outer"]
    with listening.uninterrupted():
        os.kill(os.getpid(), signal.SIGTERM)


def test_signal_in_an_uninterrupted_block_while_training_is_only_recorded(listening: ControlRequests) -> None:
    listening.training_begins()
    with listening.uninterrupted():
        os.kill(os.getpid(), signal.SIGTERM)
    assert listening.take_up() == {Command.STOP}


def test_library_that_tries_imports_does_not_catch_a_stop(listening: ControlRequests) -> None:
    with pytest.raises(Stopped):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        except Exception:  # noqa: BLE001
            pytest.fail("taken for an ordinary error")


def test_take_up_returns_commands_once_and_a_stop_always(listening: ControlRequests, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    request(folder, Command.CHECKPOINT)
    request(folder, Command.VALIDATE)
    assert listening.take_up() == {Command.CHECKPOINT, Command.VALIDATE}
    assert listening.take_up() == set()
    request(folder, Command.STOP)
    assert listening.take_up() == {Command.STOP}
    assert listening.take_up() == {Command.STOP}


def test_stop_file_stops_the_preparation(listening: ControlRequests, tmp_path: Path) -> None:
    assert not listening.stop_asked()
    request(RunFolder(tmp_path), Command.CHECKPOINT)
    request(RunFolder(tmp_path), Command.STOP)
    time.sleep(2 * LOOK_AGAIN_SECONDS)
    with pytest.raises(Stopped):
        listening.raise_if_stopped()
    assert listening.take_up() == {Command.CHECKPOINT, Command.STOP}


def test_stop_asked_is_cheap_and_safe_in_threads(listening: ControlRequests) -> None:
    began = time.perf_counter()
    threads = [threading.Thread(target=lambda: [listening.stop_asked() for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.perf_counter() - began < 2


def test_requests_without_a_folder_receive_only_signals() -> None:
    assert ControlRequests(None).take_up() == set()


@pytest.mark.parametrize(
    ("variables", "rank", "processes", "use_cpu"),
    [
        ({}, 0, 1, False),
        ({"RANK": "3", "WORLD_SIZE": "4"}, 3, 4, False),
        ({"ACCELERATE_USE_CPU": "true"}, 0, 1, True),
        ({"ACCELERATE_USE_CPU": "0"}, 0, 1, False),
    ],
)
def test_read_environment_parses_the_variables_of_launchers(variables: dict[str, str], rank: int, processes: int, use_cpu: bool) -> None:
    found = read_environment(variables)
    assert (found.rank, found.processes, found.use_cpu, found.is_first) == (rank, processes, use_cpu, rank == 0)
