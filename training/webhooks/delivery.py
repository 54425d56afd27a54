"""Empties the outbox, with a thread in every worker process. A lease keeps two workers from posting to one target at once.

Posts to one target keep their order. A post that fails is retried with growing pauses while the others wait behind it. After a
day, or if the target refuses it permanently, it is given up and the next one is tried.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from django.db import DatabaseError, connection, transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from trainer_engine.config.webhooks import WebhookTarget
from training.api import media, representations
from training.jobs import log, secrets
from training.models import Delivery, Event, Job, WebhookChannel, WebhookDelivery
from training.webhooks.messages import compose
from training.webhooks.post import PostResult, post

POLL_SECONDS = 1.0
AT_ONCE = 4
"""Targets that one worker process posts to at a time, so that one that hangs does not delay the others."""
MOST_FAILING = 2
"""How many of these may be targets whose last post failed, so that working targets do not wait for them."""
LEASE = timedelta(seconds=40)
"""Longer than one post takes; a target waits this long after its worker was killed."""
TURN_SECONDS = 5.0
BATCH = 100
"""A target makes room for the others after this many seconds or posts."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 600.0
GIVEN_UP_AFTER = timedelta(hours=24)
WARN_AFTER = 3
"""Failures in a row after which the run's log gets a warning."""
logger = logging.getLogger(__name__)


def begin_in_worker(**_signal: Any) -> None:
    """Called by django-q2 in each new worker process."""
    threading.Thread(target=_work, name="webhook-delivery", daemon=True).start()


def _work() -> None:
    pause = threading.Event()
    busy: dict[threading.Thread, bool] = {}
    while True:
        busy = {thread: is_failing for thread, is_failing in busy.items() if thread.is_alive()}
        try:
            for channel in claim_due(AT_ONCE - len(busy), MOST_FAILING - sum(busy.values())):
                # A daemon thread, so that a worker that shuts down does not wait for a webhook that hangs.
                thread = threading.Thread(target=_deliver_in_thread, args=(channel,), name="webhook-delivery", daemon=True)
                busy[thread] = channel.failures > 0
                thread.start()
        except DatabaseError as error:
            logger.warning("reading the webhook outbox failed, trying again: %s", error)
            connection.close()
        pause.wait(POLL_SECONDS)


def _deliver_in_thread(channel: WebhookChannel) -> None:
    """Deliver a channel. An unexpected exception ends the thread and is printed; the lease is released, so delivery is retried."""
    try:
        deliver(channel)
    finally:
        connection.close()


def claim_due(most: int, most_failing: int = MOST_FAILING) -> list[WebhookChannel]:
    """Claim channels with pending posts whose pause is over, the longest waiting first. They are ours for the time of a lease."""
    now = timezone.now()
    waiting = WebhookDelivery.objects.filter(channel=OuterRef("pk"), status=Delivery.PENDING)
    free = Q(lease_until=None) | Q(lease_until__lte=now) | Q(lease_until__gt=now + 2 * LEASE)
    # A pause that ends later than the longest pause was written before the clock was set back.
    over = Q(next_attempt_at__lte=now) | Q(next_attempt_at__gt=now + timedelta(seconds=2 * LONGEST_PAUSE_SECONDS))
    due = WebhookChannel.objects.filter(free, over).filter(Exists(waiting)).select_related("job").order_by("next_attempt_at")
    found = [*due.filter(failures=0)[:most], *due.filter(failures__gt=0)[: min(most, most_failing)]]
    claimed = []
    for channel in sorted(found, key=lambda channel: channel.next_attempt_at)[:most]:
        channel.lease_until = now + LEASE
        if WebhookChannel.objects.filter(free, pk=channel.pk).update(lease_until=channel.lease_until) == 1:
            claimed.append(channel)
    return claimed


