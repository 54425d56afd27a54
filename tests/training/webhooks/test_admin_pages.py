"""Stored webhook targets in the admin: shown on the page of an environment, added, changed, tried and removed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.test import Client

from environments import services
from environments.create.plan import NewEnvironment
from environments.home import current_home
from environments.models import Environment
from environments.resolve import webhook_targets
from environments.resolve.webhook_targets import load_webhooks
from environments.seen import version_of
from tests.environments.admin.test_environment import Fields
from tests.helpers.receiver import receiving
from training.webhooks import stored
from training.webhooks.egress import webhook_problems

pytestmark = pytest.mark.django_db
EVIL = "'\"><script>alert(1)</script>"
HOOK = "http://127.0.0.1:9/hook"


@pytest.fixture
def demo(home: Path) -> Environment:
    return services.create_environment(NewEnvironment("demo", "pixart_sigma", model_type="full"), actor="test")


def put(name: str, *entries: dict[str, Any]) -> None:
    answer = Client(SERVER_NAME="localhost").put(f"/api/webhooks/{name}", json.dumps(entries), content_type="application/json")
    assert answer.status_code == 200, answer.content


def form_of(client: Client, address: str) -> dict[str, str]:
    """What a browser would send for the page of targets as it comes."""
    page = client.get(address).content.decode().split('<div id="content-main">')[1].split("</form>")[0]
    return {name: value.removeprefix("\n") for name, value in Fields(page).values.items() if name != "theme"}


def remove_form(client: Client) -> dict[str, str]:
    """What the button that removes the targets sends along."""
    page = client.get("/admin/webhooks/lab").content.decode().split('<details class="webhook-remove">')[1]
    return Fields(page.split("</form>")[0]).values


def send(client: Client, address: str, form: dict[str, str]) -> tuple[Any, list[str]]:
    client.cookies.pop("messages", None)
    answer = client.post(address, form)
    return answer, [str(message) for message in get_messages(answer.wsgi_request)]


def targets_of(name: str) -> list[tuple[str, str, str]]:
    return [(one.kind, one.url, one.auth_token) for one in load_webhooks(f"config/webhooks/{name}.json", current_home())[0]]


def test_the_page_of_an_environment_shows_the_stored_targets(client: Client, demo: Environment) -> None:
    put("lab", {"webhook_type": "raw", "callback_url": HOOK, "auth_token": "hunter2", "log_level": "error"})
    services.update_environment("demo", config={**demo.config, "webhook_config": "config/webhooks/lab.json"}, actor="test")
    page = client.get(f"/admin/environments/environment/{demo.pk}/change/").content.decode()
    assert 'href="/admin/webhooks/lab?environment=demo">lab</a> this environment posts to it' in page
    assert "raw http://127.0.0.1:9/*** from error on" in page and "hunter2" not in page and HOOK not in page
    assert 'href="/admin/webhooks?environment=demo">Add targets</a>' in page


def test_targets_are_added_and_the_environment_posts_to_them(client: Client, demo: Environment) -> None:
    address = "/admin/webhooks?environment=demo"
    form = form_of(client, address)
    assert form["targets"] == "1"
    typed = {"0-webhook_type": "raw", "0-address": HOOK, "0-auth_token": "hunter2", "0-log_level": "warning", "use": "on"}
    answer, says = send(client, address, form | {"name": "lab", "act": "save"} | typed)
    assert answer.status_code == 302 and answer["Location"] == "/admin/webhooks/lab?environment=demo", says
    assert says == ["Stored the targets lab: 1. Runs name them as config/webhooks/lab.json.", "demo posts to them now."]
    assert targets_of("lab") == [("raw", HOOK, "hunter2")]
    assert Environment.objects.get().config["webhook_config"] == "config/webhooks/lab.json"
    page = client.get(answer["Location"]).content.decode()
    assert "hunter2" not in page and HOOK not in page and 'value="***"' in page and "http://127.0.0.1:9/***" in page


def test_a_target_is_changed_added_and_removed_without_its_secrets_being_typed_again(client: Client, demo: Environment) -> None:
    put("lab", {"webhook_type": "raw", "callback_url": HOOK, "auth_token": "one"}, {"webhook_type": "discord", "webhook_url": HOOK + "2"})
    form = form_of(client, "/admin/webhooks/lab")
    assert form["targets"] == "3" and form["1-address"] == "***"
    answer, says = send(client, "/admin/webhooks/lab", form | {"0-log_level": "error", "2-webhook_type": "slack", "2-address": HOOK + "3"})
    assert answer.status_code == 302, says
    assert targets_of("lab") == [("raw", HOOK, "one"), ("discord", HOOK + "2", ""), ("slack", HOOK + "3", "")]
    form = form_of(client, "/admin/webhooks/lab")
    send(client, "/admin/webhooks/lab", form | {"1-remove": "on"})
    assert targets_of("lab") == [("raw", HOOK, "one"), ("slack", HOOK + "3", "")]
    form = form_of(client, "/admin/webhooks/lab") | {"0-auth_token": ""}
    send(client, "/admin/webhooks/lab", form)
    assert targets_of("lab")[0] == ("raw", HOOK, "")


def test_wrong_targets_are_refused_by_the_checks_of_the_api_and_no_message_shows_a_secret(client: Client, demo: Environment) -> None:
    typed = {"name": "lab", "targets": "1", "0-webhook_type": "raw", "0-auth_token": "hunter2", "0-message_prefix": EVIL}
    for url, says_why in (
        ("http://169.254.169.254/x", "Events are not posted to"),
        ("ftp://x/secret", "not a valid URL"),
        ("", "needs callback_url"),
    ):
        answer, says = send(client, "/admin/webhooks", typed | {"0-address": url})
        page = answer.content.decode()
        assert answer.status_code == 422 and says_why in page, (url, says)
        problems = " ".join(re.findall(r"<li>(.*?)</li>", page.split('<div id="content-main">')[1], re.S))
        assert "<script>alert" not in page and "hunter2" not in problems and not re.search("/x|secret", problems)
    assert not (current_home().config / "webhooks").exists()
    answer, says = send(client, "/admin/webhooks", {"name": "../lab", "targets": "1", "0-webhook_type": "raw", "0-address": HOOK})
    assert answer.status_code == 422 and list(current_home().config.glob("*lab*")) == []
    answer, says = send(client, "/admin/webhooks", {"name": "lab", "targets": "9" * 30})
    assert answer.status_code == 422 and says == ["No target was filled in; nothing was stored."]


def test_a_secret_is_not_sent_to_another_host(client: Client, demo: Environment) -> None:
    put("lab", {"webhook_type": "raw", "callback_url": HOOK, "auth_token": "hunter2"})
    form = form_of(client, "/admin/webhooks/lab") | {"0-address": "http://127.0.0.2:9/other"}
    answer, _ = send(client, "/admin/webhooks/lab", form)
    assert answer.status_code == 422 and "hunter2" not in answer.content.decode() and targets_of("lab") == [("raw", HOOK, "hunter2")]


def test_a_refused_form_keeps_what_was_typed_into_it(client: Client, demo: Environment) -> None:
    """A new secret that came back as *** would be taken for the stored one by the next save."""
    put("lab", {"webhook_type": "raw", "callback_url": HOOK, "auth_token": "one"})
    typed = {"0-auth_token": "two", "0-address": HOOK + "2", "1-webhook_type": "raw", "1-address": "ftp://x"}
    answer, _ = send(client, "/admin/webhooks/lab", form_of(client, "/admin/webhooks/lab") | typed)
    assert answer.status_code == 422 and "no-store" in answer["Cache-Control"]
    page = answer.content.decode().split('<div id="content-main">')[1].split("</form>")[0]
    again = {name: value.removeprefix("\n") for name, value in Fields(page).values.items()} | {"1-remove": "on"}
    answer, says = send(client, "/admin/webhooks/lab", again)
    assert answer.status_code == 302 and targets_of("lab") == [("raw", HOOK + "2", "two")], says


def test_a_form_sends_spaces_and_lines_back_as_they_are_stored(client: Client, demo: Environment) -> None:
    stored_one = {"webhook_type": "template", "callback_url": HOOK, "message_prefix": "Lab ", "template": "\n {prefix}{message}\n"}
    put("lab", stored_one)
    before = (current_home().config / "webhooks/lab.json").read_text()
    answer, says = send(client, "/admin/webhooks/lab", form_of(client, "/admin/webhooks/lab"))
    after = json.loads((current_home().config / "webhooks/lab.json").read_text())
    assert answer.status_code == 302 and [one | {"log_level": "info"} for one in json.loads(before)] == after, says


def test_targets_that_somebody_else_has_saved_are_not_replaced_unseen(client: Client, demo: Environment) -> None:
    put("lab", {"webhook_type": "raw", "callback_url": HOOK})
    form = form_of(client, "/admin/webhooks/lab") | {"0-log_level": "error"}
    put("lab", {"webhook_type": "raw", "callback_url": "http://127.0.0.1:9/theirs", "log_level": "debug"})
    answer, says = send(client, "/admin/webhooks/lab", form)
    assert answer.status_code == 409 and "have changed since" in says[0] and targets_of("lab")[0][1] == "http://127.0.0.1:9/theirs"
    answer, says = send(client, "/admin/webhooks", {"name": "lab", "targets": "1", "0-webhook_type": "raw", "0-address": HOOK})
    assert answer.status_code == 409 and "already" in says[0]


def test_a_secret_that_somebody_else_has_changed_is_not_replaced_unseen(client: Client, demo: Environment) -> None:
    """The pages of both look the same, and no page tells anything of a secret."""
    put("lab", {"webhook_type": "raw", "callback_url": HOOK, "auth_token": "one"})
    form = form_of(client, "/admin/webhooks/lab") | {"0-auth_token": "mine"}
    put("lab", {"webhook_type": "raw", "callback_url": HOOK, "auth_token": "theirs"})
    answer, _ = send(client, "/admin/webhooks/lab", form)
    assert answer.status_code == 409 and targets_of("lab") == [("raw", HOOK, "theirs")]
    document = [{"webhook_type": "raw", "callback_url": HOOK, "auth_token": "one"}]
    assert form["version"] and form["version"] != version_of(document), "whoever guesses the secret could try it"


def test_what_is_saved_while_the_addresses_are_looked_up_is_not_taken_back(
    client: Client, demo: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown name of a host takes many seconds."""
    theirs = {"webhook_type": "raw", "callback_url": HOOK + "theirs"}
    meanwhile = list[Callable[[], object]]()

    def slow(targets: Any) -> Any:
        while meanwhile:
            meanwhile.pop()()
        return webhook_problems(targets)

    monkeypatch.setattr(stored, "webhook_problems", slow)
    typed = {"0-webhook_type": "raw", "0-address": HOOK, "use": "on"}
    meanwhile.append(lambda: put("lab", theirs))
    answer, _ = send(client, "/admin/webhooks?environment=demo", {"name": "lab", "targets": "1", **typed})
    assert answer.status_code == 409 and targets_of("lab") == [("raw", HOOK + "theirs", "")]
    form = form_of(client, "/admin/webhooks/lab")
    meanwhile.append(lambda: put("lab", {**theirs, "log_level": "error"}))
    assert send(client, "/admin/webhooks/lab", form | typed)[0].status_code == 409
    assert targets_of("lab") == [("raw", HOOK + "theirs", "")]
    meanwhile.append(lambda: services.update_environment("demo", config={**demo.config, "seed": 77}, actor="somebody"))
    form = form_of(client, "/admin/webhooks/lab?environment=demo")
    answer, says = send(client, "/admin/webhooks/lab?environment=demo", form | typed)
    assert answer.status_code == 302 and says[-1] == "demo posts to them now."
    config = Environment.objects.get().config
    assert (config["seed"], config["webhook_config"]) == (77, "config/webhooks/lab.json")


