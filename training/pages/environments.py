"""``/environments`` and ``/environments/<name>``: what is stored, and the form of its options with Check and Start beside Save."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect

from environments import services as environments
from environments.admin.forms import DATASETS, PREFIX, EnvironmentForm, EnvironmentFormBase
from environments.admin.seen_fields import newly_seen
from environments.errors import EnvironmentChanged, EnvironmentNotFound, EnvironmentRefused
from environments.models import Environment
from training import services
from training.errors import TrainingRefused
from training.models import Job
from training.pages.buttons import page_of
from training.pages.messages import say_problems
from training.pages.option_rows import option_groups
from training.pages.run_options import RunOptions, options_of_run
from training.pages.views import Page
from training.preflight.summary import PreflightReport

ACTOR = "page"


class EnvironmentList(Page):
    """Every environment, the active one first."""

    template_name = "training/pages/environments.html"

    def get_context_data(self, **keywords: Any) -> dict[str, Any]:
        rows = sorted(environments.find_all(), key=lambda one: (not one.is_active, one.name.lower()))
        newest = {job.environment: job for job in Job.objects.order_by("number").only("number", "environment", "status")}
        return super().get_context_data(rows=[(one, newest.get(one.name)) for one in rows], **keywords)


def environment_named(name: str) -> Environment:
    """Raises Http404."""
    try:
        return environments.find(name)
    except EnvironmentNotFound as error:
        raise Http404 from error


class EnvironmentPage(Page):
    """The options of one environment. Each button saves first."""

    template_name = "training/pages/environment.html"

    def get_context_data(self, **keywords: Any) -> dict[str, Any]:
        environment = keywords.pop("environment", None) or environment_named(self.kwargs["name"])
        form, report = keywords.pop("form", None) or EnvironmentForm(instance=environment), keywords.pop("report", None)
        laid_over = _lay_over(self.request, environment, form)
        return super().get_context_data(
            environment=environment,
            form=form,
            groups=list(option_groups(form)),
            report=report,
            run=laid_over,
            tab="options",
            **keywords,
        )

    def post(self, request: HttpRequest, name: str) -> HttpResponse:
        environment = environment_named(name)
        form = EnvironmentForm(request.POST, instance=environment)
        # The datasets have a page of their own; without the field their file would count as emptied.
        del form.fields[DATASETS]
        try:
            is_saved = form.is_valid() and _saved(request, environment, form)
        except EnvironmentChanged as changed:
            return self._changed(request, name, changed)
        if not is_saved:
            messages.error(request, "Nothing was saved: see the marked options.")
            return self.render_to_response(self.get_context_data(form=form, environment=environment), status=422)
        acted = {"check": self._check, "start": self._start, "activate": _activate}.get(request.POST.get("act", ""))
        return acted(request, environment_named(name)) if acted else redirect("environment", name)

    def _changed(self, request: HttpRequest, name: str, changed: EnvironmentChanged) -> HttpResponse:
        """The page with what was typed, and where that differs from what is stored now."""
        environment = environment_named(name)
        form = EnvironmentForm(newly_seen(request.POST, environment), instance=environment)
        del form.fields[DATASETS]
        messages.error(request, f"Nothing was saved. {changed.detail}")
        messages.warning(request, form.difference())
        return self.render_to_response(self.get_context_data(form=form, environment=environment), status=changed.status_code)

    def _check(self, request: HttpRequest, environment: Environment) -> HttpResponse:
        report = services.check({}, environment)
        return self.render_to_response(self.get_context_data(environment=environment, report=report))

    def _start(self, request: HttpRequest, environment: Environment) -> HttpResponse:
        try:
            started = services.start_training({}, environment=environment)
        except TrainingRefused as refused:
            report = getattr(refused, "report", None)
            if not isinstance(report, PreflightReport):
                say_problems(request, refused)
                return redirect("environment", environment.name)
            messages.error(request, str(refused.detail))
            return self.render_to_response(self.get_context_data(environment=environment, report=report), status=422)
        say_problems(request, started.report)
        return redirect(page_of(started.job))


def _activate(request: HttpRequest, environment: Environment) -> HttpResponse:
    environments.activate(environment.name, actor=ACTOR)
    messages.success(request, f"Runs over HTTP start from {environment.name} now.")
    return redirect("environment", environment.name)


def _saved(request: HttpRequest, environment: Environment, form: EnvironmentFormBase) -> bool:
    """Whether what the form changes was stored. It says so; without a change nothing is written. Raises EnvironmentChanged."""
    if not form.has_changed() and not environment.file_problems:
        return True
    sent = form.cleaned_data
    try:
        _, checked = environments.update_environment(
            environment.name,
            config=form.config(),
            description=sent["description"],
            tags=sent["tags_text"],
            actor=ACTOR,
            seen=form.seen(),
        )
    except EnvironmentChanged:
        raise
    except EnvironmentRefused as refused:
        say_problems(request, refused)
        return False
    messages.success(request, f"Saved {environment.name}.")
    for warning in checked.warnings:
        messages.warning(request, warning)
    return True


def _lay_over(request: HttpRequest, environment: Environment, form: EnvironmentFormBase) -> RunOptions | None:
    """Fill in the options of the run that ``?run=`` names. Nothing is stored until the form is saved."""
    number = request.GET.get("run", "")
    job = Job.objects.filter(number=int(number)).first() if number.isascii() and number.isdigit() and len(number) < 19 else None
    if job is None or job.environment != environment.name or form.is_bound:
        return None
    found = options_of_run(job, environment)
    form.initial.update({f"{PREFIX}{name}": text for name, text in found.differing.items()})
    return found
