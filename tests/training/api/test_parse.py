"""What a request may say of numbers, jobs and fields, and what it is told otherwise."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.jobs import make_job
from tests.training.conftest import Training
from training.api import parse
from training.errors import BadValue, JobNotFound, TrainingRefused
from training.models import Job, Status


@given(st.integers(0, parse.LARGEST_INDEX))
def test_every_index_that_a_log_can_have_is_read(number: int) -> None:
    assert parse.whole_number(str(number), "since_index", default=5) == number


@given(st.text(max_size=24) | st.integers().map(str))
def test_any_other_text_is_refused_by_its_name(text: str) -> None:
    try:
        number = parse.whole_number(text, "limit", default=5, smallest=1, largest=100)
    except BadValue as refusal:
        assert refusal.problems[0].option == "limit" and len(refusal.problems[0].got) < 300
    else:
        assert 1 <= number <= 100 and int(text) == number


@pytest.mark.parametrize("text", ["0", "-1", "+1", "1.0", "1e2", " 1", "1 ", "1_0", "٣", "²", "0x1", str(2**63), "9" * 400, "nan", "1\n"])
def test_numbers_that_only_python_reads_are_refused(text: str) -> None:
    with pytest.raises(BadValue):
        parse.whole_number(text, "limit", default=1, smallest=1)


@pytest.mark.django_db
def test_a_job_is_found_by_every_notation_of_its_id_and_by_nothing_else(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    for text in (str(job.pk), str(job.pk).upper(), job.pk.hex, f"{{{job.pk}}}", f"urn:uuid:{job.pk}"):
        assert parse.named_job(text) == job
    for text in ("", "x", str(job.pk)[:-1], f"{job.pk}/", str(uuid.UUID(int=5)), "\udcff", "0" * 4000):
        with pytest.raises(JobNotFound) as refusal:
            parse.named_job(text)
        assert len(str(refusal.value.detail)) < 200


@pytest.mark.django_db
def test_without_an_id_the_running_job_is_meant_then_the_queue_then_the_last(tmp_path: Path) -> None:
    assert parse.job_of(None) is None and parse.job_of("") is None
    ended = make_job(tmp_path, Status.COMPLETED)
    assert parse.job_of(None) == ended
    first, _ = make_job(tmp_path), make_job(tmp_path)
    assert parse.job_of(None) == first
    running = make_job(tmp_path, Status.STOPPING)
    assert parse.job_of("") == running
    Job.objects.exclude(pk=ended.pk).delete()
    assert parse.job_of(None) == ended


@pytest.mark.parametrize("call", ["stop", "cancel", "validation/run", "checkpoint/run", "checkpoints"])
@pytest.mark.parametrize("job_id", [5, ["x"], {"a": 1}, True, 1.5])
def test_an_id_that_is_no_text_is_refused(training: Training, call: str, job_id: Any) -> None:
    answer = training.client.post(f"/api/training/{call}", {"job_id": job_id}, format="json", HTTP_ACCEPT="application/json")
    assert answer.status_code == 422
    assert [problem["option"] for problem in answer.json()["problems"]] == ["job_id"]


@pytest.mark.django_db
@pytest.mark.parametrize("call", ["stop", "cancel", "validation/run", "checkpoint/run"])
def test_a_call_with_an_unknown_id_touches_no_other_job(training: Training, call: str) -> None:
    job = make_job(training.home, Status.RUNNING)
    for sent in ({"job_id": str(uuid.UUID(int=5))}, {"--job_id": "nobody"}):
        assert training.post(f"/{call}", sent).status_code == 404
    job.refresh_from_db()
    assert job.status == Status.RUNNING and not job.folder.commands.exists()


def test_marks_of_pages_are_no_options(training: Training) -> None:
    marks = {"__active_tab__": "x", "csrfmiddlewaretoken": "y", "__a__": "z"}
    assert training.post("/validate", {**training.form, **marks}).status_code == 200
    for name in ("____", "__", "__x", "x__"):
        answer = training.post("/validate", {**training.form, name: "1"})
        assert answer.status_code == 422, name


@pytest.mark.parametrize("name", ["--seed\0", "--validation_prompt"])
def test_a_zero_character_is_refused_with_the_name_of_its_field(training: Training, name: str) -> None:
    answer = training.post("/validate", {**training.form, name: "a" if "\0" in name else "a\0b"})
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["option"] in ("seed", "validation_prompt")


def test_refusals_keep_their_status_and_their_problems() -> None:
    kinds = {kind.__name__: kind.status_code for kind in TrainingRefused.__subclasses__()}
    assert kinds["JobNotFound"] == 404 and kinds["NoActiveJob"] == 400 and kinds["TooManyStreams"] == 503
    assert all(400 <= status < 504 for status in kinds.values())
