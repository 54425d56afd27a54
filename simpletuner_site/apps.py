"""The site as a Django app, with the ``server`` command and the system checks."""

from __future__ import annotations

from django.apps import AppConfig


class SiteConfig(AppConfig):
    """Registers the checks when Django is ready."""

    name = "simpletuner_site"
    verbose_name = "SimpleTuner"

    def ready(self) -> None:
        import simpletuner_site.checks  # noqa: F401
