"""Secrets of an environment: in the store alone, and never lost on the way."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from environments import services
from environments.admin.forms import datasets_of
from environments.files.config_files import write_config
from environments.home import current_home
from environments.models import Environment, Revision
from environments.paths import Home
from environments.secrets import store
from environments.secrets.store import holds_the_same, of_environment, with_secrets
from tests.environments.conftest import Api

SECRET = "canary-7f3a"
TARGETS: list[dict[str, Any]] = [
    {"webhook_type": "raw", "callback_url": "https://example.com/hook", "auth_token": SECRET, "secret": SECRET + "-key"},
    {"webhook_type": "discord", "webhook_url": f"https://discord.com/api/webhooks/1/{SECRET}"},
]


def everything(api: Api) -> str:
    """Every file of the home but the store, and every row that describes an environment."""
    files = [path for path in api.home.rglob("*") if path.is_file() and (api.home / "state/secrets") not in path.parents]
    rows = [str(list(model.objects.values())) for model in (Environment, Revision)]
    return "\n".join([*(path.read_text() for path in files), *rows])


def stored(name: str = "demo") -> Any:
    text = store.read(current_home(), of_environment(name)).get("webhook_config")
    return json.loads(text) if text else None


def config_file(api: Api) -> Path:
    return api.home / "config/demo/config.json"


def write_by_hand(api: Api, **changes: Any) -> None:
    document = json.loads(config_file(api).read_text()) | {f"--{name}": value for name, value in changes.items()}
    config_file(api).write_text(json.dumps(document))


@pytest.mark.parametrize("as_text", [True, False])
def test_put_keeps_secrets_apart_and_get_put_get_loses_nothing(api: Api, as_text: bool) -> None:
    api.create()
    api.put("demo", webhook_config=json.dumps(TARGETS) if as_text else TARGETS)
    first = api.get("/demo")["config"]
    assert SECRET not in json.dumps(first)
    assert [entry.get("auth_token") for entry in json.loads(first["--webhook_config"])] == ["***", None]
    assert stored() == TARGETS
    assert SECRET not in everything(api)
    api.put("demo")
    assert api.get("/demo")["config"] == first
    assert stored() == TARGETS
    assert SECRET not in json.dumps(api.get("/demo/export"))


def test_the_store_is_closed_to_everybody_else(api: Api) -> None:
    api.create()
    api.put("demo", webhook_config=TARGETS)
    path = of_environment("demo").file(current_home())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (path.parent, path.parents[1])} == {0o700}


def test_a_file_edited_by_hand_gives_its_secrets_to_the_store(api: Api) -> None:
    api.create()
    write_by_hand(api, webhook_config=TARGETS)
    assert SECRET not in json.dumps(api.get("/demo"))
    assert stored() == TARGETS
    assert SECRET not in everything(api)
    write_by_hand(api, seed=11)  # with the *** that stands there now
    assert api.get("/demo")["config"]["--seed"] == 11
    assert stored() == TARGETS
    write_by_hand(api, webhook_config=[])
    api.get("/demo")
    assert stored() is None


def test_a_folder_made_by_hand_gives_them_too(api: Api) -> None:
    api.create()
    document = json.loads(config_file(api).read_text()) | {"--webhook_config": TARGETS}
    (api.home / "config/other").mkdir()
    (api.home / "config/other/config.json").write_text(json.dumps(document))
    assert SECRET not in json.dumps(api.get("/other"))
    assert stored("other") == TARGETS
    assert SECRET not in everything(api)


def test_stars_that_stand_for_nothing_are_refused_and_nothing_is_written(api: Api) -> None:
    api.create()
    config = api.get("/demo")["config"]
    sent = {**config, "--webhook_config": [{**TARGETS[0], "auth_token": "***"}]}
    status, problems = api.refused("PUT", "/demo", {"name": "demo", "config": sent})
    assert (status, problems) == (422, [("webhook_config[0].auth_token", "hidden_value")])
    assert api.get("/demo")["config"] == config


@pytest.mark.parametrize(
    "value",
    [
        f'[{{"webhook_type": "raw", "auth_token": "{SECRET}"',
        f"https://discord.com/api/webhooks/1/{SECRET}",
        [{"webhook_type": "raw", "callback_url": f"htps://user:{SECRET}@example.com"}],
        [{"webhook_type": "raw", "callback_url": f"https://example.com:x/?{SECRET}"}],
        [{"webhook_type": "raw", "callback_url": "https://example.com", "auth_token": [SECRET]}],
        f'[{{"auth_token": "{SECRET}"}}, "',
        7.5,
    ],
)
def test_wrong_targets_are_refused_without_a_word_of_what_is_secret(api: Api, value: Any) -> None:
    api.create()
    config = api.get("/demo")["config"]
    answer = api.call("PUT", "/demo", {"name": "demo", "config": {**config, "--webhook_config": value}})
    if value != 7.5:
        assert answer.status_code == 422
    assert SECRET not in answer.content.decode()
    twice = {**config, "--webhook_config": value, "webhook_config": [{**TARGETS[0]}]}
    assert SECRET not in api.call("PUT", "/demo", {"name": "demo", "config": twice}).content.decode()
    write_by_hand(api, webhook_config=value)
    assert SECRET not in json.dumps(api.get("/demo"))


def test_a_broken_file_that_is_replaced_leaves_no_secret_in_the_history(api: Api) -> None:
    api.create()
    config = api.get("/demo")["config"]
    inner = json.dumps(json.dumps(TARGETS))
    config_file(api).write_text(f'{{"--webhook_config": {inner}, "--seed": 7,, "url": "https://x.example/?{SECRET}"}}')
    assert "problems" in api.get("/demo")
    api.call("PUT", "/demo", {"name": "demo", "config": config})
    replaced = Revision.objects.exclude(replaced_text=None).get().replaced_text
    assert replaced and SECRET not in replaced
    assert '"--seed": 7,,' in replaced


def test_a_run_with_the_same_secrets_changes_nothing(api: Api) -> None:
    api.create()
    api.put("demo", webhook_config=TARGETS)
    row, home = Environment.objects.get(name="demo"), current_home()
    full = with_secrets(home, "demo", row.config)
    assert holds_the_same(home, "demo", row.config, full)
    assert holds_the_same(home, "demo", row.config, {**full, "webhook_config": json.dumps(TARGETS, indent=2)})
    another = [{**TARGETS[0], "secret": "another"}, TARGETS[1]]
    assert not holds_the_same(home, "demo", row.config, {**full, "webhook_config": json.dumps(another)})


def test_deleting_forgets_and_copying_copies(api: Api) -> None:
    api.create()
    api.put("demo", webhook_config=TARGETS)
    home = current_home()
    store.copy(home, of_environment("demo"), of_environment("twin"))
    services.delete_environment("demo", actor="test")
    assert stored() is None
    assert stored("twin") == TARGETS
    assert store.read(home, of_environment("nobody")) == {}


def test_the_adapter_file_and_the_datasets_change_without_losing_them(api: Api) -> None:
    api.create(model_family="flux", model_flavour="dev", model_type="lora", lora_type="lycoris")
    api.put("demo", webhook_config=TARGETS)
    adapter = json.loads((api.home / "config/demo/lycoris_config.json").read_text())
    assert api.call("PUT", "/environments/demo/lycoris", adapter).status_code == 200
    api.post("/demo/dataloader")
    api.post("/demo/activate")
    assert stored() == TARGETS
    assert SECRET not in everything(api)


def test_the_admin_takes_secrets_and_shows_none(api: Api, client: Client) -> None:
    api.create()
    page = f"/admin/environments/environment/{Environment.objects.get().pk}/change/"
    fields = {
        "tags_text": "",
        "description": "",
        "datasets_text": datasets_of(services.find("demo")),
        "option_webhook_config": json.dumps(TARGETS),
    }
    config = services.find("demo").config
    fields |= {f"option_{name}": str(value) for name, value in config.items()}
    again = client.post(page, {**fields, "option_train_batch_size": "none of these"})
    assert again.status_code == 200
    assert SECRET not in again.content.decode()
    assert client.post(page, fields).status_code == 302
    assert stored() == TARGETS
    shown = client.get(page).content.decode()
    assert "***" in shown and SECRET not in shown
    fields["option_webhook_config"] = Environment.objects.get().config["webhook_config"]
    assert client.post(page, {**fields, "option_seed": "11"}).status_code == 302
    assert stored() == TARGETS
    assert SECRET not in everything(api)


@pytest.mark.parametrize("wrong", [{}, {"--train_batch_size": "none of these"}])
def test_the_page_of_an_answer_repeats_no_secret(api: Api, wrong: dict[str, str]) -> None:
    api.create()
    config = {**api.get("/demo")["config"], "--webhook_config": json.dumps(TARGETS), **wrong}
    answer = api.call("PUT", "/demo", {"name": "demo", "config": config}, HTTP_ACCEPT="text/html")
    assert answer.status_code == (422 if wrong else 200)
    assert SECRET not in answer.content.decode()
    sent = api.client.post("/api/training/validate", config, HTTP_ACCEPT="text/html")
    assert SECRET not in sent.content.decode()


def test_starting_with_what_is_stored_changes_nothing_however_it_is_written(api: Api) -> None:
    compact = json.dumps(TARGETS, separators=(",", ":"))
    values = {"model_family": "pixart_sigma", "model_type": "full", "webhook_config": compact}
    made = services.record_run_config(None, values).environment
    assert SECRET not in everything(api)
    for text in (compact, json.dumps(TARGETS)):
        assert services.record_run_config(None, {**values, "webhook_config": text}).environment.name == made.name
        services.record_run_config(made.name, {**values, "webhook_config": text})
    assert Revision.objects.filter(environment_name=made.name).count() == 1
    other = [{**TARGETS[0], "auth_token": "another"}, TARGETS[1]]
    services.record_run_config(made.name, {**values, "webhook_config": json.dumps(other)})
    assert stored(made.name) == other
    assert Revision.objects.filter(environment_name=made.name).count() == 2
    assert services.record_run_config(None, values).environment.name != made.name


def test_an_address_that_an_older_version_stored_moves_into_the_store(api: Api) -> None:
    """What is secret now was none: the row, its file, the answers and the revisions stop showing it, and nothing is lost."""
    api.create()
    document = [{"webhook_type": "raw", "callback_url": "https://example.com/swordfish"}]
    row = Environment.objects.get()
    row.config = {**row.config, "webhook_config": json.dumps(document)}
    row.config_sha256 = write_config(Home(api.home), "demo", row.config)
    row.save()
    Revision.objects.update(config=row.config)
    for _ in range(2):
        assert json.loads(api.get("/demo")["config"]["--webhook_config"])[0]["callback_url"] == "https://example.com/***"
    assert "swordfish" not in (api.home / "config/demo/config.json").read_text()
    assert "swordfish" not in json.dumps(Environment.objects.get().config)
    assert Revision.objects.count() == 1
    full = with_secrets(Home(api.home), "demo", Environment.objects.get().config)
    assert json.loads(full["webhook_config"]) == document
    api.put("demo", seed=5)
    assert json.loads(with_secrets(Home(api.home), "demo", Environment.objects.get().config)["webhook_config"]) == document
