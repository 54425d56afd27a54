"""The overview of a run in the admin: progress, checkpoints, pictures and webhook deliveries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from django.db.models import Count, Q, QuerySet
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from environments.moments import moment_text
from trainer_engine.config.webhooks import WebhookTarget
from trainer_engine.contract.events import EventType
from trainer_engine.contract.files import is_file, is_folder
from training.api import media, report, representations
from training.api.report import CURVES_APPEAR, GRIDS_APPEAR
from training.models import Delivery, Job, WebhookChannel, WebhookDelivery

SHOWN_CHECKPOINTS = 5
SHOWN_CLIPS = 6
NOTHING = "–"


def progress(job: Job) -> SafeString | str:
    """A bar with the numbers under it."""
    now = representations.job_status(job)["progress"]
    if now is None:
        return NOTHING
    loss, rate = now["loss"], now["learning_rate"]
    lines = [f"step {now['step']:,} of {now['total_steps']:,}", f"{now['percent']:.1f} %"]
    lines.append("loss not finite" if loss is None else f"loss {loss:.4g}")
    lines += [] if rate is None else [f"learning rate {rate:.3g}"]
    seconds = now["eta_seconds"]
    lines += [f"{duration(seconds)} left"] if seconds and not job.has_ended else []
    percent = now["percent"]
    bar = '<progress class="run-progress" max="100" value="{0}">{0} %</progress><div>{1}</div>'
    return format_html(bar, percent, " · ".join(lines))


def duration(seconds: float) -> str:
    """``3:07`` or ``2:03:07``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def newest_checkpoints(job: Job) -> SafeString | str:
    """A table of the checkpoints that were announced last, which marks deleted ones."""
    rows = list(job.checkpoints.order_by("-step", "-pk")[:SHOWN_CHECKPOINTS])
    if not rows:
        return NOTHING
    cells = (
        (
            row.name,
            f"{row.step:,}",
            filesizeformat(row.size_bytes),
            moment_text(row.created_at),
            state_of(row.path, row.is_final),
        )
        for row in rows
    )
    body = format_html_join("", "<tr><td><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>", cells)
    head = "<tr><th>name</th><th>step</th><th>size</th><th>saved</th><th></th></tr>"
    return format_html('<table class="run-checkpoints"><thead>{}</thead><tbody>{}</tbody></table>', SafeString(head), body)


def state_of(path: str, is_final: bool) -> str:
    """What became of an announced checkpoint."""
    if not is_folder(Path(path)):
        return "deleted since"
    return "the last of the run" if is_final else ""


def curves(job: Job) -> SafeString:
    alternative = "Loss and learning rate over the steps"
    return _image(job, job.folder.curves, "training-job-curves", alternative, CURVES_APPEAR)


def grid(job: Job) -> SafeString:
    """The grid, which shows the first frames of clips, and the newest clips."""
    alternative = "Every validation image: a row for each validation, a column for each prompt"
    return format_html("{}{}", _image(job, job.folder.grid, "training-job-grid", alternative, GRIDS_APPEAR), _clips(job))


def _clips(job: Job) -> SafeString:
    """The newest clips as animations, each with a link to its last file, which is the best one."""
    events = job.events.filter(type=EventType.IMAGE.value, payload__has_key="videos").order_by("-index")[:SHOWN_CLIPS]
    cells = (
        (
            media.url(job.pk, event.index, len(media.attached(event.payload)) - 1),
            media.url(job.pk, event.index, 0),
            event.payload.get("title", ""),
        )
        for event in events
    )
    return format_html_join("", '<a href="{}"><img class="run-clip" src="{}" alt="{}" loading="lazy"></a>', cells)


def _image(job: Job, path: Path, view: str, alternative: str, when: str) -> SafeString:
    if is_file(path):
        address = f"{reverse(view, args=[job.pk])}?at={modified_at(path)}"  # a new picture has a new address
        return format_html('<a href="{0}"><img class="run-picture" src="{0}" alt="{1}"></a>', address, alternative)
    if not job.has_ended:
        return format_html("Pictures {}.", when)  # this page renews itself
    return format_html("None. If the journal has data for it, <code>{}</code> draws it.", report.command(job))


def modified_at(path: Path) -> int:
    """When a file was written, in nanoseconds; 0 without one."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


SHOWN_DEAD_LETTERS = 20
DELIVERY_HEAD = ("", "target", "level", "delivered", "pending", "given up", "failures in a row", "next attempt")


def webhook_deliveries(job: Job) -> SafeString:
    """A row for each target, and the newest posts that were given up."""
    counts = {status.value: Count("deliveries", filter=Q(deliveries__status=status)) for status in Delivery}
    channels = list(job.webhooks.annotate(**counts))
    if not channels:
        return SafeString("This run posts to no webhook.")
    head = format_html_join("", "<th>{}</th>", ((word,) for word in DELIVERY_HEAD))
    rows = format_html_join("", "<tr>{}</tr>", ((_row(channel),) for channel in channels))
    table = format_html("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>", head, rows)
    link = format_html('<a href="/api/training/jobs/{}/webhooks">every delivery</a>', job.pk)
    return format_html("{}{}{}", table, _dead_letters(job), link)


def _row(channel: WebhookChannel) -> SafeString:
    shown = WebhookTarget(**channel.target).shown()
    counted = (str(getattr(channel, status.value)) for status in (Delivery.DELIVERED, Delivery.PENDING, Delivery.DEAD))
    waits = moment_text(channel.next_attempt_at) if channel.failures else ""
    cells = (str(channel.place), f"{shown['kind']} {shown['url']}", shown["log_level"], *counted, str(channel.failures), waits)
    return format_html_join("", "<td>{}</td>", ((cell,) for cell in cells))


def _dead_letters(job: Job) -> SafeString:
    dead = WebhookDelivery.objects.filter(channel__job=job, status=Delivery.DEAD).select_related("channel").order_by("-index")
    return format_html_join("", "<div>{}</div>", ((line,) for line in _lines(dead[:SHOWN_DEAD_LETTERS])))


def _lines(deliveries: QuerySet[WebhookDelivery]) -> Iterator[str]:
    for one in deliveries:
        yield f"event {one.index} to target {one.channel.place} was given up after {one.attempts} attempts: {one.error}"
