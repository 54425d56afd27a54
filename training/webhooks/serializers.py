"""The shapes of the answers about webhooks, for the schema."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from environments.api.serializers import MessageSerializer
from training.api.serializers import TrainingProblemSerializer

WEBHOOK_BODY: dict[str, Any] = {
    "application/json": {
        "description": "One target or a list of them; docs/webhooks.md has the fields.",
        "oneOf": [{"type": "object"}, {"type": "array", "items": {"type": "object"}}],
    }
}


class WebhookTargetSerializer(serializers.Serializer[object]):
    """A target, with tokens and secret addresses hidden."""

    kind = serializers.CharField()
    url = serializers.CharField()
    log_level = serializers.CharField()
    ssl_no_verify = serializers.BooleanField()
    auth_token = serializers.CharField(allow_blank=True)
    message_prefix = serializers.CharField(allow_blank=True)
    secret = serializers.CharField(allow_blank=True)
    template = serializers.CharField(allow_blank=True)
    place = serializers.IntegerField(help_text="In the list of targets, from 0.")


class WebhookSerializer(serializers.Serializer[object]):
    """A stored list of targets."""

    name = serializers.CharField()
    path = serializers.CharField(help_text="Value for --webhook_config.")
    config = serializers.JSONField(help_text="The targets as they were sent, secrets as ***; PUT takes it back.")
    problems = TrainingProblemSerializer(many=True)


class WebhookListSerializer(serializers.Serializer[object]):
    """Every stored list."""

    webhooks = WebhookSerializer(many=True)
    count = serializers.IntegerField()


class WebhookMessageSerializer(MessageSerializer):
    """What was done."""


class WebhookResultSerializer(serializers.Serializer[object]):
    """One test post."""

    target = WebhookTargetSerializer()
    delivery = serializers.UUIDField()
    arrived = serializers.BooleanField()
    error = serializers.CharField(allow_blank=True)


class WebhookTestSerializer(serializers.Serializer[object]):
    """What came of the test posts."""

    name = serializers.CharField()
    arrived = serializers.BooleanField()
    results = WebhookResultSerializer(many=True)


class WebhookDeliverySerializer(serializers.Serializer[object]):
    """One event on its way to one target."""

    delivery = serializers.UUIDField()
    target = serializers.IntegerField(help_text="Place of the target in the list.")
    index = serializers.IntegerField(help_text="Of the event.")
    status = serializers.ChoiceField(["pending", "delivered", "dead"])
    attempts = serializers.IntegerField()
    error = serializers.CharField(allow_blank=True)
    created_at = serializers.DateTimeField()
    finished_at = serializers.DateTimeField(allow_null=True)


class JobTargetSerializer(WebhookTargetSerializer):
    """A target of a run, and how it answers."""

    failures = serializers.IntegerField(help_text="Posts that failed since the last one that arrived.")
    next_attempt_at = serializers.DateTimeField(allow_null=True, help_text="When a target that fails is tried again.")


class JobWebhooksSerializer(serializers.Serializer[object]):
    """What became of a run's posts."""

    job_id = serializers.UUIDField()
    counts = serializers.DictField(child=serializers.IntegerField())
    targets = JobTargetSerializer(many=True)
    dead_letters = WebhookDeliverySerializer(many=True)
    deliveries = WebhookDeliverySerializer(many=True)
