"""The ledger of uploads outlives a run, and a ledger that something else wrote never ends one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer_engine.publishing.ledger import Ledger, Upload, UploadState

ENTRY: dict[str, Any] = {
    "id": "1", "target": "t", "provider": "s3", "what": "checkpoint-5", "step": 5, "source": "checkpoint-5", "staged": "s",
    "remote": "r", "size_bytes": 10, "state": "pending", "attempts": 2, "address": "", "trouble": "no route", "updated_at": "",
}  # fmt: skip


def written(path: Path, *entries: Any, version: Any = 1) -> Path:
    path.write_text(json.dumps({"version": version, "uploads": list(entries)}))
    return path


def test_uploads_come_back_in_their_order_with_their_states(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "new/ledger.json")
    for number, state in enumerate(UploadState):
        upload = Upload(**{**ENTRY, "id": str(number), "state": UploadState.PENDING})
        upload.becomes(state, address=f"s3://b/{number}")
        ledger.uploads[upload.id] = upload
    ledger.save()
    read = Ledger(ledger.path)
    assert list(read.uploads.values()) == list(ledger.uploads.values())
    assert [upload.state for upload in read.pending] == [UploadState.PENDING]


@pytest.mark.parametrize(
    "change",
    [{"id": []}, {"id": 5}, {"step": "x"}, {"staged": None}, {"state": "lost"}, {"state": []}, {"size_bytes": []}],
    ids=str,
)
def test_a_ledger_with_a_wrong_value_counts_as_empty(tmp_path: Path, change: dict[str, Any]) -> None:
    assert Ledger(written(tmp_path / "ledger.json", ENTRY, {**ENTRY, **change})).uploads == {}


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"[" * 100_000, b"5", b"\xff", b'{"version": 1, "uploads": 5}', b'{"version": 1}'], ids=repr
)
def test_a_file_of_something_else_counts_as_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger.json").write_bytes(content)
    assert Ledger(tmp_path / "ledger.json").uploads == {}


def test_a_ledger_of_a_later_version_counts_as_empty(tmp_path: Path) -> None:
    assert Ledger(written(tmp_path / "ledger.json", ENTRY, version=2)).uploads == {}
    assert len(Ledger(written(tmp_path / "ledger.json", ENTRY)).uploads) == 1
