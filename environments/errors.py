"""Why a request about an environment was refused. Each class carries its HTTP status and says what the caller can do."""

from __future__ import annotations

from collections.abc import Sequence

from rest_framework.exceptions import APIException

from trainer_engine.contract.errors import Problem, limited


class EnvironmentRefused(APIException):
    """Nothing was written; ``detail`` says why in one sentence, ``problems`` what to change."""

    status_code = 422

    def __init__(self, detail: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(detail)
        self.problems = tuple(limited(problems))


class EnvironmentProblems(EnvironmentRefused):
    """The request is invalid; ``problems`` holds everything that is wrong."""

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> EnvironmentProblems:
        """The refusal for several problems, with the first one in its sentence."""
        more = f" ({len(problems)} problems in all)" if len(problems) > 1 else ""
        return cls(f"{problems[0].message}{more}", problems)


class EnvironmentNotFound(EnvironmentRefused):
    """No environment has this name."""

    status_code = 404

    def __init__(self, name: str) -> None:
        super().__init__(f"Configuration '{name[:100]}' not found")


class RevisionNotFound(EnvironmentRefused):
    """An environment has no revision with this number."""

    status_code = 404

    def __init__(self, name: str, number: int, newest: int) -> None:
        problem = Problem.error("revision", "unknown_revision", f"{name} has no revision {number}.", got=number, expected=f"1 to {newest}")
        super().__init__(f"Configuration '{name}' has no revision {number}", [problem])


class EnvironmentExists(EnvironmentRefused):
    """The name is taken."""

    status_code = 409

    def __init__(self, name: str) -> None:
        problem = Problem.error(
            "name", "exists", f"There is already an environment {name!r}.", got=name, hint="choose another name, or PUT to change it"
        )
        super().__init__(f"Configuration '{name}' already exists", [problem])


class EnvironmentChanged(EnvironmentRefused):
    """Somebody else has saved since the form that was sent was opened."""

    status_code = 409

    def __init__(self, option: str, what: str) -> None:
        """``what`` is the part that changed, with its verb: ``The datasets file has``."""
        message, hint = f"{what} changed since this page was opened.", "open the page anew to see it, or save again to replace it"
        problem = Problem.error(option, "changed", message, expected="what the form was opened with", hint=hint)
        super().__init__(f"{message} Open the page anew to see it, or save again to replace it with what you typed.", [problem])


class EnvironmentInUse(EnvironmentRefused):
    """The active environment cannot be deleted."""

    status_code = 409

    def __init__(self, name: str) -> None:
        problem = Problem.error("name", "active", f"The environment {name!r} is active.", got=name, hint="activate another one first")
        super().__init__(f"Configuration '{name}' is active and cannot be deleted", [problem])


class FilesNotWritable(EnvironmentRefused):
    """The environment's files could not be written; the database is unchanged."""

    status_code = 409

    def __init__(self, error: OSError) -> None:
        where = error.filename if isinstance(error.filename, str) else "config/"
        message = f"{where} cannot be written: {error.strerror or error}."
        super().__init__(message, [Problem.error("name", "not_writable", message, hint="check the folder's permissions and the disk")])
