"""The API that makes environments from others: copies, new names, shipped templates."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from environments import services
from environments.api import representations
from environments.api.history import ChangedOptionSerializer
from environments.api.schema import NAME, WITH_BODY, described
from environments.api.serializers import (
    LONGEST_TEXT,
    CreatedSerializer,
    ExampleSerializer,
    MessageSerializer,
    MetaSerializer,
    Name,
    Sent,
    Text,
)
from environments.api.views import ACTOR, NAMED, ConfigurationView, created
from environments.copies import Copied, copy_environment, rename_environment
from environments.create.plan import NewEnvironment
from environments.errors import EnvironmentProblems
from environments.examples import find_example, shipped_examples
from trainer_engine.contract.errors import Problem


class CopySerializer(Sent):
    """The name of the copy."""

    target_name = Name()


class RenameSerializer(Sent):
    """The new name."""

    new_name = Name()


class FromTemplateSerializer(Sent):
    """A shipped template and the name of the new environment."""

    template_name = Text(max_length=200, help_text="One of `/api/configs/templates`.")
    config_name = Name()
    description = Text(required=False, allow_null=True, allow_blank=True, max_length=LONGEST_TEXT)


class CopiedSerializer(MessageSerializer):
    """The new or renamed environment."""

    metadata = MetaSerializer()
    changed = ChangedOptionSerializer(many=True, help_text="Options that the environment it was made from has otherwise.")


class TemplatesSerializer(serializers.Serializer[Any]):
    """The shipped templates."""

    templates = ExampleSerializer(many=True)
    count = serializers.IntegerField()


class FromTemplateMadeSerializer(CreatedSerializer):
    """The new environment and its files."""

    metadata = MetaSerializer()


class Copy(ConfigurationView):
    """Copies an environment with its datasets and adapter file."""

    serializer_class = CopySerializer

    @described("configs_copy", "Copy an environment", CopiedSerializer, *WITH_BODY, *NAMED, 409, request=CopySerializer, parameters=[NAME])
    def post(self, request: Request, name: str) -> Response:
        services.find(name)
        target = self.sent(request)["target_name"]
        copied = copy_environment(name, target, actor=ACTOR)
        return Response(_answer(f"Configuration '{name}' copied to '{target}'", copied))


class Rename(ConfigurationView):
    """Renames an environment and its folder."""

    serializer_class = RenameSerializer

    @described(
        "configs_rename", "Rename an environment", CopiedSerializer, *WITH_BODY, *NAMED, 409, request=RenameSerializer, parameters=[NAME]
    )
    def post(self, request: Request, name: str) -> Response:
        services.find(name)
        target = self.sent(request)["new_name"]
        renamed = rename_environment(name, target, actor=ACTOR)
        return Response(_answer(f"Configuration renamed from '{name}' to '{target}'", renamed))


class TemplateList(ConfigurationView):
    """The templates that ship with the package."""

    @described("configs_templates", "List the templates of new environments", TemplatesSerializer)
    def get(self, request: Request) -> Response:
        templates = [representations.example(one) for one in shipped_examples()]
        return Response({"templates": templates, "count": len(templates)})


class FromTemplate(ConfigurationView):
    """Creates an environment from a shipped template."""

    serializer_class = FromTemplateSerializer

    @described(
        "configs_from_template",
        "Create an environment from a template",
        FromTemplateMadeSerializer,
        *WITH_BODY,
        404,
        409,
        request=FromTemplateSerializer,
    )
    def post(self, request: Request) -> Response:
        sent = self.sent(request)
        template, name = sent["template_name"], sent["config_name"]
        if find_example(template) is None:
            known = ", ".join(one.name for one in shipped_examples())
            message = f"There is no template {template!r}."
            raise EnvironmentProblems.of(
                [Problem.error("template_name", "unknown_example", message, got=template, expected=f"one of {known}")]
            )
        request_for = NewEnvironment(name=name, example=template, description=sent.get("description") or "")
        environment = services.create_environment(request_for, actor=ACTOR)
        message = f"Configuration '{name}' created from template '{template}'"
        return Response({**created(environment, message), "metadata": representations.meta(environment)})


def _answer(message: str, copied: Copied) -> dict[str, Any]:
    return {
        "message": message,
        "metadata": representations.meta(copied.environment),
        "changed": [one.as_dict() for one in copied.changed],
    }
