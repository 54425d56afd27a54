"""An installed Chromium under Playwright, whose tabs note what pages log and load, and look for what people would stumble over.

Tests that need it are skipped where no Chromium is installed. Nothing is downloaded.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
PATIENCE_MS = 300_000
"""A wait of this length has found a hang. It is far above what a loaded machine needs, because a test never asserts a duration."""
HEIGHT = 900
Scheme = Literal["light", "dark"]
Look = tuple[int, Scheme]
"""The width of the window in CSS pixels, and the scheme of colours."""
EVERY_LOOK: tuple[Look, ...] = tuple(itertools.product((1400, 400), ("light", "dark")))
WIDE_AND_NARROW: tuple[Look, ...] = ((1400, "light"), (400, "dark"))
GRAVE = ("serious", "critical")
"""The impacts of axe-core that a page may not have."""
AXE = {"resultTypes": ["violations"], "preload": False}
"""Without ``preload``, which asks for files that a stylesheet names as if they lay beside the page."""
PICTURES = os.environ.get("SIMPLETUNER_TEST_SCREENSHOTS", "")
"""A folder for pictures of the pages; empty: none are taken."""
TOO_WIDE = """() => [...document.querySelectorAll('main *')]
  .filter((one) => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest('.scroll, .strip, .results, .inline-group, pre'))
  .map((one) => one.outerHTML.slice(0, 200))"""
SQUEEZED = """() => [...document.querySelectorAll('main td, main th')]
  .filter((one) => one.textContent.trim().length > 3 && one.clientWidth && one.clientHeight > 4 * one.clientWidth)
  .map((one) => one.outerHTML.slice(0, 200))"""
"""Cells of tables whose words are broken into letters."""
SETTLED = """async () => {
  for (const _ of [1, 2]) await new Promise(requestAnimationFrame);
  await Promise.all(document.getAnimations().map((one) => one.finished.catch(() => null)));
}"""
SHARED_IDS = """() => [...document.querySelectorAll('[id]')].map((one) => one.id)
  .filter((id, place, all) => all.indexOf(id) !== place)"""

expect.set_options(timeout=PATIENCE_MS)


def find_browser() -> str | None:
    """The program of an installed Chromium; None without one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


needs_browser = pytest.mark.skipif(find_browser() is None, reason=f"none of {', '.join(NAMES)} is installed")


@contextmanager
def open_browser(*, arguments: Sequence[str] = ()) -> Iterator[Browser]:
    """A headless Chromium without a profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=[*ARGUMENTS, *arguments])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Tab:
    """A tab with cookies of its own."""

    page: Page
    console: list[str] = field(default_factory=list)
    """Errors and warnings of the console, and exceptions of scripts."""
    requests: list[str] = field(default_factory=list)
    """Every address that its pages asked for."""

    def __post_init__(self) -> None:
        self.page.on("console", lambda said: self.console.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def look(self, width: int, scheme: Scheme) -> None:
        """Resize the window and choose its colours; return once what follows them, such as curves and colours that fade, is drawn."""
        self.page.set_viewport_size({"width": width, "height": HEIGHT})
        self.page.emulate_media(color_scheme=scheme)
        self.page.evaluate(SETTLED)

    def check_quiet(self, server: str) -> None:
        """No error in the console, and no request to another host than the server."""
        self.page.evaluate("1")  # what happened until now arrives before the answer
        assert not self.console, self.console
        hosts = {urlsplit(address).netloc for address in self.requests if not address.startswith(("data:", "about:", "blob:"))}
        assert hosts == {urlsplit(server).netloc}, hosts

    def check_page(self, name: str, looks: Sequence[Look] = WIDE_AND_NARROW, *, known: Collection[str] = ()) -> None:
        """In each look: nothing is too wide or too narrow, no id is used twice, and axe-core finds no grave fault.

        ``known`` names rules of axe-core that the markup of somebody else's program breaks.
        """
        before = self.page.viewport_size
        for width, scheme in looks:
            self.look(width, scheme)
            self.take_picture(f"{name}-{width}-{scheme}")
            assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (name, width)
            found = [fault for script in (TOO_WIDE, SQUEEZED, SHARED_IDS) for fault in self.page.evaluate(script)] + grave_faults(
                self.page, known
            )
            assert not found, "\n".join([f"{name}, {width} px, {scheme}:", *found])
        if before is not None:
            self.page.set_viewport_size(before)

    def take_picture(self, name: str, height: int = 16_000) -> None:
        """Write ``<name>.webp`` into the folder for pictures: the page from its top, at most ``height`` pixels of it."""
        if PICTURES:
            picture = Image.open(io.BytesIO(self.page.screenshot(full_page=True))).convert("RGB")
            picture.crop((0, 0, picture.width, min(picture.height, height))).save(Path(PICTURES) / f"{name}.webp", quality=80)


@dataclass(frozen=True)
class Held:
    """What a page holds after its garbage was collected."""

    bytes: int
    """Of its scripts, with buffers and what the DOM keeps for them."""
    nodes: int
    """Of the DOM, also those that only scripts still hold."""


def what_it_holds(page: Page) -> Held:
    """Measured by DevTools."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.enable")
    for _ in range(2):
        session.send("HeapProfiler.collectGarbage")
    heap, counters = session.send("Runtime.getHeapUsage"), session.send("Memory.getDOMCounters")
    session.detach()
    return Held(int(heap["usedSize"] + heap["embedderHeapUsedSize"] + heap["backingStorageSize"]), int(counters["nodes"]))


@contextmanager
def open_tab(browser: Browser, width: int = 1400, scheme: Scheme = "light") -> Iterator[Tab]:
    """A tab whose window has the width; below 600 it is a phone that is touched."""
    is_phone = width < 600
    context = browser.new_context(
        viewport={"width": width, "height": HEIGHT}, color_scheme=scheme, is_mobile=is_phone, has_touch=is_phone, locale="en"
    )
    context.set_default_timeout(PATIENCE_MS)
    try:
        yield Tab(context.new_page())
    finally:
        context.close()


def grave_faults(page: Page, known: Collection[str] = ()) -> list[str]:
    """What axe-core calls serious or critical, but for the rules that are ``known``: rule, element, and what is wrong with it."""
    found = Axe().run(page, options=AXE).response["violations"]
    return [
        f"{fault['id']} ({fault['impact']}): {node['html'][:300]} {node.get('failureSummary', '')}"
        for fault in found
        if fault["impact"] in GRAVE and fault["id"] not in known
        for node in fault["nodes"]
    ]


def texts(found: Locator) -> list[str]:
    """The text of each element."""
    return [text.strip() for text in found.all_text_contents()]


def until(page: Page, is_so: Callable[[], object]) -> None:
    """Return once a condition outside the page holds, while the page goes on."""
    for _ in range(PATIENCE_MS // 100):
        if is_so():
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"not within {PATIENCE_MS // 1000} s; page: {page.inner_text('body')[:600]}")
