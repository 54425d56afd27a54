"""A run that has ended goes on, and two runs are compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from environments import history
from environments import services as environments
from environments.secrets import store
from environments.secrets.store import Owner
from tests.helpers.checkpoint_folder import write_checkpoint
from tests.training.conftest import Training
from trainer_engine.contract.errors import Problem
from training.models import Job, Status

HOOK = '[{"webhook_type": "raw", "callback_url": "http://127.0.0.1:9/secret-path"}]'


def ended(training: Training, **changes: Any) -> Job:
    """A run that was started and has ended."""
    job = Job.objects.get(pk=training.start(**changes)["job_id"])
    Job.objects.filter(pk=job.pk).update(status=Status.STOPPED)
    job.refresh_from_db()
    save(job)
    return job


def save(job: Job) -> None:
    """A checkpoint that the options of the run can go on from."""
    state = {"identity": {"model_family": "pixart_sigma", "model_type": "full"}}
    (write_checkpoint(Path(job.output_dir), 4) / "training_state.json").write_text(json.dumps(state))


def resume(training: Training, job: Job, **options: Any) -> Any:
    return training.post(f"/jobs/{job.pk}/resume", options)


def options_of(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.content
    job = Job.objects.get(pk=answer.json()["job_id"])
    return dict(job.options)


def test_a_run_goes_on_with_its_own_options(training: Training) -> None:
    job = ended(training)
    again = options_of(resume(training, job))
    assert again == {**job.options, "resume_from_checkpoint": "latest"}
    assert Job.objects.count() == 2


def test_options_that_its_environment_has_otherwise_by_now_are_those_of_the_run(training: Training) -> None:
    job = ended(training)
    row = environments.find(job.environment)
    environments.update_environment(row.name, config={**row.config, "seed": 99, "optimizer": "torch-adamw"}, actor="test")
    answer = resume(training, job)
    assert options_of(answer) == {**job.options, "resume_from_checkpoint": "latest"}
    changed = {one["option"]: (one["from"], one["to"]) for one in answer.json()["changed"]}
    assert changed["seed"] == (99, 7) and set(changed) <= {"seed", "optimizer", "resume_from_checkpoint"}
    assert history.revisions(row.name)[0].action == "started"


def test_a_run_goes_on_with_the_options_that_the_request_changes(training: Training) -> None:
    job = ended(training)
    assert options_of(resume(training, job, **{"--max_train_steps": "40"}))["max_train_steps"] == 40


def test_a_run_goes_on_with_its_secrets(training: Training) -> None:
    job = ended(training, **{"--webhook_config": HOOK})
    row = environments.find(job.environment)
    without = {name: value for name, value in row.config.items() if name != "webhook_config"}
    environments.update_environment(row.name, config=without, actor="test")
    answer = resume(training, job)
    assert b"secret-path" not in answer.content
    again = options_of(answer)
    assert "secret-path" not in str(again)
    found = store.read(environments.current_home(), Owner("jobs", answer.json()["job_id"]))
    assert "secret-path" in found["webhook_config"]


def test_a_run_that_saved_nothing_has_nothing_to_go_on_from(training: Training) -> None:
    job = ended(training)
    shutil.rmtree(job.output_dir)
    answer = resume(training, job)
    assert answer.status_code == 409 and [one["code"] for one in answer.json()["problems"]] == ["no_checkpoint"]


def test_an_environment_that_is_for_another_model_by_now_is_left_alone(training: Training) -> None:
    job = ended(training)
    row = environments.find(job.environment)
    other = {**row.config, "model_family": "sd1x", "pretrained_model_name_or_path": "someone/other"}
    environments.update_environment(row.name, config=other, actor="test")
    before = environments.find(row.name).config
    answer = resume(training, job)
    assert answer.status_code == 409 and [one["code"] for one in answer.json()["problems"]] == ["other_model"]
    assert environments.find(row.name).config == before


def test_an_environment_that_cannot_be_resolved_today_gets_no_options_that_it_had_by_default(training: Training) -> None:
    job = ended(training)
    row = environments.find(job.environment)
    without = {name: value for name, value in row.config.items() if name != "output_dir"}
    environments.update_environment(row.name, config=without, actor="test")
    changed = resume(training, job).json()["changed"]
    assert len(changed) < 20 and "output_dir" in {one["option"] for one in changed}


def test_a_full_disk_is_a_refusal(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ended(training)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "secrets")

    monkeypatch.setattr("training.jobs.secrets.keep", full)
    answer = resume(training, job)
    assert answer.status_code == 409 and "No space left" in answer.json()["detail"] and Job.objects.count() == 1


def test_a_key_gives_its_run_also_when_the_environment_is_gone(training: Training) -> None:
    job = ended(training)
    first = training.post(f"/jobs/{job.pk}/resume", {}, HTTP_IDEMPOTENCY_KEY="once")
    environments.delete_environment(job.environment, actor="test")
    again = training.post(f"/jobs/{job.pk}/resume", {}, HTTP_IDEMPOTENCY_KEY="once")
    assert (again.status_code, again.json()["job_id"]) == (200, first.json()["job_id"])


def test_one_key_makes_one_run(training: Training) -> None:
    job = ended(training)
    answers = [training.post(f"/jobs/{job.pk}/resume", {}, HTTP_IDEMPOTENCY_KEY="once").json()["job_id"] for _ in range(2)]
    assert answers[0] == answers[1] and Job.objects.count() == 2


def test_a_run_that_has_not_ended_does_not_go_on(training: Training) -> None:
    job = Job.objects.get(pk=training.start()["job_id"])
    answer = resume(training, job)
    assert answer.status_code == 409 and "has not ended" in answer.json()["detail"]
    assert training.post("/jobs/none/resume", {}).status_code == 404


def test_a_run_whose_environment_is_gone_says_how_to_bring_it_back(training: Training) -> None:
    job = ended(training)
    environments.delete_environment(job.environment, actor="test")
    answer = resume(training, job)
    (problem,) = answer.json()["problems"]
    assert answer.status_code == 409 and set(problem) == set(Problem.error("a", "b", "c").as_dict())
    assert problem["code"] == "no_environment" and f"/api/configs/{job.environment}/restore" in problem["hint"]
    history.restore(job.environment, 1, actor="test")
    assert resume(training, job).status_code == 200


def test_a_wrong_option_is_refused_as_by_start(training: Training) -> None:
    job = ended(training)
    answer = resume(training, job, **{"--learning_rate": "fast", "--no_such_option": "1"})
    assert answer.status_code == 422
    assert {problem["option"] for problem in answer.json()["problems"]} >= {"learning_rate", "no_such_option"}
    html = training.post(f"/jobs/{job.pk}/resume", {"--learning_rate": "fast"}, accept="*/*").content.decode()
    assert "Cannot Resume Training" in html and "alert-danger" in html


@pytest.mark.parametrize("swap", [False, True])
def test_two_runs_are_compared(training: Training, swap: bool) -> None:
    one, two = ended(training), ended(training, **{"--seed": "8", "--webhook_config": HOOK, "--output_dir": "output/two"})
    runs = (two, one) if swap else (one, two)
    answer = training.get(f"/jobs/{runs[0].pk}/diff/{runs[1].pk}")
    assert b"secret-path" not in answer.content
    changed = {row["option"]: (row["from"], row["to"]) for row in answer.json()["changed"]}
    assert {"seed", "output_dir", "webhook_config"} <= set(changed)
    assert changed["seed"] == ((8, 7) if swap else (7, 8))
    assert training.get(f"/jobs/{one.pk}/diff/{one.pk}").json()["changed"] == []
    assert training.get(f"/jobs/{one.pk}/diff/none").status_code == 404
