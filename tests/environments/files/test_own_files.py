"""No request overwrites a file that is not the server's own."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from environments.places import INSTALLED
from tests.environments.conftest import Api
from tests.environments.files.test_adapter_file import GOOD, KONTEXT

MINE = "mine, and nobody else's"


@pytest.fixture
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of the server's user, an allowed root."""
    (tmp_path / "person").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    return tmp_path / "person"


def put_adapter(api: Api, given: str, body: Any = GOOD) -> tuple[int, list[tuple[str, str]]]:
    """(status, problems) of naming an adapter file, and then of replacing it."""
    config = api.get("/demo")["config"] | {"--lycoris_config": given}
    named = api.call("PUT", "/demo", {"name": "demo", "config": config})
    answer = named if named.status_code != 200 else api.call("PUT", "/environments/demo/lycoris", body)
    problems = answer.json().get("problems", []) if answer.status_code != 200 else []
    return answer.status_code, [(problem["option"], problem["code"]) for problem in problems]


@pytest.mark.parametrize("name", ["notes.txt", "data.json", "adapter.json", "run.py"])
def test_put_of_the_adapter_overwrites_no_file_of_a_person(api: Api, person: Path, name: str) -> None:
    victim = person / name
    victim.write_text(json.dumps(GOOD) if name == "adapter.json" else MINE)
    victim.chmod(0o600)
    before = victim.read_bytes()
    api.create(**KONTEXT)
    status, problems = put_adapter(api, str(victim))
    assert status == 422 and problems[0][0] == "lycoris_config" and problems[0][1] in ("foreign_file", "not_json")
    assert (victim.read_bytes(), stat.S_IMODE(victim.stat().st_mode)) == (before, 0o600)


@pytest.mark.parametrize("given", ["~/.bashrc", "~/.config/new.json", "~/.new.json", "~/project/.vscode/settings.json"])
def test_put_of_the_adapter_makes_nothing_in_a_dot_folder(api: Api, person: Path, given: str) -> None:
    api.create(**KONTEXT)
    assert put_adapter(api, given) == (422, [("lycoris_config", "outside_roots")])
    assert not list(person.iterdir())


@pytest.mark.parametrize(
    "given",
    ["demo/config.json", "demo/multidatabackend.json", "other/config.json", "other/multidatabackend.json", "other/lycoris_config.json"],
)
def test_put_of_the_adapter_overwrites_no_other_file_of_an_environment(api: Api, given: str) -> None:
    api.create(**KONTEXT)
    api.create(**{**KONTEXT, "name": "other"})
    path = api.home / "config" / given
    before = path.read_bytes()
    status, problems = put_adapter(api, given)
    assert status == 422 and problems[0][1] in ("foreign_file", "config_file", "not_an_adapter")
    assert path.read_bytes() == before or given == "demo/config.json"
    assert "algo" not in json.loads((api.home / "config/demo/config.json").read_text())


def test_put_of_the_adapter_overwrites_neither_code_nor_an_example_of_the_product(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(INSTALLED))  # as for somebody whose home holds the installation
    example = INSTALLED / "environments/examples/flux_kontext_lokr/lycoris_config.json"
    before = example.read_bytes()
    api.create(**KONTEXT)
    for path in (example, INSTALLED / "simpletuner_site/security/guard.py", INSTALLED / "environments/examples/new.json"):
        assert put_adapter(api, str(path)) == (422, [("lycoris_config", "outside_roots")])
    assert example.read_bytes() == before and not (INSTALLED / "environments/examples/new.json").exists()


@pytest.mark.parametrize("given", ["shared/adapter.json", "{person}/adapters/new.json", "config/loose.json"])
def test_an_adapter_file_that_the_server_made_itself_is_replaced_until_a_person_changes_it(api: Api, person: Path, given: str) -> None:
    given = given.format(person=person)
    api.create(**KONTEXT)
    assert put_adapter(api, given)[0] == 200
    assert put_adapter(api, given, {**GOOD, "linear_dim": 4})[0] == 200
    path = Path(api.get("/environments/demo/lycoris")["absolute_path"])
    assert json.loads(path.read_text())["linear_dim"] == 4
    path.write_text(json.dumps({**GOOD, "linear_dim": 2}))
    assert put_adapter(api, given) == (422, [("lycoris_config", "foreign_file")])
    assert json.loads(path.read_text())["linear_dim"] == 2


def test_a_link_to_a_foreign_file_is_not_written_through(api: Api, person: Path) -> None:
    (person / "victim.json").write_text(MINE)
    api.create(**KONTEXT)
    for name in ("lycoris_config.json", "multidatabackend.json"):
        (api.home / "config/demo" / name).unlink()
        (api.home / "config/demo" / name).symlink_to(person / "victim.json")
    assert put_adapter(api, "demo/lycoris_config.json") == (422, [("lycoris_config", "foreign_file")])
    assert api.refused("POST", "/demo/dataloader") == (422, [("data_backend_config", "foreign_file")])
    assert (person / "victim.json").read_text() == MINE


