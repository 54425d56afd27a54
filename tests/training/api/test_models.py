"""``/api/options`` and ``/api/models`` say what a form needs to know."""

from __future__ import annotations

import pytest
from django.test import Client

from trainer_engine.config.families import specs
from trainer_engine.config.options import REGISTRY
from trainer_engine.config.parse import check_options

pytestmark = pytest.mark.django_db


def test_every_option_is_listed_with_its_default(client: Client) -> None:
    answer = client.get("/api/options").json()
    assert [one["name"] for one in answer["options"]] == list(REGISTRY) and answer["count"] == len(REGISTRY)
    found = {one["name"]: one for one in answer["options"]}
    rate = found["learning_rate"]
    assert (rate["type"], rate["default"], rate["effective_default"]) == ("float", REGISTRY["learning_rate"].default, rate["default"])
    assert set(rate["bounds"]) == set(REGISTRY["learning_rate"].bounds)
    assert found["lora_type"]["choices"] == ["standard", "lycoris"]
    assert {one["name"] for one in answer["groups"]} == {one["group"] for one in answer["options"]}
    assert answer["family"] is None


@pytest.mark.parametrize("family", list(specs()))
def test_defaults_of_a_family_are_values_that_a_run_takes(client: Client, family: str) -> None:
    answer = client.get("/api/options", {"family": family}).json()
    spec = specs()[family]
    found = {one["name"]: one["effective_default"] for one in answer["options"]}
    for name, value in spec.defaults_of(spec.default_flavour).items():
        assert found[name] == value
    needed = {"model_family": family, "model_type": "lora", "data_backend_config": "x.json", "output_dir": "x", "max_train_steps": 1}
    given = {name: value for name, value in found.items() if value is not None and name not in needed and value != {}}
    assert not [
        problem for problem in check_options({**given, **needed})[1] if problem.code in ("not_a_choice", "out_of_range", "not_a_number")
    ]


def test_an_alias_means_its_family_and_a_flavour_its_defaults(client: Client) -> None:
    answer = client.get("/api/options", {"family": "pixart", "flavour": "900M-1024-v0.6"}).json()
    assert (answer["family"], answer["flavour"]) == ("pixart_sigma", "900M-1024-v0.6")


@pytest.mark.parametrize(
    ("query", "option"),
    [({"family": "nothing"}, "family"), ({"family": "flux", "flavour": "x"}, "flavour"), ({"flavour": "dev"}, "family")],
)
def test_what_is_unknown_is_named(client: Client, query: dict[str, str], option: str) -> None:
    answer = client.get("/api/options", query)
    assert answer.status_code == 422
    (problem,) = answer.json()["problems"]
    assert problem["option"] == option and problem["expected"].startswith("one of ")


def test_every_flavour_is_listed_with_what_it_needs(client: Client) -> None:
    answer = client.get("/api/models").json()
    assert [one["name"] for one in answer["families"]] == list(specs()) and answer["count"] == len(specs())
    for family in answer["families"]:
        spec = specs()[family["name"]]
        assert {one["name"]: one["repository"] for one in family["flavours"]} == dict(spec.flavours)
        assert [one["name"] for one in family["flavours"] if one["is_default"]] == [spec.default_flavour]
        for flavour in family["flavours"]:
            memory = flavour["memory_gib"]
            assert (memory["full"] is not None) == ("full" in spec.model_types)
            assert memory["lora"] > 0 and all(
                number is None or number <= memory["lora"] for number in (memory["lora_int8"], memory["lora_nf4"])
            )
