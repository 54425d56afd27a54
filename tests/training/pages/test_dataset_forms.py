"""The pages of datasets and of the adapter: sets are added and removed kind by kind, tables and lists edited, the adapter checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from environments import services
from environments.create.plan import NewEnvironment
from environments.models import Environment
from tests.training.pages.test_environment_pages import cats, entries, get, post  # noqa: F401
from tests.training.pages.test_run_page import EVIL
from trainer_engine.config.dataset_tables import source_specs
from trainer_engine.config.datasets.names import SETS, SWITCH, allowed
from training.pages.dataset_fields import changed_entry, field_rows, fields, takes_sources
from training.pages.dataset_forms import added_entry, begun_entry

pytestmark = pytest.mark.django_db


def rows(entry: dict[str, Any]) -> dict[str, Any]:
    return {row.name: row for row in field_rows(entry)}


# ---- fields ----
@pytest.mark.parametrize("kind", SETS)
def test_a_form_holds_every_field_that_the_registry_allows_for_the_kind(kind: str) -> None:
    sources = source_specs() if takes_sources(kind) else ["local"]
    strategies = ["parquet", "csv"] if "caption_strategy" in SETS[kind].model_fields else [""]
    shown: set[str] = set()
    for source in sources:
        for strategy in strategies:
            shown |= {
                field.name.partition(".")[0] for field in fields({"dataset_type": kind, "type": source, "caption_strategy": strategy})
            }
    aliases = {alias for name in SETS for field in fields({"dataset_type": name}) if field.spec for alias in field.spec.aliases}
    missing = allowed(kind) - shown - aliases - {"id", "type", "dataset_type"} - set(SWITCH.aliases)
    assert missing <= ({"video"} if kind != "video" else set()) | {"generated", "own_fields"}, missing


def test_a_source_brings_its_fields_and_takes_the_folder_away() -> None:
    bucket = rows({"type": "aws"})
    assert bucket["aws_bucket_name"].default == "must be given" and bucket["aws_bucket_name"].is_common
    assert "instance_data_dir" not in bucket and "aws_bucket_name" not in rows({"type": "local"})
    assert "instance_data_dir" in rows({"type": "aws", "instance_data_dir": "left over"}), "what is set can be removed"
    assert "csv_caption_column" in rows({"type": "csv", "caption_strategy": "csv"})
    assert all(row.help for row in bucket.values())


def test_an_object_is_a_field_for_each_of_its_parts() -> None:
    entry = {"caption_shuffle": {"enable": True, "count": 3}}
    found = rows(entry)
    assert (found["caption_shuffle.enable"].value, found["caption_shuffle.count"].value) == ("true", "3")
    assert found["caption_shuffle.split_on"].choices == ("comma", "space", "period")
    sent = {"0.caption_shuffle.count": "5", "0.caption_shuffle.split_on": "space", "0.parquet.path": "a.jsonl"}
    assert changed_entry(entry, sent, 0) == {
        "caption_shuffle": {"enable": True, "count": 5, "split_on": "space"},
        "parquet": {"path": "a.jsonl"},
    }
    emptied = {"0.caption_shuffle.count": "", "0.caption_shuffle.enable": ""}
    assert changed_entry(entry, emptied, 0) == {}, "an object without a field goes"
    assert "caption_shuffle.count" not in rows({"caption_shuffle": "odd"}), "a value that is no object has no parts"
    assert "video.num_frames" in rows({"dataset_type": "video"}) and "video.num_frames" not in rows({})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("conditioning_data", '["edges", "depth"]', ["edges", "depth"]),
        ("conditioning_data", "edges", "edges"),
        ("crop_aspect_buckets", "[1.0, 0.5]", [1.0, 0.5]),
        ("conditioning", '{"type": "canny"}', {"type": "canny"}),
        ("conditioning", '[{"type": "canny"', '[{"type": "canny"'),
        ("instance_prompt", '["a", "b"]', ["a", "b"]),
    ],
)
def test_a_list_is_edited_as_json(name: str, text: str, value: Any) -> None:
    assert rows({})[name].is_json
    assert changed_entry({"id": "x"}, {f"0.{name}": text}, 0) == {"id": "x", name: value}
    assert changed_entry({name: value}, {f"0.{name}": ""}, 0) == {}


def test_another_spelling_of_a_field_stays_the_only_one() -> None:
    entry = {"instance_data_root": "old"}
    assert rows(entry)["instance_data_dir"].value == "old"
    assert changed_entry(entry, {"0.instance_data_dir": "new"}, 0) == {"instance_data_root": "new"}


# ---- adding and removing ----
def test_each_kind_begins_with_its_kind_and_source() -> None:
    for kind in SETS:
        begun = begun_entry({"add": kind, "source": "aws"})
        assert begun is not None and begun["dataset_type"] == kind
        assert begun["type"] == ("aws" if takes_sources(kind) else "local")
    assert begun_entry({"add": "nonsense"}) is None and begun_entry({}) is None
    assert (begun_entry({"add": "image", "source": "nonsense"}) or {})["type"] == "local"
    assert added_entry({"new.dataset_type": EVIL, "new.id": "x"})["dataset_type"] == "image"


def test_a_set_is_added_with_the_fields_of_its_kind(client: Client, cats: Path) -> None:  # noqa: F811
    page = get(client, "/cats/datasets")
    assert all(f"<option>{kind}</option>" in page for kind in SETS) and 'name="new.id"' not in page
    page = get(client, "/cats/datasets?add=conditioning&source=local")
    assert 'name="new.id"' in page and 'name="new.conditioning_type"' in page and 'data-picker="field-new-instance_data_dir"' in page
    before = entries(cats)
    form = {
        "act": "add",
        "sets": [one["id"] for one in before],
        "0.repeats": "2",
        "new.dataset_type": "eval",
        "new.type": "local",
        "new.id": "cats-eval",
        "new.instance_data_dir": "datasets/cats",
        "new.caption_strategy": "filename",
    }
    answer, says = post(client, "/cats/datasets", form)
    assert answer.status_code == 302 and says == ["Added cats-eval to the datasets of cats."], says
    added = {
        "id": "cats-eval",
        "type": "local",
        "dataset_type": "eval",
        "instance_data_dir": "datasets/cats",
        "caption_strategy": "filename",
    }
    assert entries(cats) == [{**before[0], "repeats": 2}, *before[1:], added], "what was changed beside it is saved, too"


@pytest.mark.parametrize("wrong", [{"new.id": ""}, {"new.id": "cats-images"}, {"new.instance_data_dir": "/etc"}, {"new.repeats": EVIL}])
def test_a_set_that_cannot_be_added_keeps_what_was_typed(client: Client, cats: Path, wrong: dict[str, str]) -> None:  # noqa: F811
    before = entries(cats)
    form = {"act": "add", "new.dataset_type": "image", "new.id": "more", "new.instance_data_dir": "datasets/cats", "0.repeats": "4"}
    answer, says = post(client, "/cats/datasets", {**form, "new.resolution": "77", **wrong})
    page = answer.content.decode()
    assert answer.status_code == 422 and "Nothing was saved" in says[0] and entries(cats) == before
    assert 'name="new.resolution" value="77"' in page and 'name="0.repeats" value="4"' in page and "<script>alert" not in page
    assert page.count('name="sets"') == len(before), "the new set counts as none of the file's"


def test_a_wrong_field_keeps_what_was_typed_beside_it(client: Client, cats: Path) -> None:  # noqa: F811
    answer, _ = post(client, "/cats/datasets", {"0.repeats": "many", "0.resolution": "96"})
    page = answer.content.decode()
    assert answer.status_code == 422 and 'value="many"' in page and 'value="96"' in page


def test_a_set_is_removed_and_its_files_stay(client: Client, cats: Path) -> None:  # noqa: F811
    before = entries(cats)
    extra = {"id": "more", "type": "local", "dataset_type": "image", "instance_data_dir": "datasets/cats"}
    services.write_datasets_file("cats", [*before, extra], actor="test")
    assert f'name="remove" value="{len(before)}"' in get(client, "/cats/datasets")
    form = {"sets": [*(one["id"] for one in before), "more"], "remove": str(len(before)), "0.repeats": "3"}
    _, says = post(client, "/cats/datasets", form)
    assert says == ["Removed a set from the datasets of cats. Its files stay where they are."]
    assert entries(cats) == [{**before[0], "repeats": 3}, *before[1:]] and len(list(cats.iterdir())) == 4


def test_a_set_that_others_need_cannot_be_removed(client: Client, cats: Path) -> None:  # noqa: F811
    before = entries(cats)
    texts = next(place for place, one in enumerate(before) if one["dataset_type"] == "text_embeds")
    answer, says = post(client, "/cats/datasets", {"remove": str(1 - texts)})
    assert answer.status_code == 422 and "Nothing was saved" in says[0] and entries(cats) == before
    assert answer.content.decode().count('name="sets"') == len(before), "it is still there"
    post(client, "/cats/datasets", {"remove": "x"})
    assert entries(cats) == before


def version_in(page: str) -> str:
    return page.split('name="version" value="')[1].split('"')[0]


def test_a_form_takes_nothing_back_that_somebody_else_has_saved(client: Client, cats: Path) -> None:  # noqa: F811
    before, form = entries(cats), {"version": version_in(get(client, "/cats/datasets")), "0.repeats": "3", "0.resolution": "64"}
    theirs = [{**before[0], "resolution": 96}, *before[1:]]
    services.write_datasets_file("cats", theirs, actor="somebody")
    answer, says = post(client, "/cats/datasets", form)
    page = answer.content.decode()
    assert answer.status_code == 409 and "has changed since" in says[0] and entries(cats) == theirs
    assert 'name="0.repeats" value="3"' in page and 'name="0.resolution" value="64"' in page, "what was typed is there"
    answer, says = post(client, "/cats/datasets", {**form, "version": version_in(page)})
    assert answer.status_code == 302 and entries(cats) == [{**before[0], "resolution": 64, "repeats": 3}, *before[1:]], says


def test_a_refused_removal_keeps_what_was_typed_and_blames_no_other_set(client: Client, cats: Path) -> None:  # noqa: F811
    before = entries(cats)
    texts = next(place for place, one in enumerate(before) if one["dataset_type"] == "text_embeds")
    form = {"remove": str(texts), f"{1 - texts}.repeats": "-5"}
    answer, says = post(client, "/cats/datasets", form)
    page = answer.content.decode()
    assert answer.status_code == 422 and any("repeats" in one for one in says) and entries(cats) == before
    assert f'name="{1 - texts}.repeats" value="-5"' in page and '<li class="error">' not in page


def test_the_first_set_of_an_environment_without_a_file_is_added(client: Client, cats: Path) -> None:  # noqa: F811
    path = cats.parents[1] / "config/cats/multidatabackend.json"
    path.unlink()
    page = get(client, "/cats/datasets")
    assert "No dataset yet" in page and "Add a set" in page
    form = {"act": "add", "new.dataset_type": "image", "new.type": "local", "new.id": "first", "new.instance_data_dir": "datasets/cats"}
    answer, says = post(client, "/cats/datasets", form)
    assert answer.status_code == 302 and [one["id"] for one in json.loads(path.read_text())] == ["first"], says


# ---- the adapter file ----
@pytest.fixture
def lokr(home: Path) -> Path:
    """The adapter file of an environment ``lokr``."""
    request = NewEnvironment("lokr", model_family="flux", model_flavour="kontext", model_type="lora", lora_type="lycoris")
    services.create_environment(request, actor="test")
    return home / "config/lokr/lycoris_config.json"


def test_an_adapter_file_is_shown_checked_and_stored(client: Client, lokr: Path) -> None:
    page = get(client, "/lokr/adapter")
    assert (
        "lokr/lycoris_config.json" in page and "FluxAttention" in page and 'href="/environments/lokr/adapter" aria-current="page"' in page
    )
    good = {"algo": "loha", "multiplier": 0.5, "linear_dim": 8, "linear_alpha": 4, "apply_preset": {"target_module": ["FluxAttention"]}}
    answer, says = post(client, "/lokr/adapter", {"text": json.dumps(good)})
    assert answer["Location"] == "/environments/lokr/adapter" and says == ["Saved the adapter file of lokr."]
    assert json.loads(lokr.read_text()) == good


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "The text is"),
        ("[]", "lycoris_config"),
        ('{"algo": "sideways", "linear_dim": 4}', "algo"),
        (json.dumps({"algo": EVIL}), "algo"),
        ("", "The text is"),
    ],
)
def test_an_adapter_file_that_cannot_be_used_is_not_stored(client: Client, lokr: Path, text: str, reason: str) -> None:
    before = lokr.read_text()
    answer, says = post(client, "/lokr/adapter", {"text": text})
    page = answer.content.decode()
    assert answer.status_code == 422 and says[0] == "Nothing was saved." and reason in page and lokr.read_text() == before
    assert "<script>alert" not in page and ("sideways" in text) == ("sideways&quot;, &quot;linear_dim" in page), "what was typed stays"


def test_a_missing_adapter_file_begins_with_one_that_can_be_used(client: Client, lokr: Path) -> None:
    lokr.unlink()
    page = get(client, "/lokr/adapter")
    assert "There is no file yet" in page
    text = page.split('aria-describedby="file-problems adapter-hint">')[1].split("</textarea>")[0].replace("&quot;", '"')
    answer, _ = post(client, "/lokr/adapter", {"text": text})
    assert answer.status_code == 302 and json.loads(lokr.read_text())["algo"] == "lokr"


def test_a_broken_adapter_file_is_no_missing_one(client: Client, lokr: Path) -> None:
    lokr.write_text('{"algo": "lokr", ')
    page = get(client, "/lokr/adapter")
    assert "There is no file yet" not in page and "The file cannot be used. Here is what" in page and "not valid JSON" in page
    answer, _ = post(client, "/lokr/adapter", {"text": "[", "version": version_in(page)})
    assert "begin with" not in answer.content.decode(), "what is shown was typed"


def test_an_adapter_file_that_somebody_else_has_saved_is_not_replaced_unseen(client: Client, lokr: Path) -> None:
    version, mine = version_in(get(client, "/lokr/adapter")), {**json.loads(lokr.read_text()), "multiplier": 0.25}
    theirs = {**json.loads(lokr.read_text()), "multiplier": 0.5}
    services.write_adapter_file("lokr", theirs, actor="somebody")
    answer, says = post(client, "/lokr/adapter", {"text": json.dumps(mine), "version": version})
    page = answer.content.decode()
    assert answer.status_code == 409 and says == ["Nothing was saved."] and "has changed since" in page and "0.25" in page
    assert json.loads(lokr.read_text()) == theirs
    post(client, "/lokr/adapter", {"text": json.dumps(mine), "version": version_in(page)})
    assert json.loads(lokr.read_text()) == mine


def test_an_environment_without_an_adapter_needs_no_file(client: Client, cats: Path) -> None:  # noqa: F811
    assert "needs no adapter file" in get(client, "/cats/adapter")
    answer, _ = post(client, "/cats/adapter", {"text": "{}"})
    assert answer.status_code == 422 and not (cats.parents[1] / "config/cats/lycoris_config.json").exists()
    assert Environment.objects.get().config["model_type"] == "full"
