"""Addresses below ``/api/configs/webhooks``."""

from __future__ import annotations

from django.urls import re_path

from training.webhooks import views

NAME = r"(?P<name>[^/]+)"

urlpatterns = [
    re_path(r"^/?$", views.WebhookList.as_view(), name="webhooks"),
    re_path(rf"^/{NAME}/?$", views.StoredWebhook.as_view(), name="webhook"),
    re_path(rf"^/{NAME}/test/?$", views.WebhookTest.as_view(), name="webhook-test"),
]
