"""Environments in the Django admin: read, edit with problems shown at the fields, activate, and the actions of other apps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.html import escape, format_html, format_html_join
from rest_framework.exceptions import APIException

from environments import services
from environments.admin.actions import ObjectAction, Onward, add_object_action, find_object_action, object_actions
from environments.admin.forms import DATASETS, EnvironmentForm, EnvironmentFormBase, NewEnvironmentForm, option_groups
from environments.admin.sections import sections
from environments.admin.seen_fields import newly_seen
from environments.errors import EnvironmentChanged, EnvironmentRefused
from environments.models import Environment, Revision
from environments.moments import moment_text
from trainer_engine.contract.errors import Level

if TYPE_CHECKING:
    EnvironmentAdminBase = admin.ModelAdmin[Environment]
else:
    EnvironmentAdminBase = admin.ModelAdmin

ACT = "_act"
"""Name of the buttons that save and then run an action; the value is the action's slug."""
ABOUT_DATASETS = (
    'The file in data_backend_config, as text. <a href="/environments/{0}/datasets">Forms for each set</a> have its fields and images.'
)
OPEN_GROUPS = ("model", "run", "optimizer")
REVISIONS_SHOWN = 10
REFUSED = "environment_was_refused"
"""Attribute of a request whose form was valid but could not be stored."""


def actor_of(request: HttpRequest) -> str:
    """The actor of a change made in the admin."""
    return f"admin:{request.user.get_username()}"[:150]


def show_refusal(request: HttpRequest, error: APIException) -> None:
    """Show a refusal with each of its problems."""
    problems = getattr(error, "problems", ())
    for text in [str(problem) for problem in problems] or [str(error.detail)]:
        messages.error(request, text)


def _activate(request: HttpRequest, environment: Environment) -> str:
    services.activate(environment.name, actor=actor_of(request))
    return f"Runs start from {environment.name} now."


add_object_action(ObjectAction("activate", "Save and activate", _activate, applies=lambda environment: not environment.is_active))


class Refused:
    """Mixed into a form that was valid but could not be stored, so that it is not saved again."""

    def clean(self) -> dict[str, Any]:
        super().clean()  # type: ignore[misc]
        raise ValidationError("Nothing was saved; see the reason above.")


