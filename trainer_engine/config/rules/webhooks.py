"""What must hold of ``webhook_config`` where it is written out; a file that it names is looked at before a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.option import holds_json
from trainer_engine.config.webhooks import OPTION, parse_webhook_text
from trainer_engine.contract.errors import Problem


def webhooks_are_right(values: Mapping[str, Any]) -> Iterator[Problem]:
    text = str(values[OPTION])
    if values["webhook_reporting_interval"] and not text.strip():
        message = "webhook_reporting_interval has no effect without webhook_config."
        yield Problem.note("webhook_reporting_interval", "no_effect", message, got=values["webhook_reporting_interval"])
    if holds_json(text):
        yield from parse_webhook_text(text)[1]
    elif "://" in text:
        message = "webhook_config is an address; it takes a list of targets, each with its type."
        hint = '[{"webhook_type": "raw", "callback_url": "https://…"}]'
        yield Problem.error(OPTION, "not_json", message, expected="JSON in a string, or the path of a JSON file", hint=hint)
