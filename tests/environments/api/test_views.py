"""The calls of ``/api/configs`` as the tutorial makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from environments.models import Environment, Revision
from tests.environments.conftest import NEW, Api
from tests.helpers.shapes import META

TUTORIAL = {
    "output_dir": "/workspace/output/pixart900m",
    "train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.0001,
    "optimizer": "adamw_bf16",
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 500,
    "max_train_steps": 1800,
    "num_train_epochs": 0,
    "validation_prompt": "a studio photo of <token> wearing a leather jacket",
    "validation_guidance": 3.8,
    "validation_resolution": "1024x1024",
    "validation_num_inference_steps": 28,
    "cache_dir_vae": "/data/cache/vae/pixart",
    "seed": 1337,
    "resume_from_checkpoint": "latest",
    "base_model_precision": "bf16",
    "dataloader_prefetch": True,
    "report_to": "none",
    "checkpoints_total_limit": 4,
    "validation_seed": 12345,
    "data_backend_config": "demo/multidatabackend.json",
}


def on_disk(api: Api, name: str = "demo") -> dict[str, Any]:
    return json.loads((api.home / "config" / name / "config.json").read_text())  # type: ignore[no-any-return]


def actions(name: str = "demo") -> list[str]:
    return list(Revision.objects.filter(environment_name=name).order_by("number").values_list("action", flat=True))


def test_creating_writes_both_files_and_names_them(api: Api) -> None:
    made = api.create(description="PixArt 900M API-driven training")
    folder = api.home / "config" / "demo"
    assert made["message"] == "Environment 'demo' created"
    assert set(made["environment"]) == META | {"path"} and made["environment"]["path"] == str(folder)
    assert made["environment"]["description"] == "PixArt 900M API-driven training"
    assert made["config"] == on_disk(api)
    assert made["dataloader"] == {"path": "demo/multidatabackend.json", "absolute_path": str(folder / "multidatabackend.json")}
    kinds = [entry["dataset_type"] for entry in json.loads((folder / "multidatabackend.json").read_text())]
    assert kinds == ["image", "text_embeds"]


def test_a_new_configuration_holds_what_a_run_needs(api: Api) -> None:
    config = api.create()["config"]
    assert config["--model_family"] == "pixart_sigma" and config["--model_type"] == "full"
    assert config["--model_flavour"] == "900M-1024-v0.6"
    assert config["--pretrained_model_name_or_path"] == "terminusresearch/pixart-900m-1024-ft-v0.6"
    assert config["--data_backend_config"] == "demo/multidatabackend.json"
    assert config["--output_dir"] == "output/demo"
    assert config["--max_train_steps"] > 0 and config["--num_train_epochs"] == 0


def test_an_alias_is_stored_as_the_family(api: Api) -> None:
    assert api.create(model_family="pixart")["config"]["--model_family"] == "pixart_sigma"


def test_the_tutorials_update_is_taken_without_a_word(api: Api) -> None:
    api.create()
    answer = api.put("demo", **TUTORIAL)
    assert answer["message"] == "Configuration 'demo' updated successfully"
    assert answer["validation"]["warnings"] == []
    assert set(answer["metadata"]) == META
    config = api.get("/demo")["config"]
    assert config == on_disk(api)
    assert {name: config[f"--{name}"] for name in TUTORIAL} == TUTORIAL


def test_putting_what_was_got_changes_nothing(api: Api) -> None:
    api.create()
    api.put("demo", **TUTORIAL)
    before = api.get("/demo")["config"]
    api.put("demo")
    assert api.get("/demo")["config"] == before


def test_text_and_types_are_stored_alike_and_every_key_has_dashes(api: Api) -> None:
    api.create()
    config = api.get("/demo")["config"]
    typed = config | {f"--{name}": value for name, value in TUTORIAL.items()}
    text = {key.lstrip("-"): str(value).lower() if isinstance(value, bool) else str(value) for key, value in typed.items()}
    stored = []
    for body in (typed, text):
        assert api.call("PUT", "/demo", {"name": "demo", "config": body}).status_code == 200
        stored.append(api.get("/demo")["config"])
    assert stored[0] == stored[1]
    assert all(type(one) is type(other) for one, other in zip(stored[0].values(), stored[1].values(), strict=True))
    assert all(key.startswith("--") for key in stored[0])


def test_a_put_replaces_the_whole_configuration(api: Api) -> None:
    api.create()
    config = api.get("/demo")["config"]
    api.put("demo", seed=7)
    assert api.call("PUT", "/demo", {"config": config}).status_code == 200
    assert "--seed" not in api.get("/demo")["config"]


def test_description_and_tags_stay_where_they_are_not_sent(api: Api) -> None:
    api.create(description="first")
    config = api.get("/demo")["config"]
    api.call("PUT", "/demo", {"name": "demo", "config": config, "tags": ["pixart", "api"], "description": "second"})
    api.put("demo", seed=1)
    metadata = api.get("/demo")["metadata"]
    assert (metadata["description"], metadata["tags"]) == ("second", ["pixart", "api"])


def test_the_default_of_an_option_that_is_not_available_yet_is_taken(api: Api) -> None:
    api.create()
    api.put("demo", singlora_ramp_up_steps=0, deepspeed_config="none", push_to_hub="false")
    assert "--singlora_ramp_up_steps" not in api.get("/demo")["config"]


def test_storing_warns_of_two_run_lengths_that_a_form_can_resolve(api: Api) -> None:
    api.create()
    answer = api.put("demo", max_train_steps=10, num_train_epochs=3)
    assert any("num_train_epochs" in warning for warning in answer["validation"]["warnings"])


def test_weights_of_another_flavour_are_a_warning(api: Api) -> None:
    api.create()
    answer = api.put("demo", model_flavour="600M-512")
    assert any("600M-512" in warning for warning in answer["validation"]["warnings"])


def test_activating_and_asking_for_the_active_one(api: Api) -> None:
    assert api.get("/active") == {"name": None, "config": None, "metadata": None}
    api.create()
    api.create(name="other")
    for name in ("demo", "other", "other"):
        assert api.post(f"/{name}/activate") == {"message": f"Configuration '{name}' is now active", "active": name}
        active = api.get("/active")
        assert (active["name"], active["metadata"]["name"]) == (name, name)
        assert active["config"] == api.get(f"/{name}")["config"]
    assert Environment.objects.filter(is_active=True).count() == 1


def test_the_list_contains_every_environment(api: Api) -> None:
    assert api.get("/") == {"configs": [], "active": None, "count": 0, "config_type": "model"}
    api.create(name="b")
    api.create(name="a", create_dataloader=False)
    api.post("/b/activate")
    listed = api.get("?config_type=model")
    assert [row["name"] for row in listed["configs"]] == ["a", "b"]
    assert (listed["active"], listed["count"]) == ("b", 2)
    assert set(listed["configs"][0]) == META | {"dataloader_path", "data_backend_config", "has_dataloader"}
    assert [row["has_dataloader"] for row in listed["configs"]] == [False, True]


def test_the_other_lists_contain_files(api: Api) -> None:
    api.create()
    api.create(name="bare", create_dataloader=False)
    (api.home / "config" / "once.json").write_text('[{"id": "demo-images"}]')
    (api.home / "config" / "webhooks.json").write_text('{"not": "datasets"}')
    assert [row["name"] for row in api.get("/?config_type=dataloader")["configs"]] == ["demo", "once"]
    assert api.get("/?config_type=lycoris")["configs"] == []
    assert api.get("/?config_type=webhook")["count"] == 0


def test_the_export_is_the_configuration_with_or_without_its_metadata(api: Api) -> None:
    api.create()
    config = api.get("/demo")["config"]
    exported = api.get("/demo/export?include_metadata=true")
    assert list(exported) == ["_metadata", "config"] and exported["config"] == config
    assert set(exported["_metadata"]) == META
    assert api.get("/demo/export?include_metadata=false") == config


def test_a_new_datasets_file_keeps_the_old_one_beside_it(api: Api) -> None:
    api.create()
    path = api.home / "config" / "demo" / "multidatabackend.json"
    path.write_text('[{"id": "mine"}]')
    answer = api.post("/demo/dataloader")
    assert answer["dataloader"]["absolute_path"] == str(path)
    assert Path(answer["dataloader"]["previous"]).read_text() == '[{"id": "mine"}]'
    assert len(json.loads(path.read_text())) == 2
    assert "mine" in (Revision.objects.filter(action="datasets_edited").get().datasets_text or "")


def test_a_new_datasets_file_can_lie_elsewhere(api: Api) -> None:
    api.create()
    answer = api.post("/demo/dataloader", {"path": "shared/all.json", "include_defaults": False})
    assert answer["dataloader"] == {
        "path": "shared/all.json",
        "absolute_path": str(api.home / "config" / "shared" / "all.json"),
        "previous": None,
    }
    assert api.get("/demo")["config"]["--data_backend_config"] == "shared/all.json" == on_disk(api)["--data_backend_config"]
    assert "crop" not in json.loads((api.home / "config" / "shared" / "all.json").read_text())[0]


def test_a_datasets_file_that_lies_there_already_is_left_alone(api: Api) -> None:
    path = api.home / "config" / "demo" / "multidatabackend.json"
    path.parent.mkdir()
    path.write_text("[]")
    api.create()
    assert path.read_text() == "[]"


def test_deleting_removes_files_and_keeps_the_history(api: Api) -> None:
    api.create()
    assert api.call("DELETE", "/demo").json() == {"message": "Configuration 'demo' deleted"}
    assert not (api.home / "config" / "demo").exists()
    assert api.refused("GET", "/demo")[0] == 404
    last = Revision.objects.get(environment_name="demo", action="deleted")
    assert last.config["model_family"] == "pixart_sigma" and "demo-images" in (last.datasets_text or "")
    api.create()
    assert actions() == ["created", "deleted", "created"]


def test_every_change_is_kept_with_who_and_what(api: Api) -> None:
    api.create()
    api.put("demo", seed=1)
    api.post("/demo/activate")
    api.post("/demo/activate")
    api.post("/demo/dataloader")
    assert actions() == ["created", "updated", "activated", "datasets_regenerated"]
    revisions = Revision.objects.order_by("number")
    assert [revision.config.get("seed") for revision in revisions] == [None, 1, 1, 1]
    assert {revision.actor for revision in revisions} == {"api"}
    assert all(revision.datasets_text for revision in revisions)


def test_examples_are_listed_and_can_be_begun_with(api: Api) -> None:
    listed = api.get("/examples")
    assert listed["count"] == len(listed["examples"]) >= 2
    for example in listed["examples"]:
        assert set(example["defaults"]) == {"model_family", "model_type", "model_flavour", "lora_type", "data_backend_config"}
        assert Path(example["config_path"]).is_file() and Path(example["dataloader_path"]).is_file()
        made = api.post("/environments", {"name": f"from-{example['name']}", "example": example["name"]})
        assert made["config"]["--validation_prompt"]
        assert made["config"]["--data_backend_config"] == f"from-{example['name']}/multidatabackend.json"
        shipped = json.loads(Path(example["dataloader_path"]).read_text())
        assert json.loads(Path(made["dataloader"]["absolute_path"]).read_text()) == shipped


@pytest.mark.parametrize("path", ["", "/examples", "/active", "/demo", "/demo/export"])
def test_an_address_answers_with_and_without_its_last_slash(api: Api, path: str) -> None:
    api.create()
    assert api.get(path) == api.get(f"{path}/")


def test_posts_answer_with_a_last_slash_too(api: Api) -> None:
    assert api.post("/environments/", NEW)["environment"]["name"] == "demo"
    assert api.post("/demo/activate/")["active"] == "demo"
    assert api.post("/demo/dataloader/", {})["dataloader"]["previous"]


def test_forms_are_taken_where_the_browsable_api_sends_them(api: Api) -> None:
    answer = api.client.post("/api/configs/environments", {**NEW, "create_dataloader": "true", "description": ""}, format="multipart")
    assert answer.status_code == 200, answer.content
    config = json.dumps(api.get("/demo")["config"])
    answer = api.client.put("/api/configs/demo", {"name": "demo", "config": config}, format="multipart")
    assert answer.status_code == 200, answer.content


@pytest.mark.parametrize(
    "path", ["/", "/examples", "/active", "/environments", "/demo", "/demo/activate", "/demo/export", "/demo/dataloader"]
)
def test_every_call_has_a_page_in_a_browser(api: Api, path: str) -> None:
    api.create()
    answer = api.client.get(f"/api/configs{path}", HTTP_ACCEPT="text/html")
    assert answer.status_code in (200, 405) and answer["Content-Type"].startswith("text/html")


@pytest.mark.parametrize("path", ["/nothing", "/nothing/export", "/a%00b", "/?config_type=nothing"])
def test_refusals_have_a_page_too(api: Api, path: str) -> None:
    answer = api.client.get(f"/api/configs{path}", HTTP_ACCEPT="text/html")
    assert answer.status_code in (404, 422) and answer["Content-Type"].startswith("text/html")


def test_wrong_forms_of_the_browsable_api_are_answered_on_their_page(api: Api) -> None:
    api.create()
    for method, path in (("post", "/environments"), ("put", "/demo"), ("post", "/demo/dataloader")):
        call = getattr(api.client, method)
        answer = call(f"/api/configs{path}", {"name": "<b>/", "path": "/etc/x", "config": "{"}, format="multipart", HTTP_ACCEPT="text/html")
        assert answer.status_code == 422 and "<b>/" not in answer.content.decode()


@pytest.mark.parametrize("path", ["/", "/environments", "/demo", "/nothing", "/demo/dataloader"])
def test_every_address_answers_options(api: Api, path: str) -> None:
    api.create()
    assert api.call("OPTIONS", path).status_code in (200, 404)
