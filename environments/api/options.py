"""``GET /api/options``: every option with its type, bounds, choices and defaults, enough to make a form."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from environments.api.schema import described
from environments.api.views import ConfigurationView
from environments.errors import EnvironmentProblems
from environments.resolve.checks import effective_defaults
from trainer_engine.config.families import find_spec, specs
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.option import OptionSpec
from trainer_engine.config.options import GROUPS, REGISTRY
from trainer_engine.contract.errors import Problem

KINDS = ("bool", "int", "float", "str", "mapping", "json")
BOUNDS = ("gt", "ge", "lt", "le")
FAMILY = OpenApiParameter("family", str, description="A model family: `effective_default` is then the default with it.")
FLAVOUR = OpenApiParameter("flavour", str, description="One of its flavours.")


class OptionSerializer(serializers.Serializer[Any]):
    """One option."""

    name = serializers.CharField()
    group = serializers.CharField()
    type = serializers.ChoiceField(choices=KINDS)
    required = serializers.BooleanField()  # type: ignore[assignment]
    nullable = serializers.BooleanField(help_text="Whether not set is a value of its own.")
    default = serializers.JSONField(help_text="The default without a family; null if there is none.")
    effective_default = serializers.JSONField(help_text="The default with the family and flavour that were sent; else as `default`.")
    choices = serializers.ListField(child=serializers.CharField(), help_text="Empty if it is no choice.")
    synonyms = serializers.DictField(child=serializers.CharField(), help_text="Other spelling -> choice.")
    not_available = serializers.ListField(child=serializers.CharField(), help_text="Choices that are known and not implemented.")
    bounds = serializers.DictField(child=serializers.FloatField(), help_text=f"Any of {', '.join(BOUNDS)} -> number.")
    aliases = serializers.ListField(child=serializers.CharField())
    is_secret = serializers.BooleanField(help_text="Whether parts of its value are hidden.")
    expected = serializers.CharField(help_text="A valid value in words.")
    help = serializers.CharField()


class GroupSerializer(serializers.Serializer[Any]):
    """A group of options."""

    name = serializers.CharField()
    help = serializers.CharField()


class OptionsSerializer(serializers.Serializer[Any]):
    """Every option in its group's order."""

    family = serializers.CharField(allow_null=True)
    flavour = serializers.CharField(allow_null=True)
    groups = GroupSerializer(many=True)
    options = OptionSerializer(many=True)
    count = serializers.IntegerField()


class Options(ConfigurationView):
    """Every option of a configuration."""

    @described("options", "List the options of configurations", OptionsSerializer, 422, parameters=[FAMILY, FLAVOUR])
    def get(self, request: Request) -> Response:
        family, flavour = (request.query_params.get(name) or None for name in ("family", "flavour"))
        spec = _spec(family, flavour)
        config = {} if spec is None else {"model_family": spec.name, "model_flavour": flavour or spec.default_flavour}
        defaults = effective_defaults(config)
        options = [_shown(one, defaults) for one in REGISTRY.values()]
        groups = [{"name": name, "help": inspect.cleandoc(group.__doc__ or "")} for name, group in GROUPS.items()]
        names = {"family": config.get("model_family"), "flavour": config.get("model_flavour")}
        return Response({**names, "groups": groups, "options": options, "count": len(options)})


def _spec(family: str | None, flavour: str | None) -> FamilySpec | None:
    """The family that was asked for. Raises EnvironmentProblems."""
    if family is None and flavour is None:
        return None
    spec = find_spec(family or "")
    if spec is None:
        expected, message = f"one of {', '.join(specs())}", f"There is no model family {family!r}."
        raise EnvironmentProblems.of([Problem.error("family", "unknown_family", message, got=family, expected=expected)])
    if flavour is not None and flavour not in spec.flavours:
        expected, message = f"one of {', '.join(spec.flavours)}", f"{spec.title} has no flavour {flavour!r}."
        raise EnvironmentProblems.of([Problem.error("flavour", "unknown_flavour", message, got=flavour, expected=expected)])
    return spec


def _shown(spec: OptionSpec, defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": spec.name,
        "group": spec.group,
        "type": spec.kind,
        "required": spec.required,
        "nullable": spec.optional,
        "default": spec.default,
        "effective_default": defaults.get(spec.name, spec.default),
        "choices": spec.choices,
        "synonyms": dict(spec.synonyms),
        "not_available": (*spec.later, *spec.refused),
        "bounds": dict(spec.bounds),
        "aliases": spec.aliases,
        "is_secret": bool(spec.secret or spec.secret_paths),
        "expected": spec.expected,
        "help": spec.help,
    }
