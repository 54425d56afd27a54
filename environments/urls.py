"""Addresses below ``/api/configs``; each answers with and without a slash at its end, and the schema shows the one without."""

from __future__ import annotations

from django.urls import URLPattern, path
from rest_framework.views import APIView

from environments import views


def both(route: str, view: type[APIView], name: str) -> list[URLPattern]:
    """The address and its twin with a slash: a redirect would be nothing to ``curl -s``."""
    return [path(route, view.as_view(), name=name), path(f"{route}/", view.as_view(schema=None))]


urlpatterns = [
    *both("", views.ConfigurationList, "configs"),
    *both("/examples", views.ExampleList, "config-examples"),
    *both("/active", views.ActiveConfiguration, "config-active"),
    *both("/environments", views.EnvironmentCollection, "config-environments"),
    *both("/<str:name>", views.ConfigurationDetail, "config"),
    *both("/<str:name>/activate", views.Activation, "config-activate"),
    *both("/<str:name>/export", views.Export, "config-export"),
    *both("/<str:name>/dataloader", views.Dataloader, "config-dataloader"),
]
