"""The page of a run shows every state that a run can be in, and nothing that a run holds becomes markup."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import resolve

from environments import services as environments
from environments.create.plan import NewEnvironment
from tests.helpers.jobs import make_job
from trainer_engine.contract.events import (
    CheckpointEvent,
    ErrorEvent,
    Event,
    ImageEvent,
    MediaFile,
    Notification,
    ProgressEvent,
    StageEvent,
    StageKey,
    StageStatus,
    decode,
    encode,
)
from training.jobs import log
from training.models import TERMINAL, Checkpoint, Job, Status
from training.models import Event as StoredEvent

pytestmark = pytest.mark.django_db
PROGRESS = {
    "step": 1234,
    "total_steps": 2000,
    "epoch": 3,
    "loss": 0.123456,
    "learning_rate": 1e-4,
    "grad_norm": 0.5,
    "samples_per_second": 2.0,
    "seconds_per_step": 0.5,
    "eta_seconds": 3723.0,
    "memory": {"resident": 2**30, "peak": 3 * 2**30},
}
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&{{ 7 }}"


def append(job: Job, *events: Event) -> None:
    """Put events into a job's log as the follower does."""
    lines = [encode(event, seq=job.next_index + place) for place, event in enumerate(events)]
    log.append(job.pk, [log.from_journal(decode(line)) for line in lines])
    job.refresh_from_db()


def image(step: int, prompt: str = "a boat", kind: str = "final", name: str = "boat") -> ImageEvent:
    return ImageEvent(
        title=f"Validation (step 5/5): {name}",
        body=prompt,
        step=5,
        global_step=step,
        resolution=(64, 64),
        validation_type=kind,
        prompt=prompt,
        step_label="5/5",
        images=[MediaFile(file="media/x.png")],
    )


def progress(step: int, loss: float = 0.5) -> ProgressEvent:
    return ProgressEvent(**{**PROGRESS, "step": step, "loss": loss})


def get(client: Client, job: Job, query: str = "") -> str:
    answer = client.get(f"/runs/{job.number}{query}")
    assert answer.status_code == 200
    return answer.content.decode()


