"""Training as a Django app: every django-q2 worker finds unattended runs and delivers webhooks."""

from __future__ import annotations

from django.apps import AppConfig


class TrainingConfig(AppConfig):
    """Starts the reconciler and the delivery of webhooks in every worker when Django is ready."""

    name = "training"
    verbose_name = "Runs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django_q.signals import post_spawn

        from training.jobs import reconciler
        from training.webhooks import delivery

        post_spawn.connect(reconciler.begin_in_worker, dispatch_uid="training.reconciler")
        post_spawn.connect(delivery.begin_in_worker, dispatch_uid="training.delivery")
