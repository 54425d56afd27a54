"""What Daphne serves: the guard, then the event stream, then Django."""

from __future__ import annotations

import os
from typing import cast

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "simpletuner_site.settings")

from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.conf import settings  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.urls import re_path  # noqa: E402

from simpletuner_site.body_limit import BodyLimit  # noqa: E402
from simpletuner_site.guard import Application, Guard  # noqa: E402

django_application = get_asgi_application()  # sets Django up: what follows may import models

from training.urls import http_stream_patterns, websocket_urlpatterns  # noqa: E402


def build_application() -> Application:
    """The guard stands outside everything, so no route can be left out of it."""
    # A Django streaming response pins one thread a stream; the consumer does not, so it is asked first.
    http = URLRouter([*http_stream_patterns, re_path(r"", django_application)])
    router = ProtocolTypeRouter({"http": http, "websocket": URLRouter(websocket_urlpatterns)})
    limited = BodyLimit(cast(Application, router), settings.BIGGEST_BODY_BYTES)
    return Guard(limited, settings.PROCESS.allowed_hosts)


application = build_application()
