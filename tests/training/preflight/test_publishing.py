"""What validate says about stores, the hub, and checkpoints at an address."""

from __future__ import annotations

import json
from typing import Any

import pytest

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.training.conftest import Training
from trainer_engine.contract.errors import Level
from training.jobs import secrets
from training.models import Job
from training.preflight.run import examine_run

STORE = {
    "provider": "s3",
    "bucket": "trained",
    "endpoint_url": "http://127.0.0.1:9000",
    "access_key": "SECRETkey",
    "secret_key": "SECRETsecret",
}
NOWHERE = {"HF_HOME": "/nowhere", "CUDA_VISIBLE_DEVICES": ""}


def reported(training: Training, variables: dict[str, str] | None = None, **changes: Any) -> dict[tuple[str, str], Level]:
    home = Home(training.home)
    form = {name: value for name, value in training.form.items() if not name.startswith("__")}
    submitted = {**form, **{f"--{name}": value for name, value in changes.items()}}
    report = examine_run(resolve_run(home, {}, submitted), home, NOWHERE if variables is None else variables)
    return {
        (problem.option, problem.code): problem.level
        for problem in report.problems
        if "publish" in problem.option or "hub" in problem.option or "model_card" in problem.option
    }


def test_a_store_that_can_be_used_is_not_worth_a_word(training: Training) -> None:
    assert reported(training, publishing_config=json.dumps(STORE)) == {}


def test_a_file_is_read_and_found_as_any_other_path_is(training: Training) -> None:
    (training.home / "config" / "stores.json").write_text(json.dumps([{**STORE, "buckte": "x"}]))
    wrong = {("publishing_config[0].buckte", "unknown_field"): Level.ERROR}
    assert reported(training, publishing_config="config/stores.json") == wrong
    assert reported(training, publishing_config="stores.json") == {**wrong, ("publishing_config", "path_taken"): Level.NOTE}
    assert reported(training, publishing_config="nowhere.json") == {("publishing_config", "not_found"): Level.ERROR}
    (training.home / "config" / "stores.json").write_text("[")
    assert reported(training, publishing_config="config/stores.json") == {("publishing_config", "unreadable_file"): Level.ERROR}


@pytest.mark.parametrize(
    ("field", "url", "code"),
    [
        ("endpoint_url", "http://169.254.169.254", "address_refused"),
        ("endpoint_url", "http://10.0.0.7:9000", "address_refused"),
        ("account_url", "http://[fd00:ec2::254]/?sig=SECRETsig", "address_refused"),
        ("connection_string", "AccountName=me;AccountKey=k;BlobEndpoint=http://169.254.169.254/me", "address_refused"),
    ],
)
def test_stores_at_closed_addresses_are_refused(training: Training, field: str, url: str, code: str) -> None:
    azure = {"provider": "azure", "container": "trained"}
    entry = {**STORE, field: url} if field == "endpoint_url" else {**azure, field: url}
    assert reported(training, publishing_config=json.dumps(entry)) == {(f"publishing_config[0].{field}", code): Level.ERROR}


def test_stores_are_numbered_as_they_were_written(training: Training) -> None:
    entries = [{**STORE, "bucket": ""}, STORE, {**STORE, "bucket": "other", "endpoint_url": "http://169.254.169.254"}]
    (training.home / "config" / "stores.json").write_text(json.dumps(entries))
    assert reported(training, publishing_config="config/stores.json").keys() == {
        ("publishing_config[0].bucket", "missing"),
        ("publishing_config[2].endpoint_url", "address_refused"),
    }


def test_a_library_that_is_missing_is_reported_with_how_to_install_it(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.preflight.publishing.is_installed", lambda provider: False)
    assert reported(training, publishing_config=json.dumps(STORE)) == {("publishing_config[0].provider", "not_installed"): Level.ERROR}


def test_the_hub_needs_a_login(training: Training) -> None:
    online = {**NOWHERE, "HF_HUB_OFFLINE": "0"}
    assert reported(training, online, push_to_hub="true") == {("push_to_hub", "no_login"): Level.WARNING}
    assert reported(training, {**online, "HF_TOKEN": "hf_x"}, push_to_hub="true") == {}
    assert reported(training, {**online, "HF_HUB_OFFLINE": "1"}, push_to_hub="true") == {("push_to_hub", "hub_is_off"): Level.WARNING}
    assert reported(training, {**online, "HF_TOKEN": "hf_x"}, push_to_hub="true", model_card_private="false") == {}
    assert reported(training, model_card_private="false") == {("model_card_private", "no_effect"): Level.NOTE}
    background = {("push_to_hub_background", "always_so"): Level.NOTE}
    assert reported(training, push_to_hub_background="true") == background
    assert reported(training, push_checkpoints_to_hub="true") == {("push_checkpoints_to_hub", "needs_another"): Level.ERROR}


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("s3://trained/run/checkpoint-20", None),
        ("hf://me/model/checkpoint-20", None),
        ("s3://other/run/checkpoint-20", "unknown_store"),
        ("s3://trained/run/latest", "not_a_checkpoint"),
        ("ftp://trained/run/checkpoint-20", "not_an_address"),
        ("http://169.254.169.254/checkpoint-20", "address_refused"),
        ("https://store.example/checkpoint-20?sig=SECRET", "not_an_address"),
        ("https://me:SECRET@store.example/checkpoint-20", "password_in_address"),
    ],
)
def test_an_address_to_resume_from_leads_to_a_store_of_the_configuration(training: Training, address: str, code: str | None) -> None:
    entries = [STORE, {"provider": "s3", "bucket": "metadata", "public_base_url": "http://169.254.169.254"}]
    changes = {"--publishing_config": json.dumps(entries), "--resume_from_checkpoint": address}
    answer = training.post("/validate", {**training.form, **changes})
    problems = [(problem["option"], problem["code"]) for problem in answer.json()["problems"]]
    assert [found for option, found in problems if option == "resume_from_checkpoint"] == ([code] if code else [])
    assert b"SECRET" not in answer.content


def test_credentials_leave_neither_by_an_answer_nor_by_the_status(training: Training) -> None:
    job = training.start(**{"--publishing_config": json.dumps(STORE)})
    shown = training.get(f"/jobs/{job['job_id']}").content + training.get("/status").content + training.get("/queue").content
    assert b"SECRET" not in shown and b"***" in shown
    stored = Job.objects.get()
    assert "SECRET" not in stored.options["publishing_config"]
    assert "SECRETsecret" in str(secrets.of_options(stored))  # the run itself needs it
