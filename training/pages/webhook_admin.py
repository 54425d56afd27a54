"""Stored webhook targets in the admin: a section on each environment's page, and the pages that add, change and remove them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.views.generic import TemplateView

from environments import services as environments
from environments.admin.environment import actor_of, show_refusal
from environments.create.names import LONGEST
from environments.errors import EnvironmentNotFound, EnvironmentRefused
from environments.models import Environment
from environments.seen import Seen, options_version
from trainer_engine.config.webhooks import OPTION
from trainer_engine.contract.errors import Problem
from training.errors import TrainingRefused
from training.webhooks import stored
from training.webhooks.stored import StoredTargets, WebhookChanged, names_target
from training.webhooks.target_form import COUNT, NEW, entries_of, shown_targets

USE = "use"
"""Name of the field that lets the environment post to the targets."""


def address_of(name: str, environment: Environment | None) -> str:
    """The page of stored targets, or of new ones without a name, which leads back to an environment."""
    address = reverse("webhook-admin", args=[name]) if name else reverse("webhooks-admin")
    return f"{address}?{urlencode({'environment': environment.name})}" if environment else address


@admin.display(description="Stored targets")
def stored_targets(environment: Environment) -> SafeString:
    """Each stored list of targets with its page, and whether the environment posts to it."""
    rows = (
        (
            address_of(found.name, environment),
            found.name,
            "this environment posts to it" if environment.config.get(OPTION) == found.path else "",
            "; ".join(_line(found)),
        )
        for found in stored.find_all()
    )
    listed = format_html_join("", '<li><a href="{}">{}</a> {} <span class="quiet">{}</span></li>', rows)
    add = format_html('<a href="{}">Add targets</a>', address_of("", environment))
    return format_html("<ul>{}<li>{}</li></ul>", listed, add)


def _line(found: StoredTargets) -> list[str]:
    """Kind, host and level of each target; the problem of a file that cannot be used."""
    lines = [f"{one['kind']} {one['url']} from {one['log_level']} on" for one in (target.shown() for target in found.targets)]
    return lines or [problem.message for problem in found.problems[:1]]


class WebhookAdmin(TemplateView):
    """Stored targets of one name, or the form of new ones. Every change goes through the services of the API."""

    template_name = "training/admin_webhook.html"

    def get_context_data(self, **keywords: Any) -> dict[str, Any]:
        name = self.kwargs.get("name", "")
        typed = keywords.pop("entries", None)
        found = _found(name, may_be_gone=typed is not None)
        entries = (found.entries if found else []) if typed is None else typed
        problems: Sequence[Problem] = keywords.pop("problems", found.problems if found else ())
        environment = self.environment
        targets = shown_targets(entries, problems)
        uses = found is not None and environment is not None and environment.config.get(OPTION) == found.path
        beginning = environment is not None and found is None and not environment.config.get(OPTION)
        return super().get_context_data(
            **admin.site.each_context(self.request),
            title=f"Webhook targets: {name}" if name else "New webhook targets",
            stored=found,
            path=stored.path_of(name) if name else "",
            targets=targets,
            count=COUNT,
            new=NEW,
            problems=[one for one in problems if (place := names_target(one)) is None or place >= len(targets)],
            version=keywords.pop("version", found.version if found else ""),
            may_remove=keywords.pop("may_remove", found is not None),
            environment=environment,
            uses=keywords.pop("uses", uses or beginning),
            others=[(one.name, address_of(one.name, environment)) for one in stored.find_all() if one.name != name],
            **{"typed_name": name, **keywords},
        )

    @cached_property
    def environment(self) -> Environment | None:
        """The environment whose page led here, as long as it exists. Raises Http404 for a page that nothing was typed into."""
        name = self.request.GET.get("environment", "")
        try:
            return environments.find(name) if name else None
        except EnvironmentNotFound as error:
            if self.request.method != "POST":
                raise Http404 from error
            messages.warning(self.request, f"The environment {name[:LONGEST]} does not exist any more.")
            return None

    def post(self, request: HttpRequest, name: str = "") -> HttpResponse:
        """Store, test or remove the targets."""
        environment, act = self.environment, request.POST.get("act", "")
        if act in ("remove", "test") and name:
            return self._test(request, name, environment) if act == "test" else self._remove(request, name, environment)
        entries, wanted = entries_of(request.POST), name or request.POST.get("name", "").strip()
        # A secret as it was typed: if *** came back in its place, the next save would take it for the stored one.
        shown = {"entries": entries, "typed_name": wanted, "uses": USE in request.POST}
        try:
            if not entries:
                raise stored.BadWebhook("No target was filled in; nothing was stored.")
            found = stored.store(wanted, entries, seen=request.POST.get("version", ""), is_new=not name)
        except WebhookChanged as changed:
            messages.error(request, str(changed.detail))
            # What is stored was not on the page: it may be replaced by what is, and not removed.
            return self.render_to_response(self.get_context_data(**shown, may_remove=False), status=changed.status_code)
        except (TrainingRefused, EnvironmentRefused) as refused:
            messages.error(request, str(refused.detail))
            kept = {"problems": refused.problems, "version": request.POST.get("version", "")}
            return self.render_to_response(self.get_context_data(**shown, **kept), status=refused.status_code)
        messages.success(request, f"Stored the targets {found.name}: {len(found.targets)}. Runs name them as {found.path}.")
        for problem in found.problems:
            messages.warning(request, str(problem))
        if environment is not None:
            _let_use(request, environment.name, found, is_used=USE in request.POST)
        return redirect(address_of(found.name, environment))

    def _test(self, request: HttpRequest, name: str, environment: Environment | None) -> HttpResponse:
        try:
            results = stored.send_test(name)
        except TrainingRefused as refused:
            show_refusal(request, refused)
            results = []
        for one in results:
            says = "arrived" if one["arrived"] else f"did not arrive: {one['error']}"
            target = one["target"]
            (messages.success if one["arrived"] else messages.error)(request, f"A test event to {target['kind']} {target['url']} {says}.")
        return redirect(address_of(name, environment))

    def _remove(self, request: HttpRequest, name: str, environment: Environment | None) -> HttpResponse:
        try:
            stored.forget(name, seen=request.POST.get("version", ""))
        except WebhookChanged as changed:
            show_refusal(request, changed)
            return redirect(address_of(name, environment))
        except (TrainingRefused, EnvironmentRefused) as refused:
            show_refusal(request, refused)
            return redirect(address_of("", environment))
        messages.success(request, f"Removed the targets {name}. Environments that name them cannot be started until they name others.")
        return redirect(reverse("admin:environments_environment_change", args=[environment.pk]) if environment else address_of("", None))


def _found(name: str, *, may_be_gone: bool) -> StoredTargets | None:
    """None without a name, and for targets that are gone while somebody has typed into their page. Raises Http404."""
    try:
        return stored.find(name) if name else None
    except TrainingRefused as error:
        if may_be_gone:
            return None
        raise Http404 from error


def _let_use(request: HttpRequest, name: str, found: StoredTargets, *, is_used: bool) -> None:
    """Let the environment post to the targets, or not any more."""
    try:
        environment = environments.find(name)  # read now: it may have been changed while the addresses of the targets were looked up
        if is_used == (environment.config.get(OPTION) == found.path):
            return
        config = {option: value for option, value in environment.config.items() if option != OPTION}
        config |= {OPTION: found.path} if is_used else {}
        seen = Seen(options=options_version(environment))
        environments.update_environment(name, config=config, actor=actor_of(request), seen=seen)
    except EnvironmentRefused as refused:
        show_refusal(request, refused)
        return
    messages.success(request, f"{name} {'posts to them now' if is_used else 'no longer posts to them'}.")