def test_a_form_of_targets_that_somebody_has_removed_keeps_what_was_typed(client: Client, demo: Environment) -> None:
    put("lab", {"webhook_type": "raw", "callback_url": HOOK})
    form = form_of(client, "/admin/webhooks/lab") | {"0-address": HOOK + "2"}
    stored.forget("lab")
    answer, says = send(client, "/admin/webhooks/lab", form)
    page = answer.content.decode()
    assert answer.status_code == 409 and "were removed since" in says[0] and HOOK + "2" in page
    assert "config/webhooks/lab.json" in page and 'name="name"' not in page and "Remove lab" not in page
    again = {name: value.removeprefix("\n") for name, value in Fields(page.split('<div id="content-main">')[1]).values.items()}
    answer, says = send(client, "/admin/webhooks/lab", again)
    assert answer.status_code == 302 and targets_of("lab") == [("raw", HOOK + "2", "")], says


def test_targets_that_vanish_while_they_are_listed_are_left_out(client: Client, demo: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    put("lab", {"webhook_type": "raw", "callback_url": HOOK})
    monkeypatch.setattr(webhook_targets, "stored_names", lambda home: ["gone", "lab"])
    assert [found.name for found in stored.find_all()] == ["lab"]
    assert client.get(f"/admin/environments/environment/{demo.pk}/change/").status_code == 200


def test_a_test_event_is_posted_and_its_result_said(client: Client, demo: Environment) -> None:
    with receiving() as receiver:
        put("lab", {"webhook_type": "raw", "callback_url": receiver.url})
        _, says = send(client, "/admin/webhooks/lab", {"act": "test"})
        assert says[0].endswith("arrived.") and json.loads(receiver.came[0].body)["data"]["code"] == "webhook_test"
        receiver.behaviour = 500
        _, says = send(client, "/admin/webhooks/lab", {"act": "test"})
        assert "did not arrive: HTTP 500" in says[0]


def test_targets_are_removed_by_a_button_and_not_by_a_link(client: Client, demo: Environment) -> None:
    put("lab", {"webhook_type": "raw", "callback_url": HOOK})
    client.get("/admin/webhooks/lab?act=remove")
    assert targets_of("lab")
    answer, says = send(client, "/admin/webhooks/lab?environment=demo", remove_form(client) | {"act": "remove"})
    assert "Removed the targets lab." in says[0] and answer["Location"] == f"/admin/environments/environment/{demo.pk}/change/"
    assert client.get("/admin/webhooks/lab").status_code == 404 and not (current_home().config / "webhooks/lab.json").exists()


def test_a_file_of_targets_that_cannot_be_read_can_be_replaced(client: Client, demo: Environment) -> None:
    path = current_home().config / "webhooks/hand.json"
    path.parent.mkdir()
    path.write_text("[")
    page = client.get("/admin/webhooks/hand").content.decode()
    assert (
        "cannot be used" in page and "cannot be used" in client.get(f"/admin/environments/environment/{demo.pk}/change/").content.decode()
    )
    form = form_of(client, "/admin/webhooks/hand") | {"0-webhook_type": "raw", "0-address": HOOK}
    answer, says = send(client, "/admin/webhooks/hand", form)
    assert answer.status_code == 302 and targets_of("hand") == [("raw", HOOK, "")], says


def test_stored_markup_is_shown_as_text(client: Client, demo: Environment) -> None:
    put("lab", {"webhook_type": "template", "callback_url": HOOK, "template": f"{{message}} </textarea>{EVIL}", "message_prefix": EVIL})
    (current_home().config / "webhooks/evil.json").write_text(json.dumps([{EVIL: EVIL, "webhook_type": EVIL, "callback_url": EVIL}]))
    for address in ("/admin/webhooks/lab", "/admin/webhooks/evil", f"/admin/environments/environment/{demo.pk}/change/"):
        assert "<script>alert" not in client.get(address).content.decode(), address


def test_targets_that_somebody_else_has_changed_are_not_removed_unseen(client: Client, demo: Environment) -> None:
    put("lab", {"webhook_type": "raw", "callback_url": HOOK})
    form, remove = form_of(client, "/admin/webhooks/lab"), remove_form(client) | {"act": "remove"}
    put("lab", {"webhook_type": "raw", "callback_url": HOOK + "theirs"})
    for sent in (remove, {"act": "remove"}):
        answer, says = send(client, "/admin/webhooks/lab", sent)
        assert answer["Location"] == "/admin/webhooks/lab" and "have changed since" in says[0]
    answer, _ = send(client, "/admin/webhooks/lab", form | {"0-log_level": "error"})
    assert answer.status_code == 409 and "Remove the targets" not in answer.content.decode(), "this page does not show what is stored"
    assert targets_of("lab")[0][1] == HOOK + "theirs"


def test_a_target_whose_address_was_emptied_is_refused_and_not_removed(client: Client, demo: Environment) -> None:
    put("lab", {"webhook_type": "raw", "callback_url": HOOK}, {"webhook_type": "discord", "webhook_url": HOOK + "2"})
    answer, _ = send(client, "/admin/webhooks/lab", form_of(client, "/admin/webhooks/lab") | {"0-address": ""})
    assert answer.status_code == 422 and "needs callback_url" in answer.content.decode()
    assert [url for _, url, _ in targets_of("lab")] == [HOOK, HOOK + "2"]


def test_a_form_whose_environment_somebody_has_removed_is_saved_without_it(client: Client, demo: Environment) -> None:
    address = "/admin/webhooks?environment=demo"
    form = form_of(client, address) | {"name": "lab", "0-webhook_type": "raw", "0-address": HOOK, "use": "on"}
    services.delete_environment("demo", actor="somebody")
    answer, says = send(client, address, form)
    assert answer["Location"] == "/admin/webhooks/lab" and targets_of("lab") == [("raw", HOOK, "")]
    assert says[0] == "The environment demo does not exist any more."


@pytest.mark.parametrize("name", [".hidden", "a..b", "a/b"])
def test_a_wrong_name_is_called_one_of_targets(client: Client, home: Path, name: str) -> None:
    typed = {"name": name, "targets": "1", "0-webhook_type": "raw", "0-address": HOOK}
    _, says = send(client, "/admin/webhooks", typed)
    assert "cannot be the name of webhook targets" in says[0]


@pytest.mark.parametrize(
    "address", ["/admin/webhooks/none", "/admin/webhooks/.hidden", "/admin/webhooks?environment=none", "/admin/webhooks/a/b"]
)
def test_unknown_names_are_not_found(client: Client, home: Path, address: str) -> None:
    assert client.get(address).status_code == 404


def test_only_a_post_with_the_token_of_the_page_changes_targets(client: Client, demo: Environment) -> None:
    put("lab", {"webhook_type": "raw", "callback_url": HOOK})
    strict = Client(enforce_csrf_checks=True)
    for address, form in (
        ("/admin/webhooks/lab", {"act": "remove"}),
        ("/admin/webhooks", {"name": "x", "targets": "1", "0-address": HOOK}),
    ):
        assert strict.post(address, form).status_code == 403
    assert targets_of("lab") == [("raw", HOOK, "")] and not (current_home().config / "webhooks/x.json").exists()
