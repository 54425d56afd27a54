"""Runs schemathesis with all of its checks against the application in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, from_schema

CONFIG = Path(__file__).resolve().parents[2] / "schemathesis.toml"


def failures(application: Any, examples: int, *, every_phase: bool) -> Iterator[str]:
    """One text for each check that failed, with the call that made it fail.

    ``every_phase`` adds the thousands of cases at the limits of each option, and sequences of calls. Raises AssertionError if schemathesis
    itself could not go on.
    """
    config = SchemathesisConfig.from_path(CONFIG)
    config.projects.default.generation.update(max_examples=examples, database="none")
    config.projects.default.phases.coverage.enabled = every_phase
    config.projects.default.phases.stateful.enabled = every_phase
    schema = schemathesis.openapi.from_asgi("/openapi.json", application, config=config)
    for event in from_schema(schema).execute():
        if hasattr(event, "recorder"):
            yield from _failed_checks(event.recorder)
        elif type(event).__name__ in ("NonFatalError", "FatalError"):
            raise AssertionError(f"{getattr(event, 'label', '')}: {getattr(event, 'exception', event)}")


def _failed_checks(recorder: Any) -> Iterator[str]:
    for case_id, checks in recorder.checks.items():
        for check in checks:
            if check.status is Status.FAILURE:
                case, found = recorder.cases[case_id].value, check.failure_info
                what = f"{found.failure.title}: {found.failure.message[:500]}"
                answer = recorder.interactions[case_id].response
                status = f"{answer.status_code} {answer.text_lossy()[:500]}" if answer is not None else "no answer"
                yield f"{case.method} {case.formatted_path} [{check.name}] {what} | {status} | {found.code_sample[:1_000]}"
