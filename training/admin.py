"""Runs in the admin: their state, log and events, and buttons that stop them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotModified
from django.shortcuts import redirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from environments.admin.actions import ObjectAction, Onward, add_object_action
from environments.admin.sections import add_section
from environments.models import Environment
from training import services
from training.api import run_overview
from training.errors import CannotStart
from training.jobs import queue
from training.models import Checkpoint, Job
from training.pages import job_tables
from training.pages.buttons import buttons_of, page_of
from training.pages.job_state import etag_of
from training.pages.rows import UNSHOWN, waits_for
from training.pages.views import events_of
from training.pages.webhook_admin import stored_targets
from training.preflight.summary import PreflightReport
from training.upkeep.deletion import JobIsActive, delete_job

OWN_BUTTONS = ("stop", "cancel", "delete")
TIMES = ("started_at", "stop_requested_at", "finished_at")
if TYPE_CHECKING:
    JobAdminBase = admin.ModelAdmin[Job]
    CheckpointInlineBase = admin.TabularInline[Checkpoint, Job]
else:  # Django's admin classes take no parameters when they run
    JobAdminBase, CheckpointInlineBase = admin.ModelAdmin, admin.TabularInline


def start_environment(request: HttpRequest, environment: Environment) -> Onward:
    """The button on an environment's page; it leads to the run. Raises CannotStart with every problem."""
    started = services.start_training({}, environment=environment)
    show_advice(request, started.report)
    waits = f" It waits at position {started.queue_position}." if started.queue_position else ""
    return Onward(f"Training {environment.name} as run {started.job.number}.{waits}", page_of(started.job))


def check_environment(request: HttpRequest, environment: Environment) -> str:
    """The button that checks what a start would, and starts nothing. Raises CannotStart with every problem."""
    report = services.check({}, environment)
    if report.errors:
        raise CannotStart(report)
    show_advice(request, report)
    return f"No problem was found: {environment.name} can be started."


def show_advice(request: HttpRequest, report: PreflightReport | None) -> None:
    """Show what does not prevent a run: warnings, and notes as information."""
    if report is not None:
        for problem in report.warnings:
            messages.warning(request, f"Warning: {problem}")
        for problem in report.notes:
            messages.info(request, f"Note: {problem}")


add_object_action(ObjectAction("start", "Save and start", start_environment, is_primary=True))
add_object_action(ObjectAction("check", "Save and check", check_environment))
add_section("Webhooks", stored_targets)


class ReadOnly:
    """Forbids changes: runs write these rows, never people."""

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


class CheckpointInline(ReadOnly, CheckpointInlineBase):
    """The checkpoints that a run announced."""

    model = Checkpoint
    fields = ("name", "step", "is_final", "size_bytes", "created_at")
    extra = 0
    classes = ("collapse",)
    verbose_name_plural = "All announced checkpoints"


