"""``simpletuner doctor``: looks at everything that a run needs, and says what to do about what is missing."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import socket
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import psutil

from simpletuner_site import DEFAULT_PORT
from simpletuner_site.client.findings import Finding, Verdict, print_findings
from simpletuner_site.client.installation import check_packages, check_torch
from simpletuner_site.client.output import print_json
from simpletuner_site.environment import BadEnvironment, ProcessEnvironment, read_command_environment, read_environment
from simpletuner_site.server.state import read_server_state, read_worker_state
from training.engine import hardware

GB = 1_000_000_000
LITTLE_DISK_BYTES = 30 * GB
SCARCE_DISK_BYTES = 1 * GB
LITTLE_MEMORY_BYTES = 16 * GB
FEW_FILES = 1024
USUAL_PORT = DEFAULT_PORT


Check = Callable[[Path], Iterator[Finding]]


def check_python(home: Path) -> Iterator[Finding]:
    fits = (3, 10) <= sys.version_info[:2] <= (3, 13)
    text = f"Python {platform.python_version()} in {sys.prefix}"
    yield Finding("python", Verdict.OK if fits else Verdict.WARNING, text, "" if fits else "use Python 3.10 to 3.13")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if files != resource.RLIM_INFINITY and files < FEW_FILES:
        yield Finding("python", Verdict.WARNING, f"only {files} files may be open", "raise the limit: ulimit -Hn 4096")


def check_variables(home: Path) -> Iterator[Finding]:
    try:
        read_environment()
    except BadEnvironment as error:
        yield Finding("variables", Verdict.PROBLEM, str(error), "correct or unset the variable")
        return
    yield Finding("variables", Verdict.OK, "the environment variables are valid")
    if read_command_environment().hub_is_offline:
        yield Finding(
            "variables", Verdict.WARNING, "HF_HUB_OFFLINE=1: no model can be downloaded", "unset it, unless all models are cached"
        )


def check_devices(home: Path) -> Iterator[Finding]:
    gpus = hardware.DRIVER.gpus()
    for gpu in gpus:
        free = (gpu.total_bytes - gpu.used_bytes) / GB
        text = f"{gpu.name}: {free:.1f} of {gpu.total_bytes / GB:.1f} GB free, driver {gpu.driver}"
        busy = gpu.used_bytes > gpu.total_bytes / 2
        todo = "nvidia-smi lists the programs that use it" if busy else ""
        yield Finding("devices", Verdict.WARNING if busy else Verdict.OK, text, todo)
    if not gpus:
        yield Finding("devices", Verdict.OK, "nvidia-smi lists no GPU (runs use Metal, ROCm or the CPU)")
    yield from check_torch(has_gpus=bool(gpus))


def check_memory(home: Path) -> Iterator[Finding]:
    found = hardware.memory()
    little = found.total_bytes < LITTLE_MEMORY_BYTES
    text = f"{found.free_bytes / GB:.1f} of {found.total_bytes / GB:.1f} GB of memory free"
    todo = "large text encoders may not fit; see docs/memory-options.md" if little else ""
    yield Finding("memory", Verdict.WARNING if little else Verdict.OK, text, todo)


def check_disks(home: Path) -> Iterator[Finding]:
    process = _process(home)
    for name, folder in (("home", home), *(("models", one) for one in process.hub_folders)):
        place = next((one for one in (folder, *folder.parents) if one.exists()), Path("/"))
        space = hardware.disk(place)
        if space is None:
            yield Finding("disk", Verdict.PROBLEM, f"{name}: {folder} cannot be reached", "mount the disk, or choose another folder")
            continue
        free = space.free_bytes
        verdict = Verdict.PROBLEM if free < SCARCE_DISK_BYTES else Verdict.WARNING if free < LITTLE_DISK_BYTES else Verdict.OK
        todo = "" if verdict is Verdict.OK else "make room: simpletuner cache gc, simpletuner prune; a base model takes 5 to 60 GB"
        yield Finding("disk", verdict, f"{name}: {free / GB:.1f} of {space.total_bytes / GB:.1f} GB free in {folder}", todo)


def _process(home: Path) -> ProcessEnvironment:
    try:
        return read_environment()
    except BadEnvironment:
        return ProcessEnvironment(home)


def check_permissions(home: Path) -> Iterator[Finding]:
    for folder in (home, home / "config", home / "state"):
        if folder.exists() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            yield Finding("permissions", Verdict.PROBLEM, f"{folder} may not be written by this account", f"chown -R $USER {folder}")
    state = home / "state"
    if not state.exists():
        return
    for path in (state, *(state / name for name in ("secret_key", "access.json", "simpletuner.sqlite3", "secrets"))):
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield Finding("permissions", Verdict.WARNING, f"other accounts may read {path}", f"chmod go= {path}")
    yield Finding("permissions", Verdict.OK, f"{home} was looked at")


def check_database(home: Path) -> Iterator[Finding]:
    if read_command_environment().has_database_url:
        yield Finding("database", Verdict.OK, "DATABASE_URL names it; /health of the server says whether it answers")
        return
    file = home / "state" / "simpletuner.sqlite3"
    if not file.exists():
        yield Finding("database", Verdict.OK, "none yet; the first start makes it")
        return
    try:
        with sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=5) as connection:
            [(verdict,)] = connection.execute("PRAGMA quick_check(1)").fetchall()
    except (sqlite3.Error, ValueError) as error:
        verdict = str(error)
    if verdict == "ok":
        yield Finding("database", Verdict.OK, f"{file} is sound ({file.stat().st_size / 1e6:.1f} MB)")
    else:
        todo = f"stop the server, keep a copy, then: sqlite3 {file} .recover | sqlite3 {file}.new"
        yield Finding("database", Verdict.PROBLEM, f"{file}: {verdict}", todo)


def check_server(home: Path) -> Iterator[Finding]:
    server, worker = read_server_state(home / "state"), read_worker_state(home / "state")
    if server is not None:
        yield Finding("server", Verdict.OK, f"serves {server.url}, process {server.pid}")
    else:
        yield Finding("server", Verdict.OK, f"no server runs for {home}")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", USUAL_PORT))
            except OSError as error:
                todo = "choose another one: simpletuner server --port 8002"
                yield Finding("ports", Verdict.WARNING, f"port {USUAL_PORT}: {error.strerror}", todo)
            else:
                yield Finding("ports", Verdict.OK, f"port {USUAL_PORT} is free")
    if worker is None and server is not None:
        yield Finding(
            "server", Verdict.PROBLEM, "no worker runs, so jobs wait in the queue", "look at the server's terminal, and start it again"
        )


def check_orphans(home: Path) -> Iterator[Finding]:
    """Runs outlive their server on purpose; somebody who does not know looks for what fills the GPU."""
    is_followed = read_worker_state(home / "state") is not None
    runs = f"{(home / 'state' / 'runs').resolve()}{os.sep}"
    for process in psutil.process_iter():
        try:
            folder = next((one for one in process.cmdline() if one.startswith(runs)), None)
        except psutil.Error:
            continue
        if folder is None:
            continue
        text = f"process {process.pid} works on {folder}"
        todo = "" if is_followed else f"start the server, which follows it; or save and end it: kill {process.pid}"
        yield Finding("runs", Verdict.OK if is_followed else Verdict.WARNING, text, todo)


CHECKS: tuple[Check, ...] = (
    check_python,
    check_variables,
    check_packages,
    check_devices,
    check_memory,
    check_disks,
    check_permissions,
    check_database,
    check_server,
    check_orphans,
)


def examine(home: Path) -> list[Finding]:
    """Every finding, in the order of the checks."""
    return [finding for check in CHECKS for finding in check(home)]


def doctor(arguments: argparse.Namespace) -> int:
    """Print the findings. Returns 1 if one of them is a problem."""
    home = (arguments.home or read_command_environment().home).expanduser().absolute()
    found = examine(home)
    if arguments.json:
        print_json([{**asdict(one), "verdict": one.verdict.value} for one in found])
    else:
        print_findings(found)
    return 1 if any(one.verdict is Verdict.PROBLEM for one in found) else 0
