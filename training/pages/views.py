"""The pages on which people watch runs. They are rendered on the server; a script keeps them up to date while they are open."""

from __future__ import annotations

import re
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse
from django.views import View
from django.views.generic import TemplateView

from environments.errors import EnvironmentRefused
from training.errors import TrainingRefused
from training.jobs import queue
from training.models import Job
from training.pages import details, event_lines, machine, overview, rows
from training.pages.buttons import BUTTONS, buttons_of, environment_of, page_of
from training.pages.messages import say_problems
from training.pages.shell_runs import shell_runs

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""Stricter than that of the other pages: nothing is inline, and nothing of a page can be loaded from another host."""
NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)


def number_in(request: HttpRequest, name: str) -> int | None:
    """A whole number of the query; None if it is missing or malformed."""
    text = request.GET.get(name, "")
    return int(text) if NUMBER.fullmatch(text) else None


class Page(TemplateView):
    """A page with the policy of these pages, which no cache keeps."""

    def render_to_response(self, context: dict[str, Any], **keywords: Any) -> HttpResponse:
        response = super().render_to_response(context, **keywords)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Cache-Control"] = "no-store"
        return response


class RunList(Page):
    """Runs, newest first, and the state of the machine."""

    template_name = "training/pages/runs.html"

    def get_context_data(self, **keywords: Any) -> dict[str, Any]:
        listed, older = rows.listed(number_in(self.request, "before"))
        busy = any(not row.job.has_ended for row in listed)
        elsewhere = [] if "before" in self.request.GET else shell_runs()
        return super().get_context_data(
            rows=listed, elsewhere=elsewhere, older=older, is_busy=busy, stream=rows.stream_query(), meters=machine.meters(), **keywords
        )


class RunPage(Page):
    """One run."""

    template_name = "training/pages/run.html"

    def get_context_data(self, **keywords: Any) -> dict[str, Any]:
        return super().get_context_data(**run_context(self.request, job_numbered(keywords["number"])), **keywords)


def job_numbered(number: str) -> Job:
    """Raises Http404."""
    return get_object_or_404(Job, number=int(number))


def run_context(request: HttpRequest, job: Job) -> dict[str, Any]:
    """What the template of a run needs."""
    position, previous = queue.positions().get(job.pk), details.previous_run(job)
    occupied = list(queue.occupied().order_by("number").defer(*rows.UNSHOWN))
    percent, _ = rows.progress_facts(job)
    return {
        "job": job,
        "waits": rows.waits_for(job, position, occupied),
        "percent": percent,
        "facts": overview.facts_of(job),
        "times": [(label, when) for label, when in _times(job) if when],
        "buttons": buttons_of(job),
        "environment": environment_of(job),
        "prompts": overview.prompt_images(job),
        "stages": overview.stages_of(job),
        "has_dataset_report": overview.has_dataset_report(job),
        "checkpoints": overview.newest_checkpoints(job),
        "downloads": overview.weight_files(job),
        "events": events_of(request, job),
        "log": details.log_tail(job),
        "options": details.chosen_options(job, previous),
        "previous": previous,
        "others": overview.other_runs(job),
    }


def events_of(request: HttpRequest, job: Job) -> event_lines.EventList:
    """The events of a run that the query of a page asks for."""
    return event_lines.event_list(job, request.GET.get("events", ""), number_in(request, "before"))


def _times(job: Job) -> list[tuple[str, Any]]:
    return [("accepted", job.created_at), ("started", job.started_at), ("ended", job.finished_at)]


class RunButton(View):
    """Presses a button of a run and shows the page that it leads to. There is no GET: a link could be followed by accident."""

    http_method_names = ["post"]

    def post(self, request: HttpRequest, number: str, slug: str) -> HttpResponse:
        job, button = job_numbered(number), BUTTONS.get(slug)
        if button is None:
            raise Http404
        back = reverse("home") if request.POST.get("back") == "list" else page_of(job)
        if not button.applies(job):
            messages.warning(request, f"Run {job.number} is {job.status}: “{button.label}” does nothing now.")
            return redirect(back)
        try:
            pressed = button.press(job)
        except (TrainingRefused, EnvironmentRefused) as refused:
            messages.error(request, str(refused.detail))
            say_problems(request, refused)
            return redirect(back)
        messages.success(request, pressed.message)
        return redirect(back if request.POST.get("back") == "list" else pressed.address)
