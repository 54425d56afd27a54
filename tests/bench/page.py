"""The page of a run in a browser: how late it shows a step, what watching costs the engine, what a tab holds after many events.

Browser, server and engine share the processors of this machine. Elsewhere the browser has its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from tests.bench.audience import audience
from tests.bench.table import NOT_MEASURED, Table, percentile
from tests.bench.watching import WARM_UP, Bench, subscribers
from tests.helpers.browser import find_browser, open_browser, open_tab, what_it_holds
from tests.helpers.live_server import start_server
from tests.helpers.log_writer import LogWriter
from tests.helpers.served_runs import ENDLESS, ServedRuns
from trainer_engine.families.pixart_sigma.tiny import make_tiny

SECTION = "page"
VIEWERS = 20
VISIBLE = 4
"""Of the viewers, those who have the page before them. The others only listen, as a hidden tab has no stream."""
SECONDS = 30
"""How long the steps are noted."""
EVENTS = 10_000
NOTE_STEPS = """() => {
  const shown = window.shown = [];
  const head = () => document.querySelector('[data-part=head]');
  const note = () => {
    const step = parseInt((document.querySelector('[data-fact=step]')?.textContent || '').replaceAll(',', ''));
    if (step && step !== shown.at(-1)?.[0]) shown.push([step, Date.now()]);
  };
  const numbers = new MutationObserver(note);
  const watch = () => numbers.observe(head(), { subtree: true, childList: true, characterData: true });
  new MutationObserver(() => { numbers.disconnect(); watch(); note(); }).observe(head().parentElement, { childList: true });
  watch();
}"""
"""Notes each step when its number appears in the DOM, also after the server's rendering has replaced that part of the page."""


def lags(written: Sequence[tuple[int, float]], shown: Sequence[tuple[int, float]]) -> list[float]:
    """Seconds from the journal's time of each step until a page shows it, or a later one. Both are (step, seconds), in order."""
    found, place = [], 0
    for step, moment in written:
        while place < len(shown) and shown[place][0] < step:
            place += 1
        if place == len(shown):
            break
        found.append(shown[place][1] - moment)
    return found


def watch(page: Page, address: str) -> None:
    """Open the page of a run and note its steps."""
    page.goto(address)
    expect(page.locator("#live")).to_have_text("live")
    page.evaluate(NOTE_STEPS)


def steps_shown(table: Table, bench: Bench, browser: Browser, job_id: str, viewers: int, visible: int) -> None:
    """The lag of each step at each tab that is visible. A tab has a profile of its own, and so a connection."""
    with ExitStack() as stack:
        pages = [stack.enter_context(open_tab(browser)).page for _ in range(visible)]
        for page in pages:
            watch(page, f"{bench.runs.server.url}/runs/1")
        if viewers > visible:
            stack.enter_context(audience(bench.runs.server.port, job_id, viewers - visible, len(bench.runs.events(job_id))))
        first = bench.runs.step(job_id) + 1
        pages[0].wait_for_timeout(1000 * SECONDS)
        last = bench.runs.step(job_id)
        pages[0].wait_for_timeout(2000)
        shown = [[(step, moment / 1000) for step, moment in page.evaluate("window.shown")] for page in pages]
    entries = [entry for entry in bench.told(job_id) if entry.type == "training.progress" and first <= entry.data["step"] <= last]
    written = [(entry.data["step"], datetime.fromisoformat(entry.timestamp).timestamp()) for entry in entries]
    found = [lag for of_page in shown for lag in lags(written, of_page)]
    text = f"{percentile(found, 50) * 1000:.0f} / {percentile(found, 99) * 1000:.0f} ms"
    what = f"{viewers} viewers, {visible} visible tabs" if viewers > 1 else "1 viewer"
    table.add(SECTION, f"the engine's write to the number on the page, p50 / p99, {what}", text, aim="p99 under 200 ms")


def memory_of_a_tab(table: Table, browser: Browser, home: Path, events: int = EVENTS) -> None:
    """A run that takes many steps while its page is open."""
    with start_server(home, arguments=("--no-worker",)) as server, LogWriter(home) as writer, open_tab(browser) as tab:
        job_id = writer.write("new", "running")
        watch(tab.page, f"{server.url}/runs/1")
        before = what_it_holds(tab.page)
        writer.write("fill", job_id, events)
        expect(tab.page.locator("[data-fact=step]")).to_have_text(f"{events:,} of {events:,}")
        after = what_it_holds(tab.page)
    text = f"{before.bytes / 1e6:.1f} and {after.bytes / 1e6:.1f} MB"
    table.add(SECTION, f"memory of a tab before and after {events:,} events", text, aim="under 60 MB")
    table.add(SECTION, f"nodes of its DOM before and after {events:,} events", f"{before.nodes:,} and {after.nodes:,}", aim="bounded")


def run(table: Table) -> None:
    if find_browser() is None:
        table.add(SECTION, "needs Chromium", NOT_MEASURED)
        return
    with tempfile.TemporaryDirectory(prefix="bench-page-") as folder, open_browser() as browser:
        place = Path(folder)
        make_tiny(place / "model", size="demo")
        with start_server(place / "home") as server:
            bench = Bench(ServedRuns(server, place), place / "model")
            try:
                job_id = bench.start("watched", max_train_steps=ENDLESS)
                bench.runs.wait_for_step(job_id, WARM_UP)
                for viewers, visible in ((1, 1), (VIEWERS, VISIBLE), (VIEWERS, VIEWERS)):
                    steps_shown(table, bench, browser, job_id, viewers, visible)
                bench.runs.cancel(job_id)
                subscribers(table, bench, VIEWERS, section=SECTION)
            finally:
                bench.runs.end_all()
        memory_of_a_tab(table, browser, place / "other")
