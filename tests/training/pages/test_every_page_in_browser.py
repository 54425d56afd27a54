"""Every page in every look: both widths, light and dark. axe-core finds no serious fault, and nothing is wider than the window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.helpers.browser import EVERY_LOOK, needs_browser, open_browser, open_tab
from tests.helpers.live_server import LiveServer, free_port, start_server
from tests.helpers.pictures import generate_images

pytestmark = [pytest.mark.browser, needs_browser]
TOKEN = "a-token-of-the-tests-that-is-long-enough"
ADMIN = "/admin/environments/environment"
PAGES = {
    "runs-none": "/",
    "new-form": "/new",
    "environments": "/environments",
    "no-such-run": "/runs/99",
    "options": "/environments/demo",
    "datasets-of-demo": "/environments/demo/datasets",
    "history-of-demo": "/environments/demo/history",
    "admin": "/admin/",
    "admin-environments": f"{ADMIN}/",
    "admin-new": f"{ADMIN}/add/",
    "admin-demo": f"{ADMIN}/1/change/",
    "admin-jobs": "/admin/training/job/",
    "admin-revisions": "/admin/environments/revision/",
}
OPEN_ALL = "document.querySelectorAll('details').forEach((one) => { one.open = true; })"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with one environment from an example, and images for it."""
    with start_server(tmp_path_factory.mktemp("pages") / "home", arguments=("--no-worker",)) as server:
        generate_images(server.home / "datasets/my-images", count=3)
        wanted = {"name": "demo", "example": "pixart_sigma_900m_full"}
        server.post("/api/configs/environments", json=wanted).raise_for_status()
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_used_by_everybody(name: str, server: LiveServer, browser: Browser) -> None:
    with open_tab(browser) as tab:
        tab.page.goto(f"{server.url}{PAGES[name]}")
        tab.page.evaluate(OPEN_ALL)
        tab.check_page(name, EVERY_LOOK)
        assert [line for line in tab.console if "404" not in line or name != "no-such-run"] == []


def test_the_log_in_can_be_used_by_everybody(browser: Browser, tmp_path: Path) -> None:
    headers, variables = {"Authorization": f"Bearer {TOKEN}"}, {"SIMPLETUNER_TOKEN": TOKEN}
    server = LiveServer(tmp_path, free_port(), environment=variables, arguments=("--no-worker",), headers=headers)
    with server.start(), open_tab(browser) as tab:
        tab.page.goto(f"{server.url}/")
        tab.check_page("log-in", EVERY_LOOK)
        tab.page.fill("#token", TOKEN)
        tab.page.click("text=Log in")
        tab.page.wait_for_url(f"{server.url}/")
        tab.page.goto(f"{server.url}/login")
        tab.check_page("log-out", EVERY_LOOK)
