"""Requests that no code expected: an answer of 500 or none at all."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.security.target import Target

DEEP = 10_000
HUGE = "9" * 5000


def _bad(target: Target, what: str, method: str, path: str, **how: Any) -> list[str]:
    try:
        with target.client(15) as client:
            answer = client.request(method, path, **how)
    except httpx.TransportError as error:
        return [f"{what}: {error!r}"]
    return [f"{what}: {answer.status_code}"] if answer.status_code >= 500 else []


def attack_known_500s(target: Target) -> list[str]:
    """Every request that once ended in an error of the server."""
    fields = "&".join(["a"] * 5500)
    pattern = {"algo": "lokr", "multiplier": 1, "linear_dim": 4, "linear_alpha": 1, "apply_preset": {"target_name": ["a{99999999999}"]}}
    through = []
    for path in ("status", "events", "checkpoints", "jobs"):
        through += _bad(target, f"5,500 fields at {path}", "GET", f"/api/training/{path}?{fields}")
    for folder in ("~nosuchuser/x", "~", "\0", "x" * 5000, "/proc/self/mem", "~root/.ssh"):
        through += _bad(target, f"checkpoints of {folder[:20]!r}", "GET", "/api/training/checkpoints", params={"output_dir": folder})
        through += _bad(target, f"checkpoints of {folder[:20]!r}", "POST", "/api/training/checkpoints", json={"output_dir": folder})
    for option in ("post_upload_script", "post_checkpoint_script", "validation_external_script", "disk_low_script"):
        form = target.form("long", **{option: "x" * 300, "validation_method": "external-script", "disk_low_action": "script"})
        through += _bad(target, f"{option} of 300 bytes", "POST", "/api/training/validate", data=form)
    through += _bad(target, "a repeat count beyond C", "POST", "/api/configs/lycoris/validate", json=pattern)
    return through


def attack_bodies_that_no_parser_likes(target: Target) -> list[str]:
    """Broken, deep, huge and doubled JSON and forms at every call that takes a body."""
    calls = [
        ("POST", "/api/configs/environments"),
        ("PUT", "/api/configs/victim-1"),
        ("POST", "/api/configs/import"),
        ("POST", "/api/configs/lycoris/validate"),
        ("PUT", "/api/configs/environments/victim-1/lycoris"),
        ("POST", "/api/training/validate"),
        ("POST", "/api/training/start"),
        ("POST", "/api/training/cancel"),
        ("PUT", "/api/configs/webhooks/lab"),
    ]
    bodies = {
        "deep lists": b"[" * DEEP,
        "deep objects": b'{"a":' * DEEP,
        "huge number": b'{"--seed": ' + HUGE.encode() + b"}",
        "bad UTF-8": b'{"name": "\xff\xfe"}',
        "lone surrogate": b'{"name": "\\ud800", "config": {"--seed": "\\udfff"}}',
        "NaN": b'{"--learning_rate": NaN, "config": {"--learning_rate": Infinity}}',
        "NUL": json.dumps({"name": "a\0b", "config": {"--output_dir": "a\0b"}}).encode(),
        "a number": b"7",
        "null": b"null",
    }
    through = []
    for method, path in calls:
        for what, body in bodies.items():
            headers = {"Accept": "application/json", "Content-Type": "application/json"}
            through += _bad(target, f"{method} {path} with {what}", method, path, content=body, headers=headers)
        broken = {"Accept": "application/json", "Content-Type": "multipart/form-data; boundary=x"}
        through += _bad(target, f"{method} {path} with a broken form", method, path, content=b"--x\r\nnot a form", headers=broken)
    return through
