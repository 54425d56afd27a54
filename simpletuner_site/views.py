"""The pages of the site itself: ``/`` lists the runs, ``/health`` reports whether the server can work."""

from __future__ import annotations

import shutil
from typing import Any

from django.conf import settings
from django.db import DatabaseError, connection
from drf_spectacular.utils import extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from environments.api.schema import EVERYWHERE, JSON, refusals
from environments.api.serializers import ErrorSerializer
from simpletuner_site import __version__
from simpletuner_site.server.state import read_worker_state
from training.pages.views import RunList

HEALTH = inline_serializer(
    "Health",
    {
        "status": serializers.ChoiceField(["healthy", "unhealthy"]),
        "version": serializers.CharField(),
        "checks": serializers.DictField(child=serializers.DictField(), help_text="database, workers, disk"),
    },
)
ADDRESSES = {
    "/api/training/status": "the current or last run",
    "/api/training/jobs": "all runs",
    "/api/training/queue": "the queue",
    "/api/training/validate": "check a configuration",
    "/api/training/start": "start a run",
    "/api/configs": "environments",
    "/api/configs/environments": "create an environment",
    "/api/configs/examples": "shipped examples",
    "/api/options": "options of a configuration",
    "/api/models": "model families",
    "/api/webhooks": "stored webhook targets",
    "/api/cache": "caches",
    "/api/system": "this machine",
    "/docs": "every call, with forms",
    "/openapi.json": "the schema for programs",
}
"""Address -> what is there."""
SCARCE_DISK_BYTES = 1024**3


def check_database() -> dict[str, Any]:
    """Check that the database answers."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        return {"status": "unhealthy", "message": f"The database does not answer: {error}"}
    return {"status": "healthy", "engine": connection.vendor}


def check_workers() -> dict[str, Any]:
    """Check that a worker process runs."""
    state = read_worker_state(settings.STATE_DIR)
    if state is None:
        return {"status": "unhealthy", "message": "No worker process runs on this machine; jobs wait in the queue."}
    return {"status": "healthy", "pid": state.pid, "slots": settings.SLOTS}


def check_disk() -> dict[str, Any]:
    """Check the free space for the state; a warning below one gibibyte."""
    try:
        usage = shutil.disk_usage(settings.STATE_DIR)
    except OSError as error:
        return {"status": "unhealthy", "message": f"{settings.STATE_DIR} cannot be reached: {error.strerror or error}."}
    status = "healthy" if usage.free >= SCARCE_DISK_BYTES else "warning"
    return {"status": status, "path": str(settings.STATE_DIR), "free_bytes": usage.free, "total_bytes": usage.total}


class HealthView(APIView):
    """Reports whether the server can do its work."""

    @extend_schema(
        operation_id="health",
        summary="Health of the server",
        description="`status` is `healthy` if the database answers; `checks` shows what else needs attention.",
        tags=["training"],
        responses={(200, JSON): HEALTH, (503, JSON): HEALTH, **refusals(EVERYWHERE, ErrorSerializer)},
    )
    def get(self, request: Request) -> Response:
        checks = {"database": check_database(), "workers": check_workers(), "disk": check_disk()}
        is_healthy = checks["database"]["status"] == "healthy"
        body = {"status": "healthy" if is_healthy else "unhealthy", "version": __version__, "checks": checks}
        return Response(body, status=200 if is_healthy else 503)


@extend_schema(exclude=True)
class ApiIndex(APIView):
    """Where to go on. The documentation lists every call: `/docs`, or `/openapi.json` for programs."""

    page_title = "Addresses of the API"

    def get(self, request: Request) -> Response:
        return Response({"title": "SimpleTuner", "version": __version__, "addresses": ADDRESSES})


class HomePageView(RunList):
    """The runs of this server, what keeps it from working, and links to everything that can be opened in a browser."""

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        address = self.request.build_absolute_uri("/").rstrip("/")
        troubles = [check["message"] for check in (check_workers(), check_disk()) if "message" in check]
        return super().get_context_data(version=__version__, home=settings.HOME, address=address, troubles=troubles, **kwargs)