@admin.register(Environment)
class EnvironmentAdmin(EnvironmentAdminBase):
    """One row per environment; every change goes through the services."""

    list_display = ("name", "active_mark", "family", "flavour", "length", "file_state", "modified_at")
    list_display_links = ("name",)
    search_fields = ("name", "description")
    readonly_fields = ("name", "state", "history")
    change_form_template = "environments/admin/change_form.html"
    actions = None
    save_on_top = True

    @admin.display(description="active")
    def active_mark(self, environment: Environment) -> str:
        return "● active" if environment.is_active else ""

    @admin.display(description="family")
    def family(self, environment: Environment) -> str:
        return f"{environment.config.get('model_family', '—')} · {environment.config.get('model_type', '—')}"

    @admin.display(description="flavour")
    def flavour(self, environment: Environment) -> str:
        return str(environment.config.get("model_flavour") or "—")

    @admin.display(description="length")
    def length(self, environment: Environment) -> str:
        steps, epochs = environment.config.get("max_train_steps"), environment.config.get("num_train_epochs")
        return f"{steps:,} steps" if steps else f"{epochs or 1} epochs"

    @admin.display(description="config.json")
    def file_state(self, environment: Environment) -> str:
        return "cannot be used" if environment.file_problems else "ok"

    @admin.display(description="State")
    def state(self, environment: Environment) -> str:
        active = "Active: runs start from it." if environment.is_active else "Not active."
        problems = format_html_join(
            "", '<li class="problem-error">{message} Hint: {hint}.</li>', ({**problem} for problem in environment.file_problems)
        )
        return format_html('{}<ul class="problems">{}</ul>', active, problems) if environment.file_problems else active

    @admin.display(description="Last changes")
    def history(self, environment: Environment) -> str:
        revisions = Revision.objects.filter(environment_name=environment.name)[:REVISIONS_SHOWN]
        rows = (
            (
                reverse("admin:environments_revision_change", args=[one.pk]),
                one.number,
                one.get_action_display(),
                one.actor,
                moment_text(one.created_at),
            )
            for one in revisions
        )
        return format_html("<ul>{}</ul>", format_html_join("", '<li><a href="{}">r{}</a> {} · {} · {}</li>', rows))

    def get_form(self, request: HttpRequest, obj: Environment | None = None, change: bool = False, **kwargs: Any) -> Any:
        form = EnvironmentForm if obj else NewEnvironmentForm
        kwargs["form"] = type(form.__name__, (Refused, form), {}) if getattr(request, REFUSED, False) else form
        kwargs["fields"] = ("description",) if obj else ("name", "description")
        return super().get_form(request, obj, change, **kwargs)

    def get_readonly_fields(self, request: HttpRequest, obj: Environment | None = None) -> Any:
        return (*self.readonly_fields, *sections().values()) if obj else ()

    def get_fieldsets(self, request: HttpRequest, obj: Environment | None = None) -> Any:
        if obj is None:
            return [(None, {"fields": ("name", "description", "model_family", "model_flavour", "model_type", "lora_type", "example")})]
        groups = [
            (group.capitalize(), {"fields": fields, "description": escape(text), "classes": () if group in OPEN_GROUPS else ("collapse",)})
            for group, text, fields in option_groups()
        ]
        about = (None, {"fields": ("name", "state", "description", "tags_text", "version", "datasets_version")})
        datasets = (
            "Datasets",
            {"fields": (DATASETS,), "description": format_html(ABOUT_DATASETS, obj.name)},
        )
        further = [(title, {"fields": (show,)}) for title, show in sections().items()]
        return [about, datasets, *further, *groups, ("History", {"fields": ("history",)})]

    def get_urls(self) -> list[URLPattern]:
        act = path("<path:object_id>/do/<slug:slug>/", self.admin_site.admin_view(self.act), name="environments_environment_act")
        return [act, *super().get_urls()]

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Environment | None:
        found = super().get_object(request, object_id, from_field)
        return services.find(found.name) if found else None

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        services.find_all()
        return super().changelist_view(request, extra_context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        environment = self.get_object(request, object_id)
        applying = [action for action in object_actions() if environment and action.applies(environment)]
        context = {**(extra_context or {}), "object_actions": applying, "act": ACT}
        return super().change_view(request, object_id, form_url, context)

    def act(self, request: HttpRequest, object_id: str, slug: str) -> HttpResponse:
        """Run the action of a button."""
        environment, action = self.get_object(request, object_id), find_object_action(slug)
        if environment is None or action is None:
            raise Http404
        here = reverse("admin:environments_environment_change", args=[environment.pk])
        if request.method == "POST" and self.has_change_permission(request, environment):
            return HttpResponseRedirect(self._run(request, environment, action) or here)
        return HttpResponseRedirect(here)

    def _run(self, request: HttpRequest, environment: Environment, action: ObjectAction) -> str:
        """The page to show next; empty for the environment's own."""
        try:
            done = action.run(request, environment)
        except APIException as error:
            show_refusal(request, error)
            return ""
        messages.success(request, done.message if isinstance(done, Onward) else done)
        return done.address if isinstance(done, Onward) else ""

    def response_change(self, request: HttpRequest, obj: Environment) -> HttpResponse:
        """Run the action of the button with which the page was saved."""
        action = find_object_action(request.POST.get(ACT, ""))
        if action is None:
            return super().response_change(request, obj)
        messages.success(request, f"Saved {obj.name}.")
        onward = self._run(request, services.find(obj.name), action)
        return HttpResponseRedirect(onward or reverse("admin:environments_environment_change", args=[obj.pk]))

    def response_add(self, request: HttpRequest, obj: Environment, post_url_continue: str | None = None) -> HttpResponse:
        """Show the new environment, which has options to look at before it is used."""
        if "_addanother" in request.POST:
            return super().response_add(request, obj, post_url_continue)
        messages.success(request, f"Created {obj.name}.")
        return HttpResponseRedirect(reverse("admin:environments_environment_change", args=[obj.pk]))

    def save_model(self, request: HttpRequest, obj: Environment, form: Any, change: bool) -> None:
        if not isinstance(form, EnvironmentFormBase):
            obj.pk = services.create_environment(form.wanted, actor=actor_of(request)).pk
            obj.refresh_from_db()
            return
        if not form.has_changed() and not obj.file_problems:
            return
        cleaned, datasets = form.cleaned_data, form.datasets()
        row, checked = services.update_environment(
            obj.name,
            config=form.config(),
            description=cleaned["description"],
            tags=cleaned["tags_text"],
            datasets=datasets,
            actor=actor_of(request),
            seen=form.seen(),
        )
        for warning in checked.warnings:
            messages.warning(request, warning)
        if datasets is not None:
            self._show_problems_of_datasets(request, row)

    def _show_problems_of_datasets(self, request: HttpRequest, environment: Environment) -> None:
        """A file with problems is stored, because it may be work in progress, and its problems are shown."""
        for problem in services.dataset_problems(environment):
            if problem.level is not Level.NOTE:
                messages.warning(request, f"Datasets: {problem}")

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> Any:
        """Show a page that cannot be saved again, with its input."""
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        except EnvironmentChanged as changed:
            return self._show_changed(request, changed, object_id or "", form_url, extra_context)
        except EnvironmentRefused as error:
            show_refusal(request, error)
            setattr(request, REFUSED, True)
            return super().changeform_view(request, object_id, form_url, extra_context)

    def _show_changed(self, request: HttpRequest, changed: EnvironmentChanged, object_id: str, *rest: Any) -> Any:
        """The page with what was typed, and where that differs from what is stored now."""
        environment = self.get_object(request, object_id)
        if environment is None:
            raise Http404
        show_refusal(request, changed)
        request.POST = newly_seen(request.POST, environment)
        messages.warning(request, EnvironmentForm(request.POST, instance=self.get_object(request, object_id)).difference())
        setattr(request, REFUSED, True)
        shown = super().changeform_view(request, object_id, *rest)
        shown.status_code = changed.status_code
        return shown

    def has_delete_permission(self, request: HttpRequest, obj: Environment | None = None) -> bool:
        return super().has_delete_permission(request, obj) and not (obj and obj.is_active)

    def delete_model(self, request: HttpRequest, obj: Environment) -> None:
        services.delete_environment(obj.name, actor=actor_of(request))
