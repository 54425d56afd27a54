"""What became of a run's posts, for people: a table in the admin."""

from __future__ import annotations

from collections.abc import Iterator

from django.db.models import Count, Q, QuerySet
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from trainer_engine.config.webhooks import WebhookTarget
from training.models import Delivery, Job, WebhookChannel, WebhookDelivery

SHOWN_DEAD_LETTERS = 20
HEAD = ("", "target", "level", "delivered", "pending", "given up", "failures in a row", "next attempt")


def summary(job: Job) -> SafeString:
    """A row for each target, and the newest posts that were given up."""
    counts = {status.value: Count("deliveries", filter=Q(deliveries__status=status)) for status in Delivery}
    channels = list(job.webhooks.annotate(**counts))
    if not channels:
        return SafeString("This run posts to no webhook.")
    head = format_html_join("", "<th>{}</th>", ((word,) for word in HEAD))
    rows = format_html_join("", "<tr>{}</tr>", ((_row(channel),) for channel in channels))
    table = format_html("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>", head, rows)
    link = format_html('<a href="/api/training/jobs/{}/webhooks">every delivery</a>', job.pk)
    return format_html("{}{}{}", table, _dead_letters(job), link)


def _row(channel: WebhookChannel) -> SafeString:
    shown = WebhookTarget(**channel.target).shown()
    counted = (str(getattr(channel, status.value)) for status in (Delivery.DELIVERED, Delivery.PENDING, Delivery.DEAD))
    waits = f"{channel.next_attempt_at:%Y-%m-%d %H:%M:%S}" if channel.failures else ""
    cells = (str(channel.place), f"{shown['kind']} {shown['url']}", shown["log_level"], *counted, str(channel.failures), waits)
    return format_html_join("", "<td>{}</td>", ((cell,) for cell in cells))


def _dead_letters(job: Job) -> SafeString:
    dead = WebhookDelivery.objects.filter(channel__job=job, status=Delivery.DEAD).select_related("channel").order_by("-index")
    return format_html_join("", "<div>{}</div>", ((line,) for line in _lines(dead[:SHOWN_DEAD_LETTERS])))


def _lines(deliveries: QuerySet[WebhookDelivery]) -> Iterator[str]:
    for one in deliveries:
        yield f"event {one.index} to target {one.channel.place} was given up after {one.attempts} attempts: {one.error}"
