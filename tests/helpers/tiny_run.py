"""A real engine on a real, tiny model and real image files, as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from tests.helpers.forked import ForkedProcess, ForkedRanks, fork_engine, fork_ranks
from tests.helpers.models import tiny_pixart
from tests.helpers.pictures import generate_images
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.parse import parse_options
from trainer_engine.contract import commands
from trainer_engine.contract.checkpoint_files import MANIFEST, CheckpointInfo, list_checkpoints
from trainer_engine.contract.commands import Command
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.events import Event, JournalEntry, ProgressEvent, decode
from trainer_engine.contract.run import ExitReport, JobSpec, RunFolder
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.environment import read_environment

ROOT = Path(__file__).resolve().parents[2]
Heard = TypeVar("Heard", bound=Event)


def tiny_options(place: Path, **options: Any) -> dict[str, Any]:
    """A complete, quick configuration under ``place``; ``options`` win."""
    return {
        "model_family": "pixart_sigma",
        "model_type": "full",
        "pretrained_model_name_or_path": options.pop("model", None) or str(tiny_pixart()),
        "output_dir": str(place / "output"),
        "data_backend_config": str(place / "multidatabackend.json"),
        "max_train_steps": 4,
        "num_train_epochs": 0,
        "train_batch_size": 2,
        "learning_rate": 1e-3,
        "optimizer": "torch-adamw",
        "lr_scheduler": "constant",
        "mixed_precision": "no",
        "resolution": 64,
        "caption_dropout_probability": 0.2,
        "gradient_checkpointing": False,
        "validation_disable": True,
        "seed": 7,
        **options,
    }


def tiny_datasets(place: Path, *, images: int = 8, **fields: Any) -> list[dict[str, Any]]:
    """One image set of two buckets with its files, and its text embeddings; caches under ``place``."""
    folder = place / "images"
    if not folder.exists():
        generate_images(folder, count=images // 2, size=(96, 96))
        generate_images(folder / "wide", count=images - images // 2, size=(160, 80))
    pictures = {"id": "pictures", "type": "local", "instance_data_dir": str(folder), "cache_dir_vae": str(place / "cache/vae"), **fields}
    texts = {"id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": str(place / "cache/text")}
    return [pictures, texts]


@dataclass
class RunFiles:
    """What a run writes."""

    folder: RunFolder

    @property
    def output_dir(self) -> Path:
        return Path(json.loads(self.folder.job_file.read_bytes())["options"]["output_dir"])

    def entries(self) -> list[JournalEntry]:
        """Every whole line of the journal so far."""
        if not self.folder.journal.exists():
            return []
        content = self.folder.journal.read_bytes()
        return [decode(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]

    def of_type(self, type: str) -> list[JournalEntry]:
        return [entry for entry in self.entries() if entry.type == type]

    def wait_for(self, type: str, *, count: int = 1, seconds: float = 600) -> JournalEntry:
        """The ``count``-th event of a type."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.of_type(type)
            if len(found) >= count:
                return found[count - 1]
            assert not self.folder.exit_file.exists() and self.is_alive(), f"the run ended first:\n{self.log()}"
            time.sleep(0.02)
        raise AssertionError(f"no {type} within {seconds} s:\n{self.log()}")

    def is_alive(self) -> bool:
        return True

    def request(self, command: Command) -> None:
        commands.request(self.folder, command)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the run, which is one of this process."""
        os.kill(os.getpid(), number)

    def log(self) -> str:
        return self.folder.log.read_text(errors="replace")

    def report(self) -> ExitReport | None:
        return ExitReport.read(self.folder)

    def newest_checkpoint(self) -> CheckpointInfo:
        return list_checkpoints(self.output_dir)[0]


@dataclass
class EndedRun(RunFiles):
    """A run that ``run_in_this_process`` made."""

    code: int


@dataclass
class TinyRun(RunFiles):
    """An engine that has been started as a process."""

    process: subprocess.Popen[bytes] | ForkedProcess | ForkedRanks

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)

    def wait(self, seconds: float = 900) -> int:
        return self.process.wait(seconds)


def write_job(place: Path, name: str = "run", *, datasets: list[dict[str, Any]] | None = None, **options: Any) -> RunFolder:
    folder = RunFolder(place / name).create()
    chosen = tiny_options(place, **options)
    JobSpec(job_id=name, options=chosen, datasets=datasets or tiny_datasets(place)).write(folder)
    return folder


def start_run(folder: RunFolder, *, launcher: list[str] | None = None, **variables: str) -> TinyRun:
    """Start the engine of a run folder that has its job."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    command = [*(launcher or [sys.executable]), "-m", "trainer_engine", str(folder.path)]
    with folder.log.open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder.path, start_new_session=True)
    return TinyRun(folder, process)


def fork_run(folder: RunFolder, **variables: str) -> TinyRun:
    """Start the engine of a run folder that has its job, as a process that need not load torch first."""
    return TinyRun(folder, fork_engine(folder.path, folder.log, **variables))


def fork_tiny_run(place: Path, name: str = "run", **options: Any) -> TinyRun:
    """A run of the micro model, as a process that need not load torch first."""
    return fork_run(write_job(place, name, **options))


