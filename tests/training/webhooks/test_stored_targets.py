"""Targets stored under a name, and a run that names them."""

from __future__ import annotations

import json
from typing import Any

from tests.helpers.receiver import receiving
from tests.training.conftest import Training
from training.models import Job, WebhookChannel


def body(url: str, **more: Any) -> list[dict[str, Any]]:
    return [{"webhook_type": "raw", "callback_url": url, "secret": "swordfish", **more}]


def test_targets_are_stored_shown_tested_and_forgotten(training: Training) -> None:
    with receiving() as receiver:
        put = training.client.put("/api/configs/webhooks/lab", body(receiver.url), format="json")
        assert put.status_code == 200, put.content
        assert put.json()["path"] == "config/webhooks/lab.json"
        assert "swordfish" not in put.content.decode()
        listed = training.client.get("/api/configs/webhooks").json()
        assert (listed["count"], listed["webhooks"][0]["name"]) == (1, "lab")
        tested = training.client.post("/api/configs/webhooks/lab/test").json()
        assert tested["arrived"] is True
        assert json.loads(receiver.came[0].body)["data"]["code"] == "webhook_test"
        receiver.behaviour = 500
        failed = training.client.post("/api/configs/webhooks/lab/test").json()
        assert (failed["arrived"], failed["results"][0]["error"]) == (False, "HTTP 500")
    assert training.client.delete("/api/configs/webhooks/lab").status_code == 200
    assert training.client.get("/api/configs/webhooks/lab").status_code == 404


def test_wrong_targets_and_names_are_refused_whole(training: Training) -> None:
    put = training.client.put("/api/configs/webhooks/lab", body("http://169.254.169.254/"), format="json")
    assert put.status_code == 422
    assert put.json()["problems"][0]["code"] == "address_refused"
    assert not (training.home / "config/webhooks").exists()
    assert training.client.put("/api/configs/webhooks/..", body("http://127.0.0.1:9/"), format="json").status_code in (404, 422)
    assert training.client.put("/api/configs/webhooks/.hidden", body("http://127.0.0.1:9/"), format="json").status_code == 422
    assert training.client.put("/api/configs/webhooks/lab", "7", content_type="application/json").status_code == 422


def test_a_run_freezes_its_targets(training: Training) -> None:
    (training.home / "config/hooks.json").write_text(json.dumps(body("http://127.0.0.1:9/one")))
    inline = json.dumps(body("http://127.0.0.1:9/two", auth_token="hunter2"))
    for given, path in (("config/hooks.json", "/one"), (inline, "/two")):
        started = training.start(**{"--webhook_config": given, "--webhook_reporting_interval": "10"})
        channel = WebhookChannel.objects.get(job_id=started["job_id"])
        assert channel.target["url"].endswith(path)
        assert Job.objects.get(pk=started["job_id"]).webhook_interval == 10
    status = training.get("/status").content.decode()
    assert "hunter2" not in status
    assert "swordfish" not in status


def test_wrong_targets_keep_a_run_from_starting(training: Training) -> None:
    answer = training.post("/validate", {**training.form, "--webhook_config": '[{"webhook_type":"raw"}]'})
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["option"] == "webhook_config[0].callback_url"
    missing = training.post("/validate", {**training.form, "--webhook_config": "config/none.json"})
    assert missing.json()["problems"][0]["option"] == "webhook_config"
    assert not Job.objects.exists()
