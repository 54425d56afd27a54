"""Stored targets, and what became of a run's posts."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from rest_framework.parsers import FormParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from environments.home import current_home
from environments.json_text import write_json
from environments.names import is_name, name_problem
from environments.parsers import JsonBody
from environments.paths import Home
from environments.webhook_targets import read_webhooks, stored_folder
from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.errors import errors_in
from trainer_engine.contract.events import EventType, utc_now
from trainer_engine.contract.webhooks import WebhookTarget, parse_webhooks
from training import requests, schema
from training.errors import TrainingRefused
from training.models import Delivery, WebhookChannel, WebhookDelivery
from training.webhooks import shapes
from training.webhooks.egress import webhook_problems
from training.webhooks.messages import compose
from training.webhooks.posting import post

MOST_SHOWN = 500
TEST_EVENT: dict[str, Any] = {
    "index": 0,
    "type": EventType.NOTIFICATION.value,
    "job_id": str(uuid.UUID(int=0)),
    "severity": "info",
    "title": "Test",
    "message": "SimpleTuner can reach this webhook.",
    "body": "",
    "data": {"code": "webhook_test", "details": {}},
}


class NoSuchWebhook(TrainingRefused):
    """Nothing is stored under this name."""

    status_code = 404

    def __init__(self, name: str) -> None:
        super().__init__(f"Webhook '{name[:100]}' not found")


class BadWebhook(TrainingRefused):
    """What was sent is no list of targets."""


def path_of(name: str, home: Home) -> Path:
    """Raises BadWebhook for a name that no file may have."""
    problem = name_problem(name)
    if problem is not None:
        raise BadWebhook(problem.message, (problem,))
    return stored_folder(home) / f"{name}.json"


def stored(name: str) -> tuple[Path, list[WebhookTarget], list[Any]]:
    """Raises NoSuchWebhook."""
    home = current_home()
    path = path_of(name, home)
    if not path.is_file():
        raise NoSuchWebhook(name)
    return path, *read_webhooks(path, home)


def shown(name: str, path: Path, targets: list[WebhookTarget], problems: list[Any]) -> dict[str, Any]:
    return {
        "name": name,
        "path": f"config/webhooks/{path.name}",
        "targets": [target.shown() for target in targets],
        "problems": [problem.as_dict() for problem in problems],
    }


class WebhookList(APIView):
    """Every stored list of targets; tokens are hidden."""

    @schema.described("webhooks_list", "Stored webhook targets", shapes.WebhookListSerializer)
    def get(self, request: Request) -> Response:
        names = sorted(path.stem for path in stored_folder(current_home()).glob("*.json") if is_name(path.stem))
        rows = [shown(name, *stored(name)) for name in names]
        return Response({"webhooks": rows, "count": len(rows)})


class StoredWebhook(APIView):
    """One stored list of targets: a run names it as ``--webhook_config=config/webhooks/<name>.json``."""

    parser_classes = (JsonBody,)

    @schema.described("webhook_get", "Show stored targets", shapes.WebhookSerializer, 404, 422)
    def get(self, request: Request, name: str) -> Response:
        return Response(shown(name, *stored(name)))

    @schema.described(
        "webhook_put", "Store targets under a name", shapes.WebhookSerializer, 400, 413, 415, 422, request=shapes.WEBHOOK_BODY
    )
    def put(self, request: Request, name: str) -> Response:
        path = path_of(name, current_home())
        targets, problems = parse_webhooks(request.data, "webhook")
        problems += webhook_problems(targets)
        if errors_in(problems):
            raise BadWebhook("The targets have problems; nothing was stored.", tuple(errors_in(problems)))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write_json(request.data).encode())
        path.chmod(0o600)  # tokens
        return Response(shown(name, path, targets, problems))

    @schema.described("webhook_delete", "Forget stored targets", shapes.WebhookMessageSerializer, 404, 422)
    def delete(self, request: Request, name: str) -> Response:
        stored(name)[0].unlink(missing_ok=True)
        return Response({"message": f"Webhook '{name}' deleted"})


class WebhookTest(APIView):
    """Posts one event to each stored target, now, and says what came of it."""

    parser_classes = (JsonBody, FormParser, MultiPartParser)

    @schema.described("webhook_test", "Post a test event", shapes.WebhookTestSerializer, 404, 422)
    def post(self, request: Request, name: str) -> Response:
        _, targets, problems = stored(name)
        if errors_in(problems):
            raise BadWebhook("The stored targets have problems.", tuple(errors_in(problems)))
        results = []
        for target in targets:
            delivery = str(uuid.uuid4())
            outcome = post(target, compose(target, {**TEST_EVENT, "timestamp": utc_now()}, []), delivery)
            results.append({"target": target.shown(), "delivery": delivery, "arrived": outcome.arrived, "error": outcome.reason})
        return Response({"name": name, "arrived": all(result["arrived"] for result in results), "results": results})


class JobWebhooks(APIView):
    """What became of a run's posts: counts, targets, the newest dead letters, and what waits."""

    @schema.described("training_job_webhooks", "Webhook deliveries of a run", shapes.JobWebhooksSerializer, 404)
    def get(self, request: Request, job_id: str) -> Response:
        job = requests.named_job(job_id)
        rows = WebhookDelivery.objects.filter(channel__job=job).select_related("channel")
        counts = {status.value: rows.filter(status=status).count() for status in Delivery}
        targets = [
            {**WebhookTarget(**channel.target).shown(), "place": channel.place, "failures": channel.failures}
            for channel in job.webhooks.all()
        ]
        newest = rows.order_by("-index", "channel__place")[:MOST_SHOWN]
        dead = rows.filter(status=Delivery.DEAD).order_by("-index")[:MOST_SHOWN]
        return Response(
            {
                "job_id": str(job.pk),
                "counts": counts,
                "targets": targets,
                "dead_letters": [_row(row) for row in dead],
                "deliveries": [_row(row) for row in newest],
            }
        )


def _channel(channel: WebhookChannel) -> dict[str, Any]:
    return {**WebhookTarget(**channel.target).shown(), "place": channel.place, "failures": channel.failures}


def _row(delivery: WebhookDelivery) -> dict[str, Any]:
    return {
        "delivery": str(delivery.pk),
        "target": delivery.channel.place,
        "index": delivery.index,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "error": delivery.error,
        "created_at": delivery.created_at.isoformat(),
        "finished_at": delivery.finished_at.isoformat() if delivery.finished_at else None,
    }
