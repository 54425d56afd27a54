"""The admin shows our own rows alone, takes what its pages offer, and cannot be locked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from urllib.parse import urlencode

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import models
from django.http import HttpRequest
from django.test import Client

from environments import services
from environments.create.plan import NewEnvironment
from environments.models import Environment
from simpletuner_site.admin_site import OWN_APPS
from tests.helpers.jobs import make_job
from tests.helpers.params import first_fast

pytestmark = pytest.mark.django_db

LISTS = ("environments/environment", "environments/revision", "training/job")
HOSTILE_VALUES = (
    "",
    "x",
    "(a+)+$",
    "-1",
    "9" * 400,
    "1,2",
    "True",
    "None",
    "nan",
    "\x00",
    "\ud800",
    "٣",
    "'\"",
    "[]",
    "{}",
    "2020-13-45",
    "%",
    "a" * 3000,
)


@pytest.fixture
def browser(home: Path, tmp_path: Path) -> Client:
    """Somebody at an admin that has a row of each kind. A 500 is an answer here, not an exception."""
    services.create_environment(NewEnvironment("demo", "pixart_sigma", model_type="full"), actor="test")
    Environment.objects.update(description="a" * 47 + "!")
    make_job(tmp_path, environment="demo")
    return Client(raise_request_exception=False)


def hostile(value: str) -> bytes:
    """As a program would send it: a lone surrogate becomes bytes that are no UTF-8."""
    return value.encode("utf-8", "surrogatepass")


def test_only_our_own_models_are_registered() -> None:
    registered = {model._meta.label for model in admin.site._registry}
    assert registered == {"environments.Environment", "environments.Revision", "training.Job"}
    assert {model._meta.app_label for model in admin.site._registry} <= OWN_APPS


def test_every_list_filter_that_the_admin_offers_answers(browser: Client) -> None:
    class Links(HTMLParser):
        found: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            address = dict(attrs).get("href") or ""
            if tag == "a" and address.startswith("?"):
                self.found.append(address)

    for one in LISTS:
        links = Links()
        links.found = []
        links.feed(browser.get(f"/admin/{one}/").content.decode())
        assert links.found
        for address in links.found:
            assert browser.get(f"/admin/{one}/{address}").status_code == 200, address


def lookups_of(model: type[models.Model]) -> Iterator[str]:
    """Every field with every lookup that Django knows for it, and transforms of JSON and of dates."""
    for field in model._meta.get_fields():
        known: dict[str, object] = getattr(field, "get_lookups", dict)()
        yield from (field.name, f"{field.name}__a__regex", f"{field.name}__0", f"{field.name}__date__year__gt")
        yield from (f"{field.name}__{lookup}" for lookup in known)
    yield from ("pk", "pk__in", "pk__regex", "nothing", "nothing__regex", "_state", "e", "all", "_facets")


@pytest.mark.parametrize("one", first_fast(LISTS))
def test_no_lookup_of_an_address_reaches_the_database(browser: Client, one: str) -> None:
    model = apps.get_model(one.replace("/", "."))
    statuses: dict[int, int] = {}
    offered = {name for name in lookups_of(model) if admin.site._registry[model].lookup_allowed(name, "", HttpRequest())}
    requests = [(name, value) for name in offered for value in HOSTILE_VALUES] + [(name, "(a+)+$") for name in lookups_of(model)]
    for lookup, value in requests:
        answer = browser.get(f"/admin/{one}/?{urlencode({lookup: hostile(value)})}")
        assert answer.status_code in (200, 302, 400), (lookup, value)
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert "regex" not in lookup or answer.status_code == 400
    assert statuses[400] > 50


OWN_PARAMETERS = ("q", "o", "p", "all", "e", "_popup", "_to_field", "_facets", "_changelist_filters", "_source_model")
"""Parameters that Django reads from the address of a list."""


@pytest.mark.parametrize("one", LISTS)
@pytest.mark.parametrize("step", first_fast([5, 1]))
def test_no_value_of_a_list_s_own_parameter_is_answered_with_500(browser: Client, one: str, step: int) -> None:
    """The fast test sends each parameter every fifth value, and another page with every fifth; between them they get every value."""
    many = (*HOSTILE_VALUES, "1.2.3", "-1.-2", "." * 900, "1." * 3000, "a " * 3000, '"' * 500, "id", "name", "environment")
    pages = list(product(("add", "1/change", "1/history", "1/delete"), ("", "id", "x", "9" * 400)))
    for place, name in enumerate(OWN_PARAMETERS):
        for value in many[place % step :: step]:
            answer = browser.get(f"/admin/{one}/?{urlencode({name: hostile(value)})}")
            assert answer.status_code < 500, (name, value)
        for page, value in pages[place % step :: step]:
            assert browser.get(f"/admin/{one}/{page}/?{urlencode({name: value})}").status_code < 500, (name, page, value)


@pytest.mark.parametrize("one", LISTS)
def test_no_name_of_a_row_is_answered_with_500(browser: Client, one: str) -> None:
    for value in HOSTILE_VALUES:
        name = "".join(f"%{byte:02x}" for byte in hostile(value)) or "_"
        for page in ("change/", "history/", "delete/", "do/start/", "stop/", "cancel/"):
            assert browser.post(f"/admin/{one}/{name}/{page}").status_code < 500, (value, page)
        assert browser.get(f"/admin/{one}/{name}/").status_code < 500, value


@pytest.mark.parametrize("one", first_fast(LISTS))
def test_no_selection_of_an_action_is_answered_with_500(browser: Client, one: str) -> None:
    for action, selected, index in product(("stop", "delete_selected", "x"), HOSTILE_VALUES[:11], ("0", "9" * 30, None)):
        fields = {
            "action": action,
            "_selected_action": [selected.encode("utf-8", "replace").decode()],
            **({"index": index} if index else {}),
        }
        assert browser.post(f"/admin/{one}/", fields).status_code < 500, (action, selected, index)
    assert browser.post(f"/admin/{one}/", {"action": "stop", "_selected_action": "x", "select_across": "y"}).status_code < 500


def test_pages_that_lead_nowhere_are_gone(browser: Client) -> None:
    page = browser.get("/admin/").content.decode()
    assert "Log out" not in page and "password" not in page.lower() and "Start page" in page
    for path in (
        "login/",
        "logout/",
        "password_change/",
        "autocomplete/",
        "r/1/1/",
        "auth/user/",
        "django_q/schedule/add/",
        "django_q/schedule/",
    ):
        assert browser.get(f"/admin/{path}").status_code == 404, path
        assert browser.post(f"/admin/{path}").status_code in (403, 404), path


def test_an_operator_without_rights_gets_them_back(browser: Client) -> None:
    assert browser.get("/admin/").status_code == 200
    User.objects.update(is_active=False, is_staff=False, is_superuser=False)
    assert browser.get("/admin/environments/environment/").status_code == 200
    assert list(User.objects.values_list("is_active", "is_staff", "is_superuser")) == [(True, True, True)]


def test_a_session_of_somebody_without_rights_is_the_operator_s(browser: Client) -> None:
    browser.force_login(User.objects.create_user("guest"))
    assert browser.get("/admin/environments/environment/").status_code == 200


def test_a_page_that_is_only_looked_at_changes_nothing(browser: Client) -> None:
    """Another site may open pages of the admin, so a GET never does anything."""
    browser.get("/admin/")
    rows = {model: list(model._default_manager.order_by("pk").values()) for model in apps.get_models()}
    environment = Environment.objects.get()
    seen, waiting = set(), ["/", "/admin/", f"/admin/environments/environment/{environment.pk}/do/start/"]
    while waiting:
        path = waiting.pop()
        seen.add(path)
        page = browser.get(path).content.decode()
        linked = re.findall(r'(?:href|action|formaction)="(/admin/[^"#?]*)', page)
        waiting += [address for address in dict.fromkeys(linked) if address not in seen and address not in waiting]
    assert len(seen) > 10
    assert {model: list(model._default_manager.order_by("pk").values()) for model in apps.get_models()} == rows
