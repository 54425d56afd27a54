"""From the log to the other end: nothing lost, nothing doubled, nothing held up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from datetime import timezone as dt_timezone
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from environments.home import current_home
from environments.secrets import store
from tests.helpers.jobs import make_job
from tests.helpers.receiver import Receiver, receiving
from trainer_engine.config.webhooks import WebhookTarget
from trainer_engine.contract.events import Notification, Severity
from training.jobs import log, secrets
from training.models import Delivery, Event, Job, Status, WebhookChannel, WebhookDelivery
from training.webhooks import delivery, outbox, post

pytestmark = pytest.mark.django_db


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def job_with(home: Path, *targets: WebhookTarget) -> Job:
    job = make_job(home, Status.RUNNING)
    secrets.keep(job, {}, [], targets)
    outbox.open_channels(job, targets)
    return job


def say(job: Job, text: str, severity: Severity = Severity.INFO) -> None:
    log.append(job.pk, [log.from_server(Notification(title=text, message=text, severity=severity))])


def progress(job: Job, *seconds: int) -> None:
    payload: dict[str, Any] = {"title": "", "message": "", "body": "", "data": {}}
    times = [f"2026-01-01T00:00:{at:02}+00:00" for at in seconds]
    drafts = [log.NewEvent("training.progress", payload, timestamp=time) for time in times]
    log.append(job.pk, drafts)


def due_now() -> None:
    WebhookChannel.objects.update(next_attempt_at=timezone.now(), lease_until=None)


def deliver_all(rounds: int = 1) -> None:
    for _ in range(rounds):
        due_now()
        for channel in delivery.claim_due(10):
            delivery.deliver(channel)


def titles(receiver: Receiver) -> list[str]:
    return [json.loads(came.body)["title"] for came in receiver.arrived]


def test_an_event_enters_with_its_deliveries_or_not_at_all(home: Path, receiver: Receiver) -> None:
    job = job_with(home, WebhookTarget("raw", receiver.url))

    def fail() -> None:
        with transaction.atomic():
            say(job, "lost")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not Event.objects.filter(job=job).exists()
    assert not WebhookDelivery.objects.exists()
    say(job, "kept")
    assert WebhookDelivery.objects.count() == Event.objects.filter(job=job).count() == 1


def test_each_target_receives_events_of_its_level(home: Path, receiver: Receiver) -> None:
    quiet = WebhookTarget("raw", receiver.url + "/quiet", log_level="warning")
    job = job_with(home, WebhookTarget("raw", receiver.url), quiet)
    say(job, "news")
    say(job, "trouble", Severity.WARNING)
    deliver_all()
    assert sorted((came.path, json.loads(came.body)["title"]) for came in receiver.arrived) == [
        ("/hook", "news"),
        ("/hook", "trouble"),
        ("/hook/quiet", "trouble"),
    ]


def test_progress_is_posted_at_the_interval(home: Path, receiver: Receiver) -> None:
    job = job_with(home, WebhookTarget("raw", receiver.url))
    progress(job, 0, 1, 9, 10, 11)
    progress(job, 19, 20, 25)
    posted = WebhookDelivery.objects.values_list("index", flat=True)
    assert list(posted) == [0, 3, 6]


def test_events_behind_a_failed_post_arrive_in_order_once_the_target_answers(home: Path, receiver: Receiver) -> None:
    job = job_with(home, WebhookTarget("raw", receiver.url))
    receiver.behaviour = 500
    log.append(job.pk, [log.from_server(Notification(title=f"{number}", message="")) for number in range(150)])
    deliver_all(rounds=3)
    assert len(receiver.came) == 3  # the others wait behind the first
    receiver.behaviour = 200
    deliver_all(rounds=6)
    wanted = [str(number) for number in range(150)]
    assert [title for title in titles(receiver) if title.isdigit()] == wanted
    assert not WebhookDelivery.objects.filter(status=Delivery.PENDING).exists()
    first = WebhookDelivery.objects.order_by("index").first()
    assert first is not None
    assert first.attempts == 4
    same = {came.headers["X-SimpleTuner-Delivery"] for came in receiver.came if json.loads(came.body)["title"] == "0"}
    assert same == {str(first.pk)}


def test_a_failing_target_is_a_warning_on_the_job_and_holds_up_no_other(home: Path, receiver: Receiver) -> None:
    job = job_with(home, WebhookTarget("raw", "http://127.0.0.1:9/gone"), WebhookTarget("raw", receiver.url))
    say(job, "news")
    deliver_all(rounds=4)
    assert titles(receiver)[0] == "news"
    warnings = Event.objects.filter(job=job, severity="warning")
    assert [event.payload["data"]["code"] for event in warnings] == ["webhook_failing"]
    assert "127.0.0.1:9" in warnings[0].payload["message"]
    job.refresh_from_db()
    assert job.status == Status.RUNNING


def test_posts_of_an_ended_run_continue_to_its_last_event(home: Path, receiver: Receiver) -> None:
    job = job_with(home, WebhookTarget("raw", receiver.url))
    receiver.behaviour = 500
    say(job, "the end")
    Job.objects.filter(pk=job.pk).update(status=Status.COMPLETED)
    deliver_all(rounds=4)
    assert Event.objects.filter(job=job).count() == 1
    receiver.behaviour = 200
    deliver_all()
    assert titles(receiver) == ["the end"]


def test_a_refused_event_becomes_a_dead_letter_and_the_next_one_is_posted(home: Path, receiver: Receiver) -> None:
    job = job_with(home, WebhookTarget("raw", receiver.url))
    receiver.behaviour = 422
    say(job, "poison")
    deliver_all()
    assert WebhookDelivery.objects.get(index=0).status == Delivery.DEAD
    receiver.behaviour = 200
    say(job, "food")
    deliver_all()
    assert "food" in titles(receiver)


def test_after_a_day_a_post_is_given_up(home: Path, receiver: Receiver) -> None:
    job = job_with(home, WebhookTarget("raw", receiver.url))
    receiver.behaviour = 503
    say(job, "old")
    deliver_all()
    assert WebhookDelivery.objects.get(index=0).status == Delivery.PENDING
    WebhookDelivery.objects.update(created_at=timezone.now() - timedelta(hours=25))
    deliver_all()
    dead = WebhookDelivery.objects.get(index=0)
    assert (dead.status, dead.error) == (Delivery.DEAD, "HTTP 503")


def test_two_delivery_workers_never_hold_one_target(home: Path, receiver: Receiver) -> None:
    job = job_with(home, WebhookTarget("raw", receiver.url))
    say(job, "news")
    due_now()
    assert len(delivery.claim_due(10)) == 1
    assert delivery.claim_due(10) == []
    WebhookChannel.objects.update(lease_until=timezone.now() - timedelta(seconds=1))  # the first one died
    assert len(delivery.claim_due(10)) == 1


def test_pauses_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    for failures, middle in ((1, 1), (2, 2), (5, 16), (50, 600)):
        pauses = {delivery.pause_after(failures) for _ in range(200)}
        assert min(pauses) >= 0.5 * middle
        assert max(pauses) <= 1.5 * middle
        assert len(pauses) > 100


def test_the_posts_of_a_run_are_shown_without_secrets(home: Path, receiver: Receiver, client: Any) -> None:
    job = job_with(home, WebhookTarget("raw", receiver.url, auth_token="hunter2", secret="swordfish"))
    receiver.behaviour = 422
    say(job, "poison")
    deliver_all()
    answer = client.get(f"/api/training/jobs/{job.pk}/webhooks").json()
    assert answer["counts"]["dead"] >= 1
    assert answer["dead_letters"][-1]["error"] == "HTTP 422"
    assert "hunter2" not in json.dumps(answer)
    assert client.get("/api/training/jobs/nobody/webhooks").status_code == 404


@pytest.mark.parametrize("kind", ["raw", "template", "discord", "slack"])
def test_the_address_of_a_failing_webhook_is_posted_to_nobody(home: Path, receiver: Receiver, client: Any, kind: str) -> None:
    """The path and the query of an address are where services keep their keys."""
    secret = receiver.url.replace("/hook", "/swordfish?key=hunter2")
    job = job_with(home, WebhookTarget(kind, secret, template="{title}"), WebhookTarget("raw", receiver.url))
    receiver.behaviour = 500
    for number in range(4):
        say(job, f"event {number}")
        deliver_all()
    receiver.behaviour = 200
    deliver_all(rounds=3)
    assert Event.objects.filter(job=job, payload__data__code="webhook_failing").exists()
    seen = [
        *(came.body.decode() for came in receiver.arrived),
        *(json.dumps(event.payload) for event in Event.objects.filter(job=job)),
        client.get(f"/api/training/jobs/{job.pk}/webhooks").content.decode(),
        json.dumps(list(WebhookChannel.objects.values_list("target", flat=True))),
    ]
    assert len(seen) > 8 and not any(word in text for text in seen for word in ("swordfish", "hunter2"))
    assert {came.path for came in receiver.arrived} == {"/swordfish?key=hunter2", "/hook"}


FAULTS: list[int | str] = [500, "redirect", "refuse", "hang", "trickle", 404, 429]


def test_a_webhook_that_fails_for_a_thousand_steps_loses_nothing(home: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(post, "TOTAL_SECONDS", 0.6)
    job = job_with(home, WebhookTarget("raw", receiver.url))
    other = receiver.url.replace("/hook", "/other")
    WebhookChannel.objects.create(job=job, place=1, target=WebhookTarget("raw", other).as_dict())  # as older versions stored it
    for number, fault in enumerate(FAULTS):
        receiver.behaviour = fault
        start = datetime(2026, 1, 1, tzinfo=dt_timezone.utc) + timedelta(seconds=143 * number)
        payload: dict[str, Any] = {"title": f"{number}", "message": "", "body": "", "data": {}}
        times = [(start + timedelta(seconds=second)).isoformat() for second in range(143)]
        log.append(job.pk, [log.NewEvent("training.progress", payload, timestamp=time) for time in times])
        deliver_all()
    assert receiver.arrived == []
    assert Event.objects.filter(job=job, type="training.progress").count() == 1001
    wanted = list(WebhookDelivery.objects.filter(channel__place=0).order_by("index").values_list("pk", flat=True))
    assert len(wanted) >= 101
    receiver.behaviour = "endless"
    deliver_all()
    receiver.behaviour = 200
    deliver_all(rounds=6)
    assert set(WebhookDelivery.objects.values_list("status", flat=True)) == {Delivery.DELIVERED}
    arrived = [came.headers["X-SimpleTuner-Delivery"] for came in receiver.arrived if came.path == "/hook"]
    assert arrived == [str(one) for one in wanted]
    indexes = [json.loads(came.body)["index"] for came in receiver.arrived if came.path == "/other"]
    assert indexes == sorted(indexes) and len(indexes) == len(wanted)


def test_a_stage_under_way_is_progress_too(home: Path, receiver: Receiver) -> None:
    job = job_with(home, WebhookTarget("raw", receiver.url))

    def stage(status: str, current: int, second: int) -> log.NewEvent:
        payload = {"title": "", "message": "", "body": "", "data": {}, "stage": {"status": status, "progress": {"current": current}}}
        return log.NewEvent("lifecycle.stage", payload, timestamp=f"2026-01-01T00:00:{second:02}+00:00")

    log.append(job.pk, [stage("running", 0, 0), *(stage("running", count, count) for count in range(1, 25)), stage("completed", 25, 25)])
    assert list(WebhookDelivery.objects.order_by("index").values_list("index", flat=True)) == [0, 1, 11, 21, 25]


def test_a_target_with_many_posts_makes_room_for_the_others(home: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "BATCH", 3)
    busy = job_with(home, WebhookTarget("raw", receiver.url))
    for number in range(9):
        say(busy, f"busy {number}")
    late = job_with(home, WebhookTarget("raw", receiver.url))
    say(late, "late")
    due_now()
    for _ in range(3):
        for channel in delivery.claim_due(1):
            delivery.deliver(channel)
    assert titles(receiver).index("late") in (0, 3)


def test_a_lease_that_ran_out_is_not_given_back_for_another(home: Path, receiver: Receiver) -> None:
    say(job_with(home, WebhookTarget("raw", receiver.url)), "news")
    due_now()
    (mine,) = delivery.claim_due(1)
    WebhookChannel.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    (theirs,) = delivery.claim_due(1)
    assert delivery.deliver(mine) == 1  # the post was under way
    assert WebhookChannel.objects.get().lease_until == theirs.lease_until


def test_secrets_that_are_gone_make_a_dead_letter_and_no_post(home: Path, receiver: Receiver) -> None:
    job = job_with(home, WebhookTarget("raw", receiver.url, auth_token="hunter2"))
    store.forget(current_home(), store.of_job(job.pk))
    say(job, "news")
    deliver_all()
    assert receiver.came == []
    assert WebhookDelivery.objects.get(index=0).status == Delivery.DEAD


def test_the_admin_shows_what_became_of_the_posts(home: Path, receiver: Receiver, client: Any) -> None:
    job = job_with(home, WebhookTarget("discord", receiver.url + "/hunter2"))
    receiver.behaviour = 422
    say(job, "poison <b>")
    deliver_all()
    page = client.get(f"/admin/training/job/{job.pk}/change/").content.decode()
    assert "was given up after 1 attempts: HTTP 422" in page
    assert "/***" in page
    assert "hunter2" not in page


def test_thousands_of_events_enter_by_a_handful_of_statements(home: Path, receiver: Receiver, django_assert_max_num_queries: Any) -> None:
    job = job_with(home, WebhookTarget("raw", receiver.url), WebhookTarget("raw", receiver.url, log_level="error"))
    payload: dict[str, Any] = {"title": "", "message": "", "body": "", "data": {}}
    start = datetime(2026, 1, 1, tzinfo=dt_timezone.utc)
    times = [(start + timedelta(seconds=second / 10)).isoformat() for second in range(2000)]
    drafts = [log.NewEvent("training.progress", payload, timestamp=time) for time in times]
    with django_assert_max_num_queries(30):
        log.append(job.pk, drafts)
    assert WebhookDelivery.objects.count() == 20


def test_targets_that_fail_leave_room_for_those_that_answer(home: Path, receiver: Receiver) -> None:
    failing = [job_with(home, WebhookTarget("raw", receiver.url)) for _ in range(5)]
    well = job_with(home, WebhookTarget("raw", receiver.url))
    for job in (*failing, well):
        say(job, "news")
    WebhookChannel.objects.filter(job__in=failing).update(failures=3)
    due_now()
    claimed = delivery.claim_due(delivery.AT_ONCE)
    assert sorted(channel.failures for channel in claimed) == [0, 3, 3]
    due_now()
    assert [channel.job for channel in delivery.claim_due(delivery.AT_ONCE, 0)] == [well]
