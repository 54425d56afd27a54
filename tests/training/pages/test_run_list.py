"""The start page lists the runs, newest first, with the machine that they run on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from simpletuner_site.security.guard import follows_link_to_page
from tests.helpers.jobs import make_job
from tests.training.pages.test_run_page import PROGRESS, Elements, append, image, progress
from training.engine.hardware import Gpu
from training.models import Status
from training.pages import machine, rows

pytestmark = pytest.mark.django_db


def get(client: Client, query: str = "") -> str:
    page: str = client.get(f"/{query}").content.decode()
    Elements(page)
    return page


def numbers(page: str) -> list[int]:
    return [int(number) for number in re.findall(r'aria-labelledby="run-(\d+)"', page)]


def test_a_server_without_runs_says_how_to_begin(home: Path, client: Client) -> None:
    page = get(client)
    assert "No run yet" in page and "/admin/environments/environment/add/" in page and "curl -s http://testserver/api/configs" in page
    assert "No worker process runs" in page


def test_runs_stand_newest_first_on_pages(home: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "RUNS_ON_PAGE", 3)
    for _ in range(7):
        make_job(tmp_path, Status.COMPLETED)
    assert numbers(get(client)) == [7, 6, 5] and "?before=5" in get(client)
    assert numbers(get(client, "?before=5")) == [4, 3, 2]
    last = get(client, "?before=2")
    assert numbers(last) == [1] and "?before=" not in last


@pytest.mark.parametrize("before", ["", "x", "-1", "1.5", "9" * 40, "%00"])
def test_a_page_that_makes_no_sense_is_the_first_one(home: Path, client: Client, tmp_path: Path, before: str) -> None:
    make_job(tmp_path)
    assert numbers(get(client, f"?before={before}")) == [1]


def test_a_row_shows_where_its_run_is(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING, progress=PROGRESS, environment="demo")
    append(job, *(progress(step, 1 / step) for step in range(1, 6)), image(5))
    page = get(client)
    assert "Run 1 – demo" in page and "step 1,234 of 2,000 · 1:02:03 left · loss 0.1235" in page
    assert 'value="61.70"' in page and 'aria-label="Loss from 1 to 0.2"' in page
    assert f'src="/api/training/jobs/{job.pk}/media/5/0"' in page
    assert 'data-busy="yes"' in page and f"last_event_id={job.pk}:{job.next_index - 1}" in page


def test_a_row_says_in_one_line_how_its_run_ended(home: Path, client: Client, tmp_path: Path) -> None:
    make_job(tmp_path, Status.ERROR, message="the reason\nTraceback: many lines", error_code="x")
    make_job(tmp_path, Status.ERROR, message="y" * 500)
    page = get(client)
    assert "the reason" in page and "Traceback" not in page and "y" * 199 + "…" in page and "y" * 201 not in page
    assert 'data-busy="no"' in page


def test_a_loss_that_is_not_finite_is_shown_as_such(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING, progress={**PROGRESS, "loss": None})
    append(job, progress(1), progress(2).model_copy(update={"loss": None}))
    assert "loss not finite" in get(client) and "<polyline" not in get(client)


def test_the_list_takes_as_many_questions_to_the_database_for_each_run(home: Path, client: Client, tmp_path: Path) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            client.get("/")
        assert not [query["sql"] for query in captured if '"training_job"."options"' in query["sql"] and "LIMIT 1" not in query["sql"]]
        return len(captured)

    make_job(tmp_path, Status.COMPLETED)
    one = queries()
    for _ in range(4):
        make_job(tmp_path, Status.COMPLETED, progress=PROGRESS)
    assert queries() - one <= 4 * 4


def test_a_link_from_another_site_opens_the_pages_and_nothing_else() -> None:
    def opens(path: str, method: str = "GET", mode: bytes = b"navigate") -> bool:
        headers = [(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", mode), (b"sec-fetch-dest", b"document")]
        return follows_link_to_page({"type": "http", "path": path, "method": method, "headers": headers})

    assert opens("/") and opens("/runs/4")
    assert not opens("/runs/4/stop", "POST") and not opens("/runs/4", mode=b"cors") and not opens("/api/training/status")


# ---- the machine ----
def test_the_bars_say_how_full_each_gpu_the_memory_and_the_disk_are(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(name="H200", used_bytes=1 << 30, total_bytes=141 << 30, busy_percent=37, temperature_celsius=41, driver="1")
    bare = Gpu(name="bare", used_bytes=0, total_bytes=1 << 30, busy_percent=None, temperature_celsius=None, driver="1")
    monkeypatch.setattr(machine.hardware.DRIVER, "gpus", lambda: (gpu, bare))
    first, second, *others = machine.meters()
    assert (first.name, first.text) == ("H200", "1.0 GB of 141.0 GB used, 37 % busy, 41 °C")
    assert first.used == pytest.approx(100 / 141) and not first.is_scarce
    assert (second.name, second.text) == ("bare", "0 bytes of 1.0 GB used")
    assert [meter.name for meter in others] == ["Memory", "Disk"] and all("free" in meter.text for meter in others)


def test_a_home_that_is_gone_has_no_disk(client: Client, settings: Any, tmp_path: Path) -> None:
    settings.HOME = tmp_path / "gone"
    assert "Disk" not in [meter.name for meter in machine.meters()]
    assert client.get("/").status_code == 200
