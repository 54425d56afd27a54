"""``/``: where a person who opens the address goes on from."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.views.generic import TemplateView

from simpletuner_site import __version__


class HomePageView(TemplateView):
    """Links to everything that can be opened in a browser."""

    template_name = "site/home.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        address = self.request.build_absolute_uri("/").rstrip("/")
        return super().get_context_data(version=__version__, home=settings.HOME, address=address, **kwargs)
