"""Processes that need no seconds to load torch: each is forked from one that has loaded it and has computed nothing.

A forked engine has its own session, folder, variables, log and end, as one that was started with ``python -m trainer_engine``. Variables
of huggingface_hub count as in a new process. What other libraries read while they are imported, and what happens before torch is loaded,
needs ``start_run`` instead.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.helpers.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
GIVEN_UP_AFTER_SECONDS = 600.0
SECONDS_TO_END = 30.0


@dataclass
class ForkedProcess:
    """A process of the parent below, with the methods of ``subprocess.Popen`` that tests use."""

    pid: int
    _end: socket.socket
    """Gives the exit code as a line when the process has ended."""
    returncode: int | None = None

    def poll(self) -> int | None:
        return self._code_within(0)

    def wait(self, timeout: float = GIVEN_UP_AFTER_SECONDS) -> int:
        """Raises TimeoutError."""
        code = self._code_within(timeout)
        if code is None:
            raise TimeoutError(f"process {self.pid} runs after {timeout:g} s")
        return code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def _code_within(self, seconds: float) -> int | None:
        if self.returncode is None and select.select([self._end], [], [], seconds)[0]:
            self.returncode = int(self._end.recv(64) or -signal.SIGKILL)
            self._end.close()
        return self.returncode


@dataclass
class ForkedRanks:
    """The processes of one run; if one ends with an error the others get SIGTERM, and SIGKILL 30 seconds later, as torchrun does."""

    ranks: list[ForkedProcess]
    _killed_at: float | None = None

    @property
    def pid(self) -> int:
        return self.ranks[0].pid

    def poll(self) -> int | None:
        """None while one of them runs; 0 if all ended well; else the code of the first rank that did not."""
        codes = [rank.poll() for rank in self.ranks]
        if None not in codes:
            return next((code for code in codes if code), 0)
        if any(codes) and self._killed_at is None:
            self._killed_at = time.monotonic() + SECONDS_TO_END
            self.send(signal.SIGTERM)
        elif self._killed_at is not None and time.monotonic() > self._killed_at:
            self.kill()  # a process that waits for another one in a library's native code takes up no signal
        return None

    def wait(self, timeout: float = GIVEN_UP_AFTER_SECONDS) -> int:
        """Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"{len(self.ranks)} processes run after {timeout:g} s")
            time.sleep(0.01)
        return code

    def kill(self) -> None:
        self.send(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        for rank in self.ranks:
            if rank.poll() is None:
                os.kill(rank.pid, number)


def fork_engine(run_folder: Path, log: Path, **variables: str) -> ForkedProcess:
    """An engine of a run folder that has its job."""
    return _forked({"engine": str(run_folder)}, place=run_folder, log=log, variables=variables)


def fork_ranks(run_folder: Path, log: Path, *, count: int = 2) -> ForkedRanks:
    """``count`` engines that train one run on the CPU, with the variables that torchrun sets."""
    shared = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return ForkedRanks([fork_engine(run_folder, log, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)])


def run_forked(program: str, *arguments: str, place: Path, variables: Mapping[str, str] | None = None) -> str:
    """What a program prints whose process has torch, diffusers and transformers loaded; it must end well."""
    log = place / f"forked-{time.monotonic_ns()}.log"
    ended = _forked({"program": program, "arguments": arguments}, place=place, log=log, variables=variables or {}).wait()
    printed = log.read_text()
    log.unlink()
    assert ended == 0, printed
    return printed


def _forked(task: dict[str, Any], *, place: Path, log: Path, variables: Mapping[str, str]) -> ForkedProcess:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(_parent())
    request = {**task, "place": str(place), "log": str(log), "variables": {**os.environ, "OMP_NUM_THREADS": "1", **variables}}
    connection.sendall(json.dumps(request).encode() + b"\n")
    pid = b""
    while not pid.endswith(b"\n"):
        piece = connection.recv(1)  # the code of a process that has ended already may follow
        assert piece, "the parent of all processes is gone"
        pid += piece
    return ForkedProcess(int(pid), connection)


@cache
def _parent() -> str:
    """The address of the parent of all processes, which ends with this one."""
    folder = Path(tempfile.mkdtemp(prefix="forked-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = str(folder / "socket")
    command = [sys.executable, "-m", "tests.helpers.forked", address]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment, start_new_session=True)
    assert parent.stdin is not None and parent.stdout is not None
    atexit.register(parent.wait)
    atexit.register(parent.stdin.close)
    assert parent.stdout.readline() == b"ready\n"
    return address


def main(address: str) -> None:
    """The parent: loads libraries, then forks a process for each connection until its standard input is closed."""
    import diffusers
    import transformers

    from trainer_engine.config.families import specs
    from trainer_engine.loop.run import train

    for name in specs():
        importlib.import_module(f"trainer_engine.families.{name}.family")
    assert train and diffusers.PixArtSigmaPipeline and transformers.T5EncoderModel and transformers.CLIPTextModel  # they load when used
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        gc.freeze()  # the processes need not look through what they share
        task = _fork_until_closed(listener)
    if task is not None:
        _end_with(task)


def _end_with(task: Callable[[], int | None]) -> None:
    """Do the task and end as Python does, but for taking every module apart, which takes a second with torch loaded."""
    try:
        code = task() or 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001 - as Python itself ends a program
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined] # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _fork_until_closed(listener: socket.socket) -> Callable[[], int | None] | None:
    """In the parent None, once it is to end; in a forked process what that has to do."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    running: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([listener, woken, sys.stdin], [], [])
        if sys.stdin in ready:
            return None
        if woken in ready:
            os.read(woken, 4096)
            _report_ended(running)
        if listener in ready:
            connection, _ = listener.accept()
            with connection.makefile() as lines:
                request = json.loads(lines.readline())
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for kept in (connection, *running.values()):
                    kept.close()
                os.close(woken)
                os.close(wake)
                return lambda: _work(request)
            running[pid] = connection
            connection.sendall(f"{pid}\n".encode())


def _report_ended(running: dict[int, socket.socket]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with running.pop(pid) as connection:
            try:
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            except OSError:
                pass  # the test has ended


def _work(request: dict[str, Any]) -> int | None:
    os.setsid()
    os.chdir(request["place"])
    os.environ.clear()
    os.environ.update(request["variables"])
    with open(os.devnull) as nothing, open(request["log"], "ab") as log:
        for ours, file in ((0, nothing), (1, log), (2, log)):
            os.dup2(file.fileno(), ours)
    _read_hub_variables_again()
    if "engine" in request:
        from trainer_engine.__main__ import main as engine

        return engine([request["engine"]])
    sys.argv = ["-c", *request["arguments"]]
    exec(compile(request["program"], "<program>", "exec"), {"__name__": "__main__"})
    return None


def _read_hub_variables_again() -> None:
    """huggingface_hub reads its variables while it is imported."""
    import huggingface_hub
    from huggingface_hub import constants, hf_api

    before = dict(vars(constants))
    importlib.reload(constants)
    changed = {name: value for name, value in vars(constants).items() if name.isupper() and before.get(name) != value}
    for module in [module for name, module in sys.modules.items() if name.startswith(huggingface_hub.__name__)]:
        vars(module).update({name: value for name, value in changed.items() if name in vars(module)})
    hf_api.api.endpoint = constants.ENDPOINT


if __name__ == "__main__":
    main(sys.argv[1])
