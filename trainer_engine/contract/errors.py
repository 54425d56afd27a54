"""Problems of a configuration as data, and the errors that end a run early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import ClassVar

from trainer_engine.contract.messages import repeated

LONGEST_SHOWN = 200
LONGEST_TEXTS = {"option": 200, "message": 1000, "got": 240, "expected": 1500, "hint": 600}
"""Largest number of characters in each text of a problem."""
LONGEST_MESSAGE = 4000
"""Largest number of characters in the message of an engine error, which may repeat contents of foreign files."""
MOST_IN_A_MESSAGE = 20
"""Number of problems in the message of an error. The error has all of them as data."""
MOST_PROBLEMS = 100
"""Number of problems in one response."""


class Level(str, Enum):
    """Severity of a problem."""

    ERROR = "error"
    """The run cannot start until this is fixed."""
    WARNING = "warning"
    """A person should check this before starting; the run may start."""
    NOTE = "note"
    """Information only."""


class ExitCode(IntEnum):
    """Exit code of the engine's process. Schedulers and scripts rely on the numbers."""

    COMPLETED = 0
    FAILURE = 1
    STOPPED = 10
    CONFIGURATION = 20
    DATA = 30
    OUT_OF_MEMORY = 40
    NON_FINITE = 50
    DISK = 60
    RETRY = 70


def shown(value: object) -> str:
    """Formats a value for a message, shortened and without passwords."""
    return repeated(value if isinstance(value, str) else repr(value), LONGEST_SHOWN)


@dataclass(frozen=True)
class Problem:
    """One problem of a configuration, and how to fix it."""

    option: str
    """The option or dataset field, without dashes: ``learning_rate``, ``dataloader[0].crop_style``."""
    code: str
    """Stable identifier for programs: ``unknown_option``, ``out_of_range``."""
    message: str
    """A sentence for people."""
    got: str = ""
    """The given value as text; empty if none was given."""
    expected: str = ""
    """A description of valid values: ``a number from 0 to 1``."""
    hint: str = ""
    """How to fix it."""
    level: Level = Level.ERROR

    def __post_init__(self) -> None:
        """Shortens every text and removes passwords in URLs, since a problem may repeat what was sent."""
        for name, longest in LONGEST_TEXTS.items():
            object.__setattr__(self, name, repeated(getattr(self, name), longest))

    @classmethod
    def error(cls, option: str, code: str, message: str, *, got: object = None, expected: str = "", hint: str = "") -> Problem:
        return cls(option, code, message, "" if got is None else shown(got), expected, hint, Level.ERROR)

    @classmethod
    def warning(cls, option: str, code: str, message: str, *, got: object = None, expected: str = "", hint: str = "") -> Problem:
        return cls(option, code, message, "" if got is None else shown(got), expected, hint, Level.WARNING)

    @classmethod
    def note(cls, option: str, code: str, message: str, *, got: object = None, expected: str = "", hint: str = "") -> Problem:
        return cls(option, code, message, "" if got is None else shown(got), expected, hint, Level.NOTE)

    def as_dict(self) -> dict[str, str]:
        """The JSON shape of ``problems`` in every answer."""
        return {
            "option": self.option,
            "code": self.code,
            "message": self.message,
            "got": self.got,
            "expected": self.expected,
            "hint": self.hint,
        }

    def __str__(self) -> str:
        return f"{self.option}: {self.message}" + (f" ({self.hint})" if self.hint else "")


def errors_in(problems: Sequence[Problem]) -> list[Problem]:
    """Returns the problems that keep a run from starting."""
    return [problem for problem in problems if problem.level is Level.ERROR]


def limited(problems: Sequence[Problem]) -> list[Problem]:
    """Returns the first ``MOST_PROBLEMS`` problems, and one more with the number of the others."""
    left_out = len(problems) - MOST_PROBLEMS
    if left_out <= 0:
        return list(problems)
    shown = list(problems[:MOST_PROBLEMS])
    message = f"{left_out} more problems are not listed."
    return [*shown, Problem("problems", "more_problems", message, got=str(left_out), hint="solve these first", level=shown[-1].level)]


class EngineError(Exception):
    """The run cannot continue for a known reason. The subclass says what kind of reason, and the hint what to do."""

    code: ClassVar[str] = "engine_error"
    exit_code: ClassVar[ExitCode] = ExitCode.FAILURE

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = repeated(message, LONGEST_MESSAGE)
        self.hint = repeated(hint, LONGEST_MESSAGE)
        super().__init__(self.message)


class _Problems(EngineError):
    """An error with a list of problems."""

    def __init__(self, problems: Sequence[Problem], *, hint: str = "") -> None:
        self.problems = tuple(limited(problems))
        listed = "; ".join(str(problem) for problem in self.problems[:MOST_IN_A_MESSAGE])
        rest = len(self.problems) - MOST_IN_A_MESSAGE
        super().__init__(f"{listed}; and {rest} more" if rest > 0 else listed, hint=hint)


class InvalidOptions(_Problems):
    """The configuration is invalid. ``problems`` has every error."""

    code = "invalid_options"
    exit_code = ExitCode.CONFIGURATION


class DatasetUnusable(_Problems):
    """The datasets cannot be trained on. ``problems`` has every error."""

    code = "dataset_unusable"
    exit_code = ExitCode.DATA


class ModelUnavailable(EngineError):
    """The base model could not be loaded, because it is missing, gated, unreachable or of another kind. The message names it."""

    code = "model_unavailable"
    exit_code = ExitCode.CONFIGURATION


class CheckpointUnusable(EngineError):
    """The selected checkpoint does not exist, fails verification, or belongs to another configuration."""

    code = "checkpoint_unusable"
    exit_code = ExitCode.CONFIGURATION


class OutOfMemory(EngineError):
    """A training step did not fit into the device's memory. The message has the numbers."""

    code = "out_of_memory"
    exit_code = ExitCode.OUT_OF_MEMORY


class NonFiniteLoss(EngineError):
    """Loss or gradients were NaN or infinite for several steps in a row. The message names step, files and timesteps."""

    code = "non_finite_loss"
    exit_code = ExitCode.NON_FINITE


class DiskFull(EngineError):
    """A file could not be written because the disk is full. Files saved before are unchanged."""

    code = "disk_full"
    exit_code = ExitCode.DISK
