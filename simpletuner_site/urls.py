"""Every address of the site."""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path, re_path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularRedocView, SpectacularSwaggerView

from environments.api.compatibility import Compatibility
from environments.api.options import Options
from environments.urls import dataset_urlpatterns, folder_urlpatterns
from simpletuner_site.views import ApiIndex, HealthView, HomePageView
from training.api.models import Models
from training.api.system import System
from training.pages.new import NewPage
from training.urls import (
    cache_urlpatterns,
    environment_urlpatterns,
    page_urlpatterns,
    webhook_admin_urlpatterns,
    webhook_urlpatterns,
)

urlpatterns: list[URLPattern | URLResolver] = [
    path("", HomePageView.as_view(), name="home"),
    path("runs/", include(page_urlpatterns)),
    path("environments", include(environment_urlpatterns)),
    re_path(r"^new/?$", NewPage.as_view(), name="new"),
    re_path(r"^health/?$", HealthView.as_view(), name="health"),
    path("openapi.json", SpectacularJSONAPIView.as_view(), name="openapi"),
    re_path(r"^docs/?$", SpectacularSwaggerView.as_view(url_name="openapi"), name="docs"),
    re_path(r"^redoc/?$", SpectacularRedocView.as_view(url_name="openapi"), name="redoc"),
    path("admin/webhooks", include(webhook_admin_urlpatterns)),
    path("admin/", admin.site.urls),
    path("favicon.ico", RedirectView.as_view(url=f"/{settings.STATIC_URL.strip('/')}/training/icon.svg"), name="favicon"),
    re_path(r"^api/?$", ApiIndex.as_view(), name="api"),
    re_path(r"^api/training/?$", ApiIndex.as_view(page_title="Addresses of training"), name="api-training"),
    path("api/webhooks", include(webhook_urlpatterns)),
    path("api/cache", include(cache_urlpatterns)),
    # The address of the format. It is not in the schema, where it would be ambiguous with /api/configs/{name}/activate.
    path("api/configs/webhooks", include((webhook_urlpatterns, "webhooks-of-the-format"))),
    re_path(r"^api/options/compatibility/?$", Compatibility.as_view(), name="compatibility"),
    re_path(r"^api/options/?$", Options.as_view(), name="options"),
    re_path(r"^api/models/?$", Models.as_view(), name="models"),
    re_path(r"^api/system/?$", System.as_view(), name="system"),
    path("api/configs", include("environments.urls")),
    path("api/datasets", include(dataset_urlpatterns)),
    path("api/folders", include(folder_urlpatterns)),
    path("api/training", include("training.urls")),
]

handler400 = "simpletuner_site.errors.bad_request"
handler403 = "simpletuner_site.errors.permission_denied"
handler404 = "simpletuner_site.errors.page_not_found"
handler500 = "simpletuner_site.errors.server_error"
