"""Starts, watches and signals the engine process. Uses no database.

A process is identified by its id, its start time and the boot of the machine, because the system reuses ids. A zombie is dead.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from trainer_engine.config.addresses import DOWNLOAD_VARIABLE, PRIVATE_VARIABLE
from trainer_engine.config.model_comment import VARIABLE_PREFIX
from trainer_engine.contract.atomic import PRIVATE_MODE
from trainer_engine.contract.run import RunFolder

ENGINE_MODULE = "trainer_engine"
PASSED_VARIABLES = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "NO_COLOR"),
        *("PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TOKENIZERS_PARALLELISM"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"),
        *("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE"),
        *(PRIVATE_VARIABLE, DOWNLOAD_VARIABLE),
        *("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK"),
    )
)
PASSED_PREFIXES = (
    "LC_", "HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_", "DIFFUSERS_", "SAFETENSORS_", "CUDA_", "NVIDIA_", "NCCL_", "GLOO_",
    "OMP_", "MKL_", "KMP_", "OPENBLAS_", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "TRITON_", "ACCELERATE_", "FSDP_", "ROCR_", "HIP_", "HSA_",
    "XDG_", "WANDB_", "SLURM_", "GOMP_", VARIABLE_PREFIX,
)  # fmt: skip
NEVER_PASSED = ("SLURM_JWT",)
"""Keys that no engine needs, although their names have an allowed prefix."""
LAST_THREADS_SECONDS = 10.0
"""A killed process counts as dead before its last thread is gone; its exit status is known only after that."""
LONGEST_EXEC_SECONDS = 2.0
"""A new process shows no arguments while the system loads its program, which takes some milliseconds on a busy machine."""
MOST_REMEMBERED = 100
CHILDREN: list[subprocess.Popen[bytes]] = []
"""Engines that this process started and has to reap; the exit statuses of the last ones are kept."""


@dataclass(frozen=True)
class EngineIdentity:
    """Identifies a process across reused process ids."""

    pid: int
    started_at: int
    """Clock ticks between boot and the process's start (Linux), else milliseconds since the epoch."""
    boot_id: str


def passed_environment(variables: dict[str, str] | None = None, also: Collection[str] = ()) -> dict[str, str]:
    """The part of the parent's environment that an engine gets. It is an allow list, so that no secret of the server slips through.

    ``also`` names further variables that the server's operator allows.
    """
    variables = dict(os.environ) if variables is None else variables
    passed = {*PASSED_VARIABLES, *also}
    prefixed = {name for name in variables if name.startswith(PASSED_PREFIXES) and name not in NEVER_PASSED}
    return {name: value for name, value in variables.items() if name in passed or name in prefixed}


def boot_id() -> str:
    """An id of the current boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(int(psutil.boot_time()))


def start_ticks(pid: int) -> int | None:
    """When a process started; None if there is none or only a zombie. Setting the clock does not change it."""
    fields = _stat_fields(pid)
    if fields is not None:
        return None if fields[0] in ("Z", "X") else int(fields[19])
    if Path("/proc/self/stat").exists():
        return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time() * 1000)
    except psutil.Error:
        return None


def _stat_fields(pid: int) -> list[str] | None:
    """``/proc/<pid>/stat`` from its third field on: the second may hold spaces and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def identify(pid: int) -> EngineIdentity | None:
    """The identity of a living process."""
    started_at = start_ticks(pid)
    return None if started_at is None else EngineIdentity(pid, started_at, boot_id())


def is_alive(identity: EngineIdentity) -> bool:
    return identity.boot_id == boot_id() and start_ticks(identity.pid) == identity.started_at


def start(
    folder: RunFolder,
    argv: Sequence[str],
    extra_environment: dict[str, str] | None = None,
    also: Collection[str] = (),
    withheld: Collection[str] = (),
) -> EngineIdentity:
    """Start an engine in its own session, so that a signal that kills the server does not kill the run.

    ``also`` names further variables of this process that it gets, ``withheld`` variables that it does not get. From when this returns,
    ``processes_of`` finds the engine. Raises OSError.
    """
    passed = passed_environment(also=also)
    environment = {name: value for name, value in passed.items() if name in also or name not in withheld} | (extra_environment or {})
    with os.fdopen(os.open(folder.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE), "ab") as log:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder.path,
            env=environment,
            start_new_session=True,
        )
    CHILDREN.append(child)
    # If it is gone already, an identity that matches no live process lets the follower find out how it ended.
    identity = identify(child.pid) or EngineIdentity(child.pid, 0, boot_id())
    _wait_for_arguments(identity)
    return identity


