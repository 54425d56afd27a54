"""The secrets of a run, stored with it when it is accepted: later changes of its environment have no effect. Rows hold ``***``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from environments.home import current_home
from environments.secrets import store
from trainer_engine.config.options.secrets import secrets_of_run
from trainer_engine.config.webhooks import WebhookTarget
from training.models import Job

TARGETS = "webhook targets"
"""Key for the webhook targets as they were when the run was accepted, including those of a file."""


def keep(job: Job, values: Mapping[str, Any], datasets: Sequence[Mapping[str, Any]], targets: Sequence[WebhookTarget]) -> None:
    """Store the secrets of a job; ``values`` and ``datasets`` are its options and datasets with nothing hidden. Raises OSError."""
    found = secrets_of_run(values, datasets)
    if any(target.has_secrets for target in targets):
        found[TARGETS] = json.dumps([target.as_dict() for target in targets], ensure_ascii=False)
    store.write(current_home(), store.of_job(job.pk), found)


def targets_of(job_id: object) -> list[WebhookTarget]:
    """The webhook targets of a run with their secrets, in order; empty if none has any."""
    text = store.read(current_home(), store.of_job(job_id)).get(TARGETS, "[]")
    return [WebhookTarget(**target) for target in json.loads(text)]


def of_options(job: Job) -> dict[str, str]:
    """The full text of each option of a job that holds secrets."""
    found = store.read(current_home(), store.of_job(job.pk))
    return {name: text for name, text in found.items() if name != TARGETS}
