"""The admin site. It shows this project's own models only and accepts only the query parameters that its pages offer.

Everyone who passes the guard is the operator and may change every row that the admin shows. The admin of another package is
therefore a risk: that of the task queue could schedule any Python function. ``register`` ignores the models of other packages.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.apps import AdminConfig
from django.contrib.admin.filters import SimpleListFilter
from django.core.exceptions import BadRequest, ValidationError
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, URLResolver

if TYPE_CHECKING:
    ModelAdminBase = admin.ModelAdmin[Any]
else:  # Django's admin classes take no parameters when they run
    ModelAdminBase = admin.ModelAdmin

OWN_APPS = frozenset({"environments", "training"})
SERVED = frozenset({"index", "jsi18n", "app_list"})
"""The site-wide pages that are served; there are no pages for login, passwords and public views of a row."""
MOST_SEARCH_WORDS = 20
"""Each word is searched for in every field, and SQLite refuses expressions that are nested deeper than 1,000."""
MOST_SORT_COLUMNS = 20


class OfferedLookups(ModelAdminBase):
    """A model's admin that accepts only what its own pages offer, and answers 400 otherwise.

    Django lets an address filter by any lookup of any field; with ``__regex`` one request could block the process for ever.
    """

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        """Allow only the parameters of the list's own filters."""
        offered: set[str] = set()
        for one in self.list_filter:
            if isinstance(one, type) and issubclass(one, SimpleListFilter):
                offered.add(str(one.parameter_name))
            elif isinstance(one, str):
                offered |= {one, f"{one}__exact", f"{one}__isnull"}
        return lookup in offered

    def get_search_results(self, request: HttpRequest, queryset: QuerySet[Any], search_term: str) -> tuple[QuerySet[Any], bool]:
        """Raises BadRequest for too many words."""
        if len(search_term.split()) > MOST_SEARCH_WORDS:
            raise BadRequest(f"Search for at most {MOST_SEARCH_WORDS} words.")
        return super().get_search_results(request, queryset, search_term)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if request.GET.get("o", "").count(".") >= MOST_SORT_COLUMNS:
            raise BadRequest(f"Sort by at most {MOST_SORT_COLUMNS} columns.")
        return super().changelist_view(request, extra_context)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """The row; an empty ``_to_field`` counts as missing."""
        return super().get_object(request, object_id, from_field or None)

    def response_action(self, request: HttpRequest, queryset: QuerySet[Any], *rest: Any) -> HttpResponse | None:
        """Report a selection with an invalid row and do nothing."""
        try:
            return super().response_action(request, queryset, *rest)
        except ValidationError:
            messages.error(request, "The selection contains an invalid row. Nothing was done.")
            return None


def _bounded(admin_class: type[ModelAdminBase]) -> type[ModelAdminBase]:
    return type(admin_class.__name__, (OfferedLookups, admin_class), {"__module__": admin_class.__module__, "__doc__": admin_class.__doc__})


class OperatorSite(admin.AdminSite):
    """The admin of the local operator."""

    site_header = site_title = "SimpleTuner"
    index_title = "Environments and runs"
    site_url = "/"

    def register(
        self, model_or_iterable: type[Model] | Iterable[type[Model]], admin_class: type[ModelAdminBase] | None = None, **options: Any
    ) -> None:
        """Register this project's own models; ignore those of other packages."""
        models = [model_or_iterable] if isinstance(model_or_iterable, type) else list(model_or_iterable)
        own = [model for model in models if model._meta.app_label in OWN_APPS]
        if own:
            super().register(own, _bounded(admin_class or ModelAdminBase), **options)

    def has_permission(self, request: HttpRequest) -> bool:
        """Always true: the guard decides who has access, and there is no login."""
        return True

    def each_context(self, request: HttpRequest) -> dict[str, Any]:
        """What every page of the admin gets, with whether there is a log-in that one can leave."""
        return {**super().each_context(request), "needs_token": settings.NEEDS_TOKEN}

    def get_urls(self) -> list[URLPattern | URLResolver]:
        """The pages without login, logout, passwords and public views."""
        return [one for one in super().get_urls() if isinstance(one, URLResolver) or one.name in SERVED or one.name is None]


class OperatorAdminConfig(AdminConfig):
    """``django.contrib.admin`` with ``OperatorSite`` as its site."""

    default_site = "simpletuner_site.admin_site.OperatorSite"