def start_ranks(place: Path, name: str = "run", *, processes: int = 2, asked: Sequence[Command] = (), **options: Any) -> TinyRun:
    """A run of the micro model by several processes with a batch of 1 each, unless it is given; ``asked`` waits for them."""
    folder = write_job(place, name, **{"train_batch_size": 1, "num_processes": processes, **options})
    for command in asked:
        commands.request(folder, command)
    return TinyRun(folder, fork_ranks(folder.path, folder.log, count=processes))


def run_of_ranks(place: Path, name: str = "run", *, processes: int = 2, asked: Sequence[Command] = (), **options: Any) -> TinyRun:
    """A run that ``start_ranks`` started, and that has ended well."""
    run = start_ranks(place, name, processes=processes, asked=asked, **options)
    assert run.wait() == 0, run.log()
    return run


def run_in_this_process(folder: RunFolder, meanwhile: Callable[[RunFiles], None] | None = None) -> EndedRun:
    """What ``python -m trainer_engine`` does for a run folder that has its job, without the seconds that a new process takes.

    ``meanwhile`` is called in a thread while it runs; what it raises stops the run and is raised here. Environment and signal handlers of
    this process are put back afterwards.
    """
    from trainer_engine.__main__ import main

    folder.exit_file.unlink(missing_ok=True)

    def steer(how: Callable[[RunFiles], None]) -> None:
        run = RunFiles(folder)
        try:
            how(run)
        except BaseException:
            if not folder.exit_file.exists():
                run.send(signal.SIGTERM)
            raise

    with ThreadPoolExecutor(1) as pool:
        steering = pool.submit(steer, meanwhile) if meanwhile else None
        code = _main_in_this_process(main, folder)
        if steering is not None:
            steering.result()
    return EndedRun(folder, code)


def _main_in_this_process(main: Callable[[list[str]], int], folder: RunFolder) -> int:
    variables, handlers = dict(os.environ), {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with folder.log.open("a", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
            return int(main([str(folder.path)]))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(variables)


def start_tiny_run(place: Path, name: str = "run", *, datasets: list[dict[str, Any]] | None = None, **options: Any) -> TinyRun:
    """A run of the micro model; ``place`` holds its data, ``name`` its run folder."""
    return start_run(write_job(place, name, datasets=datasets, **options))


def run_tiny(place: Path, name: str = "run", **options: Any) -> TinyRun:
    """A run that has ended well."""
    run = start_tiny_run(place, name, **options)
    assert run.wait() == 0, run.log()
    return run


class Listener:
    """A voice that keeps what it hears, and may answer: ``on_step`` is called after each optimizer step."""

    def __init__(self, on_step: Callable[[int], None] = lambda step: None) -> None:
        self.events: list[Event] = []
        self.on_step = on_step

    def emit(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, ProgressEvent):
            self.on_step(event.step)

    def of(self, kind: type[Heard]) -> list[Heard]:
        return [event for event in self.events if isinstance(event, kind)]


@dataclass
class HereRun:
    """A run that was made in this process, without the seconds that a new one takes to load torch."""

    code: ExitCode
    step: int
    output_dir: Path
    heard: Listener

    def weights(self) -> bytes:
        """Of the newest checkpoint, as they lie on disk."""
        return (list_checkpoints(self.output_dir)[0].path / "transformer/diffusion_pytorch_model.safetensors").read_bytes()

    def files(self) -> dict[str, bytes]:
        """Every file of the newest checkpoint but the manifest, which holds the time."""
        return files_of(list_checkpoints(self.output_dir)[0].path)


def files_of(checkpoint: Path) -> dict[str, bytes]:
    """Every file of a checkpoint but the manifest, which holds the time."""
    paths = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST]
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in paths}


def train_here(
    place: Path,
    *,
    stop_after: int | None = None,
    asked: Mapping[int, Sequence[Command]] = MappingProxyType({}),
    on_step: Callable[[int], None] = lambda step: None,
    datasets: list[dict[str, Any]] | None = None,
    **options: Any,
) -> HereRun:
    """Train in this process; ``stop_after`` asks to stop once that many steps are done, ``asked`` says what else is asked for after
    which step (0: before anything is loaded)."""
    from trainer_engine.loop.run import train

    chosen = parse_options(tiny_options(place, **options))
    dataloader, problems = parse_dataloader(datasets or tiny_datasets(place), chosen)
    assert dataloader.image_sets, problems
    folder = RunFolder(place / "run-here").create()

    def ask(step: int) -> None:
        on_step(step)
        for command in (*asked.get(step, ()), *([Command.STOP] if step == stop_after else [])):
            commands.request(folder, command)

    heard = Listener(ask)
    ask(0)
    code, step, _ = train(
        options=chosen,
        dataloader=dataloader,
        environment=read_environment({}),
        sink=heard,
        requests=ControlRequests(folder),
        media=folder.media,
    )
    return HereRun(code, step, Path(chosen.run.output_dir), heard)


def with_held_out(place: Path, *names: str, images: int = 3, size: tuple[int, int] = (128, 96), **fields: Any) -> list[dict[str, Any]]:
    """The usual datasets, and an eval set of every name, with ``images`` pictures of its own."""
    entries = tiny_datasets(place)
    for name in names or ("held-out",):
        folder = place / name
        if not folder.exists():
            generate_images(folder, count=images, size=size)
        cache = str(place / "cache/vae-held-out" / name)
        entries.append({"id": name, "dataset_type": "eval", "instance_data_dir": str(folder), "cache_dir_vae": cache, **fields})
    return entries
