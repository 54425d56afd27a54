"""The API of revisions. Each view parses the request, calls one service and builds the answer."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from environments import history
from environments.api import representations
from environments.api.schema import NAME, WITH_BODY, described
from environments.api.serializers import AdviceSerializer, ConfigField, MessageSerializer, MetaSerializer, Sent
from environments.api.views import ACTOR, NAMED, ConfigurationView
from environments.errors import EnvironmentProblems
from environments.files.config_files import dashed
from environments.models import Action, Revision
from environments.secrets.datasets import shown_text
from trainer_engine.config.options.secrets import hide_options
from trainer_engine.contract.errors import Problem

LARGEST = 2**31 - 1
NUMBER: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": LARGEST}
REVISION = OpenApiParameter("number", NUMBER, description="Number of the revision; the newest if nothing is sent.")
FROM = OpenApiParameter("from", NUMBER, description="The older revision; the one before `to` if nothing is sent.")
TO = OpenApiParameter("to", NUMBER, description="The newer revision; the newest if nothing is sent.")


class RevisionSerializer(serializers.Serializer[Any]):
    """A change of an environment."""

    number = serializers.IntegerField()
    action = serializers.ChoiceField(choices=Action.choices)
    actor = serializers.CharField(help_text="api, admin:USER, hand for files edited by hand, run for the start of a run.")
    created_at = serializers.DateTimeField()
    description = serializers.CharField(allow_blank=True)
    tags = serializers.ListField(child=serializers.CharField())


class RevisionsSerializer(serializers.Serializer[Any]):
    """The revisions of a name, newest first."""

    name = serializers.CharField()
    revisions = RevisionSerializer(many=True)
    count = serializers.IntegerField()


class RevisionDetailSerializer(RevisionSerializer):
    """An environment after a change."""

    name = serializers.CharField()
    config = ConfigField()
    datasets = serializers.CharField(allow_null=True, help_text="Text of the datasets file.")
    lycoris = serializers.CharField(allow_null=True, help_text="Text of the adapter file.")
    replaced = serializers.CharField(allow_null=True, help_text="An unusable config.json that the change overwrote.")


class ChangedOptionSerializer(serializers.Serializer[Any]):
    """An option that has another value. ``from`` and ``to`` are null if nothing is set, ``***`` for a secret."""

    # Any value includes null; with ``allow_null`` the schema says so twice, which linters report.
    option = serializers.CharField()
    to = serializers.JSONField()

    def get_fields(self) -> dict[str, serializers.Field]:  # type: ignore[type-arg]
        # ``from`` is a word of the language, so it cannot be the name of an attribute.
        return {**super().get_fields(), "from": serializers.JSONField()}


class ComparisonSerializer(serializers.Serializer[Any]):
    """What differs between two revisions."""

    name = serializers.CharField()
    to = serializers.IntegerField()
    changed = ChangedOptionSerializer(many=True)
    datasets = serializers.ListField(child=serializers.CharField(), help_text="Lines of a unified diff; empty if the files are equal.")
    lycoris = serializers.ListField(child=serializers.CharField(), help_text="The same for the adapter files.")

    def get_fields(self) -> dict[str, Any]:
        return {**super().get_fields(), "from": serializers.IntegerField()}


class RestoreSerializer(Sent):
    """The revision to bring back."""

    revision = serializers.IntegerField(min_value=1, max_value=LARGEST, help_text="Number of the revision.")


class RestoredSerializer(MessageSerializer):
    """The environment after it was brought back."""

    metadata = MetaSerializer()
    config = ConfigField()
    left_out = serializers.ListField(child=serializers.CharField(), help_text="Options with a secret that is not stored any more.")
    validation = AdviceSerializer()


class RevisionList(ConfigurationView):
    """Every change of an environment, also of a deleted one."""

    @described("configs_revisions", "List the revisions of an environment", RevisionsSerializer, *NAMED, parameters=[NAME])
    def get(self, request: Request, name: str) -> Response:
        found = history.revisions(name)
        return Response({"name": name, "revisions": [_listed(one) for one in found], "count": len(found)})


class RevisionDetail(ConfigurationView):
    """An environment as it was after a change."""

    @described("configs_revision", "Show a revision", RevisionDetailSerializer, *NAMED, 422, parameters=[NAME, REVISION])
    def get(self, request: Request, name: str) -> Response:
        number = _number(request, "number")
        one = history.revisions(name)[0] if number is None else history.find_revision(name, number)
        texts = {
            "datasets": one.datasets_text and shown_text(one.datasets_text),
            "lycoris": one.adapter_text,
            "replaced": one.replaced_text,
        }
        return Response({"name": name, **_listed(one), "config": dashed(hide_options(one.config)), **texts})


class Diff(ConfigurationView):
    """What differs between two revisions."""

    @described("configs_diff", "Compare two revisions", ComparisonSerializer, *NAMED, 422, parameters=[NAME, FROM, TO])
    def get(self, request: Request, name: str) -> Response:
        found = history.compare(name, _number(request, "from"), _number(request, "to"))
        return Response(
            {
                "name": name,
                "from": found.older.number,
                "to": found.newer.number,
                "changed": [one.as_dict() for one in found.changed],
                "datasets": found.datasets,
                "lycoris": found.adapter,
            }
        )


class Restore(ConfigurationView):
    """Brings an environment back to a revision, also a deleted one."""

    serializer_class = RestoreSerializer

    @described(
        "configs_restore",
        "Bring an environment back to a revision",
        RestoredSerializer,
        *WITH_BODY,
        *NAMED,
        409,
        request=RestoreSerializer,
        parameters=[NAME],
    )
    def post(self, request: Request, name: str) -> Response:
        number = self.sent(request)["revision"]
        restored = history.restore(name, number, actor=ACTOR)
        return Response(
            {
                "message": f"Configuration '{name}' is as it was in revision {number}",
                "metadata": representations.meta(restored.environment),
                "config": dashed(restored.environment.config),
                "left_out": restored.left_out,
                "validation": restored.checked.advice,
            }
        )


def _listed(revision: Revision) -> dict[str, Any]:
    return {
        "number": revision.number,
        "action": revision.action,
        "actor": revision.actor,
        "created_at": revision.created_at.isoformat(),
        "description": revision.description,
        "tags": revision.tags,
    }


def _number(request: Request, field: str) -> int | None:
    """The number of a revision in the address; None if there is none. Raises EnvironmentProblems."""
    text = request.query_params.get(field)
    if text is None:
        return None
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST)) else 0
    if not 1 <= number <= LARGEST:
        problem = Problem.error(field, "not_a_number", f"{field} is no number of a revision.", got=text, expected="a number from 1")
        raise EnvironmentProblems.of([problem])
    return number