def _wait_for_arguments(identity: EngineIdentity) -> None:
    """Wait until the system shows the arguments of a process, by which a search finds it, or until the process is gone."""
    deadline = time.monotonic() + LONGEST_EXEC_SECONDS
    while is_alive(identity) and time.monotonic() < deadline:
        try:
            if psutil.Process(identity.pid).cmdline():
                return
        except psutil.Error:
            pass  # it is ending, or macOS does not show its arguments yet
        time.sleep(0.001)


def reap_children() -> None:
    """Reap ended engines, so that no zombies stay in the process table."""
    ended = [child for child in CHILDREN if child.poll() is not None]
    for child in ended[:-MOST_REMEMBERED]:
        CHILDREN.remove(child)


def exit_status(identity: EngineIdentity) -> int | None:
    """The exit code of an engine that is gone, negative for the signal that killed it; None if it is no longer known."""
    for child in reversed(CHILDREN):
        if child.pid == identity.pid:
            try:
                return child.wait(LAST_THREADS_SECONDS)
            except subprocess.TimeoutExpired:
                return None
    fields = _stat_fields(identity.pid)
    if fields is None or fields[0] != "Z" or int(fields[19]) != identity.started_at or len(fields) < 50:
        return None
    # The kernel shows 0 to a process without the permission to see it.
    return os.waitstatus_to_exitcode(int(fields[49])) or None


def processes_of(folder: RunFolder) -> Iterator[psutil.Process]:
    """Launcher and ranks: the processes that have ``trainer_engine`` and this run folder among their arguments."""
    wanted = str(folder.path)
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if wanted in command and ENGINE_MODULE in command and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue


def engine_environments() -> Iterator[dict[str, str]]:
    """The environment of each engine of this machine, whoever started it, but those that the system does not show."""
    found: set[str] = set()
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            folder = next(iter(command[command.index(ENGINE_MODULE) + 1 :]), "") if ENGINE_MODULE in command else ""
            if folder and folder not in found and process.status() != psutil.STATUS_ZOMBIE:
                yield process.environ()
                found.add(folder)  # launcher and ranks of a run count once
        except psutil.Error:
            continue


def find(folder: RunFolder) -> EngineIdentity | None:
    """The engine of a run whose starter died before it stored the process; None if there is none."""
    found = sorted(processes_of(folder), key=lambda process: process.pid)
    leaders = [process for process in found if _is_session_leader(process.pid) and _parent(process) not in {one.pid for one in found}]
    return identify(leaders[0].pid) if leaders else None


def _is_session_leader(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except OSError:
        return False


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.Error:
        return 0


def ask_to_end(identity: EngineIdentity, folder: RunFolder) -> None:
    """Send SIGTERM to the ranks, which then finish the step, save and exit.

    A launcher with ranks gets no signal, because torchrun answers SIGTERM by killing them after 30 seconds.
    """
    if not is_alive(identity):
        return
    ranks = [process.pid for process in processes_of(folder) if process.pid != identity.pid]
    for pid in ranks or [identity.pid]:
        _signal(pid, signal.SIGTERM)


def kill(identity: EngineIdentity | None, folder: RunFolder) -> None:
    """Send SIGKILL to the process group, the launcher and the ranks (which torchrun puts into sessions of their own)."""
    if identity is not None and is_alive(identity):
        descendants = _descendants(identity.pid)
        try:
            os.killpg(identity.pid, signal.SIGKILL)
        except OSError:
            _signal(identity.pid, signal.SIGKILL)
        for process in descendants:
            _kill_same(process)
    for process in processes_of(folder):
        _kill_same(process)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return []


def _kill_same(process: psutil.Process) -> None:
    """Kill a process unless its id was reused: psutil compares the start time before it sends the signal."""
    try:
        process.kill()
    except psutil.Error:
        return


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return


def wait_until_gone(identity: EngineIdentity | None, folder: RunFolder, *, seconds: float) -> bool:
    """Wait until no process of a run is left. Returns False if the time runs out."""
    deadline = time.monotonic() + seconds
    while True:
        reap_children()
        if (identity is None or not is_alive(identity)) and next(processes_of(folder), None) is None:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
