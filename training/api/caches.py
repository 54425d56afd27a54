"""Caches of the server's jobs and environments: what they hold, verified and cleaned. Requests name no folder."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.parsers import FormParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from environments.api.parsers import FormBody, JsonBody
from environments.api.schema import WITH_BODY
from trainer_engine.datasets.shards.stock import overview
from training.api import parse, schema
from training.errors import BadValue, TrainingRefused
from training.upkeep import caches

MOST = 1_000_000
TASK = OpenApiParameter("task_id", {"type": "string", "format": "uuid"}, OpenApiParameter.PATH, description="Id of the task.")
GC_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "unused_days": {"type": ["number", "null"], "minimum": 0, "maximum": MOST, "description": "Remove entries unused for so long."},
        "keep_gb": {"type": ["number", "null"], "minimum": 0, "maximum": MOST, "description": "Remove the longest unused above this."},
        "remove": {"type": ["boolean", "null"], "default": False, "description": "Without it the answer only counts."},
    },
}


class CacheUseSerializer(serializers.Serializer[object]):
    """Entries that a run has used."""

    kind = serializers.CharField(help_text="latents or prompts", allow_blank=True)
    family = serializers.CharField(allow_blank=True)
    model = serializers.CharField(allow_blank=True)
    entries = serializers.IntegerField()
    last_used = serializers.FloatField(help_text="Seconds since 1970.")


class CacheSerializer(serializers.Serializer[object]):
    """What one cache holds."""

    folder = serializers.CharField()
    entries = serializers.IntegerField()
    bytes = serializers.IntegerField()
    files = serializers.IntegerField()
    uses = CacheUseSerializer(many=True, help_text="The newest first.")


class CacheListSerializer(serializers.Serializer[object]):
    """The caches that the server knows."""

    caches = CacheSerializer(many=True)
    entries = serializers.IntegerField()
    bytes = serializers.IntegerField()


class CacheTaskSerializer(serializers.Serializer[object]):
    """A long job on caches."""

    task_id = serializers.UUIDField()
    action = serializers.CharField(help_text="verify or gc", allow_blank=True)
    status = serializers.CharField(help_text="queued, running, done or failed")
    done_bytes = serializers.IntegerField()
    total_bytes = serializers.IntegerField()
    result = serializers.DictField(allow_null=True, help_text="Of a job that is done.")
    message = serializers.CharField(allow_blank=True, help_text="Why it failed.")


class NoSuchTask(TrainingRefused):
    """No such job on caches, or it is too long ago."""

    status_code = 404

    def __init__(self, task_id: str) -> None:
        super().__init__(f"There is no task '{task_id[:100]}'")


class CacheList(APIView):
    """The caches."""

    @schema.described("cache_list", "What the caches hold", CacheListSerializer)
    def get(self, request: Request) -> Response:
        found = [overview(folder) for folder in caches.known_caches()]
        totals = {name: sum(one[name] for one in found) for name in ("entries", "bytes")}
        return Response({"caches": found, **totals})


class CacheVerify(APIView):
    """Read every entry."""

    parser_classes = (JsonBody, FormParser, FormBody)

    @schema.described(
        "cache_verify",
        "Read every entry of the caches and quarantine damaged ones",
        CacheTaskSerializer,
        *WITH_BODY,
        409,
        request=schema.forms({"type": "object"}),
    )
    def post(self, request: Request) -> Response:
        parse.submitted(request)
        return Response(caches.begin(caches.verify_job()).as_dict())


class CacheGc(APIView):
    """Remove what no run needs."""

    parser_classes = (JsonBody, FormParser, FormBody)

    @schema.described(
        "cache_gc", "Remove entries that were not used for long", CacheTaskSerializer, *WITH_BODY, 409, request=schema.forms(GC_FORM)
    )
    def post(self, request: Request) -> Response:
        fields = parse.named_fields(request)
        unknown = sorted(fields.keys() - GC_FORM["properties"].keys())
        if unknown:
            raise BadValue(unknown[0], f"There is no field {unknown[0]}.", got=None, expected="unused_days, keep_gb, remove")
        days, size = _number(fields, "unused_days"), _number(fields, "keep_gb")
        if days is None and size is None:
            raise BadValue("unused_days", "Nothing says what may go.", got=None, expected="unused_days, keep_gb or both")
        return Response(caches.begin(caches.gc_job(days, size, remove_now=_switch(fields, "remove"))).as_dict())


class CacheTaskView(APIView):
    """How far a job on caches is."""

    @schema.described("cache_task", "How far a job on caches is, and its result", CacheTaskSerializer, 404, parameters=[TASK])
    def get(self, request: Request, task_id: str) -> Response:
        task = caches.find(task_id)
        if task is None:
            raise NoSuchTask(task_id)
        return Response(task.as_dict())


def _number(fields: dict[str, Any], name: str) -> float | None:
    """A number of a form or of JSON; None if it is missing. Raises BadValue."""
    value = fields.get(name)
    if value is None or value == "":
        return None
    try:
        number = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= MOST:
        raise BadValue(name, f"{name} is not a number from 0 to {MOST}.", got=value, expected=f"a number from 0 to {MOST}")
    return number


def _switch(fields: dict[str, Any], name: str) -> bool:
    """Raises BadValue."""
    value = fields.get(name)
    if value is None or value is False or (isinstance(value, str) and value in ("", "false")):
        return False
    if value is True or (isinstance(value, str) and value == "true"):
        return True
    raise BadValue(name, f"{name} is neither true nor false.", got=value, expected="true or false")
