"""One format of moments wherever people read them, with its zone."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from django.template import engines
from django.test import Client
from django.utils import formats

from environments import services
from environments.create.plan import NewEnvironment
from environments.moments import moment_of, moment_text
from environments.templatetags.moments import moment
from tests.helpers.jobs import make_job
from training.jobs import log
from training.models import Checkpoint, Status

NOON = datetime(2026, 5, 1, 12, 30, 5, 700_000, timezone.utc)
SHOWN = "2026-05-01 12:30:05 UTC"
OTHERWISE = re.compile(
    r"\b\d{1,2} [ap]\.m\.|(Jan|Feb|March|April|May|June|July|Aug|Sept|Oct|Nov|Dec)\.? \d{1,2}, \d{4}|\d{4}-\d\d-\d\d \d\d:\d\d(?!:\d\d UTC)"
)
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "given",
    [
        NOON,
        NOON.astimezone(timezone(timedelta(hours=-7))),
        NOON.replace(tzinfo=None),
        NOON.isoformat(),
        "2026-05-01T12:30:05Z",
        "2026-05-01T14:30:05+02:00",
        NOON.timestamp(),
    ],
)
def test_a_moment_is_shown_in_utc_with_the_zone_however_it_is_given(given: datetime | str | float) -> None:
    assert moment_text(given) == SHOWN
    assert moment(given) == f'<time datetime="2026-05-01T12:30:05+00:00">{SHOWN}</time>'


@pytest.mark.parametrize(
    "given",
    [None, "", "<b>", "yesterday", float("nan"), float("inf"), 1e30, -1e30, "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"],
)
def test_what_is_no_moment_is_a_dash(given: str | float | None) -> None:
    assert moment_of(given) is None and moment_text(given) == "–" and moment(given) == "–"


def test_django_writes_moments_in_the_same_way() -> None:
    assert formats.localize(NOON) == SHOWN
    assert engines["django"].from_string("{{ one|date }}").render({"one": NOON}) == "2026-05-01"
    assert engines["django"].from_string("{{ one }}").render({"one": NOON}) == SHOWN


@pytest.mark.django_db
def test_no_page_and_no_admin_page_has_another_format(client: Client, home: Path, tmp_path: Path) -> None:
    row = services.create_environment(NewEnvironment("demo", "pixart_sigma", model_type="full"), actor="test")
    job = make_job(tmp_path, Status.COMPLETED, environment="demo", created_at=NOON, started_at=NOON, finished_at=NOON)
    log.append(job.pk, [log.status_event(Status.QUEUED, "waits")])
    Checkpoint.objects.create(job=job, name="checkpoint-5", path=str(tmp_path), step=5, created_at=NOON)
    of_a_run = ("/", f"/runs/{job.number}", f"/admin/training/job/{job.pk}/change/", "/admin/training/job/")
    of_environments = ("/environments", "/environments/demo/history", "/admin/environments/environment/", "/admin/environments/revision/")
    for address in (*of_a_run, *of_environments, f"/admin/environments/environment/{row.pk}/change/"):
        page = client.get(address).content.decode()
        assert not (found := OTHERWISE.search(page)), (address, found)
        assert address not in of_a_run or SHOWN in page, address
        assert " UTC" in page, address


def test_no_template_and_no_module_writes_a_format_of_its_own() -> None:
    own = re.compile(r"\|date:|strftime\(|%H:%M|:%Y-")
    files = [
        one for top in ("environments", "training", "simpletuner_site") for one in (ROOT / top).rglob("*") if one.suffix in (".py", ".html")
    ]
    assert [str(one.relative_to(ROOT)) for one in files if own.search(one.read_text(encoding="utf-8"))] == ["environments/moments.py"]
