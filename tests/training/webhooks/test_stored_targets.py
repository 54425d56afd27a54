"""Targets stored under a name, and a run that names them."""

from __future__ import annotations

import json
from typing import Any

from environments.home import current_home
from environments.resolve.webhook_targets import load_webhooks, place_sample
from tests.helpers.receiver import receiving
from tests.training.conftest import Training
from training.jobs import secrets
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
    both = [{"webhook_type": "raw"}, *body("http://169.254.169.254/")]
    reported = training.client.put("/api/configs/webhooks/lab", both, format="json").json()["problems"]
    assert [problem["option"] for problem in reported] == ["webhook_config[0].callback_url", "webhook_config[1]"]
    assert training.client.put("/api/configs/webhooks/..", body("http://127.0.0.1:9/"), format="json").status_code in (404, 422)
    assert training.client.put("/api/configs/webhooks/.hidden", body("http://127.0.0.1:9/"), format="json").status_code == 422
    assert training.client.put("/api/configs/webhooks/lab", "7", content_type="application/json").status_code == 422


def test_a_run_freezes_its_targets(training: Training) -> None:
    (training.home / "config/hooks.json").write_text(json.dumps(body("http://127.0.0.1:9/one")))
    inline = json.dumps(body("http://127.0.0.1:9/two", auth_token="hunter2"))
    for given, path in (("config/hooks.json", "/one"), (inline, "/two")):
        started = training.start(**{"--webhook_config": given, "--webhook_reporting_interval": "10"})
        channel = WebhookChannel.objects.get(job_id=started["job_id"])
        assert channel.target["url"] == "http://127.0.0.1:9/***"
        assert [target.url for target in secrets.targets_of(started["job_id"])] == [f"http://127.0.0.1:9{path}"]
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


def test_put_accepts_what_get_shows(training: Training) -> None:
    sent = [*body("http://127.0.0.1:9/one"), {"webhook_type": "discord", "webhook_url": "http://127.0.0.1:9/hunter2"}]
    training.client.put("/api/configs/webhooks/lab", sent, format="json")
    first = training.client.get("/api/configs/webhooks/lab").json()
    assert [entry.get("webhook_url", entry.get("secret")) for entry in first["config"]] == ["***", "***"]
    path = training.home / "config/webhooks/lab.json"
    assert "hunter2" not in path.read_text() and "swordfish" not in path.read_text()
    for again in (first, first["config"]):
        assert training.client.put("/api/configs/webhooks/lab", again, format="json").json() == first
    targets, problems = load_webhooks("config/webhooks/lab.json", current_home())
    assert problems == []
    assert [(target.url, target.secret) for target in targets] == [
        ("http://127.0.0.1:9/one", "swordfish"),
        ("http://127.0.0.1:9/hunter2", ""),
    ]
    moved = [{**first["config"][0], "callback_url": "http://127.0.0.2:9/"}]
    refused = training.client.put("/api/configs/webhooks/lab", moved, format="json")
    assert [problem["code"] for problem in refused.json()["problems"]] == ["hidden_value"]


def test_a_stored_list_edited_by_hand_gives_its_secrets_to_the_store(training: Training) -> None:
    path = training.home / "config/webhooks/hand.json"
    path.parent.mkdir()
    path.write_text(json.dumps(body("http://127.0.0.1:9/hand")))
    assert training.client.get("/api/configs/webhooks").json()["count"] == 1
    assert "swordfish" not in path.read_text()
    targets, _ = load_webhooks("config/webhooks/hand.json", current_home())
    assert targets[0].secret == "swordfish"
    path.write_text("[")
    shown = training.client.get("/api/configs/webhooks/hand").json()
    assert (shown["config"], shown["problems"][0]["code"]) == (None, "unreadable_file")


def test_stars_in_a_file_of_ones_own_stand_for_nothing(training: Training) -> None:
    (training.home / "config/mine.json").write_text(json.dumps(body("http://127.0.0.1:9/", auth_token="***")))
    answer = training.post("/validate", {**training.form, "--webhook_config": "config/mine.json"})
    assert [(one["option"], one["code"]) for one in answer.json()["problems"]] == [("webhook_config[0].auth_token", "hidden_value")]


def test_the_list_of_webhooks_names_every_file_of_targets(training: Training) -> None:
    place_sample(current_home())
    training.client.put("/api/configs/webhooks/lab", body("http://127.0.0.1:9/"), format="json")
    listed = training.client.get("/api/configs?config_type=webhook").json()
    assert [row["name"] for row in listed["configs"]] == ["lab", "webhooks"]
    sample, problems = load_webhooks("config/webhooks.json", current_home())
    assert ([target.kind for target in sample], problems) == (["raw", "discord"], [])
    datasets = training.client.get("/api/configs?config_type=dataloader").json()
    assert [row["name"] for row in datasets["configs"]] == ["datasets"]


def test_a_webhook_that_stands_without_its_certificate_checked_is_a_note(training: Training) -> None:
    targets = json.dumps(body("https://127.0.0.1:9/", ssl_no_verify="true"))
    answer = training.post("/validate", {**training.form, "--webhook_config": targets}).json()
    assert [note["code"] for note in answer["notes"] if note["option"].startswith("webhook")] == ["certificate_not_checked"]
    assert answer["valid"] is True


def test_chat_messages_name_their_project(training: Training) -> None:
    targets = [
        {"webhook_type": kind, "webhook_url": "http://127.0.0.1:9/x", **more}
        for kind, more in (("discord", {}), ("slack", {"message_prefix": "mine"}))
    ]
    job_id = training.start(**{"--webhook_config": json.dumps(targets), "--tracker_project_name": "lab"})["job_id"]
    prefixes = WebhookChannel.objects.filter(job_id=job_id).order_by("place").values_list("target__message_prefix", flat=True)
    assert list(prefixes) == ["lab", "mine"]
