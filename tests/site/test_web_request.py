"""What Twisted would read of a form for itself is left to Django, which says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.live_server import LiveServer, start_server

JSON = {"Accept": "application/json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with start_server(tmp_path_factory.mktemp("home")) as live:
        yield live


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=x; charset=é"])
@pytest.mark.parametrize("path", ["/api/training/validate", "/api/training/start", "/api/training/cancel", "/api/configs/environments"])
def test_a_form_that_cannot_be_read_is_reported_as_json(server: LiveServer, path: str, kind: str) -> None:
    answer = server.post(path, content=b"junk", headers={**JSON, "Content-Type": kind.encode()})
    assert 400 <= answer.status_code < 500
    assert answer.json()["detail"]


def test_a_form_is_read_completely(server: LiveServer) -> None:
    fields = {"--optimizer": "adam?", "--seed": "<token> & é", "__active_tab__": "model"}
    for answer in (
        server.post("/api/training/validate?x=1&y=%20", data=fields, headers=JSON),
        server.post("/api/training/validate/", files={name: (None, value) for name, value in fields.items()}, headers=JSON),
    ):
        assert answer.status_code == 422 and answer.reason_phrase == "Unprocessable Entity"
        reported = {problem["option"]: problem["got"] for problem in answer.json()["problems"]}
        assert (reported["optimizer"], reported["seed"]) == ("adam?", "<token> & é")


def test_an_environment_is_made_from_fields_with_dashes(server: LiveServer) -> None:
    fields = {"--name": "dashes", "--model_family": "pixart_sigma", "--model_type": "full", "__active_tab__": "model"}
    assert server.post("/api/configs/environments", json=fields).json()["environment"]["name"] == "dashes"
    again = server.post("/api/configs/environments", data={**fields, "--name": "dashes-2"})
    assert again.json()["message"] == "Environment 'dashes-2' created"
