"""Why a request about runs was refused. Each class carries its HTTP status and every problem."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rest_framework.exceptions import APIException

from trainer_engine.contract.errors import Problem, limited
from training.models import Job
from training.preflight.summary import PreflightReport


class TrainingRefused(APIException):
    """Nothing was changed; ``detail`` says why in one sentence, ``problems`` what to change."""

    status_code = 422

    def __init__(self, detail: str, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(detail)
        self.problems = tuple(limited(problems))


class CannotStart(TrainingRefused):
    """No run can be started from this configuration."""

    def __init__(self, report: PreflightReport) -> None:
        super().__init__("Cannot start training: the configuration has problems.", tuple(report.errors))
        self.report = report


class NoActiveJob(TrainingRefused):
    """The request needs an active run, and there is none."""

    status_code = 400

    def __init__(self) -> None:
        super().__init__("No active training job")


class JobNotFound(TrainingRefused):
    """No job has this id."""

    status_code = 404

    def __init__(self, job_id: str) -> None:
        super().__init__(f"Job '{job_id[:100]}' not found")


class NotEnded(TrainingRefused):
    """The run is queued or under way."""

    status_code = 409

    def __init__(self, job: Job) -> None:
        super().__init__(f"Training job {job.pk} has not ended: it is {job.status}.")


class NotQueued(TrainingRefused):
    """The run has started or ended, so that it has no place in the queue."""

    status_code = 409

    def __init__(self, job: Job) -> None:
        super().__init__(f"Training job {job.pk} does not wait in the queue: it is {job.status}.")


class NothingSaved(TrainingRefused):
    """The run left no checkpoint to go on from."""

    status_code = 409

    def __init__(self, job: Job) -> None:
        message = f"Training job {job.pk} saved no checkpoint that a run could go on from."
        problem = Problem.error("output_dir", "no_checkpoint", message, got=job.output_dir, hint="start its environment again")
        super().__init__(message, (problem,))


class OtherModel(TrainingRefused):
    """The environment of the run is for another model by now."""

    status_code = 409

    def __init__(self, job: Job) -> None:
        name = job.environment
        message = f"The environment {name!r} has another model family, flavour or base model than the run had."
        hint = f"bring it back with POST /api/configs/{name}/restore, or make a copy for the run"
        super().__init__(message, (Problem.error("environment", "other_model", message, got=name, hint=hint),))


class NotWritten(TrainingRefused):
    """A file that the request needs could not be written."""

    status_code = 409

    def __init__(self, error: OSError) -> None:
        where = error.filename if isinstance(error.filename, str) else "The folder of the server"
        super().__init__(f"{where} cannot be written: {error.strerror or error}.")


@contextmanager
def writing() -> Iterator[None]:
    """A block that writes files. Raises NotWritten in place of OSError."""
    try:
        yield
    except OSError as error:
        raise NotWritten(error) from error


class EnvironmentGone(TrainingRefused):
    """The environment of the run was deleted or renamed."""

    status_code = 409

    def __init__(self, job: Job) -> None:
        name = job.environment
        hint = f"bring it back with POST /api/configs/{name}/restore, or start from another environment"
        message = f"The environment {name!r} of the run does not exist any more."
        super().__init__(message, (Problem.error("environment", "no_environment", message, got=name, hint=hint),))


class BadValue(TrainingRefused):
    """A parameter of the address or the body is invalid."""

    def __init__(self, option: str, message: str, *, got: object, expected: str) -> None:
        super().__init__(message, (Problem.error(option, "bad_value", message, got=got, expected=expected),))


class TooManyStreams(TrainingRefused):
    """The streams hold their maximum number of connections."""

    status_code = 503

    def __init__(self) -> None:
        super().__init__("Too many streams of events are open. Close one, or ask /api/training/events instead.")
