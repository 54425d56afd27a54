"""Uploads during training: the ledger, retries, and what a killed run leaves. Each upload is a process and uses an S3 server."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.checkpoint_folder import FILES, write_checkpoint
from tests.helpers.object_store import ObjectServer, stubborn_server
from trainer_engine.config.publishing import PublishTarget, parse_publishing
from trainer_engine.publishing.ledger import Upload, UploadState
from trainer_engine.publishing.staging import digest_of, files_below, stage
from trainer_engine.publishing.uploads import MOST_WAITING, Patience, Report, Uploads

QUICK = Patience(first_seconds=0.05, attempts=3, most_seconds=0.1, most_seconds_at_end=0.1)
DEAD = {"provider": "s3", "bucket": "trained", "endpoint_url": "http://127.0.0.1:9", "access_key": "key-SECRET", "secret_key": "s-SECRET"}


@pytest.mark.parametrize(("at_end", "limit"), [(False, 300.0), (True, 5.0)])
def test_pauses_double_up_to_their_limit_and_differ_by_a_fifth(at_end: bool, limit: float) -> None:
    for attempts in (1, 2, 3, 9, 50, 10_000):
        usual = min(2.0 * 2 ** min(attempts - 1, 16), limit)
        found = [Patience().pause(attempts, at_end=at_end) for _ in range(200)]
        assert 0.8 * usual <= min(found) < 0.9 * usual and 1.1 * usual < max(found) <= 1.2 * usual


def target_of(entry: dict[str, Any]) -> PublishTarget:
    targets, problems = parse_publishing(entry)
    assert problems == []
    return targets[0]


def uploads_to(output_dir: Path, *entries: dict[str, Any], patience: Patience = QUICK) -> Uploads:
    targets = [target_of(entry) for entry in entries]
    return Uploads(output_dir, {target.key: target for target in targets}, patience)


def upload_of(output_dir: Path, checkpoint: Path, target: PublishTarget) -> Upload:
    """Staged, as the run does it."""
    digest, what = digest_of(checkpoint), checkpoint.name
    stage(output_dir, f"{what}-{digest}", files_below(checkpoint))
    return Upload(
        id=f"{target.key} {what} {digest}",
        target=target.key,
        provider=target.provider,
        what=what,
        step=int(what.rpartition("-")[2]),
        source=what,
        staged=f"{what}-{digest}",
        remote=f"run/{what}",
        size_bytes=sum(len(content) for content in FILES.values()),
    )


def add(uploads: Uploads, *checkpoints: Path) -> None:
    for checkpoint in checkpoints:
        uploads.add([upload_of(uploads.output_dir, checkpoint, target) for target in uploads.targets.values()])


def reports_until(uploads: Uploads, is_last: Callable[[Report], bool]) -> list[Report]:
    found: list[Report] = []
    while not found or not is_last(found[-1]):
        found.append(uploads.reports.get(timeout=60))
    return found


def arrived(report: Report) -> bool:
    return report.outcome.arrived


def gave_up(report: Report) -> bool:
    return report.gave_up


def ledger_of(output_dir: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((output_dir / ".publishing/ledger.json").read_text())["uploads"]
    return entries


def test_upload_is_complete_and_its_staging_folder_is_deleted(tmp_path: Path, store: ObjectServer) -> None:
    uploads = uploads_to(tmp_path, store.entry(base_path="runs"))
    add(uploads, write_checkpoint(tmp_path, 5))
    report = uploads.reports.get(timeout=60)
    uploads.close()
    assert report.outcome.address == "s3://trained/runs/run/checkpoint-5"
    assert store.names() == sorted(f"runs/run/checkpoint-5/{name}" for name in [*FILES, "manifest.json"])
    assert {name: store.content(f"runs/run/checkpoint-5/{name}") for name in FILES} == FILES
    assert list((tmp_path / ".publishing/staged").iterdir()) == []
    assert [(entry["state"], entry["attempts"], entry["address"]) for entry in ledger_of(tmp_path)] == [("done", 1, report.outcome.address)]


def test_retention_does_not_affect_an_upload(tmp_path: Path, store: ObjectServer) -> None:
    uploads = uploads_to(tmp_path, store.entry())
    checkpoint = write_checkpoint(tmp_path, 5)
    upload = upload_of(tmp_path, checkpoint, next(iter(uploads.targets.values())))
    shutil.rmtree(checkpoint)
    uploads.add([upload])
    assert arrived(uploads.reports.get(timeout=60))
    uploads.close()
    assert store.content("run/checkpoint-5/optimizer.safetensors") == FILES["optimizer.safetensors"]


def test_existing_files_are_not_uploaded_again(tmp_path: Path, store: ObjectServer) -> None:
    """An upload that broke off goes on with the files that are missing or differ."""
    checkpoint = write_checkpoint(tmp_path, 5)
    first = uploads_to(tmp_path, store.entry())
    add(first, checkpoint)
    assert arrived(first.reports.get(timeout=60))
    first.close()
    stamps = {one["Key"]: one["LastModified"] for one in store.client.list_objects_v2(Bucket="trained")["Contents"]}
    store.client.delete_object(Bucket="trained", Key="run/checkpoint-5/manifest.json")
    store.put("run/checkpoint-5/training_state.json", b"[]")
    shutil.rmtree(tmp_path / ".publishing")
    time.sleep(1.1)  # the server's times have no fractions
    second = uploads_to(tmp_path, store.entry())
    add(second, checkpoint)
    assert arrived(second.reports.get(timeout=60))
    second.close()
    after = {one["Key"]: one["LastModified"] for one in store.client.list_objects_v2(Bucket="trained")["Contents"]}
    sent = {key.rpartition("/")[2] for key in after if after[key] != stamps[key]}
    assert sent == {"manifest.json", "training_state.json"}
    assert store.content("run/checkpoint-5/training_state.json") == b"{}"


@pytest.mark.slow
def test_later_upload_to_the_same_folder_replaces_a_waiting_one(tmp_path: Path, store: ObjectServer) -> None:
    later = {**FILES, "training_state.json": b"later"}
    first = uploads_to(tmp_path, store.entry())
    add(first, write_checkpoint(tmp_path, 5))
    assert arrived(first.reports.get(timeout=60))
    add(first, write_checkpoint(tmp_path, 5, later))
    assert arrived(first.reports.get(timeout=60))
    first.close()
    assert store.content("run/checkpoint-5/training_state.json") == b"later"

    back = uploads_to(tmp_path, store.entry())
    again = write_checkpoint(tmp_path, 5)
    assert not back.is_done(upload_of(tmp_path, again, next(iter(back.targets.values()))).id), "it was overwritten"

    dead = uploads_to(tmp_path / "dead", DEAD, patience=Patience(first_seconds=600))
    for files in (FILES, later):
        add(dead, write_checkpoint(tmp_path / "dead", 5, files))
        assert not arrived(dead.reports.get(timeout=60))
    dead.close()
    (left,) = dead.pending()
    assert left.staged.endswith(digest_of(tmp_path / "dead/checkpoint-5"))
    assert [path.name for path in (tmp_path / "dead/.publishing/staged").iterdir()] == [left.staged]


def test_second_run_does_not_repeat_finished_uploads(tmp_path: Path, store: ObjectServer) -> None:
    checkpoint = write_checkpoint(tmp_path, 5)
    first = uploads_to(tmp_path, store.entry())
    add(first, checkpoint)
    assert arrived(first.reports.get(timeout=60))
    first.close()
    store.clear()
    second = uploads_to(tmp_path, store.entry())
    assert second.take_up() == []
    assert second.is_done(upload_of(tmp_path, checkpoint, next(iter(second.targets.values()))).id)
    second.close()
    assert store.names() == []


def test_transfer_process_that_ends_early_is_a_failed_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(command: list[str], **settings: Any) -> subprocess.Popen[bytes]:
        process = start([sys.executable, "-c", ""], **settings)
        process.wait()
        return process

    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", ended)
    uploads = uploads_to(tmp_path, DEAD)
    add(uploads, write_checkpoint(tmp_path, 5))
    report = uploads.reports.get(timeout=30)
    uploads.close()
    assert "ended without a result" in report.outcome.trouble


def test_wrong_credentials_are_reported_at_once_and_not_retried(tmp_path: Path) -> None:
    with stubborn_server(403) as refusing:
        uploads = uploads_to(tmp_path, {**DEAD, "endpoint_url": refusing.url})
        add(uploads, write_checkpoint(tmp_path, 5))
        report = uploads.reports.get(timeout=60)
        uploads.close()
    assert report.gave_up and report.upload.state is UploadState.FAILED and report.upload.attempts == 1
    assert "HTTP 403 (InvalidAccessKeyId)" in report.outcome.trouble and "credentials" in report.outcome.hint
    assert "SECRET" not in (tmp_path / ".publishing/ledger.json").read_text() + repr(report)
    assert list((tmp_path / ".publishing/staged").iterdir()) == []


@pytest.mark.slow
def test_next_run_retries_a_refused_upload_with_new_credentials(tmp_path: Path, store: ObjectServer) -> None:
    checkpoint = write_checkpoint(tmp_path, 5)
    with stubborn_server(403) as refusing:
        first = uploads_to(tmp_path, {**DEAD, "endpoint_url": refusing.url})
        add(first, checkpoint)
        assert gave_up(first.reports.get(timeout=60))
        first.close()
    # The same place for the ledger: only what answers there is another.
    ledger = tmp_path / ".publishing/ledger.json"
    ledger.write_text(ledger.read_text().replace(refusing.url.removeprefix("http://"), store.url.removeprefix("http://")))
    second = uploads_to(tmp_path, store.entry())
    assert [upload.what for upload in second.take_up()] == ["checkpoint-5"]
    assert arrived(second.reports.get(timeout=60))
    second.close()


@pytest.mark.slow
def test_unreachable_provider_is_retried_and_left_to_the_next_run(tmp_path: Path) -> None:
    uploads = uploads_to(tmp_path, DEAD)
    add(uploads, write_checkpoint(tmp_path, 5))
    reports = reports_until(uploads, gave_up)
    uploads.close()
    assert [report.first_try for report in reports] == [True, False, False]
    assert all("could not be reached" in report.outcome.trouble for report in reports)
    assert [entry["state"] for entry in ledger_of(tmp_path)] == ["pending"]
    assert len(list((tmp_path / ".publishing/staged").iterdir())) == 1


def test_waiting_uploads_continue_when_the_provider_returns(tmp_path: Path, store: ObjectServer) -> None:
    with stubborn_server(503) as busy:
        uploads = uploads_to(tmp_path, {**DEAD, "endpoint_url": busy.url}, patience=Patience(first_seconds=0.05, most_seconds=0.1))
        add(uploads, write_checkpoint(tmp_path, 5))
        assert not arrived(uploads.reports.get(timeout=120))
        busy.status = 200
        assert arrived(reports_until(uploads, arrived)[-1])
        uploads.close()
    assert any(asked.startswith("PUT /trained/run/checkpoint-5/manifest.json") for asked in busy.asked)


@pytest.mark.slow
def test_uploads_of_a_killed_run_continue_if_their_files_exist(tmp_path: Path, store: ObjectServer) -> None:
    with stubborn_server(200, seconds=600) as slow:
        first = uploads_to(tmp_path, {**DEAD, "endpoint_url": slow.url})
        for step in (5, 6):
            add(first, write_checkpoint(tmp_path, step))
        while not slow.asked:
            time.sleep(0.05)
        first.close()
    assert [entry["state"] for entry in ledger_of(tmp_path)] == ["pending", "pending"]
    shutil.rmtree(tmp_path / "checkpoint-5")  # its links are still staged
    shutil.rmtree(tmp_path / "checkpoint-6")
    shutil.rmtree(next((tmp_path / ".publishing/staged").glob("checkpoint-6-*")))
    ledger = tmp_path / ".publishing/ledger.json"
    ledger.write_text(ledger.read_text().replace(slow.url.removeprefix("http://"), store.url.removeprefix("http://")))
    second = uploads_to(tmp_path, store.entry())
    assert [upload.what for upload in second.take_up()] == ["checkpoint-5"]
    assert arrived(second.reports.get(timeout=60))
    second.close()
    assert {name.split("/")[1] for name in store.names()} == {"checkpoint-5"}


def test_unreachable_provider_does_not_fill_the_disk(tmp_path: Path) -> None:
    with stubborn_server(200, seconds=600) as slow:
        uploads = uploads_to(tmp_path, {**DEAD, "endpoint_url": slow.url})
        add(uploads, write_checkpoint(tmp_path, 1))
        while not slow.asked:
            time.sleep(0.05)
        for step in range(2, 2 + MOST_WAITING + 2):
            add(uploads, write_checkpoint(tmp_path, step))
        dropped = [uploads.reports.get(timeout=10).upload.what for _ in range(2)]
        uploads.close()
    assert dropped == ["checkpoint-2", "checkpoint-3"]
    assert len(list((tmp_path / ".publishing/staged").iterdir())) == MOST_WAITING + 1


def test_broken_ledger_is_replaced(tmp_path: Path, store: ObjectServer) -> None:
    (tmp_path / ".publishing").mkdir()
    (tmp_path / ".publishing/ledger.json").write_text('{"version": 1, "uploads": [{"id"')
    uploads = uploads_to(tmp_path, store.entry())
    add(uploads, write_checkpoint(tmp_path, 5))
    assert arrived(uploads.reports.get(timeout=60))
    uploads.close()


def test_command_line_has_no_credentials_and_the_process_ends_with_the_run(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "output", 5)
    script = f"""
import time
from pathlib import Path
from tests.trainer_engine.publishing.test_uploads import DEAD, add, uploads_to
import sys
uploads = uploads_to(Path({str(tmp_path / "output")!r}), {{**DEAD, "endpoint_url": sys.argv[1]}})
add(uploads, Path({str(checkpoint)!r}))
time.sleep(600)
"""
    with stubborn_server(200, seconds=600) as slow:
        run = subprocess.Popen([sys.executable, "-c", script, slow.url])
        while not slow.asked:
            time.sleep(0.05)
            assert run.poll() is None
        (mover,) = psutil.Process(run.pid).children(recursive=True)
        assert "SECRET" not in " ".join(mover.cmdline())
        assert mover.nice() == psutil.Process(run.pid).nice() + 10
        run.send_signal(signal.SIGKILL)
        run.wait()
        mover.wait(timeout=20)


def test_transfer_process_loads_no_heavy_library() -> None:
    code = "import sys, trainer_engine.publishing.__main__; print(sorted({'torch', 'diffusers', 'django', 'boto3'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
