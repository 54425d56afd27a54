"""What is done with the webhook targets that are stored under a name: the checks and changes of the API and the admin."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.utils.crypto import salted_hmac

from environments.create.names import name_problem
from environments.files.json_text import write_json
from environments.home import current_home
from environments.resolve import webhook_targets
from environments.writing import change
from trainer_engine.config.webhooks import MOST_TARGETS, OPTION, WebhookTarget
from trainer_engine.contract.errors import Problem, errors_in
from trainer_engine.contract.events import EventType, utc_now
from training.errors import TrainingRefused
from training.webhooks.egress import webhook_problems
from training.webhooks.messages import compose
from training.webhooks.post import post

TEST_EVENT: dict[str, Any] = {
    "index": 0,
    "type": EventType.NOTIFICATION.value,
    "job_id": str(uuid.UUID(int=0)),
    "severity": "info",
    "title": "Test",
    "message": "SimpleTuner can reach this webhook.",
    "body": "",
    "data": {"code": "webhook_test", "details": {}},
}


class NoSuchWebhook(TrainingRefused):
    """Nothing is stored under this name."""

    status_code = 404

    def __init__(self, name: str) -> None:
        super().__init__(f"Webhook '{name[:100]}' not found")


class BadWebhook(TrainingRefused):
    """The request holds no valid list of targets."""


class WebhookChanged(TrainingRefused):
    """Somebody else has saved since the form that was sent was opened."""

    status_code = 409


@dataclass(frozen=True)
class StoredTargets:
    """A list of targets under a name, with their secrets."""

    name: str
    document: Any
    """As it was sent: one target or a list of them. None if the file cannot be read."""
    targets: list[WebhookTarget]
    """Those without errors."""
    problems: list[Problem]

    @property
    def path(self) -> str:
        """Value for ``--webhook_config``."""
        return path_of(self.name)

    @property
    def shown(self) -> Any:
        """The document with ``***`` for secrets."""
        return webhook_targets.shown(self.document)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The targets of the document with ``***`` for secrets, also those with errors."""
        entries = self.shown if isinstance(self.shown, list) else [self.shown]
        return [entry for entry in entries if isinstance(entry, dict)]

    @property
    def version(self) -> str:
        """A word that changes with them and their secrets. Without the key of this server no guess at a secret can be tried on it."""
        return salted_hmac("webhook targets", write_json(self.document), algorithm="sha256").hexdigest()[:16]


def path_of(name: str) -> str:
    """The value of ``--webhook_config`` for the targets of a name."""
    return f"config/{webhook_targets.FOLDER}/{name}.json"


def _checked_name(name: str) -> str:
    """Raises BadWebhook for an invalid name."""
    problem = name_problem(name, of="webhook targets")
    if problem is not None:
        raise BadWebhook(problem.message, (problem,))
    return name


def is_stored(name: str) -> bool:
    """Raises BadWebhook for an invalid name."""
    return (webhook_targets.stored_folder(current_home()) / f"{_checked_name(name)}.json").is_file()


def find(name: str) -> StoredTargets:
    """Raises NoSuchWebhook, BadWebhook."""
    if not is_stored(name):
        raise NoSuchWebhook(name)
    document, problems = webhook_targets.take_in(name, current_home())
    targets, problems = ([], problems) if problems else webhook_targets.parse_document(document)
    return StoredTargets(name, document, targets, problems)


def find_all() -> list[StoredTargets]:
    """In order of their names."""
    found = []
    for name in webhook_targets.stored_names(current_home()):
        with suppress(NoSuchWebhook):  # removed since they were listed
            found.append(find(name))
    return found


def store(name: str, sent: Any, *, seen: str = "", is_new: bool = False) -> StoredTargets:
    """Store targets under a name. ``***`` in them keeps what is stored. Raises BadWebhook, FilesNotWritable.

    Raises WebhookChanged if the targets of the name are not those of the version that was ``seen`` any more, or if there are some already
    and these are meant to be ``is_new``.
    """
    document = webhook_targets.with_stored_secrets(_checked_name(name), sent, current_home())
    _refuse_changed(name, seen, is_new=is_new)
    targets, problems = webhook_targets.parse_document(document)
    problems += webhook_problems(targets)
    if errors_in(problems):
        raise BadWebhook("The targets have problems; nothing was stored.", tuple(errors_in(problems)))
    with change() as home:
        _refuse_changed(name, seen, is_new=is_new)  # again, because to look addresses up may take many seconds
        webhook_targets.store(name, document, home)
    return StoredTargets(name, document, targets, problems)


def _refuse_changed(name: str, seen: str, *, is_new: bool) -> None:
    """Raises WebhookChanged."""
    is_there = is_stored(name)
    if is_new and is_there:
        raise WebhookChanged(f"There are targets under the name '{name}' already. Choose another name, or change those.")
    if seen and not is_there:
        raise WebhookChanged("The targets were removed since this page was opened. Save again to store what you typed.")
    if seen and find(name).version != seen:
        raise WebhookChanged("The targets have changed since this page was opened. Open it anew to see them, or save again.")


def forget(name: str, *, seen: str | None = None) -> None:
    """Raises NoSuchWebhook, BadWebhook, FilesNotWritable; WebhookChanged if they are not those of the version that was ``seen``."""
    with change() as home:
        found = find(name)
        if seen is not None and found.version != seen:
            raise WebhookChanged("The targets have changed since this page was opened. Look at them before they are removed.")
        webhook_targets.forget(name, home)


def send_test(name: str) -> list[dict[str, Any]]:
    """Post a test event to each target; what came of each. Raises NoSuchWebhook, BadWebhook."""
    found = find(name)
    if errors_in(found.problems):
        raise BadWebhook("The stored targets have problems.", tuple(errors_in(found.problems)))
    with ThreadPoolExecutor(MOST_TARGETS) as pool:
        return list(pool.map(_try, found.targets))


def _try(target: WebhookTarget) -> dict[str, Any]:
    delivery = str(uuid.uuid4())
    result = post(target, compose(target, {**TEST_EVENT, "timestamp": utc_now()}, []), delivery)
    return {"target": target.shown(), "delivery": delivery, "arrived": result.arrived, "error": result.reason}


def names_target(problem: Problem) -> int | None:
    """The place of the target that a problem is about; None for one of the whole list."""
    place = problem.option.removeprefix(f"{OPTION}[").partition("]")[0]
    return int(place) if problem.option.startswith(f"{OPTION}[") and place.isdecimal() else None
