"""The API as a browser shows it: titles, links, forms that work, and no refusal where a form is meant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import rest_framework
from django.test import Client

from environments.api.pages import MENDED
from training.models import Job

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
NEW = {"name": "first", "model_family": "pixart_sigma", "model_type": "lora"}


@pytest.fixture
def browser(home: Path, db: None) -> Client:
    return Client(SERVER_NAME="localhost", headers=BROWSER)


def title_of(page: str) -> str:
    [title] = re.findall(r"<title>(.*?)</title>", page, re.S)
    return str(title)


@pytest.mark.parametrize(
    ("address", "title"),
    [
        ("/api/", "Addresses of the API"),
        ("/api/training", "Addresses of training"),
        ("/api/configs", "List configurations"),
        ("/api/configs/environments", "Create an environment"),
        ("/api/training/start", "Start a run"),
        ("/api/training/stop", "Stop: save and end"),
        ("/api/training/jobs", "All runs, newest first"),
        ("/api/webhooks", "Stored webhook targets"),
    ],
)
def test_a_page_has_the_title_of_its_call_and_fits_a_phone(browser: Client, address: str, title: str) -> None:
    answer = browser.get(address)
    page = answer.content.decode()
    assert answer.status_code in (200, 405) and title_of(page) == f"{title} · SimpleTuner"
    assert 'name="viewport"' in page and "django-rest-framework.org" not in page and 'rel="icon"' in page


def test_an_address_that_only_takes_post_greets_with_its_form(browser: Client) -> None:
    for address in ("/api/training/start", "/api/configs/environments", "/api/training/validate", "/api/configs/import"):
        page = browser.get(address).content.decode()
        assert "This address is for sending" in page and '<body class="form-only">' in page and "_content" in page, address
        assert browser.get(address, headers={"accept": "application/json"}).status_code == 405, "programs get the truth"
        assert browser.get(f"{address}?format=api", headers={"accept": "*/*"}).status_code == 405, "also one that asks for the page"
    assert (
        "form-only" not in browser.put("/api/training/start", headers={"accept": BROWSER["accept"]}).content.decode().partition("<body")[2]
    )


def test_the_raw_form_offers_only_what_it_can_send(browser: Client) -> None:
    for address in ("/api/training/start", "/api/training/stop", "/api/configs/environments"):
        offered = re.findall(r'<option value="([^"]*/[^"]*)"', browser.get(address).content.decode())
        assert set(offered) == {"application/json"}, address


def test_an_answer_links_to_what_it_names(browser: Client) -> None:
    assert browser.post("/api/configs/environments", NEW, content_type="application/json").status_code == 200
    assert 'href="/api/configs/first"' in browser.get("/api/configs").content.decode()
    job = Job.objects.create(number=4, environment="first")
    page = browser.get("/api/training/jobs").content.decode()
    assert f'href="/api/training/jobs/{job.pk}">Run 4</a>' in page
    detail = browser.get(f"/api/training/jobs/{job.pk}").content.decode()
    assert f'href="/api/training/jobs/{job.pk}/log"' in detail
    index = browser.get("/api/").content.decode()
    assert 'href="/api/training/start">start a run</a>' in index


def test_every_address_of_the_index_is_there(browser: Client) -> None:
    addresses = Client(SERVER_NAME="localhost", headers={"accept": "application/json"}).get("/api").json()["addresses"]
    assert len(addresses) >= 10
    for address in addresses:
        assert browser.get(address).status_code in (200, 405), address


def test_names_that_look_like_markup_are_escaped_in_links(browser: Client) -> None:
    Job.objects.create(number=5, environment="<b>x</b>", message='"><script>alert(1)</script>')
    page = browser.get("/api/training/jobs").content.decode()
    assert "<script>alert" not in page and "<b>x</b>" not in page


def test_a_browser_finds_an_icon_and_a_way_back_from_a_page_that_is_not_there(browser: Client) -> None:
    assert browser.get("/favicon.ico").headers["location"].endswith("/icon.svg")
    page = browser.get("/nowhere").content.decode()
    assert 'name="viewport"' in page and 'href="/"' in page


def test_swagger_follows_a_dark_setting(browser: Client) -> None:
    page = browser.get("/docs").content.decode()
    assert "prefers-color-scheme: dark" in page and 'id="swagger-ui"' in page


# ---- snippets ----
def test_a_snippet_that_a_browser_opens_by_itself_is_a_page(browser: Client) -> None:
    shown = browser.post("/api/training/validate?format=snippet", {}, headers={"sec-fetch-dest": "document", "accept": "text/html"})
    page = shown.content.decode()
    assert page.startswith("<!doctype html>") and "pages.css" in page and 'href="/"' in page and "Validation Failed" in page
    bare = browser.post("/api/training/validate", {}, headers={"accept": "*/*"}).content.decode()
    assert bare.startswith("<div") and "<!doctype" not in bare


def test_a_problem_says_its_name_once_and_that_no_environment_is_active(browser: Client) -> None:
    answer = browser.post("/api/training/validate", {"learning_rate": "x"}, headers={"accept": "application/json"}).json()
    problems: dict[str, Any] = {problem["option"]: problem for problem in answer["problems"]}
    assert problems["learning_rate"]["message"] == "learning_rate is not a finite number."
    assert "no environment is active" in problems["model_family"]["hint"]
    browser.post("/api/configs/environments", NEW, content_type="application/json")
    browser.post("/api/configs/first/activate")
    again = browser.post("/api/training/validate", {"learning_rate": "x"}, headers={"accept": "application/json"}).json()
    assert all("no environment is active" not in problem["hint"] for problem in again["problems"])


# ---- schema ----
def test_calls_of_one_address_are_described_one_by_one(browser: Client) -> None:
    paths = browser.get("/openapi.json", headers={"accept": "application/json"}).json()["paths"]
    for address in ("/api/configs/{name}", "/api/configs/{name}/datasets"):
        descriptions = [call["description"] for call in paths[address].values()]
        assert len(set(descriptions)) == len(descriptions), address
    stream = paths["/api/training/events/stream"]["get"]
    assert "consumers" not in stream["description"] and set(stream["responses"]["200"]["content"]) == {"text/event-stream"}
    assert "/api" not in paths, "the index is for people"


# ---- for everybody ----
def test_a_page_says_its_language_and_its_controls_say_what_they_are(browser: Client) -> None:
    for address in ("/api/configs", "/docs", "/redoc"):
        assert '<html lang="en">' in browser.get(address).content.decode(), address
    page = browser.get("/api/configs").content.decode()
    for name in ("name", "description"):
        assert re.search(rf'<input name="{name}" aria-label="[^"]+"', page), name
    assert '<textarea name="config" aria-label="Config"' in page and 'aria-label="Formats"' in page
    assert page.count('role="main"') == 1 and page.count('<pre class="prettyprint" tabindex="0">') == 2


def test_all_that_is_mended_of_the_frameworks_template_is_still_in_it() -> None:
    template = (Path(rest_framework.__file__).parent / "templates/rest_framework/base.html").read_text()
    rendered = template.replace('{% trans "main content" %}', "main content")
    assert [markup for markup in MENDED if markup not in rendered] == []


def test_what_is_stored_cannot_become_markup_by_what_is_mended(browser: Client) -> None:
    evil = '"><script>alert(1)</script><html><pre class="prettyprint">'
    browser.post("/api/configs/environments", {**NEW, "description": evil}, content_type="application/json")
    page = browser.get("/api/configs/first").content.decode()
    assert "<script>alert" not in page and page.count("<html") == 1 and page.count('tabindex="0"') == 2
