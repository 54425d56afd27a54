"""The log of a run for people: what matters, folded and filtered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.test import Client

from tests.helpers.jobs import make_job
from tests.training.pages.test_run_page import append, get, image, progress
from trainer_engine.contract.events import ErrorEvent, Notification, Severity, StageEvent, StageKey, StageStatus, StatusEvent
from training.models import Job, Status
from training.pages import event_lines
from training.pages.event_lines import EventLine

pytestmark = pytest.mark.django_db


def lines_of(job: Job, chosen: str, before: int | None = None) -> list[EventLine]:
    return event_lines.event_lines(job, chosen, before)[0]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Status, a stage with its progress, steps, a warning, previews and their image, a note, an error."""
    job = make_job(tmp_path, Status.RUNNING)
    append(
        job,
        StatusEvent(status="running", message="It runs."),
        *(StageEvent(key=StageKey.VAE_CACHE, status=StageStatus.RUNNING, current=number, total=9) for number in range(9)),
        *(progress(step) for step in range(1, 6)),
        Notification(message="Look at this.", severity=Severity.WARNING),
        *(image(5, kind="intermediary") for _ in range(4)),
        image(5),
        image(5, "a cat", name="cat"),
        Notification(message="By the way."),
        ErrorEvent(code="disk_full", message="The disk is full.", hint="free some space"),
    )
    return job


def test_news_leave_out_steps_and_stages_and_fold_the_images_of_a_validation(job: Job) -> None:
    shown = [(line.text, line.count) for line in lines_of(job, "news")]
    assert shown == [
        ("The disk is full. free some space", 1),
        ("By the way.", 1),
        ("Validation images of step 5.", 6),
        ("Look at this.", 1),
        ("It runs.", 1),
    ]
    assert [picture.prompt for picture in lines_of(job, "news")[2].images] == ["a cat", "a boat"]
    assert not any(picture.is_preview for picture in lines_of(job, "news")[2].images)


def test_everything_folds_what_repeats(job: Job) -> None:
    shown = [(line.text.split(":")[0], line.count, line.oldest) for line in lines_of(job, "everything")]
    assert ("Step 5 of 2000", 5, 10) in shown and ("Caching image latents", 9, 1) in shown
    assert sum(count for _, count, _ in shown) == job.next_index


def test_filters_select_their_events(job: Job) -> None:
    assert [line.text for line in lines_of(job, "problems")] == ["The disk is full. free some space", "Look at this."]
    assert [line.count for line in lines_of(job, "images")] == [6]
    assert lines_of(job, "nothing known") == lines_of(job, "news")


def test_pages_of_the_log_follow_each_other_without_a_gap(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    append(job, *(Notification(message=f"note {number}") for number in range(250)))
    monkeypatch.setattr(event_lines, "LINES", 20)
    monkeypatch.setattr(event_lines, "MOST_ROWS", 70)
    for chosen in ("everything", "news"):
        expected = job.next_index - (14 if chosen == "news" else 0)
        counted, before, pages = 0, None, 0
        while True:
            lines, before = event_lines.event_lines(job, chosen, before)
            counted += sum(line.count for line in lines)
            pages += 1
            if before is None:
                break
        assert counted == expected and pages > 10


def test_the_page_links_to_older_events_under_the_same_filter(home: Path, client: Client, job: Job) -> None:
    append(job, *(Notification(message=f"note {number}", severity=Severity.WARNING) for number in range(100)))
    page = get(client, job, "?events=problems")
    link = re.findall(r'href="(\?events=problems&amp;before=\d+#events)"', page)
    assert len(link) == 1 and 'href="?events=problems#events" aria-current="true"' in page
    older = get(client, job, link[0].replace("&amp;", "&"))
    assert "note 99" in page and "note 99" not in older and "note 0<" in older and "The disk is full." in older


@pytest.mark.parametrize("query", ["?events=", "?events=x&before=1e9", "?before=-1", "?events=news&events=%00", "?before=" + "9" * 50])
def test_an_address_that_makes_no_sense_shows_the_news(home: Path, client: Client, job: Job, query: str) -> None:
    assert "By the way." in get(client, job, query) and "Step 5 of 2000" not in get(client, job, query)


def test_an_event_without_any_text_is_named_by_its_type(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    append(job, Notification())
    assert [line.text for line in lines_of(job, "news")] == ["notification"]
