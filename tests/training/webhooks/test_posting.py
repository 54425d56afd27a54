"""One post, to servers that behave and to servers that do not."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import subprocess
from collections.abc import Iterator
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.receiver import Receiver, receiving
from trainer_engine.config.webhooks import WebhookTarget
from training.webhooks import messages
from training.webhooks import post as posting
from training.webhooks.messages import compose
from training.webhooks.post import post

EVENT: dict[str, Any] = {
    "index": 4,
    "type": "validation.image",
    "job_id": "j",
    "timestamp": "2026-01-01T00:00:00+00:00",
    "severity": "info",
    "title": "Validation",
    "message": "Validation",
    "body": 'a "quoted" <token> @everyone',
    "data": {"step": 1},
}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def target(receiver: Receiver, **how: Any) -> WebhookTarget:
    return WebhookTarget(**{"kind": "raw", "url": receiver.url, **how})


def test_the_event_arrives_signed_and_named(receiver: Receiver) -> None:
    to = target(receiver, auth_token="letmein", secret="swordfish")
    assert post(to, compose(to, EVENT, []), "delivery-1").arrived
    (came,) = receiver.came
    assert json.loads(came.body) == EVENT
    assert came.headers["X-SimpleTuner-Delivery"] == "delivery-1"
    assert came.headers["X-API-Key"] == "letmein"
    wanted = hmac.new(b"swordfish", came.body, hashlib.sha256).hexdigest()
    assert came.headers["X-SimpleTuner-Signature"] == f"sha256={wanted}"
    assert came.path == "/hook"


@pytest.mark.parametrize(
    ("behaviour", "reason", "hopeless"),
    [
        (500, "HTTP 500", False),
        (404, "HTTP 404", False),
        (422, "HTTP 422", True),
        ("redirect", "redirects", False),
        ("hang", "no answer", False),
        ("trickle", "no answer", False),
        ("refuse", "disconnected", False),
    ],
)
def test_a_failed_post_says_why(receiver: Receiver, behaviour: Any, reason: str, hopeless: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "TIMEOUT_SECONDS", 0.4)
    monkeypatch.setattr(posting, "TOTAL_SECONDS", 1.0)
    receiver.behaviour = behaviour
    outcome = post(target(receiver), compose(target(receiver), EVENT, []), "d")
    assert not outcome.arrived
    assert reason in outcome.reason
    assert outcome.hopeless is hopeless
    assert [came.path for came in receiver.came] == ["/hook"]


def test_an_answer_without_end_is_not_read(receiver: Receiver) -> None:
    receiver.behaviour = "endless"
    assert post(target(receiver), compose(target(receiver), EVENT, []), "d").arrived


def test_nobody_listening_and_closed_addresses_are_outcomes(receiver: Receiver) -> None:
    message = compose(target(receiver), EVENT, [])
    assert not post(WebhookTarget(kind="raw", url="http://127.0.0.1:9/"), message, "d").arrived
    refused = post(WebhookTarget(kind="raw", url="http://169.254.169.254/"), message, "d")
    assert "credentials" in refused.reason
    assert not refused.hopeless


def test_discord_gets_text_and_images_and_wakes_nobody(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (8, 8), "red").save(path)
    to = target(receiver, kind="discord", message_prefix="lab")
    assert post(to, compose(to, EVENT, [path]), "d").arrived
    (came,) = receiver.came
    parts = BytesParser().parsebytes(f"Content-Type: {came.headers['Content-Type']}\n\n".encode() + came.body).get_payload()
    payload = json.loads(parts[0].get_payload(decode=True))
    assert payload["content"].startswith('lab: Validation\na "quoted"')
    assert payload["allowed_mentions"] == {"parse": []}
    assert parts[1].get_filename() == "image.png"
    assert parts[1].get_payload(decode=True) == path.read_bytes()


def test_slack_and_templates_get_their_own_message_format(receiver: Receiver) -> None:
    slack = target(receiver, kind="slack")
    assert json.loads(compose(slack, EVENT, []).content)["text"].startswith("Validation\n")
    own = target(receiver, kind="template", template='{{"alert": "{title}: {body}", "n": {index}}}')
    message = compose(own, EVENT, [])
    assert json.loads(message.content) == {"alert": f"Validation: {EVENT['body']}", "n": 4}
    assert message.headers["Content-Type"] == "application/json"
    plain = target(receiver, kind="template", template="{prefix}{severity} {title}", message_prefix="> ")
    assert compose(plain, EVENT, []).content == b"> info Validation"


def test_every_address_of_a_name_is_tried(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """``localhost`` is ``::1`` first on many machines, and most servers listen on 127.0.0.1 alone."""
    port = int(receiver.url.rsplit(":", 1)[1].partition("/")[0])
    found = [(0, 0, 0, "", (address, port)) for address in ("127.0.0.2", "::1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    to = WebhookTarget(kind="raw", url=f"http://hooks.example:{port}/hook")
    assert post(to, compose(to, EVENT, []), "d").arrived
    assert receiver.came[0].headers["Host"] == f"hooks.example:{port}"


def test_a_target_may_ask_to_be_left_alone(receiver: Receiver) -> None:
    receiver.behaviour, receiver.retry_after = 429, "7.5"
    assert post(target(receiver), compose(target(receiver), EVENT, []), "d").wait_seconds == 7.5
    receiver.retry_after = "Wed, 21 Oct 2026 07:28:00 GMT"
    assert post(target(receiver), compose(target(receiver), EVENT, []), "d").wait_seconds == 0


def test_a_token_may_stand_in_a_template_instead_of_a_header(receiver: Receiver) -> None:
    own = target(receiver, kind="template", auth_token='le"tme', template='{{"routing_key": "{auth_token}", "summary": "{title}"}}')
    message = compose(own, EVENT, [])
    assert json.loads(message.content) == {"routing_key": 'le"tme', "summary": "Validation"}
    assert "X-API-Key" not in message.headers


def test_slack_shows_a_prompt_as_it_is_and_wakes_nobody(receiver: Receiver) -> None:
    text = json.loads(compose(target(receiver, kind="slack"), {**EVENT, "body": "<token> & <!channel>"}, []).content)["text"]
    assert text.endswith("&lt;token&gt; &amp; &lt;!channel&gt;")


def test_an_image_that_is_gone_or_too_large_is_left_out(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "LARGEST_FILES_BYTES", 10)
    (tmp_path / "large.png").write_bytes(bytes(11))
    (tmp_path / "small.png").write_bytes(bytes(9))
    message = compose(target(receiver, kind="discord"), EVENT, [tmp_path / name for name in ("gone.png", "large.png", "small.png")])
    assert b"small.png" in message.content
    assert b"large.png" not in message.content


def attached_names(message: messages.Message) -> list[tuple[str | None, str]]:
    """(name, type) of the files in a message for Discord."""
    parts = BytesParser().parsebytes(f"Content-Type: {message.content_type}\n\n".encode() + message.content).get_payload()
    return [(part.get_filename(), part.get_content_type()) for part in parts[1:]]


@pytest.mark.parametrize(("gif", "mp4", "sent"), [(9, 4, ("a.mp4", "video/mp4")), (4, 9, ("a.gif", "image/gif"))])
def test_discord_gets_the_smaller_file_of_a_clip(receiver: Receiver, tmp_path: Path, gif: int, mp4: int, sent: tuple[str, str]) -> None:
    for name, size in (("a.gif", gif), ("a.mp4", mp4), ("b.png", 2)):
        (tmp_path / name).write_bytes(bytes(size))
    message = compose(target(receiver, kind="discord"), EVENT, [tmp_path / name for name in ("a.gif", "a.mp4", "b.png")])
    assert attached_names(message) == [sent, ("b.png", "image/png")]
    (tmp_path / sent[0]).unlink()
    other = compose(target(receiver, kind="discord"), EVENT, [tmp_path / name for name in ("a.gif", "a.mp4")])
    assert [name for name, _ in attached_names(other)] == [{"a.mp4": "a.gif", "a.gif": "a.mp4"}[sent[0]]]


def test_a_certificate_that_nobody_vouches_for_is_refused_unless_asked_for(tmp_path: Path) -> None:
    with receiving(certificate=self_signed(tmp_path)) as secure:
        to = target(secure)
        assert "certificate" in post(to, compose(to, EVENT, []), "d").reason.lower()
        trusting = target(secure, ssl_no_verify=True)
        assert post(trusting, compose(trusting, EVENT, []), "d").arrived


def self_signed(folder: Path) -> Path:
    """Key and certificate in one file, made by openssl."""
    path = folder / "both.pem"
    subject = ["-subj", "/CN=localhost", "-days", "2", "-nodes"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-keyout", str(path), "-out", str(folder / "certificate.pem"), *subject]
    subprocess.run(made, check=True, capture_output=True)
    path.write_text(path.read_text() + (folder / "certificate.pem").read_text())
    return path
