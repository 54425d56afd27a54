"""Whatever an event holds, each kind of target gets a message that its receiver can read and that wakes nobody."""

from __future__ import annotations

import json
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer_engine.config.webhooks import PLACEHOLDERS, WebhookTarget, parse_webhooks
from training.webhooks import messages
from training.webhooks.messages import compose

TEXT = st.text(max_size=40) | st.sampled_from(["\udcff", "{auth_token}", '"},{"x":"', "<!channel>", "@everyone", "\r\nX: y", "a" * 5000])
EVENT = st.fixed_dictionaries(
    dict.fromkeys(("type", "timestamp", "severity", "title", "message", "body", "job_id"), TEXT) | {"index": st.integers(0, 2**63)}
)
TEMPLATES = {
    "json": json.dumps({name: f"{{{name}}}" for name in PLACEHOLDERS}).replace('"{', '"{').replace("{", "{{", 1)[:-1] + "}}",
    "text": " ".join(f"{{{name}}}" for name in PLACEHOLDERS),
}


def target(kind: str, **values: Any) -> WebhookTarget:
    return WebhookTarget(kind, "http://127.0.0.1:9/hook", **values)


@settings(deadline=None, max_examples=60)
@given(event=EVENT)
def test_a_raw_post_is_the_event(event: dict[str, Any]) -> None:
    event["title"] = event["title"].replace("\udcff", "?")
    assert json.loads(compose(target("raw"), {**event, "data": {"a": [1]}}, []).content) == json.loads(
        json.dumps({**event, "data": {"a": [1]}})
    )


@settings(deadline=None, max_examples=60)
@given(event=EVENT, prefix=TEXT)
def test_a_chat_gets_a_short_text_that_mentions_nobody(event: dict[str, Any], prefix: str) -> None:
    discord = json.loads(compose(target("discord", message_prefix=prefix), event, []).content)
    assert discord["allowed_mentions"] == {"parse": []} and len(discord["content"]) <= 2000
    slack = json.loads(compose(target("slack", message_prefix=prefix), event, []).content)
    assert "<" not in slack["text"] and ">" not in slack["text"]


@settings(deadline=None, max_examples=60)
@given(event=EVENT)
def test_a_json_template_stays_json_whatever_is_filled_in(event: dict[str, Any]) -> None:
    message = compose(target("template", template=TEMPLATES["json"], message_prefix="p", auth_token="word"), event, [])
    filled = json.loads(message.content)
    assert list(filled) == list(PLACEHOLDERS) and filled["auth_token"] == "word"
    for name in ("title", "message", "body"):
        assert filled[name] == event[name], "a placeholder in a value is not filled a second time"
    assert "X-API-Key" not in message.headers


@given(event=EVENT)
@settings(deadline=None, max_examples=30)
def test_headers_come_from_the_target_alone(event: dict[str, Any]) -> None:
    for kind, values in (("raw", {}), ("discord", {}), ("slack", {}), ("template", {"template": TEMPLATES["text"]})):
        headers = compose(target(kind, secret="s", **values), event, []).headers
        assert all(character.isprintable() for value in headers.values() for character in value)
        assert set(headers) <= {"Content-Type", messages.SIGNATURE_HEADER, "X-API-Key"}


@pytest.mark.parametrize(
    "template", ["{title.__class__}", "{title[0]}", "{0}", "{}", "{title!r}", "{title:>9999999999}", "{unknown}", "{title", "}"]
)
def test_a_template_that_reaches_into_python_is_refused(template: str) -> None:
    entry = {"webhook_type": "template", "callback_url": "http://127.0.0.1:9/", "template": template}
    _, problems = parse_webhooks([entry])
    assert problems and problems[0].option.endswith("template")


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 6), max_size=14))
def test_images_are_attached_as_long_as_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    monkeypatch.setattr(messages, "LARGEST_FILES_BYTES", 10)
    event = {"title": "t", "message": "m", "body": "", "type": "validation.image"}
    files = []
    for number, size in enumerate(sizes):
        files.append(tmp_path / f"{number}.png")
        files[-1].write_bytes(b"x" * size)
    message = compose(target("discord"), event, [*files[:5], tmp_path / "gone.png", *files[5:]])
    parts = BytesParser().parsebytes(b"Content-Type: " + message.content_type.encode() + b"\n\n" + message.content).get_payload()
    attached = [part.get_payload(decode=True) for part in parts[1:]] if isinstance(parts, list) else []
    assert len(attached) <= 10 and sum(map(len, attached)) <= 10 and b"" not in attached
    if sizes and 0 < sizes[0] <= 10:
        assert attached[0] == b"x" * sizes[0]
