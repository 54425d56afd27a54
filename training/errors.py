"""Why something asked of a run was not done: each class carries its HTTP status and every problem."""

from __future__ import annotations

from rest_framework.exceptions import APIException

from trainer_engine.contract.errors import Problem, limited
from training.preflight.summary import PreflightReport


class TrainingRefused(APIException):
    """Nothing was done; ``detail`` says why in one sentence, ``problems`` what to change."""

    status_code = 422

    def __init__(self, detail: str, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(detail)
        self.problems = tuple(limited(problems))


class CannotStart(TrainingRefused):
    """The configuration is not one that a run can be started with."""

    def __init__(self, report: PreflightReport) -> None:
        super().__init__("Cannot start training: the configuration has problems.", tuple(report.errors))
        self.report = report


class NoActiveJob(TrainingRefused):
    """Something was asked of a run, and none is under way."""

    status_code = 400

    def __init__(self) -> None:
        super().__init__("No active training job")


class JobNotFound(TrainingRefused):
    """No job has this id."""

    status_code = 404

    def __init__(self, job_id: str) -> None:
        super().__init__(f"Job '{job_id[:100]}' not found")


class BadValue(TrainingRefused):
    """A parameter of the address or the body is not what it must be."""

    def __init__(self, option: str, message: str, *, got: object, expected: str) -> None:
        super().__init__(message, (Problem.error(option, "bad_value", message, got=got, expected=expected),))


class TooManyStreams(TrainingRefused):
    """The streams hold as many connections as they may."""

    status_code = 503

    def __init__(self) -> None:
        super().__init__("Too many streams of events are open. Close one, or ask /api/training/events instead.")
