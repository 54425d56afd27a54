"""Webhook targets: those of the option ``webhook_config``, and those stored under a name in ``config/webhooks/``."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from environments.create.names import is_name
from environments.files.config_files import read_text, writable, write_text
from environments.files.json_text import BadJson, parse_json, write_json
from environments.paths import Home, Kind, resolve
from environments.secrets import store as secret_store
from trainer_engine.config.option import holds_json
from trainer_engine.config.options import REGISTRY
from trainer_engine.config.options.secrets import hidden_problems
from trainer_engine.config.secrets import hide, reveal
from trainer_engine.config.webhooks import OPTION, WebhookTarget, parse_webhook_text, parse_webhooks
from trainer_engine.contract.errors import Problem

FOLDER = "webhooks"
SAMPLE_FILE = Path(__file__).resolve().parents[1] / "examples" / "webhooks.json"
SAMPLE_NAME = "webhooks.json"
logger = logging.getLogger(__name__)


def load_webhooks(text: str, home: Home) -> tuple[list[WebhookTarget], list[Problem]]:
    """The targets of ``webhook_config``: JSON, the path of a file, or nothing. Problems of JSON text are reported elsewhere."""
    if not text.strip():
        return [], []
    if holds_json(text):
        return parse_webhook_text(text)[0], []
    found = resolve(text, OPTION, home=home, must_exist=True, kind=Kind.FILE)
    if isinstance(found, Problem):
        return [], [found]
    document, problems = read_document(found.path, home)
    return ([], problems) if problems else parse_document(document)


def parse_document(document: Any) -> tuple[list[WebhookTarget], list[Problem]]:
    """The targets of a document that holds its secrets, and their problems. A ``***`` without a stored value is a problem."""
    targets, problems = parse_webhooks(document)
    return targets, problems + hidden_problems({OPTION: json.dumps(document)})


def read_document(path: Path, home: Home) -> tuple[Any, list[Problem]]:
    """The document in a file of targets, with its stored secrets."""
    file = read_text(home, path)
    expected = "a JSON file with a list of objects"
    if file.text is None:
        message = f"{path} cannot be used: {file.trouble or 'it is not there'}."
        return None, [Problem.error(OPTION, "unreadable_file", message, got=str(path), expected=expected)]
    try:
        document = parse_json(file.text)
    except BadJson as error:
        return None, [Problem.error(OPTION, "unreadable_file", f"{path} cannot be used: {error}.", got=str(path), expected=expected)]
    return with_stored_secrets(stored_name(path, home), document, home), []


def stored_folder(home: Home) -> Path:
    return home.config / FOLDER


def stored_names(home: Home) -> list[str]:
    """Names under which targets are stored, in order."""
    return sorted(path.stem for path in stored_folder(home).glob("*.json") if is_name(path.stem) and path.is_file())


def stored_name(path: Path, home: Home) -> str:
    """The name under which a file of targets is stored; empty for a user's own file."""
    own = path.resolve().parent == stored_folder(home).resolve() and path.suffix == ".json" and is_name(path.stem)
    return path.stem if own else ""


def with_stored_secrets(name: str, document: Any, home: Home) -> Any:
    """The document with each ``***`` replaced by the value stored under that name."""
    stored = secret_store.read(home, secret_store.of_webhook(name)).get(OPTION, "") if name else ""
    return json.loads(reveal(REGISTRY[OPTION], document, stored)) if stored and isinstance(document, (list, dict)) else document


def shown(document: Any) -> Any:
    """The document with ``***`` for secrets."""
    return json.loads(hide(REGISTRY[OPTION], document)) if isinstance(document, (list, dict)) else None


def store(name: str, document: Any, home: Home) -> Path:
    """Store targets under a name, with their secrets in the secret store; returns the path. Raises OSError."""
    path = stored_folder(home) / f"{name}.json"
    text, hidden = json.dumps(document, ensure_ascii=False), shown(document)
    secret_store.write(home, secret_store.of_webhook(name), {OPTION: text} if hidden != document else {})
    write_text(home, path, write_json(hidden))
    return path


def take_in(name: str, home: Home) -> tuple[Any, list[Problem]]:
    """The targets stored under a name. Secrets that were written into the file by hand move to the secret store."""
    path = stored_folder(home) / f"{name}.json"
    document, problems = read_document(path, home)
    if not problems and isinstance(document, (list, dict)) and document != shown(document):
        try:
            written = parse_json(read_text(home, path).text or "")
            if written != shown(document):
                store(name, document, home)
        except (OSError, BadJson) as error:
            logger.warning("secrets of the webhook %s stay in its file: %s", name, error)
    return document, problems


def forget(name: str, home: Home) -> None:
    """Raises OSError."""
    secret_store.forget(home, secret_store.of_webhook(name))
    writable(home, stored_folder(home))
    (stored_folder(home) / f"{name}.json").unlink(missing_ok=True)


def place_sample(home: Home) -> None:
    """Write the sample list of targets into a new home. Raises OSError."""
    write_text(home, home.config / SAMPLE_NAME, SAMPLE_FILE.read_text(encoding="utf-8"))