@admin.register(Job)
class JobAdmin(ReadOnly, JobAdminBase):
    """All runs, newest first."""

    list_display = ("number", "environment", "status", "step", "checkpoint", "created_at", "finished_at", "log")
    list_filter = ("status", "environment")
    search_fields = ("id", "environment", "message")
    actions = ("stop", "cancel", "delete_ended")
    inlines = (CheckpointInline,)
    change_form_template = "training/admin_job.html"
    readonly_fields = (
        "waits",
        "progress_bar",
        "curves",
        "grid",
        "newest_checkpoints",
        "log",
        "webhook_deliveries",
        "asked_options",
    )
    fieldsets = (
        (None, {"fields": ("environment", "status", "waits", "progress_bar", "message", "hint", "error_code", "log")}),
        ("Pictures", {"fields": ("curves", "grid")}),
        ("Results", {"fields": ("newest_checkpoints", "output_dir")}),
        ("Times and process", {"fields": ("id", "created_at", *TIMES, "engine_pid", "run_dir")}),
        ("What was asked for", {"fields": ("asked_options", "datasets", "plan"), "classes": ("collapse",)}),
        ("Webhooks", {"fields": ("webhook_deliveries",), "classes": ("collapse",)}),
    )

    def get_actions(self, request: HttpRequest) -> dict[str, tuple[Callable[..., str], str, str] | None]:
        """Stopping a run needs no permission to edit its row."""
        return {name: self.get_action(name) for name in self.actions}

    @admin.display(description="Step")
    def step(self, job: Job) -> str:
        latest = job.progress
        if not latest:
            return "–"
        loss = latest.get("loss")
        return f"{latest.get('step')} of {latest.get('total_steps')}" + (f", loss {loss:.4g}" if isinstance(loss, float) else "")

    @admin.display(description="Options")
    def asked_options(self, job: Job) -> SafeString:
        return job_tables.option_tables(job)

    @admin.display(description="Waits for")
    def waits(self, job: Job) -> str:
        occupied = list(queue.occupied().order_by("number").defer(*UNSHOWN))
        return waits_for(job, queue.position(job), occupied) or run_overview.NOTHING

    @admin.display(description="Progress")
    def progress_bar(self, job: Job) -> str:
        return run_overview.progress(job)

    @admin.display(description="Loss and learning rate")
    def curves(self, job: Job) -> SafeString:
        return job_tables.curves(job)

    @admin.display(description="Validation images")
    def grid(self, job: Job) -> SafeString:
        return run_overview.grid(job)

    @admin.display(description="Newest checkpoints")
    def newest_checkpoints(self, job: Job) -> str:
        return run_overview.newest_checkpoints(job)

    @admin.display(description="Log")
    def log(self, job: Job) -> SafeString:
        return format_html(
            '<a href="{}">watch</a> · <a href="/api/training/jobs/{}/log">log</a> · <a href="/api/training/events?job_id={}">events</a>',
            page_of(job),
            job.pk,
            job.pk,
        )

    @admin.display(description="Deliveries")
    def webhook_deliveries(self, job: Job) -> SafeString:
        return run_overview.webhook_deliveries(job)

    @admin.action(description="Stop: save and end")
    def stop(self, request: HttpRequest, jobs: QuerySet[Job]) -> None:
        for job in jobs:
            if services.is_unfinished(job):
                services.stop_training(job)
                messages.success(request, f"{job} was asked to stop.")

    @admin.action(description="Cancel: end now, save nothing")
    def cancel(self, request: HttpRequest, jobs: QuerySet[Job]) -> None:
        for job in jobs:
            if services.cancel_training(job):
                messages.success(request, f"{job} was cancelled.")

    @admin.action(description="Delete ended runs; results and checkpoints stay")
    def delete_ended(self, request: HttpRequest, jobs: QuerySet[Job]) -> None:
        for job in jobs:
            try:
                delete_job(job)
            except JobIsActive as refused:
                messages.error(request, str(refused.detail))
            else:
                messages.success(request, f"{job} was deleted. What it saved stays in {job.output_dir}.")

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The page of a run, with the buttons that its own page has, but those that the admin has itself.

        An open page asks for it again and again: the answer is 304 while nothing of it has changed.
        """
        job = queue.find_job(object_id)
        etag = etag_of(job) if job else ""
        if etag and request.headers.get("If-None-Match") == etag:
            return HttpResponseNotModified(headers={"ETag": etag})
        further = [button for button in buttons_of(job) if button.slug not in OWN_BUTTONS] if job else []
        events = events_of(request, job) if job else None
        context = {**(extra_context or {}), "further_buttons": further, "events": events, "etag": etag}
        shown = super().change_view(request, object_id, form_url, context)
        if etag:
            shown.headers["ETag"] = etag
        return shown

    def get_urls(self) -> list[URLPattern]:
        ends = [
            path("<uuid:job_id>/delete-run/", self.admin_site.admin_view(self.delete_one), name="training_job_delete_run"),
            path("<uuid:job_id>/stop/", self.admin_site.admin_view(self.stop_one), name="training_job_stop"),
            path("<uuid:job_id>/cancel/", self.admin_site.admin_view(self.cancel_one), name="training_job_cancel"),
        ]
        return ends + super().get_urls()

    def stop_one(self, request: HttpRequest, job_id: str) -> HttpResponse:
        return self._end(request, job_id, self.stop)

    def cancel_one(self, request: HttpRequest, job_id: str) -> HttpResponse:
        return self._end(request, job_id, self.cancel)

    def delete_one(self, request: HttpRequest, job_id: str) -> HttpResponse:
        self._end(request, job_id, self.delete_ended)
        is_there = Job.objects.filter(pk=job_id).exists()
        return redirect(reverse("admin:training_job_change", args=[job_id]) if is_there else reverse("admin:training_job_changelist"))

    def _end(self, request: HttpRequest, job_id: str, how: Callable[[HttpRequest, QuerySet[Job]], None]) -> HttpResponse:
        """Act on POST only: a link could be followed by accident."""
        if request.method == "POST":
            how(request, Job.objects.filter(pk=job_id))
        return redirect(reverse("admin:training_job_change", args=[job_id]))
