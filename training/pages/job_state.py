"""A word for what the page of a run shows, so that a page that is renewed is rendered and sent only after something has changed."""

from __future__ import annotations

from django.db.models import Count, Sum

from environments.seen import version_of
from training.api.run_overview import modified_at
from training.jobs import queue
from training.models import Job, Status, WebhookDelivery
from training.pages.buttons import buttons_of


def etag_of(job: Job) -> str:
    """Changes with the run's log, its state and place in the queue, its buttons, pictures and posts. Renders nothing."""
    is_queued = job.status == Status.QUEUED
    waits = [queue.position(job), list(queue.occupied().order_by("number").values_list("number", "output_dir"))] if is_queued else []
    posts = WebhookDelivery.objects.filter(channel__job=job).values_list("status").order_by("status").annotate(Count("pk"), Sum("attempts"))
    pictures = [modified_at(path) for path in (job.folder.curves, job.folder.grid)]
    shown = [job.next_index, job.status, job.message, waits, list(posts), pictures, [button.slug for button in buttons_of(job)]]
    return f'"{version_of(shown)}"'
