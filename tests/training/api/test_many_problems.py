"""However much is wrong, an answer lists a hundred problems and counts the rest, and few names are compared with the known ones."""

from __future__ import annotations

import difflib
import json
from typing import Any

import pytest

from environments.files.json_text import MOST_VALUES
from tests.training.conftest import Training
from trainer_engine.contract.errors import MOST_PROBLEMS
from trainer_engine.contract.messages import MOST_ASKED

COUNT = 5_000
MANY = {f"learning_rat{number}": number for number in range(COUNT)}
GOOD = {"algo": "lokr", "multiplier": 1, "linear_dim": 4, "linear_alpha": 1}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that were compared with the known ones."""
    names: list[str] = []
    compare = difflib.get_close_matches

    def counted(name: str, *args: Any, **keywords: Any) -> list[str]:
        names.append(name)
        return compare(name, *args, **keywords)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    return names


def configs(training: Training, method: str, path: str, body: Any) -> Any:
    return training.client.generic(method, f"/api/configs{path}", json.dumps(body), content_type="application/json")


def assert_limited(problems: list[dict[str, str]], left_out: int) -> None:
    assert len(problems) == MOST_PROBLEMS + 1
    assert (problems[-1]["code"], problems[-1]["got"]) == ("more_problems", str(left_out))


@pytest.mark.parametrize("call", ["/validate", "/start"])
def test_a_run_with_very_many_unknown_options(training: Training, asked: list[str], call: str) -> None:
    answer = training.client.post(f"/api/training{call}", MANY, format="json", HTTP_ACCEPT="application/json")
    assert answer.status_code == 422
    shown = answer.json()["problems"]
    assert_limited(shown, COUNT + 4 - MOST_PROBLEMS)  # and four required options are missing
    assert len(asked) <= 2 * MOST_ASKED  # form and environment
    assert len(answer.content) < 100_000


def test_the_snippet_lists_as_many(training: Training) -> None:
    answer = training.client.post("/api/training/validate", MANY, format="json")
    assert answer.status_code == 422 and answer.content.count(b"<li>") == MOST_PROBLEMS + 1
    assert b"more problems are not listed" in answer.content


def test_an_adapter_file_with_very_many_unknown_keys(training: Training, asked: list[str]) -> None:
    for document in ({**GOOD, **MANY}, {**GOOD, "apply_preset": MANY}, {**GOOD, "apply_preset": {"name_algo_map": {"x": MANY}}}):
        asked.clear()
        answer = configs(training, "POST", "/lycoris/validate", document)
        said = answer.json()
        assert_limited(said["problems"], COUNT - MOST_PROBLEMS)
        assert len(said["errors"]) == MOST_PROBLEMS + 1
        assert len(asked) <= MOST_ASKED and len(answer.content) < 200_000


def test_a_stored_configuration_with_very_many_unknown_options(training: Training, asked: list[str]) -> None:
    assert configs(training, "POST", "/environments", {"name": "demo", "model_family": "pixart_sigma"}).status_code == 200
    config = configs(training, "GET", "/demo", None).json()["config"]
    asked.clear()
    answer = configs(training, "PUT", "/demo", {"config": {**config, **MANY}})
    assert answer.status_code == 422
    assert_limited(answer.json()["problems"], COUNT - MOST_PROBLEMS)
    assert len(asked) <= 2 * MOST_ASKED
    answer = configs(training, "POST", "/environments", {"name": "other", **MANY})
    assert answer.status_code == 422 and len(answer.json()["problems"]) == MOST_PROBLEMS + 1
    path = training.home / "config" / "demo" / "config.json"
    path.write_text(json.dumps({**config, **MANY}))
    shown = configs(training, "GET", "/demo", None).json()
    assert_limited(shown["problems"], COUNT - MOST_PROBLEMS)


def test_a_datasets_file_with_very_many_unknown_fields(training: Training, asked: list[str]) -> None:
    path = training.home / "config" / "datasets.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps([{**entry, **{f"crop{number}": 1 for number in range(5_000)}} for entry in entries]))
    answer = training.post("/validate", training.form)
    assert_limited(answer.json()["problems"], 10_000 - MOST_PROBLEMS)
    assert len(asked) <= MOST_ASKED


def test_more_datasets_than_can_be_compared_are_one_problem(training: Training) -> None:
    path = training.home / "config" / "datasets.json"
    path.write_text(json.dumps([{"id": str(number)} for number in range(20_000)]))
    answer = training.post("/validate", training.form)
    assert [one["code"] for one in answer.json()["problems"]] == ["too_many"]


def test_a_long_name_is_not_repeated_with_every_problem(training: Training) -> None:
    document = {**GOOD, "apply_preset": {"name_algo_map": {"x" * 500_000: {f"k{number}": 1 for number in range(200)}}}}
    assert len(configs(training, "POST", "/lycoris/validate", document).content) < 2_000_000


def test_a_body_of_too_many_values_is_refused_as_one(training: Training) -> None:
    answer = configs(training, "POST", "/lycoris/validate", [0] * (MOST_VALUES + 1))
    assert answer.status_code == 400 and str(MOST_VALUES) in answer.json()["detail"]


def test_very_many_plain_patterns_are_matched_in_the_limited_process(training: Training) -> None:
    document = {**GOOD, "apply_preset": {"target_name": [f"a.b{number}" for number in range(40_000)]}}
    assert configs(training, "POST", "/lycoris/validate", document).json()["valid"] is True
