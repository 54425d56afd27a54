"""Training as a Django app: every django-q2 worker looks after the runs that nobody looks after, and posts to webhooks."""

from __future__ import annotations

from django.apps import AppConfig


class TrainingConfig(AppConfig):
    """Registers the caretaker and the postman with the workers when Django is ready."""

    name = "training"
    verbose_name = "Runs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django_q.signals import post_spawn

        from training import caretaker
        from training.webhooks import postman

        post_spawn.connect(caretaker.begin_in_worker, dispatch_uid="training.caretaker")
        post_spawn.connect(postman.begin_in_worker, dispatch_uid="training.postman")
