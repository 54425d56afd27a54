"""The API that checks configurations without starting or storing anything, and the datasets file as JSON.

These calls read the configuration, its datasets file and which paths exist. ``/api/training/validate`` opens the images too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from environments import services
from environments.api import representations
from environments.api.schema import NAME, WITH_BODY, described
from environments.api.serializers import MessageSerializer, MetaSerializer, ProblemSerializer
from environments.api.views import ACTOR, NAMED, ConfigurationView
from environments.errors import EnvironmentProblems
from environments.files.config_files import without_marks
from environments.files.datasets_file import locate, unwrapped_datasets
from environments.files.json_text import BadJson, parse_json
from environments.home import current_home
from environments.models import Environment
from environments.resolve.run import resolve_run
from environments.secrets.store import with_secrets
from environments.sync import shown_datasets
from trainer_engine.contract.errors import Level, Problem, errors_in, limited

POSTED_SHAPE: dict[str, Any] = {
    "type": "object",
    "description": "The configuration itself, names with or without dashes, or `config` with it.",
    "additionalProperties": True,
    "example": {"--model_family": "pixart_sigma", "--model_type": "full", "--output_dir": "output/demo"},
}
ENTRIES: dict[str, Any] = {"type": "array", "items": {"type": "object", "title": "DatasetEntry", "additionalProperties": True}}
DATASETS_SHAPE: dict[str, Any] = {
    "description": "The datasets, as in the file, or `datasets` with them.",
    "oneOf": [ENTRIES, {"type": "object", "title": "WrittenDatasets", "required": ["datasets"], "properties": {"datasets": ENTRIES}}],
}


class CheckedSerializer(serializers.Serializer[Any]):
    """What stands in the way of a run."""

    is_valid = serializers.BooleanField()  # type: ignore[assignment]
    errors = serializers.ListField(child=serializers.CharField())  # type: ignore[assignment]
    warnings = serializers.ListField(child=serializers.CharField())
    suggestions = serializers.ListField(child=serializers.CharField())
    problems = ProblemSerializer(many=True, help_text="The errors as data.")


class StoredCheckedSerializer(CheckedSerializer):
    """What stands in the way of a run of an environment."""

    name = serializers.CharField()


class DatasetsSerializer(serializers.Serializer[Any]):
    """A datasets file, and what is wrong with it."""

    name = serializers.CharField()
    path = serializers.CharField(allow_null=True, help_text="As the configuration names it.")
    absolute_path = serializers.CharField(allow_null=True)
    datasets = serializers.JSONField(help_text="The content of the file; null if it cannot be read. Secrets are shown as ***.")
    problems = ProblemSerializer(many=True)


class DatasetsWrittenSerializer(DatasetsSerializer, MessageSerializer):
    """The datasets file that was written."""

    metadata = MetaSerializer()


class StoredValidation(ConfigurationView):
    """Checks an environment."""

    @described("configs_validate_stored", "Check an environment", StoredCheckedSerializer, *NAMED, parameters=[NAME])
    def post(self, request: Request, name: str) -> Response:
        environment = services.find(name)
        return Response({"name": name, **_checked(_problems_of(environment))})


class Validation(ConfigurationView):
    """Checks a configuration without storing it."""

    @described("configs_validate", "Check a configuration", CheckedSerializer, *WITH_BODY, request=POSTED_SHAPE)
    def post(self, request: Request) -> Response:
        if not isinstance(request.data, dict):
            message = "The configuration is not an object of option: value."
            raise EnvironmentProblems.of([Problem.error("config", "not_an_object", message, expected='{"--option": value}')])
        return Response(_checked(resolve_run(current_home(), without_marks(request.data), {}).problems))


class Datasets(ConfigurationView):
    """An environment's datasets file as JSON."""

    @described("configs_datasets_get", "Show an environment's datasets", DatasetsSerializer, *NAMED, parameters=[NAME])
    def get(self, request: Request, name: str) -> Response:
        """The file as JSON, with its problems."""
        return Response(_shown(services.find(name)))

    @described(
        "configs_datasets_put",
        "Replace an environment's datasets",
        DatasetsWrittenSerializer,
        *WITH_BODY,
        *NAMED,
        409,
        request=DATASETS_SHAPE,
        parameters=[NAME],
    )
    def put(self, request: Request, name: str) -> Response:
        """The file is replaced, and the former one is kept as a revision. Folders may be missing still."""
        environment = services.write_datasets_file(name, unwrapped_datasets(request.data), actor=ACTOR)
        message = f"Datasets of '{name}' written"
        return Response({"message": message, "metadata": representations.meta(environment), **_shown(environment)})


def _problems_of(environment: Environment) -> list[Problem]:
    """Every problem of an environment, its file's first."""
    if environment.file_problems:
        return [Problem(**problem, level=Level.ERROR) for problem in environment.file_problems]
    home = current_home()
    return resolve_run(home, with_secrets(home, environment.name, environment.config), {}).problems


def _checked(problems: Sequence[Problem]) -> dict[str, Any]:
    errors = limited(errors_in(problems))
    texts = {level: [str(one) for one in limited([one for one in problems if one.level is level])] for level in Level}
    return {
        "is_valid": not errors,
        "errors": [str(one) for one in errors],
        "warnings": texts[Level.WARNING],
        "suggestions": texts[Level.NOTE],
        "problems": [one.as_dict() for one in errors],
    }


def _shown(environment: Environment) -> dict[str, Any]:
    """The datasets file of an environment, with its errors and warnings."""
    home = current_home()
    text = shown_datasets(environment, home)
    try:
        document = None if text is None else unwrapped_datasets(parse_json(text))
    except BadJson:
        document = None
    problems = [one for one in services.dataset_problems(environment) if one.level is not Level.NOTE]
    return {
        "name": environment.name,
        **locate(environment.config, home).as_answer(),
        "datasets": document,
        "problems": [one.as_dict() for one in limited(problems)],
    }
