"""The API of stored webhook targets and of the deliveries of a run."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiParameter
from rest_framework.parsers import FormParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from environments.api.parsers import FormBody, JsonBody
from environments.api.schema import NAME_SHAPE, WITH_BODY
from trainer_engine.config.webhooks import WebhookTarget
from trainer_engine.contract.errors import limited
from training.api import parse, schema
from training.models import Delivery, WebhookChannel, WebhookDelivery
from training.webhooks import serializers, stored
from training.webhooks.stored import StoredTargets

MOST_SHOWN = 500
WEBHOOK_NAME = OpenApiParameter("name", NAME_SHAPE, OpenApiParameter.PATH, description="Name of the stored targets.")


def shown(found: StoredTargets) -> dict[str, Any]:
    problems = [problem.as_dict() for problem in limited(found.problems)]
    return {"name": found.name, "path": found.path, "config": found.shown, "problems": problems}


class WebhookList(APIView):
    """Every stored list of targets, with ``***`` for secrets."""

    @schema.described("webhooks_list", "Stored webhook targets", serializers.WebhookListSerializer)
    def get(self, request: Request) -> Response:
        rows = [shown(found) for found in stored.find_all()]
        return Response({"webhooks": rows, "count": len(rows)})


class StoredWebhook(APIView):
    """One stored list of targets: a run names it as ``--webhook_config=config/webhooks/<name>.json``.

    PUT takes a target, a list of them, or the answer of GET; ``***`` in it keeps what is stored.
    """

    parser_classes = (JsonBody,)

    @schema.described("webhook_get", "Show stored targets", serializers.WebhookSerializer, 404, 422, parameters=[WEBHOOK_NAME])
    def get(self, request: Request, name: str) -> Response:
        return Response(shown(stored.find(name)))

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
        sent = request.data
        if isinstance(sent, dict) and "config" in sent and "webhook_type" not in sent:
            sent = sent["config"]
        return Response(shown(stored.store(name, sent)))

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
        stored.forget(name)
        return Response({"message": f"Webhook '{name}' deleted"})


class WebhookTest(APIView):
    """Posts a test event to each stored target and returns the results."""

    parser_classes = (JsonBody, FormParser, FormBody)

    @schema.described("webhook_test", "Post a test event", serializers.WebhookTestSerializer, 404, 422, parameters=[WEBHOOK_NAME])
    def post(self, request: Request, name: str) -> Response:
        results = stored.send_test(name)
        return Response({"name": name, "arrived": bool(results) and all(result["arrived"] for result in results), "results": results})


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