def deliver(channel: WebhookChannel) -> int:
    """Post pending events in order until one fails or the turn is over, then release the lease. Returns how many arrived."""
    arrived, turn_ends = 0, time.monotonic() + TURN_SECONDS
    with _leased(channel):
        target = _target_of(channel)
        for delivery in channel.deliveries.filter(status=Delivery.PENDING).order_by("index")[:BATCH]:
            result = _post(channel.job, target, delivery)
            arrived += result.arrived
            should_continue = _note(channel, delivery, result, timezone.now())
            if not (should_continue and _renew(channel)) or time.monotonic() >= turn_ends:
                break
    return arrived


@contextmanager
def _leased(channel: WebhookChannel) -> Iterator[None]:
    """Release the lease at the end if it is still ours: another worker may have taken an expired one."""
    try:
        yield
    finally:
        WebhookChannel.objects.filter(pk=channel.pk, lease_until=channel.lease_until).update(lease_until=None)


def _renew(channel: WebhookChannel) -> bool:
    """Whether the channel is still ours."""
    mine = WebhookChannel.objects.filter(pk=channel.pk, lease_until=channel.lease_until)
    channel.lease_until = timezone.now() + LEASE
    return mine.update(lease_until=channel.lease_until) == 1


def _target_of(channel: WebhookChannel) -> WebhookTarget | None:
    """The target with its secrets; None if they are no longer stored."""
    with_secrets = secrets.targets_of(channel.job_id)
    if channel.place < len(with_secrets):
        return with_secrets[channel.place]
    target = WebhookTarget(**channel.target)
    return None if target.holds_hidden else target


def _post(job: Job, target: WebhookTarget | None, delivery: WebhookDelivery) -> PostResult:
    if target is None:
        return PostResult(False, "its address or token is no longer stored", hopeless=True)
    row = Event.objects.filter(job=job, index=delivery.index).values_list(*representations.COLUMNS).first()
    if row is None:
        return PostResult(False, "the event is gone", hopeless=True)
    shown = representations.event(job, row, as_links=target.kind != "raw")
    files = media.files_of(job, row[4]) if target.kind == "discord" else []
    return post(target, compose(target, shown, files), str(delivery.pk))


def _note(channel: WebhookChannel, delivery: WebhookDelivery, result: PostResult, now: datetime) -> bool:
    """Store the result of a post. Returns whether the next one may be tried at once."""
    given_up = not result.arrived and (result.hopeless or now - delivery.created_at >= GIVEN_UP_AFTER)
    delivery.attempts += 1
    delivery.error = result.reason[:500]
    if result.arrived or given_up:
        delivery.status = Delivery.DELIVERED if result.arrived else Delivery.DEAD
        delivery.finished_at = now
    delivery.save(update_fields=["attempts", "error", "status", "finished_at"])
    channel.failures = 0 if result.arrived else channel.failures + 1
    should_continue = result.arrived or given_up
    pause = 0.0 if should_continue else max(pause_after(channel.failures), min(result.wait_seconds, LONGEST_PAUSE_SECONDS))
    channel.next_attempt_at = now + timedelta(seconds=pause)
    channel.save(update_fields=["failures", "next_attempt_at"])
    if channel.failures == WARN_AFTER or (given_up and channel.failures == 1):
        _emit(channel, result.reason, given_up=given_up)
    return should_continue


def pause_after(failures: int) -> float:
    """Seconds: twice as long after each failure, with a random half so that many servers do not come back together."""
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 30)) * random.uniform(0.5, 1.5)


def _emit(channel: WebhookChannel, reason: str, *, given_up: bool) -> None:
    """Add a warning to the run's log, unless the run has ended."""
    address = WebhookTarget(**channel.target).shown()["url"]
    rest = "this event is given up" if given_up else "posts are kept and tried again for a day"
    event = log.warning_event("webhook_failing", f"Events do not arrive at {address}: {reason}; {rest}. Training continues.")
    with transaction.atomic():
        if not Job.objects.select_for_update().get(pk=channel.job_id).has_ended:
            log.append(channel.job_id, [event])