class Elements(HTMLParser):
    """Every element of a page, with its attributes; it complains about elements that are not closed."""

    VOID = frozenset({"meta", "link", "img", "input", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for found, attributes in self.found if found == tag)


@pytest.mark.parametrize("status", Status.values)
def test_the_page_shows_a_run_of_every_status(home: Path, client: Client, tmp_path: Path, status: str) -> None:
    job = make_job(tmp_path, Status(status), progress=PROGRESS, environment="demo", message="what happened", hint="what to do")
    page = get(client, job)
    Elements(page)
    assert f"Run {job.number} – demo" in page and f'class="state {status}">{status}<' in page
    assert "1,234 of 2,000" in page and "0.1235" in page and "3.0 GB" in page
    has_ended = status in [one.value for one in TERMINAL]
    assert ("1:02:03" in page) is not has_ended and f'data-busy="{"no" if has_ended else "yes"}"' in page


def test_a_run_that_has_not_begun_has_a_page_without_numbers(home: Path, client: Client, tmp_path: Path) -> None:
    page = get(client, make_job(tmp_path))
    assert "Waits for a worker" in page and "Nothing has begun." in page and "No checkpoint yet." in page and "<progress" not in page


def test_a_queued_run_names_what_it_waits_for(home: Path, client: Client, tmp_path: Path) -> None:
    running = make_job(tmp_path, Status.RUNNING)
    first, second = make_job(tmp_path), make_job(tmp_path)
    same = make_job(tmp_path, output_dir=running.output_dir)
    assert f"Position 1 in the queue; waits for run {running.number}." in get(client, first)
    assert "Position 2 in the queue" in get(client, second)
    assert f"Waits for run {running.number}, which writes to the same folder." in get(client, same)


def test_a_failure_is_shown_with_its_reason_its_hint_and_its_code(home: Path, client: Client, tmp_path: Path) -> None:
    page = get(client, make_job(tmp_path, Status.ERROR, message="8 GiB were not enough", hint="smaller batch", error_code="out_of_memory"))
    assert "8 GiB were not enough" in page and "smaller batch" in page and "out_of_memory" in page
    assert "The run failed." in get(client, make_job(tmp_path, Status.ERROR))


@pytest.mark.parametrize(
    "progress",
    [
        {},
        {"step": 0, "total_steps": 0},
        {"step": 5, "total_steps": 10, "loss": None, "eta_seconds": None, "memory": None},
        {"step": 5, "total_steps": 10, "loss": 1e-9, "learning_rate": None, "grad_norm": None, "memory": {"resident": 5}},
    ],
)
def test_the_page_shows_any_progress(home: Path, client: Client, tmp_path: Path, progress: dict[str, Any]) -> None:
    get(client, make_job(tmp_path, Status.RUNNING, progress=progress))
    assert client.get("/").status_code == 200


def test_the_run_of_a_deleted_environment_has_its_page_without_dead_links(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.COMPLETED, environment="gone")
    page = get(client, job)
    assert "– gone" in page and "Environment gone" not in page and "Start again" not in page


def test_every_link_of_the_page_exists(home: Path, client: Client, tmp_path: Path) -> None:
    environments.create_environment(NewEnvironment(name="demo", model_family="pixart_sigma", model_type="full"), actor="test")
    earlier = make_job(tmp_path, Status.COMPLETED, environment="demo", options={"seed": 1})
    job = make_job(tmp_path, Status.COMPLETED, environment="demo", plan={"batches": 3})
    append(job, *(image(step) for step in range(3)), *(Notification(message=f"n{number}") for number in range(70)))
    elements = Elements(get(client, job))
    links = [str(attributes["href"]) for attributes in elements.of("a")]
    assert f"/runs/{earlier.number}" in links and "/environments/demo" in links and f"/environments/demo?run={job.number}" in links
    for link in links:
        if link.startswith("?"):
            assert client.get(f"/runs/{job.number}{link}").status_code == 200
        elif link.startswith("/") and "/media/" not in link:
            assert client.get(link, headers={"Accept": "*/*"}).status_code == 200, link
    for attributes in elements.of("form"):
        assert resolve(str(attributes["action"])).url_name == "run-button"
    ids = [str(attributes["id"]) for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(link[1:] in ids for link in links if link.startswith("#"))


def test_a_run_without_a_report_about_its_datasets_does_not_link_to_one(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.ERROR)
    assert f"/jobs/{job.pk}/datasets" not in get(client, job)
    job.folder.create().datasets.write_text("{}")
    assert f"/jobs/{job.pk}/datasets" in get(client, job)


def hostile_job(folder: Path) -> Job:
    """A run of which every text that a user or a file chooses is an attack."""
    job = make_job(
        folder,
        Status.ERROR,
        environment=EVIL[:60],
        message=EVIL,
        hint=EVIL,
        error_code=EVIL[:60],
        checkpoint=EVIL,
        options={"instance_prompt": EVIL, EVIL: EVIL, "seed": 3},
        startup={EVIL: {"label": EVIL, "status": EVIL, "percent": EVIL, "current": EVIL, "total": EVIL}},
        output_dir=str(folder / EVIL.replace("/", "-")),
        progress=PROGRESS,
    )
    job.folder.create().log.write_text(EVIL)
    Checkpoint.objects.create(job=job, name=EVIL[:200], path=EVIL, step=1)
    append(
        job,
        ErrorEvent(code=EVIL, title=EVIL, message=EVIL, hint=EVIL),
        Notification(message=EVIL, title=EVIL),
        CheckpointEvent(path=EVIL, label=EVIL, step=1, size_bytes=1),
        image(0, EVIL, "base_model", EVIL),
        image(1, EVIL, "final", EVIL),
        image(2, EVIL, "final", EVIL),
        StageEvent(key=StageKey.VAE_CACHE, label=EVIL, status=StageStatus.RUNNING),
    )
    return job


@pytest.mark.parametrize("address", ["/", "/runs/1", "/runs/1?events=everything", "/runs/1?events=images", "/runs/1?events=" + EVIL])
def test_no_text_of_a_run_becomes_markup(home: Path, client: Client, tmp_path: Path, address: str) -> None:
    hostile_job(tmp_path)
    page = client.get(address).content.decode()
    elements = Elements(page)
    assert "alert(1)" in page
    scripts = list(elements.of("script"))
    assert [one["src"] for one in scripts] == ["/static/training/pages.js"]
    for _, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("href", "src", "action"):
            assert re.match(r"[/?#]|$", str(attributes.get(name) or "")), attributes
            assert not str(attributes.get(name) or "").startswith("//")
    assert all(str(one["src"]).startswith("/api/training/jobs/") for one in elements.of("img"))


def test_an_image_is_linked_by_its_event_and_never_by_its_path(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    event = image(1).model_copy(update={"images": [MediaFile(file="/etc/passwd")]})
    append(job, event)
    page = get(client, job)
    assert f"/api/training/jobs/{job.pk}/media/0/0" in page and "passwd" not in page
    assert client.get(f"/api/training/jobs/{job.pk}/media/0/0").status_code == 404


def test_images_stand_by_prompt_with_the_base_beside_the_newest(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    append(
        job,
        image(0, "a boat", "base_model"),
        image(0, "a cat", "base_model", "cat"),
        image(10, "a boat"),
        image(10, "a cat", name="cat"),
        image(20, "a boat", "intermediary"),
        image(20, "a boat"),
    )
    page = get(client, job)
    section = page[page.index('data-part="images"') : page.index('id="previews"')]
    boat, cat = section[: section.index("a cat")], section[section.index("a cat") :]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", boat) == ["base model", "step 20", "step 10"]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", cat) == ["base model", "step 10"]
    assert section.count("/media/4/") == 0  # the preview


def test_a_clip_is_shown_as_its_animation_and_opens_its_best_file(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    clip = image(5).model_copy(update={"images": [], "videos": [MediaFile(file="a.gif"), MediaFile(file="a.mp4")]})
    append(job, clip)
    page = get(client, job)
    assert f'href="/api/training/jobs/{job.pk}/media/0/1"' in page and f'src="/api/training/jobs/{job.pk}/media/0/0"' in page


def test_stages_stand_in_their_order_with_their_bars(home: Path, client: Client, tmp_path: Path) -> None:
    stage = {"label": "", "progress_type": "counted", "status": "running", "percent": 25.0, "current": 1, "total": 4}
    startup = {
        "init_vae_cache": {**stage, "label": "Caching"},
        "init_load_base_model": {**stage, "label": "Loading", "status": "completed"},
    }
    running = get(client, make_job(tmp_path, Status.STARTING, startup=startup))
    assert running.index("Loading") < running.index("Caching") and "1 of 4" in running and 'value="25.0"' in running
    ended = get(client, make_job(tmp_path, Status.CANCELLED, startup={"init_vae_cache": {**stage, "total": 0}}))
    assert "not finished" in ended


def test_checkpoints_that_were_deleted_are_marked(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.COMPLETED)
    (tmp_path / "there").mkdir()
    Checkpoint.objects.create(job=job, name="checkpoint-1", path=str(tmp_path / "gone"), step=1, size_bytes=2048)
    Checkpoint.objects.create(job=job, name="checkpoint-2", path=str(tmp_path / "there"), step=2, is_final=True)
    page = get(client, job)
    assert "deleted since" in page and "the last of the run" in page and page.index("checkpoint-2") < page.index("checkpoint-1")


def test_options_are_those_that_differ_from_the_family_and_from_the_previous_run(home: Path, client: Client, tmp_path: Path) -> None:
    usual = {"model_family": "pixart_sigma", "train_batch_size": 1, "max_grad_norm": 0.01, "seed": 7}
    make_job(tmp_path, Status.COMPLETED, environment="demo", options={**usual, "train_batch_size": 2, "max_grad_norm": 5.0})
    page = get(client, make_job(tmp_path, environment="demo", options=usual))
    rows = dict(re.findall(r"<code>(\w+)</code></th>(.*?)</tr>", page, re.DOTALL))
    assert re.findall(r"<td>(.*?)</td>", rows["train_batch_size"]) == ["1", "4", "2"]
    assert re.findall(r"<td>(.*?)</td>", rows["max_grad_norm"]) == ["0.01", "0.01", "5.0"]
    assert re.findall(r"<td>(.*?)</td>", rows["seed"])[0] == "7"
    alone = get(client, make_job(tmp_path, options={"model_family": "pixart_sigma", "max_grad_norm": 0.01}))
    assert "<code>max_grad_norm</code>" not in alone


def test_curves_can_be_compared_with_those_of_other_runs_that_trained(home: Path, client: Client, tmp_path: Path) -> None:
    job, other = (make_job(tmp_path, Status.COMPLETED, progress=PROGRESS, environment="demo") for _ in range(2))
    assert "<select" in get(client, job)
    make_job(tmp_path)
    offered = re.findall(r'<option value="([^"]+)">(.*?)</option>', get(client, job))
    assert offered == [(f"/api/training/jobs/{other.pk}/metrics", "Run 2 – demo")]
    assert client.get(offered[0][0]).status_code == 200
    Job.objects.filter(pk=other.pk).delete()
    assert "<select" not in get(client, job)


def test_secrets_of_options_are_not_on_the_page(home: Path, client: Client, tmp_path: Path) -> None:
    hook = '[{"webhook_type": "raw", "callback_url": "http://127.0.0.1:9/", "auth_token": "canary"}]'
    page = get(client, make_job(tmp_path, options={"webhook_config": hook, "seed": 7}))
    assert "canary" not in page and "***" in page


def test_the_log_is_shown_from_its_end_without_control_characters(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    assert "Nothing yet." in get(client, job)
    text = "first line\n" + "x" * 20_000 + "\n\x1b[31mred\x1b[0m\n 10%\r 55%\r 99%\nlast \x00\x07line\n"
    job.folder.create().log.write_text(text)
    page = get(client, job)
    shown = page[page.index('<pre class="log"') :].split("</pre>")[0]
    assert "first line" not in shown and "red\n" in shown and " 99%" in shown and "55%" not in shown and "last line" in shown
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", shown)


def test_a_log_that_is_no_file_is_not_opened(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    job.folder.create().log.mkdir()
    assert "Nothing yet." in get(client, job)


@pytest.mark.parametrize("number", ["0", "2", "01", "-1", "x", "9" * 18, "9" * 30, "1%00"])
def test_a_run_that_is_not_there_is_not_found(home: Path, client: Client, tmp_path: Path, number: str) -> None:
    make_job(tmp_path)
    assert client.get(f"/runs/{number}", headers={"Accept": "text/html"}).status_code == 404


def test_the_page_of_a_long_run_reads_few_rows(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING, progress=PROGRESS)

    def queries() -> int:
        client.get(f"/runs/{job.number}")
        with CaptureQueriesContext(connection) as captured:
            client.get(f"/runs/{job.number}?events=everything")
        assert not [query["sql"] for query in captured if "training_event" in query["sql"] and "LIMIT" not in query["sql"]]
        return len(captured)

    append(job, *(progress(step) for step in range(1, 11)), image(5))
    before = queries()
    append(job, *(one for step in range(11, 600) for one in (progress(step), image(step, kind="intermediary"), image(step))))
    assert queries() == before <= 40


def test_no_page_is_kept_by_a_cache_or_framed_and_each_allows_only_its_own_files(home: Path, client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    for address in ("/", f"/runs/{job.number}"):
        answer = client.get(address)
        policy = dict(part.strip().split(" ", 1) for part in answer["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src", "form-action")} == {"'self'"}
        assert answer["Cache-Control"] == "no-store" and answer["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize("name", ["pages.css", "pages.js", "charts.js", "icon.svg"])
def test_the_files_of_the_pages_are_served_and_name_no_other_host(home: Path, client: Client, name: str) -> None:
    answer = client.get(f"/static/training/{name}")
    text = b"".join(answer.streaming_content).decode()  # type: ignore[attr-defined]
    assert answer.status_code == 200 and text
    hosts = set(re.findall(r"(?:https?:)?//[a-z0-9.]+\.[a-z]{2,}", text)) - {"http://www.w3.org"}
    assert hosts == set() and "innerHTML =" not in text and "eval(" not in text


@pytest.mark.parametrize("query", ["", "?events=everything", "?events=problems"])
def test_events_of_a_damaged_journal_leave_the_pages_whole(client: Client, tmp_path: Path, query: str) -> None:
    job = make_job(tmp_path, Status.COMPLETED)
    odd = [
        ("validation.image", {"data": {"global_step": "x", "validation_type": 3}, "images": [{"file": "media/x.png"}]}),
        ("validation.image", {"data": None, "images": [{"file": "media/x.png"}]}),
        ("lifecycle.stage", {"stage": None}),
        ("notification", {"data": {"code": "evaluation", "details": None}}),
        ("notification", {"data": {"code": "evaluation", "details": {"step": "x", "metrics": [1]}}}),
    ]
    for index, (kind, payload) in enumerate(odd):
        StoredEvent.objects.create(job=job, index=index, type=kind, timestamp="2026-01-01T00:00:00+00:00", payload=payload)
    Job.objects.filter(pk=job.pk).update(next_index=len(odd))
    get(client, job, query)
    assert client.get("/").status_code == 200
    assert client.get(f"/api/training/jobs/{job.pk}/metrics").status_code == 200


def test_a_long_prompt_is_shown_in_part(client: Client, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    append(job, *(image(step, prompt="p" * 400_000) for step in range(5)))
    assert len(get(client, job)) < 200_000
