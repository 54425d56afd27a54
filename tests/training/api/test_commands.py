"""Validate and start: every problem is reported, nothing is left behind, and what is accepted is frozen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from django_q.models import OrmQ

from environments import services as environments
from environments.create.plan import NewEnvironment
from environments.models import Revision
from environments.resolve.changes import laid_under
from tests.training.conftest import Training
from training.models import Job, Status


def files(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*")}


def test_a_right_configuration_is_valid_and_reported_in_numbers(training: Training) -> None:
    before = files(training.home)
    answer = training.post("/validate", training.form)
    assert answer.status_code == 200, answer.content
    said = answer.json()
    assert said["valid"] and not said["problems"] and not said["warnings"]
    understood = said["understood"]
    assert (understood["steps"], understood["epochs"], understood["effective_batch_size"]) == (20, 4, 1)
    assert understood["datasets"][0]["usable"] == 6
    assert understood["datasets"][0]["share"] == {"at_start": 1.0, "of_epoch": 1.0, "text": "100 % of the batches"}
    assert understood["model"]["parameters"] == 1000
    assert understood["memory"]["low_bytes"] <= understood["memory"]["bytes"] <= understood["memory"]["high_bytes"]
    assert understood["disk"]["free_bytes"] > understood["disk"]["bytes"]
    assert files(training.home) == before and not Job.objects.exists()


def test_bare_curl_gets_a_green_snippet(training: Training) -> None:
    answer = training.post("/validate", training.form, accept="*/*")
    assert answer["Content-Type"].startswith("text/html")
    text = answer.content.decode()
    assert "alert alert-success" in text and "Configuration Valid" in text and "20 optimizer steps" in text
    assert "6 of 6 files usable; 100 % of the batches" in text


def test_every_problem_is_reported_at_once_in_both_tongues(training: Training) -> None:
    form = {**training.form, "--train_batch_size": "many", "--no_such_option": "1", "--data_backend_config": "nowhere.json"}
    for path, title in (("/validate", "Validation Failed"), ("/start", "Cannot Start Training")):
        before = files(training.home)
        html = training.post(path, form, accept="*/*")
        said = training.post(path, form)
        assert html.status_code == said.status_code == 422
        assert {problem["option"] for problem in said.json()["problems"]} >= {"train_batch_size", "no_such_option", "data_backend_config"}
        text = html.content.decode()
        assert "alert alert-danger" in text and title in text and text.count("<li>") >= 3
        assert said.json()["detail"]
        assert files(training.home) == before and not Job.objects.exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--model_family", "no_such_family"),
        ("--model_type", "half"),
        ("--learning_rate", "fast"),
        ("--max_train_steps", "-1"),
        ("--max_train_steps", "0"),
        ("--num_train_epochs", "3"),
        ("--train_batch_size", "0"),
        ("--output_dir", "/etc/here"),
        ("--output_dir", "config/datasets.json"),
        ("--pretrained_model_name_or_path", "nobody/no-such-model"),
        ("--pretrained_model_name_or_path", "pictures"),
        ("--resume_from_checkpoint", "checkpoint-7"),
        ("--accelerate_config", "config/datasets.json"),
    ],
)
def test_a_broken_value_is_refused_with_its_name(training: Training, option: str, value: str) -> None:
    answer = training.post("/validate", {**training.form, option: value})
    assert answer.status_code == 422, answer.json()
    named = " ".join(problem["option"] + problem["message"] for problem in answer.json()["problems"])
    assert option.lstrip("-") in named or "dataloader" in named, named


@pytest.mark.parametrize("missing", ["model_family", "model_type", "data_backend_config", "output_dir"])
def test_a_start_names_the_missing_required_option(training: Training, missing: str) -> None:
    form = {name: value for name, value in training.form.items() if name != f"--{missing}"}
    answer = training.post("/start", form)
    assert answer.status_code == 422
    assert missing in {problem["option"] for problem in answer.json()["problems"]}


def test_names_work_with_and_without_dashes_in_forms_and_json(training: Training) -> None:
    bare = {name.lstrip("-"): value for name, value in training.form.items()}
    assert training.post("/validate", bare).status_code == 200
    assert training.post("/validate", bare, format="json").status_code == 200
    typed = {**bare, "max_train_steps": 20, "train_batch_size": 1}
    assert training.post("/validate", typed, format="json").status_code == 200
    urlencoded = "&".join(f"{name}={value}" for name, value in training.form.items())
    answer = training.client.post(
        "/api/training/validate/", urlencoded, content_type="application/x-www-form-urlencoded", HTTP_ACCEPT="application/json"
    )
    assert answer.status_code == 200, answer.content


def test_the_last_value_of_a_field_wins(training: Training) -> None:
    form = {**training.form, "--max_train_steps": ["1", "2", "30"]}
    assert training.post("/validate", form).json()["understood"]["steps"] == 30


def test_a_start_freezes_the_run_and_puts_it_into_the_queue(training: Training, django_capture_on_commit_callbacks: Any) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        answer = training.post("/start", {**training.form, "--validation_prompt": "test shot of <token>"}, accept="*/*")
    text = answer.content.decode()
    assert "alert alert-info" in text and "Training Starting" in text
    job = Job.objects.get()
    assert f"Job ID: {job.pk}" in text and answer["X-Job-Id"] == str(job.pk)
    assert job.options["validation_prompt"] == "test shot of <token>"
    assert job.options["output_dir"] == str((training.home / "output" / "run").resolve())
    assert job.datasets[0]["instance_data_dir"] == str((training.home / "pictures").resolve())
    assert OrmQ.objects.count() == 1
    event = job.events.get()
    assert (event.index, event.payload["data"]["status"]) == (0, "queued")
    assert environments.active() is None
    assert (training.home / "config" / job.environment / "config.json").exists()


def test_the_second_job_waits_at_position_one(training: Training) -> None:
    first = training.start()
    assert first["status"] == "starting" and first["queue_position"] is None
    second, third = training.start(), training.start()
    assert (second["status"], second["queue_position"]) == ("queued", 1)
    Job.objects.filter(pk=first["job_id"]).update(status=Status.RUNNING)
    answer = training.post("/start", training.form, accept="*/*").content.decode()
    assert "Training Queued" in answer and "Your job is queued at position 3." in answer
    queue = training.get("/queue").json()
    assert [row["job_id"] for row in queue["running"]] == [first["job_id"]]
    assert [row["queue_position"] for row in queue["queued"]] == [1, 2, 3]
    assert queue["queued"][1]["job_id"] == third["job_id"]


def test_the_same_key_gives_the_same_job(training: Training) -> None:
    headers = {"HTTP_IDEMPOTENCY_KEY": "once"}
    ids = {training.post("/start", training.form, **headers).json()["job_id"] for _ in range(3)}
    assert len(ids) == 1 and Job.objects.count() == 1


def test_the_active_environment_lies_under_the_form(training: Training) -> None:
    new = NewEnvironment(name="demo", model_family="pixart_sigma", model_type="full", description="")
    environments.create_environment(new, actor="test")
    config = {name.lstrip("-"): value for name, value in training.form.items() if not name.startswith("__")}
    environments.update_environment("demo", config=config, actor="test")
    environments.activate("demo", actor="test")
    answer = training.post("/start", {"__active_tab__": "model", "--num_train_epochs": "0", "--max_train_steps": "30"})
    assert answer.status_code == 200, answer.content
    job = Job.objects.get()
    assert job.environment == "demo" and job.options["max_train_steps"] == 30 and job.options["seed"] == 7
    written = json.loads((training.home / "config" / "demo" / "config.json").read_text())
    assert written["--max_train_steps"] == 30


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        ("{", "application/json", 400),
        ("[1, 2]", "application/json", 422),
        ('"text"', "application/json", 422),
        ("null", "application/json", 422),
        ("seed=1", "text/plain", 415),
        ("not multipart", "multipart/form-data; boundary=x", 422),
        ("--max_train_steps=%00", "application/x-www-form-urlencoded", 422),
        ('{"max_train_steps": "' + "9" * 10_000 + '"}', "application/json", 422),
        ('{"optimizer_config": {"a": [[[1]]]}}', "application/json", 422),
        ('{"seed": NaN}', "application/json", 400),
    ],
)
def test_bodies_that_are_none_are_refused_and_never_an_error_of_ours(training: Training, body: str, content_type: str, status: int) -> None:
    for path in ("/validate", "/start"):
        for accept in ("application/json", "*/*"):
            answer = training.client.generic("POST", f"/api/training{path}", body, content_type=content_type, HTTP_ACCEPT=accept)
            assert answer.status_code == status, answer.content
            assert ("alert" in answer.content.decode()) == (accept == "*/*")


def test_answers_escape_typed_markup(training: Training) -> None:
    text = training.post("/validate", {**training.form, "--model_type": "<b>bold</b>"}, accept="*/*").content.decode()
    assert "&lt;b&gt;bold" in text and "<b>bold" not in text


def test_a_file_where_text_is_wanted_is_refused(training: Training) -> None:
    from django.core.files.uploadedfile import SimpleUploadedFile

    answer = training.post("/validate", {**training.form, "--output_dir": SimpleUploadedFile("x.txt", b"x")})
    assert answer.status_code == 422 and answer.json()["problems"][0]["option"] == "output_dir"


def make_active(training: Training, name: str = "demo") -> None:
    new = NewEnvironment(name=name, model_family="pixart_sigma", model_type="full", description="")
    environments.create_environment(new, actor="test")
    config = {option.lstrip("-"): value for option, value in training.form.items() if not option.startswith("__")}
    environments.update_environment(name, config=config, actor="test")
    environments.activate(name, actor="test")


def stored(training: Training, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((training.home / "config" / name / "config.json").read_text())
    return document


def test_a_start_says_what_it_changed_in_the_environment_and_which_revision_undoes_it(training: Training) -> None:
    make_active(training)
    before = Revision.objects.filter(environment_name="demo").latest("number")
    said = training.post("/start", {"--learning_rate": "0.5", "--max_train_steps": "30"}).json()
    assert said["changed"] == [
        {"option": "learning_rate", "from": None, "to": 0.5},
        {"option": "max_train_steps", "from": 20, "to": 30},
    ]
    assert said["revision"] == before.number
    assert before.config["max_train_steps"] == 20 and "learning_rate" not in before.config
    again = training.post("/start", {"--learning_rate": "0.5"}).json()
    assert (again["changed"], again["revision"]) == ([], None)
    text = training.post("/start", {"--learning_rate": "0.25"}, accept="*/*").content.decode()
    assert "Changed in demo" in text and "learning_rate: 0.5 → 0.25" in text and f"revision {before.number + 1} " in text


def test_a_start_escapes_its_changes_and_hides_their_secrets(training: Training) -> None:
    make_active(training)
    text = training.post("/start", {"--validation_prompt": "<b>bold</b>"}, accept="*/*").content.decode()
    assert "&lt;b&gt;bold" in text and "<b>bold" not in text
    said = training.post(
        "/start", {"--webhook_config": '[{"type": "raw", "callback_url": "http://127.0.0.1:9/x", "auth_token": "s3cret"}]'}
    )
    assert "s3cret" not in said.content.decode()


def test_consent_is_not_stored_for_the_next_start(training: Training) -> None:
    make_active(training)
    said = training.post("/start", {"--i_know_what_i_am_doing": "true"}).json()
    assert (said["changed"], said["revision"]) == ([], None)
    assert Job.objects.get().options["i_know_what_i_am_doing"] is True
    assert "--i_know_what_i_am_doing" not in stored(training, "demo")


@pytest.mark.parametrize(
    "changes",
    [
        {"--model_flavour": "600M-1024"},
        {"--pretrained_model_name_or_path": "another"},
        {"--pretrained_model_name_or_path": "another", "--model_family": "PixArt_Sigma"},
    ],
)
def test_a_form_of_another_base_is_a_one_off(training: Training, changes: dict[str, str]) -> None:
    make_active(training)
    shutil.copytree(training.home / "model", training.home / "another")
    before = stored(training, "demo")
    answer = training.post("/start", {"--max_train_steps": "30", **changes})
    assert answer.status_code == 200, answer.content
    said = answer.json()
    assert (said["changed"], said["revision"]) == ([], None)
    job = Job.objects.get()
    assert job.environment != "demo" and job.options["max_train_steps"] == 30
    assert stored(training, "demo") == before
    active = environments.active()
    assert active is not None and active.name == "demo"
    assert stored(training, job.environment)["--max_train_steps"] == 30


def test_a_form_that_names_the_same_base_again_is_no_one_off(training: Training) -> None:
    make_active(training)
    same = {"--model_family": "pixart_sigma", "--pretrained_model_name_or_path": training.form["--pretrained_model_name_or_path"] + "/"}
    assert training.post("/start", {**same, "--max_train_steps": "30"}).status_code == 200
    assert Job.objects.get().environment == "demo"


def test_values_of_another_familys_model_are_not_laid_under_a_form(training: Training) -> None:
    make_active(training)
    said = training.post("/validate", {"--model_family": "flux", "--model_type": "lora"}).json()
    base = [found for found in (*said["problems"], *said["notes"], *said["warnings"]) if "pretrained_model" in found["option"]]
    assert all(training.form["--pretrained_model_name_or_path"] not in found["message"] for found in base)


@pytest.mark.parametrize("name", ["job_id", "--job_id", "job-id", "--job-id"])
def test_a_job_is_named_by_every_spelling_that_options_have(training: Training, name: str) -> None:
    """A job that is named in another way must not be taken for the current one."""
    training.post("/start", training.form)
    assert training.post("/stop", {name: "nobody"}).status_code == 404
    assert training.post("/stop", {name: str(Job.objects.get().pk)}).status_code == 200


def test_options_of_another_familys_model_are_left_out_however_they_are_spelled() -> None:
    stored = {"--model-family": "pixart_sigma", "--pretrained-model-name-or-path": "/old", "--model-flavour": "600M-512", "--seed": 3}
    assert laid_under(stored, {"--model_family": "flux"}) == {"--model-family": "pixart_sigma", "--seed": 3}