def test_a_hard_link_to_a_foreign_file_leaves_that_file_alone(api: Api, person: Path) -> None:
    (person / "victim.json").write_text(json.dumps(GOOD))
    api.create(**KONTEXT)
    (api.home / "config/demo/lycoris_config.json").unlink()
    os.link(person / "victim.json", api.home / "config/demo/lycoris_config.json")
    assert put_adapter(api, "demo/lycoris_config.json", {**GOOD, "linear_dim": 4})[0] == 200
    assert json.loads((person / "victim.json").read_text()) == GOOD


@pytest.mark.parametrize("content", ["{}", "[]", MINE, '[{"id": 7, "name": "a record"}]', '[{"id": "x", "dataset_type": "image"}]'])
def test_a_named_path_of_the_datasets_file_overwrites_no_file_of_a_person(api: Api, person: Path, content: str) -> None:
    (person / "data.json").write_text(content)
    api.create()
    assert api.refused("POST", "/demo/dataloader", {"path": "~/data.json"}) == (422, [("path", "foreign_file")])
    assert (person / "data.json").read_text() == content and [path.name for path in person.iterdir()] == ["data.json"]


def test_a_datasets_file_of_a_person_is_made_anew_where_the_environment_names_it_and_the_old_one_is_kept(api: Api, person: Path) -> None:
    (person / "data.json").write_text('[{"id": "x", "dataset_type": "image"}]')
    (person / "records.json").write_text('[{"id": 7}]')
    api.create()
    api.put("demo", data_backend_config="~/data.json")
    kept = api.post("/demo/dataloader")["dataloader"]["previous"]
    assert Path(kept).read_text() == '[{"id": "x", "dataset_type": "image"}]'
    api.put("demo", data_backend_config="~/records.json")
    assert api.refused("POST", "/demo/dataloader") == (422, [("data_backend_config", "foreign_file")])


def test_the_datasets_file_of_another_environment_is_not_made_anew(api: Api) -> None:
    api.create()
    api.create(name="other")
    before = (api.home / "config/other/multidatabackend.json").read_bytes()
    for path in ("other/multidatabackend.json", "other/config.json", "demo/config.json"):
        status, problems = api.refused("POST", "/demo/dataloader", {"path": path})
        assert status == 422 and problems[0][1] in ("foreign_file", "config_file", "not_an_adapter")
    assert (api.home / "config/other/multidatabackend.json").read_bytes() == before


def test_a_new_environment_overwrites_no_file(api: Api, person: Path) -> None:
    (person / "data.json").write_text(MINE)
    api.create(dataloader_path="~/data.json")
    assert (person / "data.json").read_text() == MINE


def test_the_form_of_the_admin_overwrites_no_file_of_a_person(api: Api, person: Path) -> None:
    (person / "data.json").write_text(MINE)
    api.create()
    row = api.get("/demo")
    page = Client().get(f"/admin/environments/environment/{_pk('demo')}/change/")
    fields = {name: value for name, value in page.context["adminform"].form.initial.items() if value not in (None, "")}
    sent = {**fields, "option_data_backend_config": "~/data.json", "datasets_text": '[{"id": "a", "dataset_type": "image"}]'}
    answer = Client().post(f"/admin/environments/environment/{_pk('demo')}/change/", sent)
    assert answer.status_code < 500
    assert (person / "data.json").read_text() == MINE
    assert row["name"] == "demo"


def _pk(name: str) -> int:
    from environments.models import Environment

    return Environment.objects.get(name=name).pk


def test_a_replaced_file_keeps_mode_and_owner(api: Api) -> None:
    api.create(**KONTEXT)
    path = api.home / "config/demo/lycoris_config.json"
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    owner = path.stat().st_uid
    assert put_adapter(api, "demo/lycoris_config.json", {**GOOD, "linear_dim": 4})[0] == 200
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (0o640, owner)


def test_files_of_an_environment_whose_folder_lies_elsewhere_are_its_own(api: Api, person: Path) -> None:
    api.create(**KONTEXT)
    shutil.move(api.home / "config/demo", person / "demo")
    (api.home / "config/demo").symlink_to(person / "demo")
    assert put_adapter(api, "demo/lycoris_config.json")[0] == 200
    assert json.loads((person / "demo/lycoris_config.json").read_text()) == GOOD
    assert api.post("/demo/dataloader")["dataloader"]["previous"]


def test_a_folder_of_an_environment_that_leads_elsewhere_is_judged_by_its_real_place(api: Api, person: Path) -> None:
    api.create()
    (person / ".config").mkdir()
    shutil.move(api.home / "config/demo", person / ".config/demo")
    (api.home / "config/demo").symlink_to(person / ".config/demo")
    before = {path: path.read_bytes() for path in (person / ".config/demo").iterdir()}
    assert api.call("PUT", "/demo", {"config": {**KONTEXT, "seed": 3}}).status_code >= 400
    assert api.call("DELETE", "/demo").status_code >= 400
    assert {path: path.read_bytes() for path in (person / ".config/demo").iterdir()} == before
