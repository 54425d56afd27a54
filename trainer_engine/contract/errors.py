"""What can be wrong, as data: problems of a configuration, and the ways in which a run ends early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import ClassVar

from trainer_engine.contract.messages import repeated

LONGEST_SHOWN = 200
LONGEST_TEXTS = {"option": 200, "message": 1000, "got": 240, "expected": 1500, "hint": 600}
"""Characters of each text of a problem."""
LONGEST_MESSAGE = 4000
"""Characters of an error of the engine: what it repeats of a foreign file has no limit of its own."""
MOST_IN_A_MESSAGE = 20
"""Problems that the message of an error lists; the error holds all of them as data."""
MOST_PROBLEMS = 100
"""Problems in one answer; what a person mends one by one."""


class Level(str, Enum):
    """How much a problem weighs."""

    ERROR = "error"
    """Nothing starts before this is mended."""
    WARNING = "warning"
    """A person should look at it before starting; the run may proceed."""
    NOTE = "note"
    """A fact that only informs."""


class ExitCode(IntEnum):
    """How the engine's process ended; the numbers are part of the contract with schedulers and scripts."""

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
    """The value as a person typed it, cut to a length that a message can bear."""
    return repeated(value if isinstance(value, str) else repr(value), LONGEST_SHOWN)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and what to do about it."""

    option: str
    """The option or dataset field, without dashes: ``learning_rate``, ``dataloader[0].crop_style``."""
    code: str
    """Stable word for programs: ``unknown_option``, ``out_of_range``."""
    message: str
    """One sentence for people."""
    got: str = ""
    """What was sent, as text; empty where nothing was sent."""
    expected: str = ""
    """What would have been right: ``a number from 0 to 1``."""
    hint: str = ""
    """What to do next."""
    level: Level = Level.ERROR

    def __post_init__(self) -> None:
        """Whatever a problem repeats of what was sent is short and holds no password of an address."""
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
    """Those that keep a run from starting."""
    return [problem for problem in problems if problem.level is Level.ERROR]


def limited(problems: Sequence[Problem]) -> list[Problem]:
    """The first ``MOST_PROBLEMS``, and after them one that counts the rest."""
    left_out = len(problems) - MOST_PROBLEMS
    if left_out <= 0:
        return list(problems)
    shown = list(problems[:MOST_PROBLEMS])
    message = f"{left_out} more problems are not listed."
    return [*shown, Problem("problems", "more_problems", message, got=str(left_out), hint="solve these first", level=shown[-1].level)]


class EngineError(Exception):
    """A run cannot go on, and we know why. The class says what the user can do."""

    code: ClassVar[str] = "engine_error"
    exit_code: ClassVar[ExitCode] = ExitCode.FAILURE

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = repeated(message, LONGEST_MESSAGE)
        self.hint = repeated(hint, LONGEST_MESSAGE)
        super().__init__(self.message)


class _Problems(EngineError):
    """An error that carries every problem found."""

    def __init__(self, problems: Sequence[Problem], *, hint: str = "") -> None:
        self.problems = tuple(limited(problems))
        listed = "; ".join(str(problem) for problem in self.problems[:MOST_IN_A_MESSAGE])
        rest = len(self.problems) - MOST_IN_A_MESSAGE
        super().__init__(f"{listed}; and {rest} more" if rest > 0 else listed, hint=hint)


class InvalidOptions(_Problems):
    """The configuration is wrong; ``problems`` holds all of what is."""

    code = "invalid_options"
    exit_code = ExitCode.CONFIGURATION


class DatasetUnusable(_Problems):
    """The datasets cannot be trained on; ``problems`` says which and why."""

    code = "dataset_unusable"
    exit_code = ExitCode.DATA


class ModelUnavailable(EngineError):
    """The base model could not be loaded: missing, gated, unreachable or of another kind. The message names it."""

    code = "model_unavailable"
    exit_code = ExitCode.CONFIGURATION


class CheckpointUnusable(EngineError):
    """The checkpoint asked for does not exist, does not verify, or belongs to another configuration."""

    code = "checkpoint_unusable"
    exit_code = ExitCode.CONFIGURATION


class OutOfMemory(EngineError):
    """The device's memory did not hold the step; the message carries the numbers."""

    code = "out_of_memory"
    exit_code = ExitCode.OUT_OF_MEMORY


class NonFiniteLoss(EngineError):
    """Loss or gradients were NaN or infinite several steps in a row; the message names step, files and timesteps."""

    code = "non_finite_loss"
    exit_code = ExitCode.NON_FINITE


class DiskFull(EngineError):
    """The disk did not take a file; what was saved before is untouched."""

    code = "disk_full"
    exit_code = ExitCode.DISK
