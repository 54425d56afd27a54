"""``/environments``: options with search and defaults of the family, Check and Start that save first, datasets, captions, history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.test import Client

from environments import services
from environments.admin.forms import PREFIX
from environments.create.plan import NewEnvironment
from environments.images.datasets import OpenDataset
from environments.models import Environment, Revision
from simpletuner_site.security.guard import follows_link_to_page
from tests.helpers.jobs import make_job
from tests.helpers.pictures import generate_images
from tests.training.conftest import write_model
from tests.training.pages.test_run_page import EVIL, Elements
from trainer_engine.config.options import REGISTRY
from training.models import Job, Status
from training.pages.option_rows import COMMON

pytestmark = pytest.mark.django_db


@pytest.fixture
def cats(home: Path) -> Path:
    """The folder of images of an environment ``cats`` that can be started."""
    folder = home / "datasets/cats"
    generate_images(folder, count=4, size=(64, 64))
    options = {
        "pretrained_model_name_or_path": str(write_model(home / "model")),
        "mixed_precision": "no",
        "resolution": 64,
        "validation_disable": True,
    }
    request = NewEnvironment("cats", model_family="pixart_sigma", model_type="full", images="datasets/cats", options=options)
    services.create_environment(request, actor="test")
    return folder


def get(client: Client, address: str, status: int = 200) -> str:
    answer = client.get(f"/environments{address}")
    assert answer.status_code == status
    page: str = answer.content.decode()
    Elements(page)
    assert "default-src 'none'" in answer["Content-Security-Policy"]
    return page


def fields_of(page: str) -> dict[str, str]:
    """What a browser would send for the form of options: text fields and selections."""
    found: dict[str, str] = {}
    selected = ""
    for tag, attributes in Elements(page).found:
        name = attributes.get("name") or ""
        if tag == "input" and (name.startswith(PREFIX) or name in ("description", "tags_text", "version")):
            found[name] = attributes.get("value") or ""
        elif tag == "select":
            selected = name
            found[name] = ""
        elif tag == "option" and "selected" in attributes and selected:
            found[selected] = attributes.get("value") or ""
    return found


def post(client: Client, address: str, form: dict[str, Any]) -> tuple[Any, list[str]]:
    client.cookies.pop("messages", None)
    answer = client.post(f"/environments{address}", form)
    return answer, [str(message) for message in get_messages(answer.wsgi_request)]


def config() -> dict[str, Any]:
    return dict(Environment.objects.get().config)


def press(client: Client, act: str, **options: str) -> tuple[Any, list[str]]:
    form = fields_of(get(client, "/cats")) | {f"{PREFIX}{name}": value for name, value in options.items()}
    return post(client, "/cats", {**form, "act": act})


def test_environments_are_listed_with_their_newest_run(client: Client, cats: Path, tmp_path: Path) -> None:
    make_job(tmp_path, Status.COMPLETED, environment="cats")
    newest = make_job(tmp_path, Status.ERROR, environment="cats")
    page = get(client, "")
    assert 'href="/environments/cats"' in page and f'href="/runs/{newest.number}"' in page and "state error" in page
    Environment.objects.all().delete()


def test_a_list_without_environments_says_how_to_begin(client: Client, home: Path) -> None:
    assert "No environment yet" in get(client, "") and 'href="/new"' in get(client, "")


def test_every_option_is_a_field_once_and_the_common_ones_come_first(client: Client, cats: Path) -> None:
    page = get(client, "/cats")
    names = [name.removeprefix(PREFIX) for name in fields_of(page) if name.startswith(PREFIX)]
    assert sorted(names) == sorted(REGISTRY) and tuple(names[: len(COMMON)]) == COMMON
    assert 'placeholder="default: 0.01"' in page, "the family's default of max_grad_norm, not the registry's"
    assert "A number" in page or "number" in page, "bounds are said"
    flavours = page.split('id="id_option_model_flavour"')[1].split("</select>")[0]
    assert flavours.index("900M-1024-v0.6") < flavours.index("kontext"), "those of the family come first"
    assert '<optgroup label="Usual">' in page.split('id="id_option_optimizer"')[1].split("</select>")[0]


def test_a_save_stores_what_changed_and_nothing_else(client: Client, cats: Path) -> None:
    before, revisions = config(), Revision.objects.count()
    answer, says = press(client, "save")
    assert answer.status_code == 302 and says == [] and config() == before and Revision.objects.count() == revisions
    answer, says = press(client, "save", max_train_steps="33", seed="")
    assert answer["Location"] == "/environments/cats" and "Saved" in says[0]
    assert config() == {**before, "max_train_steps": 33}
    assert (cats.parents[1] / "config/cats/multidatabackend.json").exists(), "the datasets file is untouched"
    press(client, "save", max_train_steps="", num_train_epochs="1")
    assert "max_train_steps" not in config()


def test_a_form_of_options_takes_nothing_back_that_somebody_else_has_saved(client: Client, cats: Path) -> None:
    form = fields_of(get(client, "/cats")) | {f"{PREFIX}seed": "7", "description": "mine <b>"}
    services.update_environment("cats", config={**config(), "max_train_steps": 55}, description="theirs", actor="somebody")
    theirs = config()
    for act in ("save", "start", "activate"):
        answer, says = post(client, "/cats", {**form, "act": act})
        page = answer.content.decode()
        assert answer.status_code == 409 and "has changed since" in says[0] and config() == theirs and not Job.objects.exists()
        assert "differs from this page in: description, max_train_steps, seed." in says[1], says
    assert 'name="option_seed" value="7"' in page and "mine &lt;b&gt;" in page and "mine <b>" not in page, "what was typed is there"
    answer, says = post(client, "/cats", {**form, **fields_of(page), "act": "save"})
    assert answer.status_code == 302 and config()["seed"] == 7 and Environment.objects.get().description == "mine <b>", says


def test_a_wrong_value_does_not_hide_that_somebody_else_has_saved(client: Client, cats: Path) -> None:
    form = fields_of(get(client, "/cats")) | {f"{PREFIX}seed": "x"}
    services.update_environment("cats", config={**config(), "max_train_steps": 55}, actor="somebody")
    answer, _ = post(client, "/cats", form)
    assert answer.status_code == 422
    answer, _ = post(client, "/cats", {**fields_of(answer.content.decode()), f"{PREFIX}seed": "7"})
    assert answer.status_code == 409 and config()["max_train_steps"] == 55


def test_an_option_that_is_wrong_is_marked_and_nothing_is_saved(client: Client, cats: Path) -> None:
    before = config()
    for act in ("save", "check", "start"):
        answer, says = press(client, act, max_train_steps="-3", learning_rate=EVIL)
        page = answer.content.decode()
        assert answer.status_code == 422 and page.count('class="option wrong') == 2 and "Nothing was saved" in says[0]
        assert "<script>alert" not in page and config() == before and not Job.objects.exists()


def test_a_check_saves_first_and_says_what_a_start_will_do(client: Client, cats: Path) -> None:
    answer, _ = press(client, "check", max_train_steps="40")
    page = answer.content.decode()
    assert answer.status_code == 200 and config()["max_train_steps"] == 40
    assert 'id="report"' in page and "40 optimizer steps" in page and "can be started" in page
    assert not Job.objects.exists()


def test_a_check_lists_every_problem_with_a_link_to_its_field(client: Client, cats: Path) -> None:
    for path in cats.iterdir():
        path.unlink()
    page = press(client, "check", pretrained_model_name_or_path="somebody/else")[0].content.decode()
    assert "cannot be started yet" in page and 'href="#id_option_pretrained_model_name_or_path"' in page
    assert 'href="/environments/cats/datasets"' in page


def test_a_start_saves_first_and_leads_to_the_run(client: Client, cats: Path) -> None:
    answer, _ = press(client, "start", max_train_steps="25")
    job = Job.objects.get()
    assert answer["Location"] == f"/runs/{job.number}" and job.options["max_train_steps"] == 25 == config()["max_train_steps"]


def test_a_start_that_is_refused_says_why_on_the_page(client: Client, cats: Path) -> None:
    answer, says = press(client, "start", pretrained_model_name_or_path="somebody/else")
    assert answer.status_code == 422 and "Cannot start" in says[-1] and not Job.objects.exists()
    assert config()["pretrained_model_name_or_path"] == "somebody/else", "it was saved"


def test_activate_makes_it_the_environment_of_the_api(client: Client, cats: Path) -> None:
    assert 'value="activate"' in get(client, "/cats")
    press(client, "activate")
    assert Environment.objects.get().is_active and 'value="activate"' not in get(client, "/cats")


def test_a_run_fills_its_options_into_the_form_without_saving_them(client: Client, cats: Path) -> None:
    press(client, "start", max_train_steps="25", seed="5")
    job = Job.objects.get()
    press(client, "save", max_train_steps="99", seed="6")
    page = get(client, f"/cats?run={job.number}")
    filled = fields_of(page)
    assert (filled[f"{PREFIX}max_train_steps"], filled[f"{PREFIX}seed"]) == ("25", "5") and "Nothing is saved yet" in page
    assert config()["max_train_steps"] == 99
    post(client, "/cats", {**filled, f"{PREFIX}seed": "7", "act": "save"})
    assert (config()["max_train_steps"], config()["seed"]) == (25, 7)
    Job.objects.update(status=Status.COMPLETED)
    assert f'href="/environments/cats?run={job.number}"' in client.get(f"/runs/{job.number}").content.decode()


@pytest.mark.parametrize("number", ["x", "999", "-1", "1" * 30])
def test_a_run_that_does_not_exist_fills_in_nothing(client: Client, cats: Path, number: str) -> None:
    assert "Nothing is saved yet" not in get(client, f"/cats?run={number}")


@pytest.mark.parametrize("address", ["/none", "/none/datasets", "/none/history", "/.hidden", "/a..b", "/x%2Fy"])
def test_unknown_names_are_not_found(client: Client, home: Path, address: str) -> None:
    assert client.get(f"/environments{address}").status_code == 404
    assert client.post(f"/environments{address}", {"act": "start"}).status_code == 404


@pytest.mark.parametrize(
    "address", ["/cats", "/cats/datasets", "/cats/datasets/caption", "/cats/datasets/texts", "/cats/adapter", "/cats/history"]
)
def test_only_a_post_with_the_token_of_the_page_changes_anything(cats: Path, address: str) -> None:
    strict, revisions = Client(enforce_csrf_checks=True), Revision.objects.count()
    assert strict.post(f"/environments{address}", {"act": "start", "revision": "1"}).status_code == 403
    assert Revision.objects.count() == revisions and not Job.objects.exists()


def test_a_link_from_elsewhere_opens_the_pages() -> None:
    headers = [(b"sec-fetch-mode", b"navigate"), (b"sec-fetch-dest", b"document")]
    for path in ("/new", "/environments", "/environments/cats", "/environments/cats/datasets"):
        assert follows_link_to_page({"type": "http", "method": "GET", "path": path, "headers": headers})
        assert not follows_link_to_page({"type": "http", "method": "POST", "path": path, "headers": headers})
    assert not follows_link_to_page({"type": "http", "method": "GET", "path": "/api/folders", "headers": headers})


# ---- datasets ----
def entries(cats: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((cats.parents[1] / "config/cats/multidatabackend.json").read_text())
    return found


def test_a_form_of_sets_that_have_changed_meanwhile_saves_nothing(client: Client, cats: Path) -> None:
    ids = [entry["id"] for entry in entries(cats)]
    page = get(client, "/cats/datasets")
    assert [f'name="sets" value="{one}"' in page for one in ids] == [True] * len(ids)
    path = cats.parents[1] / "config/cats/multidatabackend.json"
    path.write_text(json.dumps(entries(cats)[::-1]))
    before = path.read_text()
    _, says = post(client, "/cats/datasets", {"sets": ids, "0.repeats": "7"})
    assert "have changed since this page was opened" in says[0] and path.read_text() == before
    _, says = post(client, "/cats/datasets", {"sets": ids[::-1], f"{ids[::-1].index(ids[0])}.repeats": "7"})
    assert "Saved" in says[0] and [one.get("repeats") for one in entries(cats) if one["id"] == ids[0]] == [7]


def test_datasets_are_forms_with_their_images_and_captions(client: Client, cats: Path) -> None:
    page = get(client, "/cats/datasets")
    assert 'name="0.instance_data_dir" value="datasets/cats"' in page and 'name="1.cache_dir"' in page
    assert page.count("/thumbnail?file=") == 4 and "4 without a text file" in page and 'data-upload="cats"' in page
    assert "Show the buckets" in page and "64 × 64" in get(client, "/cats/datasets?buckets=1")


def test_a_field_is_stored_with_its_type_and_the_others_stay(client: Client, cats: Path) -> None:
    before = entries(cats)
    form = {
        "0.repeats": "3",
        "0.crop": "false",
        "0.instance_prompt": '["a cat", "one cat"]',
        "0.resolution": "",
        "0.id": "x",
        "9.repeats": "1",
    }
    answer, says = post(client, "/cats/datasets", form)
    assert answer["Location"] == "/environments/cats/datasets" and "Saved" in says[0]
    expected = {**before[0], "repeats": 3, "crop": False, "instance_prompt": ["a cat", "one cat"]}
    del expected["resolution"]
    assert entries(cats) == [expected, *before[1:]]


@pytest.mark.parametrize(
    ("field", "value"), [("repeats", "many"), ("crop_style", "sideways"), ("instance_data_dir", "/etc"), ("resolution", "-1")]
)
def test_a_wrong_field_is_refused_with_the_reason(client: Client, cats: Path, field: str, value: str) -> None:
    before = entries(cats)
    _, says = post(client, "/cats/datasets", {f"0.{field}": value})
    assert "Nothing was saved" in says[0] and f"dataloader[0].{field}" in says[1] and entries(cats) == before


def test_problems_of_a_dataset_stand_at_it(client: Client, cats: Path) -> None:
    path = cats.parents[1] / "config/cats/multidatabackend.json"
    path.write_text(json.dumps([{**entries(cats)[0], "instance_data_dir": "datasets/none", "resolution": EVIL}, *entries(cats)[1:]]))
    page = get(client, "/cats/datasets")
    assert "does not exist" in page and "<script>alert" not in page
    path.write_text("[{")
    assert "cannot be shown as a form" in get(client, "/cats/datasets")
    assert "cannot be read" in post(client, "/cats/datasets", {"0.repeats": "1"})[1][0]


def test_a_caption_is_saved_without_a_script(client: Client, cats: Path) -> None:
    file, *others = sorted(path.name for path in cats.iterdir())
    answer, says = post(
        client, "/cats/datasets/caption", {"set": "cats-images", "file": file, "caption": "a cat", "from": "0", "order": "name"}
    )
    assert answer["Location"] == "/environments/cats/datasets?set=cats-images&from=0&order=name#images" and "Saved the caption" in says[0]
    assert (cats / file).with_suffix(".txt").read_text() == "a cat\n"
    page = get(client, "/cats/datasets?order=missing").split('class="pictures"')[1]
    assert "3 without a text file" in get(client, "/cats/datasets") and page.index(file) > max(page.index(other) for other in others)
    assert "no image" in post(client, "/cats/datasets/caption", {"set": "cats-images", "file": "../x.png", "caption": "x"})[1][0]


def test_captions_become_text_files_that_can_be_edited(client: Client, cats: Path) -> None:
    own = sorted(cats.iterdir())[0].with_suffix(".txt")
    own.write_text("my own")
    post(client, "/cats/datasets", {"0.instance_prompt": "sks", "0.prepend_instance_prompt": "true"})
    answer, says = post(client, "/cats/datasets/texts", {"set": "cats-images"})
    assert answer["Location"].endswith("?set=cats-images#images") and says[0].startswith("3 text files were written")
    texts = [path.read_text() for path in sorted(cats.glob("*.txt"))]
    assert texts[0] == "my own" and all(text.startswith("sks a ") for text in texts[1:]) and len(texts) == 4
    assert entries(cats)[0]["caption_strategy"] == "textfile" and not entries(cats)[0]["prepend_instance_prompt"]
    page = get(client, "/cats/datasets")
    assert "0 without a text file" in page and "Write the captions into text files" not in page
    assert "has no dataset" in post(client, "/cats/datasets/texts", {"set": "none"})[1][0]


@pytest.mark.parametrize("is_there", [True, False])
def test_what_is_saved_while_text_files_are_written_stays(
    client: Client, cats: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    before, write = entries(cats), OpenDataset.write_texts
    saved = [{**before[0], "repeats": 5, "id": "cats-images" if is_there else "other"}, *before[1:]]

    def write_while_somebody_saves(dataset: OpenDataset) -> int:
        services.write_datasets_file("cats", saved, actor="somebody")
        return write(dataset)

    monkeypatch.setattr(OpenDataset, "write_texts", write_while_somebody_saves)
    post(client, "/cats/datasets", {"0.instance_prompt": "sks", "0.prepend_instance_prompt": "true"})
    _, says = post(client, "/cats/datasets/texts", {"set": "cats-images"})
    assert entries(cats)[0]["repeats"] == 5, says
    assert (entries(cats)[0].get("caption_strategy") == "textfile") or not is_there
    assert is_there or ("no dataset 'cats-images' any more" in says[0] and entries(cats) == saved)


def test_images_come_on_pages(client: Client, cats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.pages.datasets.IMAGES_ON_PAGE", 3)
    first, second = get(client, "/cats/datasets?order=name"), get(client, "/cats/datasets?set=cats-images&from=3&order=name")
    assert (first.count("/thumbnail?file="), second.count("/thumbnail?file=")) == (3, 1)
    assert "More images" in first and "Previous images" not in first and "Previous images" in second
    assert client.get("/environments/cats/datasets?from=30").status_code == 404


# ---- history ----
def test_changes_are_compared_and_brought_back(client: Client, cats: Path) -> None:
    press(client, "save", max_train_steps="33")
    post(client, "/cats/datasets", {"0.repeats": "7"})
    page = get(client, "/cats/history?from=1&to=3")
    assert "<td>33</td>" in page and "repeats&quot;: 7" in page
    answer, says = post(client, "/cats/history", {"revision": "1"})
    assert answer["Location"] == "/environments/cats/history" and "as it was in revision 1" in says[0]
    assert config()["max_train_steps"] == 1000 and entries(cats)[0]["repeats"] == 0


@pytest.mark.parametrize("revision", ["", "0", "99", "x", "9" * 30])
def test_a_revision_that_does_not_exist_changes_nothing(client: Client, cats: Path, revision: str) -> None:
    before = Revision.objects.count()
    assert "Nothing was changed" in post(client, "/cats/history", {"revision": revision})[1][0]
    assert Revision.objects.count() == before
    assert client.get("/environments/cats/history?from=99").status_code == 404
