"""The revisions of environments in the Django admin: what each changed, and a button that brings it back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from environments import history
from environments.admin.environment import actor_of, show_refusal
from environments.errors import EnvironmentRefused
from environments.models import Revision
from environments.secrets.datasets import shown_text
from trainer_engine.config.options.secrets import hide_options

if TYPE_CHECKING:
    RevisionAdminBase = admin.ModelAdmin[Revision]
else:
    RevisionAdminBase = admin.ModelAdmin


def difference(name: str, older: int | None, newer: int | None) -> SafeString:
    """What differs between two revisions: a table of the options, and the lines of the files."""
    found = history.compare(name, older, newer)
    cells = ((one.option, _value_text(one.before), _value_text(one.after)) for one in found.changed)
    rows = format_html_join("", "<tr><th><code>{}</code></th><td>{}</td><td>{}</td></tr>", cells)
    head = format_html("<tr><th>option</th><th>r{}</th><th>r{}</th></tr>", found.older.number, found.newer.number)
    table = format_html("<table><thead>{}</thead><tbody>{}</tbody></table>", head, rows) if found.changed else SafeString("")
    lines = "\n".join((*found.datasets, *found.adapter))
    return format_html("{}{}", table, format_html("<pre>{}</pre>", lines) if lines else "") or SafeString("Nothing.")


def _value_text(value: object) -> str:
    return "not set" if value is None else str(value)


@admin.register(Revision)
class RevisionAdmin(RevisionAdminBase):
    """The revisions. They are never edited."""

    list_display = ("environment_name", "number", "action", "actor", "created_at")
    list_filter = ("action", "environment_name")
    change_form_template = "environments/admin/revision.html"
    about = ("environment_name", "number", "action", "actor", "created_at", "description", "tags")
    fieldsets = (
        (None, {"fields": (*about, "from_before", "to_now")}),
        ("Files", {"fields": ("configuration", "datasets", "replaced"), "classes": ("collapse",)}),
    )

    @admin.display(description="What it changed")
    def from_before(self, revision: Revision) -> str:
        return difference(revision.environment_name, None, revision.number) if revision.number > 1 else "It is the first one."

    @admin.display(description="What has changed since")
    def to_now(self, revision: Revision) -> str:
        return difference(revision.environment_name, revision.number, None)

    def get_urls(self) -> list[URLPattern]:
        back = path("<int:pk>/restore/", self.admin_site.admin_view(self.restore), name="environments_revision_restore")
        return [back, *super().get_urls()]

    def restore(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Bring the revision back, which makes a new one. Only a POST does so: a link could be followed by accident."""
        revision = get_object_or_404(Revision, pk=pk)
        here = reverse("admin:environments_revision_change", args=[pk])
        if request.method != "POST":
            return HttpResponseRedirect(here)
        try:
            restored = history.restore(revision.environment_name, revision.number, actor=actor_of(request))
        except EnvironmentRefused as error:
            show_refusal(request, error)
            return HttpResponseRedirect(here)
        messages.success(request, f"{revision.environment_name} is as it was in revision {revision.number}.")
        if restored.left_out:
            messages.warning(request, f"Their secrets are not stored any more, so they are not set: {', '.join(restored.left_out)}.")
        return HttpResponseRedirect(reverse("admin:environments_environment_change", args=[restored.environment.pk]))

    @admin.display(description="config.json")
    def configuration(self, revision: Revision) -> str:
        return format_html("<pre>{}</pre>", json.dumps(hide_options(revision.config), indent=2, ensure_ascii=False))

    @admin.display(description="Datasets file")
    def datasets(self, revision: Revision) -> str:
        return format_html("<pre>{}</pre>", shown_text(revision.datasets_text) if revision.datasets_text else "none")

    @admin.display(description="Unusable config.json that this change replaced")
    def replaced(self, revision: Revision) -> str:
        return format_html("<pre>{}</pre>", revision.replaced_text or "none")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Revision | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Revision | None = None) -> bool:
        return False
