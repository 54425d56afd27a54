"""The engine as a process: ``python -m trainer_engine RUN_FOLDER``.

It starts with the standard library and the contract alone, so that a run reports its start and the errors in its job before torch is
imported.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from pydantic import ValidationError

from trainer_engine.config.datasets import Dataloader, parse_dataloader
from trainer_engine.config.datasets.secrets import STORED_AS, reveal_datasets
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import parse_options
from trainer_engine.config.run_paths import refuse_closed_places
from trainer_engine.contract.atomic import means_full, why_not_written
from trainer_engine.contract.errors import DatasetUnusable, DiskFull, EngineError, ExitCode, InvalidOptions, Problem, errors_in
from trainer_engine.contract.events import (
    REASON_IN_ERROR,
    ErrorEvent,
    Notification,
    Severity,
    StageEvent,
    StageKey,
    StageStatus,
    StatusEvent,
    utc_now,
)
from trainer_engine.contract.output_lock import Holder, claimed
from trainer_engine.contract.run import PROTOCOL, ExitReport, JobSpec, RunFolder
from trainer_engine.datasets.scanning import MANY_OBJECTS
from trainer_engine.hooks.runner import HookContext
from trainer_engine.runtime.control import ControlRequests, Stopped
from trainer_engine.runtime.environment import LaunchEnvironment, read_environment, wait_passively
from trainer_engine.runtime.events import EventSink, Journal, NullSink
from trainer_engine.runtime.last_words import Reserve, leave_journal, leave_report, patient_stream

TRAINING = "trainer_engine.loop.run"
STATUS_OF_CODE = {ExitCode.COMPLETED: "completed", ExitCode.STOPPED: "stopped"}


def main(arguments: list[str] | None = None) -> int:
    """Run the job; returns the exit code of the process."""
    parser = argparse.ArgumentParser(prog="python -m trainer_engine", description="Run the training job of a run folder.")
    parser.add_argument("run_folder", type=Path)
    folder = RunFolder(parser.parse_args(arguments).run_folder.resolve()).create()
    environment = read_environment()
    wait_passively()
    if not environment.is_first:
        return _run(folder, environment, NullSink(), ControlRequests(None)).exit_code
    requests = ControlRequests(folder)
    try:
        folder.exit_file.unlink(missing_ok=True)
        journal = Journal(folder.journal, requests.uninterrupted)
    except OSError as error:
        report = _failed(NullSink(), DiskFull(why_not_written(folder.path, error), hint="free some space there and start again"))
        leave_report(folder, report)
        return report.exit_code
    with journal, closing(Reserve(folder)) as reserve:
        report = _run(folder, environment, journal, requests)
        journal.emit(StatusEvent(status=report.status, message=REASON_IN_ERROR if report.error_code else report.message))
        leave_journal(journal, reserve)
        leave_report(folder, report, reserve)
    return report.exit_code


def _run(folder: RunFolder, environment: LaunchEnvironment, sink: EventSink, requests: ControlRequests) -> ExitReport:
    try:
        return _train(folder, environment, sink, requests)
    except Stopped:
        requests.training_ends()
        return _stopped_early(sink)


def _train(folder: RunFolder, environment: LaunchEnvironment, sink: EventSink, requests: ControlRequests) -> ExitReport:
    """Train and report how it ended. Raises Stopped if a signal interrupts the preparation, or the report of an error in it."""
    journal = sink if isinstance(sink, Journal) else None
    locked = ExitStack()
    try:
        requests.listen()
        sink.emit(StatusEvent(status="starting", message="The engine has started."))
        options, dataloader, job = read_job(folder, environment.secrets)
        if environment.is_first:  # the other processes wait for it, and end with it
            locked.enter_context(claim_output(options, job, sink))
        sink.emit(StageEvent(key=StageKey.LOAD_BASE_MODEL, status=StageStatus.RUNNING, message="Loading libraries."))
        load_libraries()
        from trainer_engine.loop.run import train

        code, step, message = train(
            options=options,
            dataloader=dataloader,
            environment=environment,
            sink=sink,
            requests=requests,
            media=folder.media,
            memory_estimate=job.memory_estimate,
            hooks=HookContext(job.scripts, job.job_id),
            journal=journal,
            places=job.places,
        )
        requests.training_ends()
        return _report(code, f"Training {STATUS_OF_CODE[code]} at step {step}. {message}".rstrip(), step=step)
    except Exception as error:  # noqa: BLE001
        # The edge of the process: any other error becomes one event, and the log has its traceback.
        broke_in = requests.broke_in
        requests.training_ends()
        if broke_in or not isinstance(error, EngineError):
            traceback.print_exc()
        if broke_in:
            return _stopped_early(sink)
        if isinstance(error, EngineError):
            return _failed(sink, error)
        if means_full(error):
            return _failed(sink, DiskFull(f"The disk is full: {error}", hint="free some space and start again"))
        return _failed(sink, Unforeseen(f"{type(error).__name__}: {error}", hint="the run's log has the traceback"))
    finally:
        locked.close()


def load_libraries() -> None:
    """Import ``trainer_engine.loop.run``, and with it torch and all that needs it.

    The libraries make half a million objects that stay until the process ends. The garbage collector pauses while they are made, and
    passes over them from then on: it would walk through them seven times during the imports, and again in each full collection later.
    """
    loaded_before = TRAINING in sys.modules
    with MANY_OBJECTS.being_made():
        importlib.import_module(TRAINING)
        if not loaded_before:
            gc.freeze()


class Unforeseen(EngineError):
    """An error that no code handles; the log has the traceback."""

    code = "unforeseen"


def read_job(folder: RunFolder, secrets: Mapping[str, str] | None = None) -> tuple[TrainingOptions, Dataloader, JobSpec]:
    """Read and validate ``job.json``. Raises InvalidOptions or DatasetUnusable with all problems."""
    try:
        job = JobSpec.read(folder)
    except (OSError, ValidationError) as error:
        raise InvalidOptions([Problem.error("job", "unreadable_job", f"{folder.job_file} cannot be read: {error}")]) from error
    if job.protocol != PROTOCOL:
        message = f"The job uses protocol {job.protocol}, this engine {PROTOCOL}."
        raise InvalidOptions([Problem.error("job", "other_protocol", message, hint="server and engine must be of one version")])
    known = dict(secrets or {})
    datasets = reveal_datasets(job.datasets, known.pop(STORED_AS, ""))
    options = parse_options({**job.options, **known})
    dataloader, problems = parse_dataloader(datasets, options)
    if errors_in(problems):
        raise DatasetUnusable(errors_in(problems))
    refuse_closed_places(job.places, options, dataloader)
    return options, dataloader, job


@contextmanager
def claim_output(options: TrainingOptions, job: JobSpec, sink: EventSink) -> Iterator[None]:
    """Lock ``output_dir`` against other runs for the block. Raises OutputInUse."""
    output_dir = Path(options.run.output_dir)
    with claimed(output_dir, Holder.here(job.job_id, job.environment)) as has_lock:
        if not has_lock:
            message = f"The file system of {output_dir} has no locks: a second run could write there at the same time."
            sink.emit(Notification(code="no_lock", title="No lock", message=message, severity=Severity.WARNING))
        yield


def _stopped_early(sink: EventSink) -> ExitReport:
    sink.emit(StageEvent(key=StageKey.TRAINING_ABORT, label="Stopped before the first step", status=StageStatus.COMPLETED))
    return _report(ExitCode.STOPPED, "Stopped before training began; there was nothing to save.")


def _failed(sink: EventSink, error: EngineError) -> ExitReport:
    print(f"{error.code}: {error.message} {error.hint}", file=sys.stderr)
    sink.emit(ErrorEvent(title="Training failed", message=error.message, code=error.code, hint=error.hint))
    sink.emit(StageEvent(key=StageKey.TRAINING_ABORT, status=StageStatus.FAILED, message=REASON_IN_ERROR, severity=Severity.ERROR))
    return _report(error.exit_code, error.message, error_code=error.code, hint=error.hint)


def _report(code: ExitCode, message: str, *, error_code: str | None = None, hint: str = "", step: int = 0) -> ExitReport:
    status = STATUS_OF_CODE.get(code, "error")
    return ExitReport(exit_code=code, status=status, error_code=error_code, message=message, hint=hint, step=step, finished_at=utc_now())


if __name__ == "__main__":
    sys.stdout, sys.stderr = patient_stream(sys.stdout), patient_stream(sys.stderr)
    sys.exit(main())
