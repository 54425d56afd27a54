"""Settings that must fit together are compared before anything runs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.core.checks import run_checks

from simpletuner_site import checks
from simpletuner_site.checks import families_are_complete, slots_have_workers, task_times_fit


def ids(messages: list[Any]) -> list[str]:
    return [message.id for message in messages]


def test_the_shipped_settings_fit() -> None:
    assert [message for message in run_checks() if message.id and message.id.startswith("simpletuner_site")] == []


def test_a_timeout_that_could_cut_a_slice_is_an_error(settings: Any) -> None:
    settings.FOLLOW_SLICE = timedelta(seconds=40)
    assert ids(task_times_fit(None))[:1] == ["simpletuner_site.E002"]


def test_a_retry_before_the_timeout_is_an_error_because_the_task_would_run_twice(settings: Any) -> None:
    settings.Q_CLUSTER = {**settings.Q_CLUSTER, "retry": 60}
    assert ids(task_times_fit(None)) == ["simpletuner_site.E003"]


def test_both_times_must_be_given(settings: Any) -> None:
    settings.Q_CLUSTER = {"workers": 3}
    assert ids(task_times_fit(None)) == ["simpletuner_site.E001"]


def test_every_slot_needs_a_worker_and_one_must_be_left(settings: Any) -> None:
    settings.SLOTS = settings.Q_CLUSTER["workers"]
    assert ids(slots_have_workers(None)) == ["simpletuner_site.E004"]


def test_an_incomplete_family_is_an_error_with_its_name_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "all_family_problems", lambda: {"made_up": ["It has no spec.py, which defines SPEC."]})
    (error,) = families_are_complete(None)
    assert error.id == "simpletuner_site.E005" and "'made_up'" in error.msg and "no spec.py" in error.msg
