"""A reader that is overtaken by a change between its look at the file and its look at the row undoes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from environments import services, sync
from environments.files.config_files import ConfigFile, read_config
from environments.models import Environment, Revision
from environments.paths import Home
from tests.environments.conftest import Api


def overtaken_by(change: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The next reader reads the file, then the whole change happens, then the reader goes on with what it read."""
    waiting = [change]

    def read_then_wait(home: Home, name: str) -> ConfigFile:
        found = read_config(home, name)
        if waiting:
            waiting.pop()()
        return found

    monkeypatch.setattr(sync, "read_config", read_then_wait)


def actions(name: str = "demo") -> list[str]:
    return list(Revision.objects.filter(environment_name=name).order_by("number").values_list("action", flat=True))


def folder(api: Api) -> Path:
    return api.home / "config" / "demo"


def test_a_deletion_is_not_undone_by_a_reader(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.create()
    overtaken_by(lambda: services.delete_environment("demo", actor="test"), monkeypatch)
    assert api.call("GET", "/demo").status_code == 404
    assert not Environment.objects.exists()
    assert not (folder(api) / "config.json").exists()
    assert actions() == ["created", "deleted"]


def test_a_change_is_not_undone_by_a_reader(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.create()
    config = {name.lstrip("-"): value for name, value in api.get("/demo")["config"].items()}
    overtaken_by(lambda: services.update_environment("demo", config={**config, "seed": 4321}, actor="test"), monkeypatch)
    assert api.get("/demo")["config"]["--seed"] == 4321
    assert '"--seed": 4321' in (folder(api) / "config.json").read_text()
    assert actions() == ["created", "updated"]


def test_an_environment_made_meanwhile_is_not_adopted_a_second_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.create()
    text = (folder(api) / "config.json").read_text()
    services.delete_environment("demo", actor="test")
    folder(api).mkdir(exist_ok=True)
    (folder(api) / "config.json").write_text(text)
    overtaken_by(lambda: services.find("demo"), monkeypatch)
    assert api.get("/demo")["config"]["--model_family"] == "pixart_sigma"
    assert actions() == ["created", "deleted", "adopted"]
