"""Commands reach the engine once, in order, whatever else lies in their folder."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from trainer_engine.contract import commands
from trainer_engine.contract.commands import Command, request, take
from trainer_engine.contract.run import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_a_run_without_a_folder_for_commands_has_none(folder: RunFolder) -> None:
    assert take(folder) == []
    request(folder, Command.VALIDATE)
    assert take(folder) == [Command.VALIDATE]


def test_the_order_is_that_of_the_first_request_of_each_command(folder: RunFolder) -> None:
    for command in (Command.VALIDATE, Command.CHECKPOINT, Command.VALIDATE, Command.STOP, Command.CHECKPOINT):
        request(folder, command)
    assert take(folder) == [Command.VALIDATE, Command.CHECKPOINT, Command.STOP]
    assert list(folder.commands.iterdir()) == []


def test_a_command_that_cannot_be_removed_is_not_repeated_at_every_step_except_a_stop(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that turned read-only: a checkpoint at every step would be worse than none, a second stop does no harm."""
    for command in Command:
        request(folder, command)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "unlink", refuse)
    assert take(folder) == take(folder) == [Command.STOP]


def test_a_file_that_is_still_being_written_is_no_command(folder: RunFolder) -> None:
    folder.commands.mkdir(parents=True)
    for name in (".1-ab-stop.command.1234.tmp", ".1-ab-stop.command", "1-ab-STOP.command", "stop.command.bak"):
        (folder.commands / name).write_bytes(b"")
    assert take(folder) == [] and len(list(folder.commands.iterdir())) == 4


def test_requests_of_many_threads_all_arrive(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands.time, "time_ns", lambda: 5)  # all in one tick of the clock
    threads = [threading.Thread(target=request, args=(folder, command)) for command in Command for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(folder.commands.iterdir())) == 15
    assert set(take(folder)) == set(Command)


def test_two_readers_never_fail_over_the_same_command(folder: RunFolder) -> None:
    for _ in range(20):
        request(folder, Command.CHECKPOINT)
    taken: list[list[Command]] = []
    threads = [threading.Thread(target=lambda: taken.append(take(folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 4 and [Command.CHECKPOINT] in taken
