"""``/health`` says what is wrong, also when its own questions fail."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError, connection
from django.test import Client

from simpletuner_site import views
from simpletuner_site.server.state import write_worker_state

pytestmark = pytest.mark.django_db


def health(client: Client) -> tuple[int, dict[str, Any]]:
    answer = client.get("/health", headers={"Accept": "application/json"})
    return answer.status_code, answer.json()


def test_a_server_without_a_worker_serves_and_says_so(home: Path, client: Client) -> None:
    status, body = health(client)
    assert (status, body["status"]) == (200, "healthy")
    assert body["checks"]["workers"]["status"] == "unhealthy" and "jobs wait" in body["checks"]["workers"]["message"]
    write_worker_state(home / "state", os.getpid())
    assert health(client)[1]["checks"]["workers"] == {"status": "healthy", "pid": os.getpid(), "slots": 1}


def test_a_state_folder_that_is_gone_is_named_and_not_an_error_of_the_server(home: Path, client: Client) -> None:
    shutil.rmtree(home / "state")
    status, body = health(client)
    assert status == 200 and body["checks"]["disk"]["status"] == "unhealthy"
    assert str(home / "state") in body["checks"]["disk"]["message"] and "No such file" in body["checks"]["disk"]["message"]


def test_a_scarce_disk_is_a_warning(home: Path, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "SCARCE_DISK_BYTES", 2**80)
    assert health(client)[1]["checks"]["disk"]["status"] == "warning"


def test_a_database_that_does_not_answer_is_503(home: Path, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked() -> None:
        raise DatabaseError("database is locked")

    monkeypatch.setattr(connection, "cursor", locked)
    status, body = health(client)
    assert (status, body["status"]) == (503, "unhealthy")
    assert "database is locked" in body["checks"]["database"]["message"]
