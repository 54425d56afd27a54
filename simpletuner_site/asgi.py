"""The ASGI application: the guard, then the event stream, then Django."""

from __future__ import annotations

import os
from typing import cast

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "simpletuner_site.settings")

from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.conf import settings  # noqa: E402
from django.core.exceptions import ImproperlyConfigured  # noqa: E402
from django.urls import re_path  # noqa: E402

from simpletuner_site.edge.uploads import FILES_A_REQUEST, FRAME_BYTES, BodySizes, UploadHandler  # noqa: E402
from simpletuner_site.security.access import Access  # noqa: E402
from simpletuner_site.security.guard import Guard  # noqa: E402
from simpletuner_site.security.login import LoginPage  # noqa: E402
from simpletuner_site.security.request_limits import (
    BodyLimit,  # noqa: E402
    Downloads,  # noqa: E402
    Turns,  # noqa: E402
)
from simpletuner_site.security.requests import Application, Receive, Scope, Send  # noqa: E402
from simpletuner_site.security.token import BadToken, read_token  # noqa: E402

django.setup(set_prefix=False)  # so that the imports below may import models
django_application = cast(Application, UploadHandler())
BODY_BYTES = BodySizes(settings.BIGGEST_BODY_BYTES, FILES_A_REQUEST * settings.UPLOAD_BYTES + FRAME_BYTES)

from training.api.fast_reads import QuickReads  # noqa: E402
from training.streams.backpressure import PatientSend  # noqa: E402
from training.urls import http_stream_patterns, websocket_urlpatterns  # noqa: E402

NO_STREAM_HERE = 4404


async def close_socket(scope: Scope, receive: Receive, send: Send) -> None:
    """Close a WebSocket at an address without one."""
    await receive()
    await send({"type": "websocket.close", "code": NO_STREAM_HERE, "reason": "There is no stream at this address."})


def read_access() -> Access:
    """The token of the home. Raises ImproperlyConfigured if none is stored."""
    try:
        return Access(read_token(settings.STATE_DIR), settings.SECRET_KEY, proxies=settings.PROCESS.trusted_proxies)
    except BadToken as error:
        raise ImproperlyConfigured(str(error)) from error


def build_application() -> Guard:
    """Wrap everything in the guard, so that no route is left out."""
    # A Django streaming response holds one thread per stream; the consumer does not, so it comes first.
    access = read_access() if settings.NEEDS_TOKEN else None
    pages: Application = PatientSend(QuickReads(BodyLimit(Downloads(Turns(django_application)), BODY_BYTES)))
    if access is not None:
        pages = LoginPage(access, pages)
    http = URLRouter([*http_stream_patterns, re_path(r"", pages)])  # type: ignore[arg-type]
    sockets = URLRouter([*websocket_urlpatterns, re_path(r"", close_socket)])  # type: ignore[arg-type]
    router = cast(Application, ProtocolTypeRouter({"http": http, "websocket": sockets}))
    return Guard(router, settings.PROCESS.allowed_hosts, access)


application = build_application()
