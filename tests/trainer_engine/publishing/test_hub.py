"""Uploads to a stand-in of the hub, by the hub's own library through HF_ENDPOINT."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.checkpoint_folder import FILES, write_checkpoint
from tests.helpers.hub_server import HANGS_UP, OTHER_ANSWERS, HubServer, broken_hub, hub_server, silent_hub
from tests.helpers.params import first_fast
from tests.helpers.tiny_run import fork_run, write_job
from trainer_engine.config.publishing import HUB, PublishTarget
from trainer_engine.contract.checkpoint_files import verify
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.events import Severity
from trainer_engine.publishing.task import Mover, Task, TaskOutcome

UNREACHABLE = "could not be reached or broke off"
NO_HUB = "did not answer as the hub does"
TROUBLES = {
    "error 500": "answered HTTP 500",
    "hangs up": UNREACHABLE,
    "half an answer": UNREACHABLE,
    "no HTTP": UNREACHABLE,
    "a login page": NO_HUB,
    "other JSON": NO_HUB,
}

IMPATIENT = """
import sys
from pathlib import Path
from trainer_engine.weights import hub_client
hub_client.ANSWER_SECONDS = 0.5
from trainer_engine.config.publishing import HUB, PublishTarget
from trainer_engine.publishing.base import ProviderError
from trainer_engine.publishing.hub import HubProvider
try:
    HubProvider(PublishTarget(HUB, sys.argv[1])).send(Path(sys.argv[2]), "", print)
except ProviderError as error:
    print(error.permanent, error.message)
"""
"""An upload whose requests wait for half a second; the time limit is no option."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with hub_server() as server:
        use(server, tmp_path, monkeypatch)
        yield server


