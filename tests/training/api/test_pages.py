"""What a browser, a program and curl see of one and the same call."""

from __future__ import annotations

import html
import json
from typing import Any

import pytest

from environments import services as environments
from environments.create.plan import NewEnvironment
from tests.training.conftest import Training

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
CALLS = ("/validate", "/start", "/cancel")


@pytest.mark.parametrize("path", CALLS)
def test_a_page_holds_json_and_not_the_snippet(training: Training, path: str) -> None:
    page = training.get(path, accept=BROWSER)
    text = html.unescape(page.content.decode())
    assert page.status_code == 405 and "<html" in text and '<body class="form-only">' in text
    assert "This address is for sending" in text and "alert alert-danger" not in text
    assert training.get(path, accept="application/json").status_code == 405


def test_the_page_of_a_valid_configuration_shows_it_as_json(training: Training) -> None:
    page = training.post("/validate", training.form, accept=BROWSER)
    text = html.unescape(page.content.decode())
    assert page.status_code == 200 and "<html" in text and '"valid": true' in text and "alert alert-success" not in text


def test_a_form_begins_with_what_every_run_needs(training: Training) -> None:
    text = html.unescape(training.get("/start", accept=BROWSER).content.decode())
    for name in ("model_family", "model_type", "data_backend_config", "output_dir"):
        assert f'"--{name}": ""' in text


def test_a_form_begins_with_the_active_environment(training: Training) -> None:
    environments.create_environment(
        NewEnvironment(name="demo", model_family="pixart_sigma", model_type="full", description=""), actor="test"
    )
    environments.activate("demo", actor="test")
    text = html.unescape(training.get("/validate", accept=BROWSER).content.decode())
    assert '"--model_family": "pixart_sigma"' in text


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html"])
def test_options_are_described_as_json(training: Training, path: str, accept: str) -> None:
    answer = training.client.options(f"/api/training{path}", HTTP_ACCEPT=accept)
    assert answer.status_code == 200 and answer.json()["parses"] == [
        "application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    ]


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"{", "application/json", 400, "not valid JSON"),
        (b"\xff", "application/json", 400, "not UTF-8"),
        (b"[1]", "application/json", 422, "not a JSON object"),
        (b'"text"', "application/json", 422, "not a JSON object"),
        (b'{"seed": "\\u0000"}', "application/json", 422, "NUL"),
        (b"seed=%00", "application/x-www-form-urlencoded", 422, "NUL"),
        (b"<a/>", "text/xml", 415, "text/xml"),
        (b"x", "multipart/form-data", 400, "boundary"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "application/json", 400, "deeper"),
    ],
)
@pytest.mark.parametrize("path", ["/validate", "/start"])
def test_a_body_that_cannot_be_read_is_reported_in_both_languages(
    training: Training, path: str, body: bytes, kind: str, status: int, words: str
) -> None:
    def send(accept: str) -> Any:
        return training.client.generic("POST", f"/api/training{path}", body, content_type=kind, HTTP_ACCEPT=accept)

    as_json, as_html = send("application/json"), send("*/*")
    assert (as_json.status_code, as_html.status_code) == (status, status)
    assert words in as_json.json()["detail"] and isinstance(as_json.json()["problems"], list)
    shown = html.unescape(as_html.content.decode())
    assert "alert alert-danger" in shown and words in shown
    assert ("Validation Failed" if path == "/validate" else "Cannot Start Training") in shown


def test_both_spellings_with_different_values_are_a_problem_and_with_equal_ones_none(training: Training) -> None:
    body = {name: value for name, value in training.form.items() if not name.startswith("__")}
    answer = training.post("/validate", {**body, "seed": "7"}, format="json")
    assert answer.status_code == 200, answer.content
    twice = training.post("/validate", {**body, "seed": "8"}, format="json")
    assert [(problem["option"], problem["code"]) for problem in twice.json()["problems"]] == [("seed", "conflicting_values")]


def test_in_forms_the_last_value_wins(training: Training) -> None:
    body = "&".join(f"{name}={value}" for name, value in [("--seed", "many"), *training.form.items(), ("--max_train_steps", "33")])
    answer = training.client.generic(
        "POST", "/api/training/validate", body, content_type="application/x-www-form-urlencoded", HTTP_ACCEPT="application/json"
    )
    assert answer.status_code == 200 and answer.json()["understood"]["steps"] == 33
    assert json.loads(answer.content)["valid"] is True
