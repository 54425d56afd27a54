"""Files that people edit are noticed and read; what cannot be read is reported, and no environment is ever lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from environments.models import Environment, Revision
from tests.environments.conftest import Api


def config_file(api: Api, name: str = "demo") -> Path:
    return api.home / "config" / name / "config.json"


def edit(api: Api, **options: object) -> None:
    """As a person does it, in place."""
    path = config_file(api)
    path.write_text(json.dumps(json.loads(path.read_text()) | {f"--{name}": value for name, value in options.items()}))


def actions() -> list[str]:
    return list(Revision.objects.filter(environment_name="demo").order_by("number").values_list("action", flat=True))


def test_an_edit_is_read_and_kept_as_a_revision(api: Api) -> None:
    api.create()
    edit(api, seed="7")
    assert api.get("/demo")["config"]["--seed"] == 7
    assert api.get("/demo")["config"]["--seed"] == 7
    last = Revision.objects.get(environment_name="demo", number=2)
    assert (last.action, last.actor, last.config["seed"]) == ("hand_edited", "hand", 7)
    assert actions() == ["created", "hand_edited"]


def test_an_edit_of_the_same_length_in_the_same_moment_is_noticed(api: Api) -> None:
    api.create()
    for value in (1111, 2222, 3333):
        edit(api, max_train_steps=value)
        assert api.get("/demo")["config"]["--max_train_steps"] == value


def test_names_without_dashes_are_read_too(api: Api) -> None:
    api.create()
    path = config_file(api)
    path.write_text(path.read_text().replace('"--', '"'))
    assert "--model_family" in api.get("/demo")["config"]


def test_the_file_is_not_written_back_over_the_hand(api: Api) -> None:
    api.create()
    path = config_file(api)
    path.write_text(path.read_text().replace('"--', '"') + "\n\n")
    text = path.read_text()
    api.get("/demo")
    assert path.read_text() == text


def test_an_edit_of_the_datasets_is_kept_as_a_revision(api: Api) -> None:
    api.create()
    (api.home / "config" / "demo" / "multidatabackend.json").write_text('[{"id": "mine"}]')
    api.get("/demo")
    api.get("/demo")
    assert actions() == ["created", "datasets_edited"]
    assert Revision.objects.get(number=2).datasets_text == '[{"id": "mine"}]'


@pytest.mark.parametrize("text", ["{", "", "[]", "\x00", '{"--seed": NaN}', "{" * 5000])
def test_a_file_that_is_no_configuration_is_a_problem_and_the_last_good_one_stays(api: Api, text: str) -> None:
    api.create()
    good = api.get("/demo")["config"]
    config_file(api).write_text(text)
    for _ in range(2):
        shown = api.get("/demo")
        assert shown["config"] == good
        assert [problem["code"] for problem in shown["problems"]] == ["unreadable_file"]
        assert "config/demo/config.json" in shown["problems"][0]["message"]
    assert api.get("/")["count"] == 1
    assert config_file(api).read_text() == text


def test_a_file_with_wrong_values_is_a_problem_for_each(api: Api) -> None:
    api.create()
    edit(api, learning_rate="fast", nonsense=1)
    problems = {(problem["option"], problem["code"]) for problem in api.get("/demo")["problems"]}
    assert problems == {("learning_rate", "not_a_number"), ("nonsense", "unknown_option")}
    assert api.get("/demo")["config"]["--learning_rate"] == 1e-5


def test_mending_the_file_ends_the_problem(api: Api) -> None:
    api.create()
    good = config_file(api).read_text()
    config_file(api).write_text("{")
    assert "problems" in api.get("/demo")
    config_file(api).write_text(good.replace("1000", "2000"))
    shown = api.get("/demo")
    assert "problems" not in shown and shown["config"]["--max_train_steps"] == 2000


def test_a_put_mends_the_file_and_keeps_what_it_replaced(api: Api) -> None:
    api.create()
    config_file(api).write_text("{ my notes")
    api.put("demo", seed=3)
    assert "problems" not in api.get("/demo")
    assert json.loads(config_file(api).read_text())["--seed"] == 3
    assert Revision.objects.get(action="updated").replaced_text == "{ my notes"


def test_a_put_over_an_unseen_edit_keeps_the_edit_in_the_history(api: Api) -> None:
    api.create()
    config = api.get("/demo")["config"]
    edit(api, seed=99)
    assert api.call("PUT", "/demo", {"config": config}).status_code == 200
    assert actions() == ["created", "hand_edited", "updated"]
    assert Revision.objects.get(action="hand_edited").config["seed"] == 99


def test_a_removed_file_comes_back_from_the_row(api: Api) -> None:
    api.create()
    config_file(api).unlink()
    config = api.get("/demo")["config"]
    assert json.loads(config_file(api).read_text()) == config


def test_a_removed_folder_comes_back_from_the_row(api: Api) -> None:
    api.create()
    for path in config_file(api).parent.iterdir():
        path.unlink()
    config_file(api).parent.rmdir()
    assert api.get("/")["count"] == 1
    assert config_file(api).is_file()


def test_a_folder_made_by_hand_is_an_environment(api: Api) -> None:
    folder = api.home / "config" / "by-hand"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_family": "pixart", "--model_type": "full", "seed": "5"}')
    assert [row["name"] for row in api.get("/")["configs"]] == ["by-hand"]
    assert api.get("/by-hand")["config"] == {"--model_family": "pixart_sigma", "--model_type": "full", "--seed": 5}
    assert Revision.objects.get().action == "adopted"
    assert api.refused("POST", "/environments", {"name": "by-hand", "model_family": "pixart_sigma", "model_type": "full"})[0] == 409
    assert api.post("/by-hand/activate")["active"] == "by-hand"


def test_environments_outlive_their_database(api: Api) -> None:
    api.create()
    config = api.put("demo", seed=4) and api.get("/demo")["config"]
    Environment.objects.all().delete()
    assert api.get("/demo")["config"] == config


def test_a_broken_folder_without_a_row_is_an_environment_with_a_problem(api: Api) -> None:
    folder = api.home / "config" / "broken"
    folder.mkdir()
    (folder / "config.json").write_text("{")
    shown = api.get("/broken")
    assert shown["config"] == {} and shown["problems"][0]["code"] == "unreadable_file"
    assert api.get("/")["count"] == 1


def test_a_link_out_of_the_home_is_no_way_to_read_files(api: Api, tmp_path: Path) -> None:
    folder = api.home / "config" / "link"
    folder.mkdir()
    (folder / "config.json").symlink_to("/etc/hostname")
    shown = api.get("/link")
    assert shown["config"] == {} and "it lies in a system folder" in shown["problems"][0]["message"]


def test_the_active_environment_is_read_anew_too(api: Api) -> None:
    api.create()
    api.post("/demo/activate")
    edit(api, seed=12)
    assert api.get("/active")["config"]["--seed"] == 12