def use(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send the transfers of this test to ``server``."""
    for name, value in {**server.variables, "HF_HOME": str(tmp_path / "hf")}.items():
        monkeypatch.setenv(name, value)


def done(action: str, target: PublishTarget, folder: Path, remote: str) -> TaskOutcome:
    return Mover(Task(action, target.as_dict(), str(folder), remote)).wait(lambda *_: None)


def test_checkpoint_is_one_commit_in_a_private_repository(tmp_path: Path, hub: HubServer) -> None:
    outcome = done("send", PublishTarget(HUB, "flowers"), write_checkpoint(tmp_path, 5), "checkpoint-5")
    assert outcome.address == f"{hub.url}/me/flowers/tree/main/checkpoint-5", outcome
    assert set(hub.repos["me/flowers"]) == {f"checkpoint-5/{name}" for name in [*FILES, "manifest.json"]}
    assert hub.repos["me/flowers"]["checkpoint-5/optimizer.safetensors"] == FILES["optimizer.safetensors"]
    assert hub.private == {"me/flowers": True} and hub.commits == ["Upload checkpoint-5"]


def test_existing_files_are_not_sent_to_the_hub_again(tmp_path: Path, hub: HubServer) -> None:
    target = PublishTarget(HUB, "org/flowers", private=False)
    assert done("send", target, write_checkpoint(tmp_path, 5), "checkpoint-5").arrived
    assert done("send", target, tmp_path / "checkpoint-5", "").address == f"{hub.url}/org/flowers"
    assert len(hub.sent) == 2 and hub.private == {"org/flowers": False}
    assert {"optimizer.safetensors", "checkpoint-5/optimizer.safetensors"} <= set(hub.repos["org/flowers"])


def test_wrong_token_has_a_hint(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    outcome = done("send", PublishTarget(HUB, "flowers"), write_checkpoint(tmp_path, 5), "")
    assert outcome.permanent and "401" in outcome.trouble and "hf auth login" in outcome.hint
    assert "hf_wrong" not in repr(outcome)
    monkeypatch.delenv("HF_TOKEN")
    outcome = done("send", PublishTarget(HUB, "flowers"), tmp_path / "checkpoint-5", "")
    assert outcome.permanent and "hf auth login" in outcome.hint


def test_refused_model_card_has_a_message(tmp_path: Path, hub: HubServer) -> None:
    hub.errors = ["license is not one"]
    (tmp_path / "result").mkdir()
    (tmp_path / "result/README.md").write_text("---\nlicense: mine\n---\n")
    outcome = done("send", PublishTarget(HUB, "flowers"), tmp_path / "result", "")
    assert outcome.permanent and "license is not one" in outcome.trouble


@pytest.mark.parametrize("behaviour", first_fast(list(OTHER_ANSWERS)))
def test_upload_to_a_broken_hub_can_be_repeated(behaviour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with broken_hub(OTHER_ANSWERS[behaviour]) as broken:
        use(broken, tmp_path, monkeypatch)
        outcome = done("send", PublishTarget(HUB, "me/flowers"), write_checkpoint(tmp_path, 5), "checkpoint-5")
    assert TROUBLES[behaviour] in outcome.trouble and "me/flowers" in outcome.trouble
    assert not outcome.permanent and not outcome.arrived
    assert "HF_ENDPOINT" in outcome.hint or behaviour == "error 500"


def test_upload_to_a_closed_port_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(HubServer(url="http://127.0.0.1:9"), tmp_path, monkeypatch)
    outcome = done("send", PublishTarget(HUB, "me/flowers"), write_checkpoint(tmp_path, 5), "")
    assert UNREACHABLE in outcome.trouble and "(ConnectError)" in outcome.trouble and not outcome.permanent


def test_upload_to_a_silent_hub_fails_after_a_time_and_can_be_repeated(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 5)
    with silent_hub() as silent:
        command = [sys.executable, "-c", IMPATIENT, "me/flowers", str(folder)]
        done = subprocess.run(command, env={**os.environ, **silent.variables}, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("False the hub's repository me/flowers could not be reached or broke off (ReadTimeout)."), done.stderr


@pytest.mark.parametrize("behaviour", ["error 500", "hangs up"])
def test_fetching_from_a_broken_hub_can_be_repeated(behaviour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with broken_hub(OTHER_ANSWERS[behaviour]) as broken:
        use(broken, tmp_path, monkeypatch)
        outcome = done("fetch", PublishTarget(HUB, "me/flowers"), tmp_path, "checkpoint-5")
    assert TROUBLES[behaviour] in outcome.trouble and not outcome.permanent


@pytest.mark.slow
def test_run_completes_if_the_hub_hangs_up(tmp_path: Path) -> None:
    with broken_hub(HANGS_UP) as broken:
        run = fork_run(write_job(tmp_path, max_train_steps=1, push_to_hub=True, hub_model_id="me/flowers"), **broken.variables)
        assert run.wait() == ExitCode.COMPLETED, run.log()
    warnings = run.of_type("error")
    assert {entry.data["code"] for entry in warnings} == {"upload_failed", "upload_gave_up"}
    assert all(entry.severity == Severity.WARNING for entry in warnings)
    assert any(UNREACHABLE in entry.message for entry in warnings) and "Traceback" not in run.log()


def test_checkpoint_is_fetched_from_the_hub(tmp_path: Path, hub: HubServer) -> None:
    target = PublishTarget(HUB, "me/flowers")
    assert done("send", target, write_checkpoint(tmp_path / "one", 5), "checkpoint-5").arrived
    (tmp_path / "two").mkdir()
    outcome = done("fetch", target, tmp_path / "two", "checkpoint-5")
    assert outcome == TaskOutcome("checkpoint-5")
    assert verify(tmp_path / "two/checkpoint-5") == []
    here = {path.relative_to(tmp_path / "two/checkpoint-5").as_posix() for path in (tmp_path / "two").rglob("*") if path.is_file()}
    assert here == {*FILES, "manifest.json"}
    missing = done("fetch", target, tmp_path / "two", "checkpoint-6")
    assert missing.permanent and "no such file" in missing.trouble


def test_run_uploads_its_result_to_the_top_level_of_the_repository(tmp_path: Path, hub: HubServer) -> None:
    options = {"push_to_hub": True, "push_checkpoints_to_hub": True, "hub_model_id": "me/flowers", "model_card_note": "Roses only."}
    run = fork_run(write_job(tmp_path, model_type="lora", max_train_steps=2, **options), **hub.variables)
    assert run.wait() == ExitCode.COMPLETED, run.log()
    files = hub.repos["me/flowers"]
    assert {"pytorch_lora_weights.safetensors", "README.md", "checkpoint-2/manifest.json"} <= set(files)
    spec = files["README.md"].decode()
    assert "not-for-all-audiences" in spec and "Roses only." in spec and str(tmp_path) not in spec
    addresses = [entry.data["details"]["address"] for entry in run.of_type("notification") if entry.data["code"] == "uploaded"]
    assert addresses == [f"{hub.url}/me/flowers/tree/main/checkpoint-2", f"{hub.url}/me/flowers"]


def test_only_the_result_is_uploaded_without_push_checkpoints_to_hub(tmp_path: Path, hub: HubServer) -> None:
    run = fork_run(write_job(tmp_path, max_train_steps=1, push_to_hub=True, model_card_safe_for_work=True), **hub.variables)
    assert run.wait() == ExitCode.COMPLETED, run.log()
    files = hub.repos["me/output"]
    assert "model_index.json" in files and not any(name.startswith("checkpoint") for name in files)
    assert b"not-for-all-audiences" not in files["README.md"]
