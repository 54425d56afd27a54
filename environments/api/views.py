"""``/api/configs``. Each view parses the request, calls one service and builds the answer."""

from __future__ import annotations

from typing import Any

from rest_framework.parsers import FormParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import Serializer
from rest_framework.views import APIView

from environments import services
from environments.api import representations, schema
from environments.api import serializers as shapes
from environments.api.parsers import FormBody, JsonBody
from environments.api.schema import described
from environments.create.plan import NewEnvironment
from environments.errors import EnvironmentNotFound, EnvironmentProblems
from environments.examples import shipped_examples
from environments.files.config_files import dashed, folder_of
from environments.files.datasets_file import locate
from environments.home import current_home
from environments.models import Environment
from trainer_engine.config.json_fields import WrongValue, parse_bool
from trainer_engine.contract.errors import Problem

ACTOR = "api"
NAMED = (404, 405)
"""Refusals of addresses with a name: it is unknown, or it belongs to another call."""


class ConfigurationView(APIView):
    """Base of the views. ``serializer_class`` gives the browsable API its form."""

    parser_classes = (JsonBody, FormParser, FormBody)
    serializer_class: type[Serializer[Any]] = shapes.Sent

    def get_serializer(self, *args: Any, **kwargs: Any) -> Serializer[Any]:
        return self.serializer_class(*args, **kwargs)

    def sent(self, request: Request) -> dict[str, Any]:
        """The body's fields, typed. Raises ValidationError with every problem."""
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        return dict(serializer.validated_data)


class ConfigurationList(ConfigurationView):
    """All configurations of one type, and which environment is active."""

    serializer_class = shapes.NewConfigurationSerializer

    @described("configs_list", "List configurations", shapes.ListSerializer, 422, parameters=[schema.CONFIG_TYPE])
    def get(self, request: Request) -> Response:
        config_type = request.query_params.get("config_type", "model")
        if config_type not in representations.CONFIG_TYPES:
            expected = f"one of {', '.join(representations.CONFIG_TYPES)}"
            problem = Problem.error(
                "config_type", "not_a_choice", f"There is no config_type {config_type!r}.", got=config_type, expected=expected
            )
            raise EnvironmentProblems.of([problem])
        environments = services.find_all()
        configs = representations.of_type(config_type, environments, current_home())
        active = next((environment.name for environment in environments if environment.is_active), None)
        return Response({"configs": configs, "active": active, "count": len(configs), "config_type": config_type})

    @described(
        "configs_post",
        "Create an environment with a configuration",
        shapes.UpdatedSerializer,
        *schema.WITH_BODY,
        409,
        request=shapes.NewConfigurationSerializer,
    )
    def post(self, request: Request) -> Response:
        sent = self.sent(request)
        environment, checked = services.create_from_values(
            sent["name"], sent["config"], description=sent.get("description") or "", tags=sent.get("tags") or (), actor=ACTOR
        )
        message = f"Configuration '{environment.name}' created successfully"
        return Response({"message": message, "metadata": representations.meta(environment), "validation": checked.advice})


class ExampleList(ConfigurationView):
    """The templates that ship with the package."""

    @described("configs_examples", "List shipped templates", shapes.ExamplesSerializer)
    def get(self, request: Request) -> Response:
        examples = [representations.example(one) for one in shipped_examples()]
        return Response({"examples": examples, "count": len(examples)})


class ActiveConfiguration(ConfigurationView):
    """The environment that runs start from."""

    @described("configs_active", "Show the active environment", shapes.ActiveSerializer)
    def get(self, request: Request) -> Response:
        environment = services.active()
        if environment is None:
            return Response({"name": None, "config": None, "metadata": None})
        shown = representations.shown(environment)
        del shown["config_type"]
        return Response(shown)


class EnvironmentCollection(ConfigurationView):
    """Creates environments."""

    serializer_class = shapes.CreateEnvironmentSerializer

    @described(
        "configs_create",
        "Create an environment",
        shapes.CreatedSerializer,
        *schema.WITH_BODY,
        409,
        request=shapes.CreateEnvironmentSerializer,
    )
    def post(self, request: Request) -> Response:
        values = {name: value for name, value in self.sent(request).items() if value not in (None, "")}
        environment = services.create_environment(NewEnvironment(**values), actor=ACTOR)
        return Response(created(environment, f"Environment '{environment.name}' created"))


def created(environment: Environment, message: str) -> dict[str, Any]:
    """The answer of a call that created an environment: its metadata, options and files."""
    home = current_home()
    return {
        "message": message,
        "environment": {**representations.meta(environment), "path": str(folder_of(home, environment.name))},
        "config": dashed(environment.config),
        "dataloader": locate(environment.config, home).as_answer(),
    }


