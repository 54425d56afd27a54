"""A client of the API whose environments lie in a home of the test's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rest_framework.response import Response
from rest_framework.test import APIClient

NEW = {"name": "demo", "model_family": "pixart_sigma", "model_flavour": "900M-1024-v0.6", "model_type": "full"}


@dataclass
class Api:
    """``/api/configs`` as curl sees it. An exception in a view fails the test instead of becoming a 500."""

    home: Path
    client: APIClient

    def call(self, method: str, path: str, body: Any = None, **extra: Any) -> Response:
        """``body`` may be text, for what is not JSON."""
        content = body if isinstance(body, (str, bytes)) else None if body is None else json.dumps(body)
        kind = {} if content is None else {"content_type": extra.pop("content_type", "application/json")}
        return self.client.generic(method, f"/api/configs{path}", content or "", **kind, **extra)

    def get(self, path: str) -> Any:
        answer = self.call("GET", path)
        assert answer.status_code == 200, answer.content
        return answer.json()

    def post(self, path: str, body: Any = None) -> Any:
        answer = self.call("POST", path, body)
        assert answer.status_code == 200, answer.content
        return answer.json()

    def create(self, **changes: Any) -> Any:
        return self.post("/environments", {**NEW, **changes})

    def put(self, name: str, **changes: Any) -> Any:
        """Lay options over the stored ones, as the tutorial does with jq."""
        config = self.get(f"/{name}")["config"] | {f"--{option}": value for option, value in changes.items()}
        answer = self.call("PUT", f"/{name}", {"name": name, "config": config})
        assert answer.status_code == 200, answer.content
        return answer.json()

    def refused(self, method: str, path: str, body: Any = None, **extra: Any) -> tuple[int, list[tuple[str, str]]]:
        """(status, [(option, code)]) of an answer that must be an error of the one shape."""
        answer = self.call(method, path, body, **extra)
        assert 400 <= answer.status_code < 500, answer.content
        shown = answer.json()
        assert isinstance(shown["detail"], str) and shown["detail"]
        for problem in shown["problems"]:
            assert list(problem) == ["option", "code", "message", "got", "expected", "hint"]
        return answer.status_code, [(problem["option"], problem["code"]) for problem in shown["problems"]]


@pytest.fixture
def api(home: Path, db: None) -> Api:
    return Api(home, APIClient())
