"""System checks of settings that must fit together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from trainer_engine.config.family_problems import all_family_problems


@register()
def task_times_fit(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check that a slice ends well before the task's timeout, and the timeout before the task is delivered again."""
    slice_seconds = settings.FOLLOW_SLICE.total_seconds()
    timeout, retry = settings.Q_CLUSTER.get("timeout"), settings.Q_CLUSTER.get("retry")
    found: list[CheckMessage] = []
    if not timeout or not retry:
        return [Error("Q_CLUSTER needs both `timeout` and `retry`", id="simpletuner_site.E001")]
    if timeout < 2 * slice_seconds:
        found.append(
            Error(
                f"Following a run takes {slice_seconds:g} s a slice; a `timeout` of {timeout} s may end a slice that is only slow",
                hint="Give Q_CLUSTER a timeout of at least two slices.",
                id="simpletuner_site.E002",
            )
        )
    if retry < timeout + slice_seconds:
        found.append(
            Error(
                f"A task is delivered again after {retry} s although it may run until {timeout} s",
                hint="Give Q_CLUSTER a `retry` of at least `timeout` and one slice.",
                id="simpletuner_site.E003",
            )
        )
    return found


@register()
def slots_have_workers(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check that every slot has a task worker to follow its run, and that one is left for short tasks."""
    workers = settings.Q_CLUSTER.get("workers", 0)
    if workers > settings.SLOTS:
        return []
    return [Error(f"{workers} task workers cannot follow {settings.SLOTS} runs and do anything else", id="simpletuner_site.E004")]


@register()
def families_are_complete(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Every folder of ``trainer_engine/families`` has the files and facts of a model family."""
    return [
        Error(
            f"The model family {name!r} is not complete. {' '.join(problems)}",
            hint="docs/new-family.md describes the interface; remove the folder if no family belongs there.",
            id="simpletuner_site.E005",
        )
        for name, problems in all_family_problems().items()
    ]
