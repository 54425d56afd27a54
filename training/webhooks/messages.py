"""Composes posts: the event as JSON, or a message for a chat."""

from __future__ import annotations

import hashlib
import hmac
import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from httpx import Request

from trainer_engine.config.webhooks import WebhookTarget, is_json_template
from trainer_engine.contract.events import MEDIA_TYPES
from training.api import media

LONGEST_TEXT = 1900
"""Discord takes 2000 characters."""
MOST_FILES = 10
LARGEST_FILES_BYTES = 8 * 1024 * 1024
SIGNATURE_HEADER = "X-SimpleTuner-Signature"
SLACK_ESCAPES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"))
"""Without this, ``<token>`` in a prompt would vanish and ``<!channel>`` would notify everyone."""


@dataclass(frozen=True)
class Message:
    """The body of one post."""

    content: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


def compose(target: WebhookTarget, event: dict[str, Any], files: list[Path]) -> Message:
    """``event`` as the API shows it; ``files`` are its images and clips on disk."""
    if target.kind == "raw":
        message = _json(event)
    elif target.kind == "discord":
        message = _discord(target, event, files)
    elif target.kind == "slack":
        message = _json({"text": _for_slack(_text(target, event))})
    else:
        message = _from_template(target, event)
    return _signed(target, message)


def _json(document: dict[str, Any]) -> Message:
    return Message(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace"))


def _text(target: WebhookTarget, event: dict[str, Any]) -> str:
    """A line or two for a chat."""
    parts = [event["title"], event["message"] if event["message"] != event["title"] else "", event["body"]]
    text = "\n".join(part for part in parts if part) or event["type"]
    prefix = f"{target.message_prefix}: " if target.message_prefix else ""
    return (prefix + text)[:LONGEST_TEXT]


def _for_slack(text: str) -> str:
    for character, escape in SLACK_ESCAPES:
        text = text.replace(character, escape)
    return text


def _discord(target: WebhookTarget, event: dict[str, Any], files: list[Path]) -> Message:
    """The text, and images and clips as attachments. ``allowed_mentions`` is empty, so that a prompt cannot notify a whole server."""
    message = _json({"content": _text(target, event), "allowed_mentions": {"parse": []}})
    attached = _contents(files)
    if not attached:
        return message
    parts: list[tuple[str, Any]] = [("payload_json", (None, message.content, "application/json"))]
    parts += [(f"files[{place}]", (path.name, content, _kind(path))) for place, (path, content) in enumerate(attached)]
    request = Request("POST", "http://body", files=parts)
    return Message(request.read(), request.headers["Content-Type"])


def _contents(files: list[Path]) -> list[tuple[Path, bytes]]:
    """The images and clips that fit into one message, each clip as the smaller of its files. Missing files are left out."""
    by_name: dict[Path, list[tuple[int, Path]]] = {}
    for path in files:
        with suppress(OSError):
            size = path.stat().st_size
            by_name.setdefault(path.with_suffix(""), []).append((size, path))
    kept: list[tuple[Path, bytes]] = []
    left = LARGEST_FILES_BYTES
    for size, path in [min(versions) for versions in by_name.values()][:MOST_FILES]:
        content = b""
        if size <= left:
            with suppress(OSError):
                content = path.read_bytes()
        if content:
            kept.append((path, content))
            left -= len(content)
    return kept


def _kind(path: Path) -> str:
    return MEDIA_TYPES.get(path.suffix, media.UNKNOWN_TYPE)


def _from_template(target: WebhookTarget, event: dict[str, Any]) -> Message:
    """The filled template. In a JSON template values are escaped, so that quotes in a prompt do no harm."""
    names = ("title", "message", "body", "type", "severity", "job_id", "index", "timestamp")
    values = {name: str(event[name]) for name in names} | {"prefix": target.message_prefix, "auth_token": target.auth_token}
    is_json = is_json_template(target.template)
    if is_json:
        values = {name: json.dumps(value, ensure_ascii=False)[1:-1] for name, value in values.items()}
    content = target.template.format_map(values).encode("utf-8", "backslashreplace")
    return Message(content) if is_json else Message(content, "text/plain; charset=utf-8")


def _signed(target: WebhookTarget, message: Message) -> Message:
    headers = {"Content-Type": message.content_type}
    if target.auth_token and "{auth_token}" not in target.template:
        headers["X-API-Key"] = target.auth_token
    if target.secret:
        digest = hmac.new(target.secret.encode(), message.content, hashlib.sha256).hexdigest()
        headers[SIGNATURE_HEADER] = f"sha256={digest}"
    return Message(message.content, message.content_type, headers)
