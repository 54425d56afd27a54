"""Targets of webhooks: those that an option holds or names, and those stored under a name in ``config/webhooks/``."""

from __future__ import annotations

from pathlib import Path

from environments.config_files import read_text
from environments.json_text import BadJson, parse_json
from environments.paths import Home, Kind, resolve
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.webhooks import OPTION, WebhookTarget, holds_json, parse_webhook_text, parse_webhooks

FOLDER = "webhooks"


def load_webhooks(text: str, home: Home) -> tuple[list[WebhookTarget], list[Problem]]:
    """The targets of ``webhook_config``: JSON, the path of a file, or nothing."""
    if not text.strip():
        return [], []
    if holds_json(text):
        return parse_webhook_text(text)
    found = resolve(text, OPTION, home=home, must_exist=True, kind=Kind.FILE)
    if isinstance(found, Problem):
        return [], [found]
    return read_webhooks(found.path, home)


def read_webhooks(path: Path, home: Home) -> tuple[list[WebhookTarget], list[Problem]]:
    """The targets of a file."""
    file = read_text(home, path)
    expected = "a JSON file with a list of objects"
    if file.text is None:
        message = f"{path} cannot be used: {file.trouble or 'it is not there'}."
        return [], [Problem.error(OPTION, "unreadable_file", message, got=str(path), expected=expected)]
    try:
        return parse_webhooks(parse_json(file.text))
    except BadJson as error:
        return [], [Problem.error(OPTION, "unreadable_file", f"{path} cannot be used: {error}.", got=str(path), expected=expected)]


def stored_folder(home: Home) -> Path:
    return home.config / FOLDER
