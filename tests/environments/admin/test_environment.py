"""The Django admin as a person uses it: pages are opened, forms are sent, problems stand at their fields."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpRequest
from django.test import Client
from rest_framework.exceptions import APIException

from environments import services
from environments.admin import actions
from environments.admin.actions import ObjectAction, Onward, add_object_action
from environments.admin.forms import USUAL, model_choices
from environments.create.plan import NewEnvironment
from environments.examples import find_example, shipped_examples
from environments.models import Environment, Revision
from tests.helpers.params import first_fast
from trainer_engine.config.families import specs
from trainer_engine.config.options import REGISTRY

ENVIRONMENTS = "/admin/environments/environment/"


class Fields(HTMLParser):
    """The values that a browser would send back with a page's forms."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.values: dict[str, str] = {}
        self._open: str | None = None
        self._choosing: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        name = found.get("name") or ""
        if tag == "input" and name and found.get("type") not in ("submit", "checkbox"):
            self.values[name] = found.get("value") or ""
        elif tag == "textarea":
            self._open, self.values[name] = name, ""
        elif tag == "select":
            self._choosing = name
            self.values[name] = ""
        elif tag == "option" and self._choosing and "selected" in found:
            self.values[self._choosing] = found.get("value") or ""

    def handle_endtag(self, tag: str) -> None:
        self._open = None if tag == "textarea" else self._open
        self._choosing = None if tag == "select" else self._choosing

    def handle_data(self, data: str) -> None:
        if self._open:
            self.values[self._open] += data


