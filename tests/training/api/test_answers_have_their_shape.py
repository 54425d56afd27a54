"""Every answer of the API has the keys, types and nulls that its serializer, and so the OpenAPI schema, promises."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from rest_framework import serializers as drf

from environments.api import serializers as environments
from tests.helpers.jobs import make_job
from tests.training.api.test_reads import PIXEL, write_checkpoint
from tests.training.conftest import Training
from trainer_engine.config.webhooks import WebhookTarget
from trainer_engine.contract.events import CheckpointEvent, ImageEvent, MediaFile, StageEvent, StageKey, StageStatus
from training.api import serializers
from training.jobs import log
from training.models import Delivery, Job, Status, WebhookDelivery
from training.webhooks import outbox
from training.webhooks import serializers as webhooks

NEW = {"name": "demo", "model_family": "pixart_sigma", "model_type": "lora", "lora_type": "lycoris", "description": "a try"}
HOOK = [{"webhook_type": "raw", "callback_url": "http://127.0.0.1:9/hook", "auth_token": "word"}]


def mismatches(shape: drf.Field, answer: Any, where: str) -> Iterator[str]:  # type: ignore[type-arg]
    """What an answer has that its shape does not promise, and the other way round."""
    if answer is None:
        if not shape.allow_null:
            yield f"{where} is null"
    elif isinstance(shape, drf.ListSerializer):
        for number, item in enumerate(answer):
            yield from mismatches(shape.child, item, f"{where}[{number}]")
    elif isinstance(shape, drf.Serializer):
        yield from (f"{where} has {name}, which is not promised" for name in sorted(set(answer) - set(shape.fields)))
        for name, field in shape.fields.items():
            if name in answer:
                yield from mismatches(field, answer[name], f"{where}.{name}")
            elif field.required:
                yield f"{where} lacks {name}"
    else:
        try:
            shape.run_validation(answer)
        except drf.ValidationError as error:
            yield f"{where} is {answer!r}: {error.detail}"


def check(shape: type[drf.Serializer[Any]], answer: Any, status: int = 200) -> Any:
    assert answer.status_code == status, answer.content
    assert list(mismatches(shape(), answer.json(), shape.__name__)) == []
    return answer.json()


@pytest.fixture
def configs(training: Training) -> Any:
    """Calls below /api, as JSON."""

    def call(method: str, path: str, body: Any = None) -> Any:
        kind = {} if body is None else {"content_type": "application/json"}
        text = "" if body is None else json.dumps(body)
        return training.client.generic(method, f"/api{path}", text, HTTP_ACCEPT="application/json", **kind)

    return call


def test_answers_about_environments_have_their_shape(configs: Any) -> None:
    check(environments.ActiveSerializer, configs("GET", "/configs/active"))
    check(environments.CreatedSerializer, configs("POST", "/configs/environments", NEW))
    config = check(environments.EnvironmentSerializer, configs("GET", "/configs/demo"))["config"]
    check(environments.UpdatedSerializer, configs("PUT", "/configs/demo", {"config": {**config, "--seed": 3}, "tags": ["a"]}))
    check(environments.ActivatedSerializer, configs("POST", "/configs/demo/activate"))
    check(environments.ActiveSerializer, configs("GET", "/configs/active"))
    check(environments.RegeneratedSerializer, configs("POST", "/configs/demo/dataloader", {}))
    check(environments.ExamplesSerializer, configs("GET", "/configs/examples"))
    for kind in ("model", "dataloader", "lycoris", "webhook"):
        check(environments.ListSerializer, configs("GET", f"/configs?config_type={kind}"))
    check(environments.CreatedSerializer, configs("POST", "/configs/environments", {"name": "other", "model_family": "sdxl"}))
    check(environments.MessageSerializer, configs("DELETE", "/configs/other"))


def test_an_environment_whose_file_is_broken_has_its_shape(configs: Any, training: Training) -> None:
    configs("POST", "/configs/environments", NEW)
    (training.home / "config/demo/config.json").write_text('{"--seed": "many"}')
    assert check(environments.EnvironmentSerializer, configs("GET", "/configs/demo"))["problems"]


def test_answers_about_adapter_files_have_their_shape(configs: Any) -> None:
    configs("POST", "/configs/environments", NEW)
    document = check(environments.AdapterShownSerializer, configs("GET", "/configs/environments/demo/lycoris"))["config"]
    check(environments.AdapterWrittenSerializer, configs("PUT", "/configs/environments/demo/lycoris", document))
    check(environments.AdapterCheckedSerializer, configs("POST", "/configs/lycoris/validate", document))
    wrong = configs("POST", "/configs/lycoris/validate", {"config": {"algo": "nothing", "x": 1}, "model_family": "pixart_sigma"})
    assert not check(environments.AdapterCheckedSerializer, wrong)["valid"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/configs/nothing", None, 404),
        ("POST", "/configs/environments", {"name": "../x", "seed": 1}, 422),
        ("POST", "/configs/environments", {**NEW, "name": "demo"}, 409),
        ("PUT", "/configs/demo", {"config": {"--seed": "many", "--unheard": 1}}, 422),
        ("PUT", "/configs/demo", [], 422),
        ("GET", "/configs?config_type=other", None, 422),
        ("PATCH", "/configs/demo", {}, 405),
        ("PUT", "/webhooks/lab", [{"webhook_type": "raw"}], 422),
        ("GET", "/webhooks/nothing", None, 404),
        ("GET", "/training/jobs/nobody", None, 404),
        ("GET", "/training/events?limit=0", None, 422),
        ("POST", "/training/validation/run", {}, 400),
        ("POST", "/training/stop", {"job_id": 5}, 422),
    ],
)
def test_refusals_have_their_shape(configs: Any, method: str, path: str, body: Any, status: int) -> None:
    configs("POST", "/configs/environments", NEW)
    shape = serializers.RefusalSerializer if path.startswith("/training") else environments.ErrorSerializer
    check(shape, configs(method, path, body), status)


def test_answers_to_validate_and_start_have_their_shape(training: Training) -> None:
    check(serializers.ValidationSerializer, training.post("/validate", training.form))
    wrong = check(serializers.InvalidSerializer, training.post("/validate", {**training.form, "--seed": "many"}), 422)
    assert wrong["valid"] is False
    check(serializers.InvalidSerializer, training.post("/start", {"--seed": "7"}), 422)
    check(serializers.InvalidSerializer, training.client.post("/api/training/start?format=json", [], format="json"), 422)
    check(serializers.StartedSerializer, training.post("/start", training.form))
    check(serializers.StatusSerializer, training.get("/status"))
    for call in ("validation/run", "checkpoint/run"):
        check(serializers.CommandSerializer, training.post(f"/{call}"))
    check(serializers.RunMessageSerializer, training.post("/stop"))
    check(serializers.RunMessageSerializer, training.post("/stop"))
    check(serializers.RunMessageSerializer, training.post("/cancel"))


@pytest.fixture
def eventful(training: Training) -> Job:
    """A job that has every kind of event, a checkpoint on disk and a webhook that fails."""
    output = training.home / "output/run"
    write_checkpoint(output, 5, evaluation={"loss": 0.25, "measure": "ab", "datasets": ["held-out"]})
    write_checkpoint(output, 7)
    progress = {"step": 5, "total_steps": 9, "epoch": 1, "loss": None, "learning_rate": 1e-4, "eta_seconds": 3.0, "metrics": {"a": 1.0}}
    startup = {"init_vae_cache": {"label": "l", "progress_type": "counted", "status": "running", "percent": 5.0, "current": 1, "total": 2}}
    job = make_job(training.home, Status.RUNNING, output_dir=str(output), progress=progress, startup=startup, plan={"epochs": 1})
    (job.folder.create().path / "one.png").write_bytes(PIXEL)
    outbox.open_channels(job, [WebhookTarget("raw", "http://127.0.0.1:9/hook")])
    image = ImageEvent(
        step=1, global_step=5, resolution=(1, 1), validation_type="final", prompt="p", step_label="1/1", images=[MediaFile(file="one.png")]
    )  # fmt: skip
    stage = StageEvent(key=StageKey.VALIDATION, status=StageStatus.RUNNING, current=1, total=2)
    saved = CheckpointEvent(path=str(output / "checkpoint-5"), label="rolling", step=5, size_bytes=7)
    said = [log.from_server(event) for event in (image, stage, saved)]
    log.append(job.pk, [*said, log.error_event("disk_full", "full", "free some"), log.status_event(Status.STOPPING)])
    WebhookDelivery.objects.filter(index=0).update(status=Delivery.DEAD, error="HTTP 500", attempts=3)
    job.webhooks.update(failures=3)
    return job


def test_answers_about_a_run_have_their_shape(eventful: Job, training: Training) -> None:
    job = f"/jobs/{eventful.pk}"
    check(serializers.StatusSerializer, training.get("/status"))
    check(serializers.StatusSerializer, training.get(job))
    for media in ("data", "url"):
        page = check(serializers.EventPageSerializer, training.get(f"/events?job_id={eventful.pk}&media={media}"))
        assert [sorted({"stage", "checkpoint", "images"} & set(event)) for event in page["events"]] == [
            ["images"],
            ["stage"],
            ["checkpoint"],
            [],
            [],
        ]
    for method in (training.get, training.post):
        listed = check(serializers.CheckpointListSerializer, method("/checkpoints"))["checkpoints"]
        assert [(row["name"], row["is_latest"], row["is_best"]) for row in listed] == [
            ("checkpoint-7", True, False),
            ("checkpoint-5", False, True),
        ]
    check(serializers.CheckpointVerdictSerializer, training.get("/checkpoints/validate/checkpoint-5"))
    make_job(training.home)
    check(serializers.JobListSerializer, training.get("/jobs"))
    check(serializers.QueueSerializer, training.get("/queue"))


def test_answers_about_webhooks_have_their_shape(eventful: Job, training: Training, configs: Any) -> None:
    check(webhooks.JobWebhooksSerializer, training.get(f"/jobs/{eventful.pk}/webhooks"))
    check(webhooks.WebhookSerializer, configs("PUT", "/webhooks/lab", HOOK))
    check(webhooks.WebhookSerializer, configs("GET", "/webhooks/lab"))
    check(webhooks.WebhookListSerializer, configs("GET", "/webhooks"))
    check(webhooks.WebhookTestSerializer, configs("POST", "/webhooks/lab/test"))
    check(webhooks.WebhookMessageSerializer, configs("DELETE", "/webhooks/lab"))
