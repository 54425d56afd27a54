"""Every page in every look: both widths, light and dark. axe-core finds no serious fault, and nothing is wider than the window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.helpers.browser import EVERY_LOOK, grave_faults, needs_browser, open_browser, open_tab
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
    "admin-webhooks": "/admin/webhooks?environment=demo",
    "admin-webhook": "/admin/webhooks/lab?environment=demo",
    "api": "/api/",
    "api-environments": "/api/configs",
    "api-environment": "/api/configs/demo",
    "api-start": "/api/training/start",
    "api-webhooks": "/api/webhooks",
}
REFUSED = {"no-such-run": "404", "api-start": "405"}
"""Page -> the status that the browser's console tells of."""
OF_SWAGGER_UI = {"nested-interactive": "the heading of each call is a button that holds a link and a button to copy"}
"""Rules that the bundle of Swagger UI breaks in markup that it makes itself -> how. No stylesheet and no setting mends them."""
OPEN_ALL = "document.querySelectorAll('details').forEach((one) => { one.open = true; })"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with one environment from an example, and images for it."""
    with start_server(tmp_path_factory.mktemp("pages") / "home", arguments=("--no-worker",)) as server:
        generate_images(server.home / "datasets/my-images", count=3)
        wanted = {"name": "demo", "example": "pixart_sigma_900m_full"}
        server.post("/api/configs/environments", json=wanted).raise_for_status()
        hook = {"webhook_type": "raw", "callback_url": "http://127.0.0.1:9/hook", "auth_token": "a-token"}
        server.client().put("/api/webhooks/lab", json=[hook]).raise_for_status()
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
        assert [line for line in tab.console if REFUSED.get(name, "no status") not in line] == []


def test_swagger_ui_can_be_used_by_everybody_as_far_as_it_is_ours(server: LiveServer, browser: Browser) -> None:
    with open_tab(browser) as tab:
        tab.page.goto(f"{server.url}/docs")
        tab.page.wait_for_selector(".opblock")
        tab.check_page("docs", EVERY_LOOK, known=OF_SWAGGER_UI)
        found = {fault.split(" ")[0] for fault in grave_faults(tab.page)}
        assert found == set(OF_SWAGGER_UI), "a rule that is kept now is named no more"
        tab.look(1400, "dark")
        expect(tab.page.locator("html")).to_have_class("dark-mode")
        tab.check_quiet(server.url)


def test_redoc_can_be_read_and_asks_no_other_host(server: LiveServer, browser: Browser) -> None:
    """Long names of options pushed what stands beside them under its dark panel."""
    with open_tab(browser) as tab:
        tab.look(1400, "dark")
        tab.page.goto(f"{server.url}/redoc")
        tab.page.wait_for_selector(".api-content h1")
        expect(tab.page.locator("img[alt='redocly logo']")).to_have_count(0)
        # Not check_page: ReDoc gives many elements an empty id, and axe-core reads its long page for a minute. Its light look is its own.
        assert grave_faults(tab.page) == []
        brightness = "getComputedStyle(document.querySelector('.api-content h1')).color.match(/\\d+/g).map(Number)"
        assert min(tab.page.evaluate(brightness)) > 200
        with tab.page.expect_navigation():
            tab.page.emulate_media(color_scheme="light")
        tab.page.wait_for_selector(".api-content h1")
        assert max(tab.page.evaluate(brightness)) < 100
        tab.look(400, "light")
        assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert {line for line in tab.console if not line.startswith("OpenAPI Sampler: ")} == set()
        assert [address for address in tab.requests if not address.startswith((server.url, "data:", "blob:"))] == []


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
