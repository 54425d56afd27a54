"""The environments as a Django app."""

from __future__ import annotations

from django.apps import AppConfig


class EnvironmentsConfig(AppConfig):
    """What to train."""

    name = "environments"
    verbose_name = "What to train"
    default_auto_field = "django.db.models.BigAutoField"
