"""Many hands at one environment: row, file, secrets and history agree afterwards, whoever came first."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rest_framework.test import APIClient

from environments import services
from environments.create.plan import NewEnvironment
from environments.errors import EnvironmentChanged
from environments.home import current_home
from environments.models import Environment, Revision
from environments.seen import Seen, adapter_version, datasets_version, options_version
from tests.helpers.races import at_once

pytestmark = pytest.mark.django_db(transaction=True)


def statuses_of(calls: list[Callable[[APIClient], Any]]) -> list[int]:
    """The status of each call, when all are made at the same moment."""
    return [answer.status_code for answer in at_once(*(partial(call, APIClient()) for call in calls))]


def new(name: str = "demo") -> Environment:
    return services.create_environment(NewEnvironment(name, "pixart_sigma", model_type="full"), actor="test")


def on_disk(home: Path, name: str = "demo") -> dict[str, Any]:
    document: dict[str, Any] = json.loads((home / "config" / name / "config.json").read_text())
    return {key.lstrip("-"): value for key, value in document.items()}


def put(config: dict[str, Any], **changes: Any) -> Callable[[APIClient], Any]:
    return lambda client: client.put("/api/configs/demo", {"config": {**config, **changes}}, format="json")


def test_one_of_many_that_create_a_name_succeeds(home: Path) -> None:
    body = {"name": "demo", "model_family": "pixart_sigma", "model_type": "full"}
    statuses = statuses_of([lambda client: client.post("/api/configs/environments", body, format="json")] * 6)
    assert sorted(statuses) == [200, *[409] * 5]
    assert Environment.objects.count() == 1
    assert list(Revision.objects.values_list("action", "number")) == [("created", 1)]


def test_the_last_of_many_changes_stands_in_row_file_and_history(home: Path) -> None:
    config = new().config
    assert statuses_of([put(config, seed=seed) for seed in range(6)]) == [200] * 6
    row = Environment.objects.get()
    newest = Revision.objects.order_by("-number").first()
    assert newest is not None and newest.config == row.config == on_disk(home)
    assert sorted(Revision.objects.values_list("number", flat=True)) == list(range(1, 8))
    assert sorted(Revision.objects.exclude(number=1).values_list("config__seed", flat=True)) == list(range(6))


def test_secrets_of_many_changes_belong_to_the_change_that_stands(home: Path) -> None:
    config = new().config

    def hook(number: int) -> str:
        return json.dumps([{"webhook_type": "raw", "callback_url": "http://127.0.0.1:9/", "auth_token": f"word-{number}"}])

    assert statuses_of([put(config, seed=number, webhook_config=hook(number)) for number in range(5)]) == [200] * 5
    stored = (home / "state/secrets/environments/demo.json").read_text()
    assert f"word-{on_disk(home)['seed']}" in stored and stored.count("word-") == 1
    assert "word-" not in json.dumps([on_disk(home), *Revision.objects.values_list("config", flat=True)])


@pytest.mark.parametrize("part", ["options", "datasets", "adapter"])
def test_one_of_many_that_save_the_same_form_succeeds(home: Path, part: str) -> None:
    """Each has seen the same, so whoever is second would take the first one's change back."""
    request = NewEnvironment("demo", "flux", "kontext", model_type="lora", lora_type="lycoris")
    row, folder = services.create_environment(request, actor="test"), home / "config/demo"
    datasets = json.loads((folder / "multidatabackend.json").read_text())
    adapter = json.loads((folder / "lycoris_config.json").read_text())
    versions = {
        "options": options_version(row),
        "datasets": datasets_version(row, current_home()),
        "adapter": adapter_version(row, current_home()),
    }
    seen = Seen(**{part: versions[part]})

    def save(number: int) -> object:
        if part == "options":
            return services.update_environment("demo", config={**row.config, "seed": number}, actor="test", seen=seen)
        if part == "datasets":
            return services.write_datasets_file("demo", [{**datasets[0], "repeats": number}, *datasets[1:]], actor="test", seen=seen)
        return services.write_adapter_file("demo", {**adapter, "linear_dim": number}, actor="test", seen=seen)

    results = at_once(*(partial(save, number) for number in range(1, 6)))
    assert sum(isinstance(result, EnvironmentChanged) for result in results) == 4, results
    assert Revision.objects.count() == 2


def test_one_environment_is_active_after_many_activations(home: Path) -> None:
    names = [new(f"env-{number}").name for number in range(4)]
    assert statuses_of([lambda client, name=name: client.post(f"/api/configs/{name}/activate") for name in names * 2]) == [200] * 8
    active = Environment.objects.get(is_active=True).name
    assert Revision.objects.filter(action="activated").order_by("-pk")[0].environment_name == active


def test_a_deletion_among_changes_leaves_all_or_nothing(home: Path) -> None:
    for _ in range(4):
        config = new().config
        calls = [put(config, seed=1), lambda client: client.delete("/api/configs/demo"), put(config, seed=2)]
        statuses = statuses_of(calls)
        assert statuses[1] == 200 and set(statuses) <= {200, 404}
        assert not Environment.objects.exists() and not (home / "config/demo/config.json").exists()
        assert Revision.objects.order_by("-number")[0].action == "deleted"
        Revision.objects.all().delete()


def test_an_activation_and_a_deletion_never_leave_an_active_environment_without_a_row(home: Path) -> None:
    for _ in range(4):
        new()
        activated, deleted = statuses_of(
            [lambda client: client.post("/api/configs/demo/activate"), lambda client: client.delete("/api/configs/demo")]
        )
        assert (activated, deleted) in ((200, 409), (404, 200))
        assert Environment.objects.filter(is_active=True).count() == (1 if activated == 200 else 0)
        Environment.objects.update(is_active=False)
        if activated == 200:
            services.delete_environment("demo", actor="test")


def test_readers_adopt_a_folder_made_by_hand_once(home: Path) -> None:
    (home / "config/mine").mkdir()
    (home / "config/mine/config.json").write_text('{"--model_family": "pixart_sigma", "--model_type": "full"}')
    assert statuses_of([lambda client: client.get("/api/configs/mine")] * 6) == [200] * 6
    assert list(Revision.objects.values_list("environment_name", "action")) == [("mine", "adopted")]


def test_readers_take_an_edit_by_hand_once(home: Path) -> None:
    new()
    path = home / "config/demo/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "--seed": 77}))
    assert set(statuses_of([lambda client: client.get("/api/configs/demo")] * 6)) == {200}
    assert Environment.objects.get().config["seed"] == 77
    assert Revision.objects.filter(action="hand_edited").count() == 1
