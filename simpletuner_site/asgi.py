"""What Daphne serves: the guard, then the event stream, then Django."""

from __future__ import annotations

import os
import re
from typing import cast

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "simpletuner_site.settings")

from django.conf import settings  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402

from simpletuner_site.body_limit import BodyLimit  # noqa: E402
from simpletuner_site.guard import Application, Guard, Receive, Scope, Send  # noqa: E402

django_application = cast(Application, get_asgi_application())  # sets Django up: what follows may import models

from training.consumers import EventSocket, EventSource  # noqa: E402

STREAM = re.compile(r"/api/training/events/stream/?")


class Router:
    """The event stream, WebSocket or server-sent events on one path, and Django for everything else.

    A Django streaming response would pin a thread for each stream; the consumers do not.
    """

    def __init__(self) -> None:
        self.sockets = cast(Application, EventSocket.as_asgi())
        self.streams = cast(Application, EventSource.as_asgi())
        self.pages = BodyLimit(django_application, settings.BIGGEST_BODY_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_stream = STREAM.fullmatch(scope.get("path", "")) is not None
        if scope["type"] == "http":
            await (self.streams if is_stream and scope["method"] == "GET" else self.pages)(scope, receive, send)
        elif scope["type"] == "websocket" and is_stream:
            await self.sockets(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 4404, "reason": "There is no stream at this address."})
        else:
            raise ValueError(f"no application for {scope['type']}")


application = Guard(Router(), settings.PROCESS.allowed_hosts)  # outside everything, so that no route can be left out of it