class ConfigurationDetail(ConfigurationView):
    """One environment."""

    serializer_class = shapes.UpdateEnvironmentSerializer

    def get_serializer(self, *args: Any, **kwargs: Any) -> Serializer[Any]:
        if "data" not in kwargs and kwargs.get("instance") is None:
            kwargs["instance"] = self._stored()  # the initial form of the browsable API
        return super().get_serializer(*args, **kwargs)

    def _stored(self) -> dict[str, Any] | None:
        try:
            environment = services.find(self.kwargs["name"])
        except EnvironmentNotFound:
            return None  # the error page has a form too
        return {
            "name": environment.name,
            "config": dashed(environment.config),
            "description": environment.description,
            "tags": environment.tags,
        }

    @described("configs_get", "Show an environment", shapes.EnvironmentSerializer, *NAMED, parameters=[schema.NAME])
    def get(self, request: Request, name: str) -> Response:
        """Its options, with `***` for secrets, and its metadata; `problems` if its file cannot be used."""
        return Response(representations.shown(services.find(name)))

    @described(
        "configs_update",
        "Replace an environment's configuration",
        shapes.UpdatedSerializer,
        *schema.WITH_BODY,
        *NAMED,
        409,
        request=shapes.UpdateEnvironmentSerializer,
        parameters=[schema.NAME],
    )
    def put(self, request: Request, name: str) -> Response:
        """Every option is replaced; what is left out is removed. `***` keeps a stored secret. The former state is a revision."""
        services.find(name)
        sent = self.sent(request)
        if sent.get("name", name) != name:
            message = f"The body is for {sent['name']!r}, the address for {name!r}."
            raise EnvironmentProblems.of([Problem.error("name", "other_name", message, got=sent["name"], expected=name)])
        environment, checked = services.update_environment(
            name, config=sent["config"], description=sent.get("description"), tags=sent.get("tags"), actor=ACTOR
        )
        message = f"Configuration '{name}' updated successfully"
        return Response({"message": message, "metadata": representations.meta(environment), "validation": checked.advice})

    @described("configs_delete", "Delete an environment", shapes.MessageSerializer, *NAMED, 409, parameters=[schema.NAME])
    def delete(self, request: Request, name: str) -> Response:
        """Its files go, its revisions stay: it can be restored. The active environment cannot be deleted."""
        services.delete_environment(name, actor=ACTOR)
        return Response({"message": f"Configuration '{name}' deleted"})


class Activation(ConfigurationView):
    """Makes an environment the one that runs start from."""

    @described("configs_activate", "Activate an environment", shapes.ActivatedSerializer, *NAMED, 409, parameters=[schema.NAME])
    def post(self, request: Request, name: str) -> Response:
        services.activate(name, actor=ACTOR)
        return Response({"message": f"Configuration '{name}' is now active", "active": name})


class Export(ConfigurationView):
    """A configuration to keep elsewhere."""

    @described(
        "configs_export",
        "Export an environment",
        schema.EXPORT_SHAPE,
        *NAMED,
        422,
        parameters=[schema.NAME, schema.INCLUDE_METADATA],
    )
    def get(self, request: Request, name: str) -> Response:
        text = request.query_params.get("include_metadata", "true")
        try:
            include_metadata = parse_bool(text)
        except WrongValue as wrong:
            message = f"include_metadata {wrong}."
            raise EnvironmentProblems.of(
                [Problem.error("include_metadata", wrong.code, message, got=text, expected="true or false")]
            ) from wrong
        environment = services.find(name)
        config = dashed(environment.config)
        return Response({"_metadata": representations.meta(environment), "config": config} if include_metadata else config)


class Dataloader(ConfigurationView):
    """Generates an environment's datasets file; a copy of the old one is kept next to it."""

    serializer_class = shapes.RegenerateDataloaderSerializer

    @described(
        "configs_dataloader",
        "Regenerate the datasets file",
        shapes.RegeneratedSerializer,
        *schema.WITH_BODY,
        *NAMED,
        409,
        request=shapes.RegenerateDataloaderSerializer,
        parameters=[schema.NAME],
    )
    def post(self, request: Request, name: str) -> Response:
        services.find(name)
        sent = self.sent(request)
        made = services.regenerate_dataloader(name, path=sent.get("path"), include_defaults=sent["include_defaults"], actor=ACTOR)
        return Response(
            {
                "message": f"Dataloader configuration for '{name}' written",
                "environment": representations.meta(made.environment),
                "dataloader": {
                    **locate(made.environment.config, current_home()).as_answer(),
                    "previous": str(made.previous) if made.previous else None,
                },
            }
        )
