"""Errors of the API are JSON with every problem; pages get a page; nobody gets a traceback."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.http import Http404
from django.test import Client, RequestFactory
from rest_framework import serializers
from rest_framework.exceptions import APIException, MethodNotAllowed, NotFound, ParseError, UnsupportedMediaType

from simpletuner_site import errors
from trainer_engine.contract.errors import Problem


class Refused(APIException):
    status_code = 409

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("No.")
        self.problems = problems


class Part(serializers.Serializer[Any]):
    size = serializers.IntegerField(min_value=1)


class Whole(serializers.Serializer[Any]):
    name = serializers.CharField()
    part = Part()
    tags = serializers.ListField(child=serializers.CharField())

    def validate(self, attrs: Any) -> Any:
        raise serializers.ValidationError("These do not belong together.", code="mismatch")


def answer(error: Exception) -> tuple[int, Any]:
    response = errors.answer_exception(error, {})
    assert response is not None
    return response.status_code, response.data


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFound("gone"), 404),
        (MethodNotAllowed("PUT"), 405),
        (UnsupportedMediaType("text/x"), 415),
        (ParseError("bad"), 400),
        (Http404(), 404),
    ],
)
def test_the_status_is_the_error_s_and_the_body_says_why(error: Exception, status: int) -> None:
    found, body = answer(error)
    assert found == status
    assert isinstance(body["detail"], str)
    assert body["detail"]
    assert body["problems"] == []


def test_problems_that_an_error_carries_are_reported_in_full() -> None:
    problem = Problem.error("seed", "out_of_range", "seed is -1.", got=-1, expected="0 or more", hint="leave it out")
    status, body = answer(Refused([problem, problem]))
    assert status == 409
    assert body == {"detail": "No.", "problems": [problem.as_dict()] * 2}


def test_every_wrong_field_is_a_problem_named_by_its_path() -> None:
    serializer = Whole(data={"part": {"size": 0}, "tags": ["a", None]})
    with pytest.raises(serializers.ValidationError) as caught:
        serializer.is_valid(raise_exception=True)
    status, body = answer(caught.value)
    assert status == 422
    assert {problem["option"] for problem in body["problems"]} == {"name", "part.size", "tags.1"}
    assert all(set(problem) == {"option", "code", "message", "got", "expected", "hint"} for problem in body["problems"])


def test_errors_of_the_whole_body_are_reported_for_the_body() -> None:
    serializer = Whole(data={"name": "x", "part": {"size": 1}, "tags": []})
    with pytest.raises(serializers.ValidationError) as caught:
        serializer.is_valid(raise_exception=True)
    assert answer(caught.value)[1]["problems"][0]["option"] == "body"
    assert answer(caught.value)[1]["problems"][0]["code"] == "mismatch"


def test_a_fault_of_ours_is_left_to_django_which_logs_it() -> None:
    assert errors.answer_exception(RuntimeError("bug"), {}) is None


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/plain"])
def test_programs_get_json_from_outside_the_api_too(accept: str) -> None:
    request = RequestFactory().get("/nowhere", headers={"Accept": accept})
    for response, status in ((errors.page_not_found(request, Http404()), 404), (errors.server_error(request), 500)):
        assert response.status_code == status
        assert response["Content-Type"] == "application/json"
        assert json.loads(response.content)["problems"] == []


def test_browsers_get_a_page_with_a_way_back() -> None:
    request = RequestFactory().get("/<script>", headers={"Accept": "text/html,*/*"})
    content = errors.page_not_found(request, Http404()).content.decode()
    assert 'href="/"' in content
    assert "<script>" not in content


def test_the_other_pages_have_their_status() -> None:
    request = RequestFactory().get("/")
    assert errors.bad_request(request, ValueError()).status_code == 400
    assert errors.permission_denied(request, ValueError()).status_code == 403


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("files", "fields", "length", "reason"),
    [(101, 1, 1, "more than 100 files"), (1, 5001, 1, "more than 5,000 fields"), (1, 1, 9 << 20, "more than 8 MiB beside its files")],
)
def test_a_request_beyond_a_limit_is_refused_by_that_limit(client: Client, files: int, fields: int, length: int, reason: str) -> None:
    form = {f"field{number}": "x" * length for number in range(fields)}
    sent = {**form, "file": [SimpleUploadedFile(f"{number}.png", b"x") for number in range(files)]}
    answer = client.post("/api/folders/many/images", sent)
    assert answer.status_code == 400 and reason in answer.json()["detail"], answer.content
