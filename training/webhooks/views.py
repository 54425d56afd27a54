"""The API of stored webhook targets and of the deliveries of a run."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from drf_spectacular.utils import OpenApiParameter
from rest_framework.parsers import FormParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from environments.api.parsers import FormBody, JsonBody
from environments.api.schema import NAME_SHAPE, WITH_BODY
from environments.create.names import name_problem
from environments.errors import FilesNotWritable
from environments.home import current_home
from environments.resolve import webhook_targets
from trainer_engine.config.webhooks import MOST_TARGETS, WebhookTarget
from trainer_engine.contract.errors import Problem, errors_in, limited
from trainer_engine.contract.events import EventType, utc_now
from training.api import parse, schema
from training.errors import TrainingRefused
from training.models import Delivery, WebhookChannel, WebhookDelivery
from training.webhooks import serializers
from training.webhooks.egress import webhook_problems
from training.webhooks.messages import compose
from training.webhooks.post import post

MOST_SHOWN = 500
WEBHOOK_NAME = OpenApiParameter("name", NAME_SHAPE, OpenApiParameter.PATH, description="Name of the stored targets.")
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
    """The request holds no valid list of targets."""


@contextmanager
def changing() -> Iterator[None]:
    """Turns OSError into FilesNotWritable."""
    try:
        yield
    except OSError as error:
        raise FilesNotWritable(error) from error


def checked_name(name: str) -> str:
    """The name. Raises BadWebhook for an invalid one."""
    problem = name_problem(name)
    if problem is not None:
        raise BadWebhook(problem.message, (problem,))
    return name


def stored(name: str) -> tuple[Any, list[WebhookTarget], list[Problem]]:
    """(document, targets, what is wrong with them) with their secrets. Raises NoSuchWebhook, BadWebhook."""
    home = current_home()
    if not (webhook_targets.stored_folder(home) / f"{checked_name(name)}.json").is_file():
        raise NoSuchWebhook(name)
    document, problems = webhook_targets.take_in(name, home)
    return (document, [], problems) if problems else (document, *webhook_targets.parse_document(document))


def shown(name: str, document: Any, problems: Iterable[Problem]) -> dict[str, Any]:
    return {
        "name": name,
        "path": f"config/{webhook_targets.FOLDER}/{name}.json",
        "config": webhook_targets.shown(document),
        "problems": [problem.as_dict() for problem in limited(list(problems))],
    }


class WebhookList(APIView):
    """Every stored list of targets, with ``***`` for secrets."""

    @schema.described("webhooks_list", "Stored webhook targets", serializers.WebhookListSerializer)
    def get(self, request: Request) -> Response:
        found = [(name, *stored(name)) for name in webhook_targets.stored_names(current_home())]
        rows = [shown(name, document, problems) for name, document, _, problems in found]
        return Response({"webhooks": rows, "count": len(rows)})


class StoredWebhook(APIView):
    """One stored list of targets: a run names it as ``--webhook_config=config/webhooks/<name>.json``.

    PUT takes a target, a list of them, or the answer of GET; ``***`` in it keeps what is stored.
    """

    parser_classes = (JsonBody,)

    @schema.described("webhook_get", "Show stored targets", serializers.WebhookSerializer, 404, 422, parameters=[WEBHOOK_NAME])
    def get(self, request: Request, name: str) -> Response:
        document, _, problems = stored(name)
        return Response(shown(name, document, problems))

    @schema.described(
        "webhook_put",
        "Store targets under a name",
        serializers.WebhookSerializer,
        *WITH_BODY,
        409,
        request=serializers.WEBHOOK_BODY,
        parameters=[WEBHOOK_NAME],
    )
    def put(self, request: Request, name: str) -> Response:
        home, sent = current_home(), request.data
        if isinstance(sent, dict) and "config" in sent and "webhook_type" not in sent:
            sent = sent["config"]
        document = webhook_targets.with_stored_secrets(checked_name(name), sent, home)
        targets, problems = webhook_targets.parse_document(document)
        problems += webhook_problems(targets)
        if errors_in(problems):
            raise BadWebhook("The targets have problems; nothing was stored.", tuple(errors_in(problems)))
        with changing():
            webhook_targets.store(name, document, home)
        return Response(shown(name, document, problems))

    @schema.described(
        "webhook_delete",
        "Delete stored targets",
        serializers.WebhookMessageSerializer,
        404,
        409,
        422,
        parameters=[WEBHOOK_NAME],
    )
    def delete(self, request: Request, name: str) -> Response:
        stored(name)
        with changing():
            webhook_targets.forget(name, current_home())
        return Response({"message": f"Webhook '{name}' deleted"})


class WebhookTest(APIView):
    """Posts a test event to each stored target and returns the results."""

    parser_classes = (JsonBody, FormParser, FormBody)

    @schema.described("webhook_test", "Post a test event", serializers.WebhookTestSerializer, 404, 422, parameters=[WEBHOOK_NAME])
    def post(self, request: Request, name: str) -> Response:
        _, targets, problems = stored(name)
        if errors_in(problems):
            raise BadWebhook("The stored targets have problems.", tuple(errors_in(problems)))
        with ThreadPoolExecutor(MOST_TARGETS) as pool:
            results = list(pool.map(_try, targets))
        return Response({"name": name, "arrived": bool(results) and all(result["arrived"] for result in results), "results": results})


def _try(target: WebhookTarget) -> dict[str, Any]:
    delivery = str(uuid.uuid4())
    result = post(target, compose(target, {**TEST_EVENT, "timestamp": utc_now()}, []), delivery)
    return {"target": target.shown(), "delivery": delivery, "arrived": result.arrived, "error": result.reason}


class JobWebhooks(APIView):
    """The webhook deliveries of a run: counts, targets, the newest dead letters and the pending posts."""

    @schema.described(
        "training_job_webhooks", "Webhook deliveries of a run", serializers.JobWebhooksSerializer, 404, parameters=[schema.JOB_PATH]
    )
    def get(self, request: Request, job_id: str) -> Response:
        job = parse.named_job(job_id)
        rows = WebhookDelivery.objects.filter(channel__job=job).select_related("channel")
        counts = {status.value: rows.filter(status=status).count() for status in Delivery}
        targets = [_channel(channel) for channel in job.webhooks.all()]
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
    waits = channel.next_attempt_at.isoformat() if channel.failures else None
    return {**WebhookTarget(**channel.target).shown(), "place": channel.place, "failures": channel.failures, "next_attempt_at": waits}


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
