"""What docs/webhooks.md tells people to write works as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.training.webhooks.test_posting import EVENT
from trainer_engine.config.webhooks import FIELDS, PLACEHOLDERS, WebhookTarget, parse_webhooks
from training.webhooks.messages import compose

PAGE = (Path(__file__).resolve().parents[3] / "docs/webhooks.md").read_text(encoding="utf-8")
BODY = compose(WebhookTarget("raw", "http://127.0.0.1:9/", secret="swordfish"), EVENT, [])


def block(language: str, holding: str) -> str:
    """The block of the page that holds a word."""
    return next(found for found in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if holding in found)


def test_every_field_and_placeholder_is_named() -> None:
    assert [name for name in FIELDS if f"| `{name}` |" not in PAGE] == []
    assert [name for name in PLACEHOLDERS if f"`{{{name}}}`" not in PAGE] == []


def test_the_signature_is_checked_as_the_page_says(tmp_path: Path) -> None:
    header = BODY.headers["X-SimpleTuner-Signature"]
    names: dict[str, Any] = {}
    exec(block("python", "is_genuine"), names)
    assert names["is_genuine"](BODY.content, header, "swordfish")
    assert not names["is_genuine"](BODY.content + b" ", header, "swordfish")
    (tmp_path / "body.json").write_bytes(BODY.content)
    command = ["bash", "-euc", block("bash", "openssl")]
    environment = os.environ | {"SECRET": "swordfish"}
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == header


def test_the_example_of_other_targets_is_right() -> None:
    example = block("json", "pagerduty").replace("…", "1/x")
    targets, problems = parse_webhooks(json.loads(example))
    assert problems == []
    template = next(target for target in targets if target.kind == "template")
    filled = json.loads(compose(template, EVENT, []).content)
    assert filled["routing_key"] == "<routing key>"
    assert filled["payload"]["summary"] == "Validation: Validation"