class Browser:
    """Somebody at the admin."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.client = Client()
        self.client.force_login(User.objects.create_superuser("me", password=None))

    def page(self, path: str) -> str:
        answer = self.client.get(ENVIRONMENTS + path)
        assert answer.status_code == 200, answer
        return answer.content.decode()

    def send(self, path: str, **changes: str) -> str:
        """Fill the form of a page in, send it, and follow to the page that comes then."""
        fields = Fields(self.page(path)).values
        unknown = set(changes) - set(fields)
        assert not unknown, f"the page has no field {unknown}"
        fields = {name: value.removeprefix("\n") for name, value in fields.items() if name != "action"}
        answer = self.client.post(ENVIRONMENTS + path, {**fields, **changes, "_continue": "1"}, follow=True)
        assert answer.status_code == 200
        return answer.content.decode()

    def press(self, path: str, button: str, **changes: str) -> str:
        """Fill the form of a page in and press a button that also runs an action."""
        fields = {name: value.removeprefix("\n") for name, value in Fields(self.page(path)).values.items()}
        answer = self.client.post(ENVIRONMENTS + path, {**fields, **changes, "_act": button}, follow=True)
        assert answer.status_code == 200
        return answer.content.decode()


@pytest.fixture
def browser(home: Path, db: None) -> Browser:
    return Browser(home)


@pytest.fixture
def demo(browser: Browser) -> Environment:
    return services.create_environment(NewEnvironment("demo", "pixart_sigma", model_type="full"), actor="test")


def options(**changes: Any) -> dict[str, str]:
    return {f"option_{name}": value for name, value in changes.items()}


def stored() -> dict[str, Any]:
    return Environment.objects.get(name="demo").config


def test_an_environment_is_made_from_a_form(browser: Browser) -> None:
    page = browser.send("add/", name="demo", model_family="pixart_sigma", model_flavour="600M-512", model_type="full", description="mine")
    assert "Change environment" in page
    made = Environment.objects.get()
    assert (made.description, made.config["model_flavour"]) == ("mine", "600M-512")
    assert (browser.home / "config" / "demo" / "multidatabackend.json").is_file()
    assert Revision.objects.get().actor == "admin:me"


def test_an_environment_is_made_from_an_example(browser: Browser) -> None:
    browser.send("add/", name="demo", example="pixart_sigma_900m_full")
    assert stored()["validation_num_inference_steps"] == 28


@pytest.mark.parametrize(
    ("name", "says"), [("a/b", "cannot be the name"), ("active", "word of the API"), ("demo", "already exists"), ("", "required")]
)
def test_a_wrong_name_is_reported_at_the_field(browser: Browser, demo: Environment, name: str, says: str) -> None:
    assert says in browser.send("add/", name=name, model_family="pixart_sigma", model_type="full")
    assert Environment.objects.count() == 1


def test_every_option_has_a_field_with_its_help_and_default(browser: Browser, demo: Environment) -> None:
    page = browser.page(f"{demo.pk}/change/")
    fields = Fields(page).values
    assert {f"option_{name}" for name in REGISTRY} <= set(fields)
    assert fields["option_max_train_steps"] == "1000" and fields["option_seed"] == ""
    assert "default: 42" in page and "Number of optimizer steps." in page


def test_sending_a_page_back_untouched_changes_nothing(browser: Browser, demo: Environment) -> None:
    services.update_environment(
        "demo", config={**demo.config, "validation_prompt": "", "optimizer_config": "eps=1e-8", "use_ema": True}, actor="test"
    )
    before, files = stored(), {path: path.read_bytes() for path in (browser.home / "config" / "demo").iterdir()}
    browser.send(f"{demo.pk}/change/")
    assert stored() == before
    assert {path: path.read_bytes() for path in (browser.home / "config" / "demo").iterdir()} == files


def test_options_are_changed_added_and_removed(browser: Browser, demo: Environment) -> None:
    changes = options(
        max_train_steps="20", seed="7", use_ema="true", optimizer="torch-adamw", learning_rate="", resume_from_checkpoint='""'
    )
    browser.send(f"{demo.pk}/change/", **changes, description="new words", tags_text="a, b,")
    config = stored()
    assert (config["max_train_steps"], config["seed"], config["use_ema"], config["optimizer"]) == (20, 7, True, "torch-adamw")
    assert "learning_rate" not in config and config["resume_from_checkpoint"] == ""
    row = Environment.objects.get()
    assert (row.description, row.tags) == ("new words", ["a", "b"])
    assert json.loads((browser.home / "config" / "demo" / "config.json").read_text())["--seed"] == 7


def test_wrong_values_are_reported_at_their_fields_and_nothing_is_stored(browser: Browser, demo: Environment) -> None:
    before = stored()
    page = browser.send(f"{demo.pk}/change/", **options(learning_rate="fast", train_batch_size="0", output_dir="/etc/x"))
    for name in ("learning_rate", "train_batch_size", "output_dir"):
        assert f'id="id_option_{name}_error"' in page, name
    assert "is not a finite number" in page and "a number above 0 and at most 1" in page
    assert stored() == before


def test_the_form_shows_each_problem_of_a_start_at_its_field(browser: Browser, demo: Environment) -> None:
    page = browser.page(f"{demo.pk}/change/")
    assert 'class="problem-error"' in page and "datasets/demo&#x27; does not exist" in page
    (browser.home / "datasets" / "demo").mkdir(parents=True)
    assert 'class="problem-error"' not in browser.page(f"{demo.pk}/change/")


def test_the_datasets_file_is_edited_as_text(browser: Browser, demo: Environment) -> None:
    path = browser.home / "config" / "demo" / "multidatabackend.json"
    browser.send(f"{demo.pk}/change/", datasets_text='[\r\n  {"id": "mine"}\r\n]\r\n')
    assert path.read_text() == '[\n  {"id": "mine"}\n]\n'
    assert "mine" in (Revision.objects.first().datasets_text or "")  # type: ignore[union-attr]


@pytest.mark.parametrize(("text", "says"), [("[", "line 1"), ('{"a": 1}', "is a list"), ('["\\ud800"]', "surrogate")])
def test_datasets_that_are_no_list_are_reported_at_the_field(browser: Browser, demo: Environment, text: str, says: str) -> None:
    path = browser.home / "config" / "demo" / "multidatabackend.json"
    before = path.read_text()
    assert says in browser.send(f"{demo.pk}/change/", datasets_text=text)
    assert path.read_text() == before


def test_the_form_escapes_typed_markup(browser: Browser, demo: Environment) -> None:
    page = browser.send(f"{demo.pk}/change/", **options(validation_prompt="<b>bold</b> <token>", model_flavour="<i>x</i>"))
    assert "<b>bold" not in page and "<i>x" not in page


def test_a_broken_file_is_shown_and_mended_by_saving(browser: Browser, demo: Environment) -> None:
    (browser.home / "config" / "demo" / "config.json").write_text("{")
    assert "config/demo/config.json cannot be used" in browser.page(f"{demo.pk}/change/")
    assert "cannot be used" in browser.page("")
    browser.send(f"{demo.pk}/change/", **options(seed="1"))
    assert "cannot be used" not in browser.page("")


def test_folders_made_by_hand_are_in_the_list(browser: Browser) -> None:
    folder = browser.home / "config" / "by-hand"
    folder.mkdir()
    (folder / "config.json").write_text('{"--model_family": "pixart_sigma"}')
    assert "by-hand" in browser.page("")


def test_activating_is_a_button_that_goes_when_it_is_done(browser: Browser, demo: Environment) -> None:
    button = 'value="activate"'
    assert button in browser.page(f"{demo.pk}/change/")
    assert "Runs start from demo now" in browser.press(f"{demo.pk}/change/", "activate")
    assert Environment.objects.get().is_active
    assert button not in browser.page(f"{demo.pk}/change/")


def test_the_form_takes_nothing_back_that_somebody_else_has_saved(browser: Browser, demo: Environment) -> None:
    path = browser.home / "config" / "demo" / "multidatabackend.json"
    fields = {name: value.removeprefix("\n") for name, value in Fields(browser.page(f"{demo.pk}/change/")).values.items()}
    services.update_environment("demo", config={**stored(), "seed": 3}, actor="somebody")
    theirs, datasets = stored(), path.read_text()
    sent = {**fields, **options(max_train_steps="77", validation_prompt="<b>x")}
    for button in ({"_continue": "1"}, {"_act": "activate"}):
        answer = browser.client.post(f"{ENVIRONMENTS}{demo.pk}/change/", {**sent, **button})
        page = answer.content.decode()
        assert answer.status_code == 409 and "The environment has changed since this page was opened." in page
        assert stored() == theirs and not Environment.objects.get().is_active and 'value="77"' in page and "<b>x" not in page
    assert "differs from this page in: " in page and "seed" in page.split("differs from this page in: ")[1].split(".")[0]
    again = {name: value.removeprefix("\n") for name, value in Fields(page).values.items()}
    assert browser.client.post(f"{ENVIRONMENTS}{demo.pk}/change/", {**again, "_continue": "1"}).status_code == 302
    assert stored()["max_train_steps"] == 77 and "seed" not in stored()
    path.write_text("[]\n")
    answer = browser.client.post(f"{ENVIRONMENTS}{demo.pk}/change/", {**again, "version": "", "description": "x", "_continue": "1"})
    assert answer.status_code == 409 and "The datasets file has changed" in answer.content.decode() and path.read_text() != datasets


def test_a_stale_form_names_what_differs_in_words_of_the_page(browser: Browser, demo: Environment) -> None:
    fields = {name: value.removeprefix("\n") for name, value in Fields(browser.page(f"{demo.pk}/change/")).values.items()}
    services.update_environment("demo", config={**stored(), "seed": 3}, actor="somebody")
    sent = {**fields, "tags_text": "mine", "_continue": "1"}
    assert "differs from this page in: tags, seed." in browser.client.post(f"{ENVIRONMENTS}{demo.pk}/change/", sent).content.decode()


def test_a_button_keeps_what_was_typed_into_the_page(browser: Browser, demo: Environment) -> None:
    browser.press(f"{demo.pk}/change/", "activate", **options(max_train_steps="77"))
    assert stored()["max_train_steps"] == 77 and Environment.objects.get().is_active


def test_a_button_does_nothing_while_a_value_is_wrong(browser: Browser, demo: Environment) -> None:
    page = browser.press(f"{demo.pk}/change/", "activate", **options(max_train_steps="many"))
    assert 'value="many"' in page and 'id="id_option_max_train_steps_error"' in page
    assert not Environment.objects.get().is_active and stored()["max_train_steps"] == 1000


def test_saving_is_what_the_enter_key_does(browser: Browser, demo: Environment) -> None:
    page = browser.page(f"{demo.pk}/change/")
    assert page.index('name="_save"') < page.index('name="_act"'), "a browser presses the first button of a form"


def test_the_form_keeps_typed_values_when_saving_fails(browser: Browser, demo: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("environments.writing.write_config", refuse)
        page = browser.send(f"{demo.pk}/change/", **options(max_train_steps="77"))
    assert 'value="77"' in page and "No space left" in page and "Nothing was saved" in page
    assert stored()["max_train_steps"] == 1000


@pytest.mark.parametrize("example", first_fast([example.name for example in shipped_examples()], 4))
def test_every_example_makes_an_environment_from_the_form_as_it_comes(browser: Browser, example: str) -> None:
    browser.send("add/", name="demo", example=example)
    wanted = find_example(example)
    assert wanted is not None and stored()["model_type"] == wanted.config["model_type"]


def test_a_family_alone_makes_what_the_api_makes(browser: Browser) -> None:
    browser.send("add/", name="demo", model_family="flux")
    assert stored()["model_type"] == "lora"


def test_empty_fields_say_what_the_family_takes(browser: Browser, demo: Environment) -> None:
    page = browser.page(f"{demo.pk}/change/")
    assert re.search(r'name="option_max_grad_norm"[^>]*placeholder="default: 0.01"', page)
    assert "— default: epsilon" in page
    services.create_environment(NewEnvironment("flux", "flux"), actor="test")
    page = browser.page(f"{Environment.objects.get(name='flux').pk}/change/")
    assert re.search(r'name="option_max_grad_norm"[^>]*placeholder="default: 2"', page)
    assert re.search(r'name="option_validation_guidance"[^>]*placeholder="default: 3.5"', page)
    assert "— default: flow_matching" in page


def test_help_texts_keep_their_angle_brackets(browser: Browser, demo: Environment) -> None:
    page = browser.page(f"{demo.pk}/change/")
    assert "checkpoint-&lt;step&gt;-rolling" in page and "&lt;output_dir&gt;" in page
    assert "<step>" not in page and "<output_dir>" not in page and "&amp;lt;" not in page


def test_a_button_is_pressed_not_followed(browser: Browser, demo: Environment) -> None:
    browser.client.get(f"{ENVIRONMENTS}{demo.pk}/do/activate/")
    assert not Environment.objects.get().is_active
    assert browser.client.post(f"{ENVIRONMENTS}{demo.pk}/do/nothing/").status_code == 404


@pytest.fixture
def further_button() -> Iterator[None]:
    def run(request: HttpRequest, environment: Environment) -> str:
        if environment.description == "no":
            raise APIException("It cannot be done.")
        return f"Done for {environment.name}."

    before = dict(actions._ACTIONS)
    add_object_action(ObjectAction("further", "Do it further", run, is_primary=True))
    yield
    actions._ACTIONS.clear()
    actions._ACTIONS.update(before)


def test_other_apps_add_buttons(browser: Browser, demo: Environment, further_button: None) -> None:
    assert "Do it further" in browser.page(f"{demo.pk}/change/")
    press = f"{ENVIRONMENTS}{demo.pk}/do/further/"
    assert "Done for demo." in browser.client.post(press, follow=True).content.decode()
    Environment.objects.update(description="no")
    assert "It cannot be done." in browser.client.post(press, follow=True).content.decode()


def test_deleting_goes_through_the_services_and_spares_the_active_one(browser: Browser, demo: Environment) -> None:
    other = services.create_environment(NewEnvironment("other", "pixart_sigma", model_type="full"), actor="test")
    services.activate("demo", actor="test")
    for environment, status in ((demo, 403), (other, 302)):
        assert browser.client.post(f"{ENVIRONMENTS}{environment.pk}/delete/", {"post": "yes"}).status_code == status
    assert list(Environment.objects.values_list("name", flat=True)) == ["demo"]
    assert not (browser.home / "config" / "other").exists()
    assert Revision.objects.get(action="deleted").actor == "admin:me"


def test_the_history_is_there_to_read(browser: Browser, demo: Environment) -> None:
    revision = Revision.objects.get()
    page = browser.client.get(f"/admin/environments/revision/{revision.pk}/change/").content.decode()
    assert "pixart_sigma" in page and "demo-images" in page
    assert f"/admin/environments/revision/{revision.pk}/change/" in browser.page(f"{demo.pk}/change/")
    assert browser.client.get("/admin/environments/revision/add/").status_code == 403


def test_a_new_environment_is_shown_after_it_was_created(home: Path, db: None, client: Client) -> None:
    fields = {"name": "fresh", "description": "", "model_family": "pixart_sigma", "model_type": "lora"}
    answer = client.post(f"{ENVIRONMENTS}add/", fields, follow=True)
    row = Environment.objects.get()
    assert answer.redirect_chain[-1][0] == f"{ENVIRONMENTS}{row.pk}/change/"
    assert "Created fresh." in answer.content.decode() and " UTC</li>" in answer.content.decode()


def test_a_button_may_lead_to_another_page(home: Path, db: None, client: Client) -> None:
    add_object_action(ObjectAction("elsewhere", "Go elsewhere", lambda request, environment: Onward(f"Went from {environment.name}.", "/")))
    try:
        row = services.create_environment(NewEnvironment(name="demo", model_family="pixart_sigma", model_type="full"), actor="test")
        answer = client.post(f"{ENVIRONMENTS}{row.pk}/do/elsewhere/")
        assert (answer.status_code, answer.headers["location"]) == (302, "/")
        assert client.get(f"{ENVIRONMENTS}{row.pk}/do/elsewhere/").headers["location"] == f"{ENVIRONMENTS}{row.pk}/change/"
    finally:
        del actions._ACTIONS["elsewhere"]


def test_problems_of_a_saved_datasets_file_are_shown(browser: Browser, demo: Environment) -> None:
    page = browser.send(f"{demo.pk}/change/", datasets_text='[{"id": "mine", "type": "local", "no_such_field": 1}]')
    assert "changed successfully" in page and "Datasets: " in page and "no_such_field" in page
    unchanged = browser.send(f"{demo.pk}/change/", description="the file stays")
    assert "Datasets: " not in unchanged


# ---- choices ----
def choices(page: str, field: str) -> str:
    return page.split(f'name="{field}"')[1].split("</select>")[0]


def test_families_and_flavours_are_lists_with_those_of_the_environment_first(browser: Browser, demo: Environment) -> None:
    page = browser.page(f"{demo.pk}/change/")
    assert 'href="/environments/demo/datasets"' in page
    families, flavours = choices(page, "option_model_family"), choices(page, "option_model_flavour")
    assert '<option value="pixart_sigma" selected>' in families and 'value="flux"' in families
    assert flavours.index("900M-1024-v0.6") < flavours.index("kontext") and flavours.count("<optgroup") == len(specs())
    assert "Saved" in browser.press(f"{demo.pk}/change/", "check", option_model_flavour="600M-512")
    assert stored()["model_flavour"] == "600M-512"


def test_a_flavour_that_is_not_known_any_more_stays_a_choice(browser: Browser, demo: Environment) -> None:
    Environment.objects.update(config={**demo.config, "model_flavour": "older", "model_family": "gone"})
    found = model_choices(Environment.objects.get().config)
    assert ("gone", "gone") in found["model_family"] and found["model_flavour"][-1] == ("older", "older")
    assert all(name for name, _ in model_choices({})["model_family"])


def test_the_usual_optimizers_come_first_and_each_is_there_once(browser: Browser, demo: Environment) -> None:
    listed = choices(browser.page(f"{demo.pk}/change/"), "option_optimizer")
    names = re.findall(r'<option value="([^"]+)"', listed)
    assert sorted(names) == sorted(REGISTRY["optimizer"].choices) and names[0] == REGISTRY["optimizer"].default
    assert listed.index('<optgroup label="Usual">') < listed.index('<optgroup label="Others">')
    for name, usual in USUAL.items():
        assert set(usual) <= set(REGISTRY[name].choices)


def test_a_new_environment_chooses_its_adapter_and_reads_what_examples_are(browser: Browser) -> None:
    page = browser.page("add/")
    for example in shipped_examples():
        assert escape(f"{example.name}: {example.description}") in page
    browser.send("add/", name="demo", model_family="flux", model_flavour="kontext", model_type="lora", lora_type="lycoris")
    assert stored()["lora_type"] == "lycoris" and (browser.home / "config/demo/lycoris_config.json").exists()


# ---- revisions ----
def test_a_revision_says_what_it_changed_and_is_brought_back(browser: Browser, demo: Environment) -> None:
    browser.send(f"{demo.pk}/change/", **options(max_train_steps="33"))
    first, second = Revision.objects.order_by("number")
    address = f"/admin/environments/revision/{first.pk}/"
    page = browser.client.get(f"{address}change/").content.decode()
    assert "It is the first one." in page and "<code>max_train_steps</code></th><td>1000</td><td>33</td>" in page
    page = browser.client.get(f"/admin/environments/revision/{second.pk}/change/").content.decode()
    assert "<code>max_train_steps</code></th><td>1000</td><td>33</td>" in page and "Nothing." in page
    browser.client.get(f"{address}restore/")
    assert stored()["max_train_steps"] == 33, "a link changes nothing"
    answer = browser.client.post(f"{address}restore/", follow=True)
    assert stored()["max_train_steps"] == 1000 and "as it was in revision 1" in answer.content.decode()
    assert Revision.objects.filter(action="restored", actor="admin:me").count() == 1
    assert browser.client.post("/admin/environments/revision/999/restore/").status_code == 404


def test_a_deleted_environment_is_brought_back_from_its_revision(browser: Browser, demo: Environment) -> None:
    services.delete_environment("demo", actor="test")
    first = Revision.objects.order_by("number")[0]
    browser.client.post(f"/admin/environments/revision/{first.pk}/restore/")
    assert stored()["model_family"] == "pixart_sigma"


def test_a_revision_that_cannot_be_used_any_more_changes_nothing(browser: Browser, demo: Environment) -> None:
    first = Revision.objects.get()
    Revision.objects.update(config={**first.config, "optimizer": "sideways", "model_family": "<script>x"})
    answer = browser.client.post(f"/admin/environments/revision/{first.pk}/restore/", follow=True)
    assert (
        "sideways" in answer.content.decode() and "<script>x" not in answer.content.decode() and stored()["model_family"] == "pixart_sigma"
    )
