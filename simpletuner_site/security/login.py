"""The page at which browsers exchange the token for a cookie.

The link that the server prints carries the token behind a ``#``. Browsers do not send that part, so the token is in no log and no
``Referer``. The script of the page takes it out of the address bar and posts it.
"""

from __future__ import annotations

import html
import secrets
from http import HTTPStatus
from urllib.parse import parse_qs

from simpletuner_site.edge.refusals import STYLE, Refusal, asgi_response
from simpletuner_site.security.access import LOGIN, Access, LogIn
from simpletuner_site.security.requests import Application, Receive, Scope, Send, header_values

MOST_FORM_BYTES = 4096
FORM_TOO_LONG = Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The form of the log-in has at most {MOST_FORM_BYTES} bytes.")
ONLY_FORMS = Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "The log-in page knows GET and POST.")
CONTROLS = frozenset(map(chr, (*range(32), 127)))

PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex"><title>Log in · SimpleTuner</title><style nonce="{nonce}">{style}</style></head>
<body><main><h1>SimpleTuner</h1>{message}
<form method="post" action="{login}"><input type="hidden" name="next" value="{next}">{fields}</form></main>
<script nonce="{nonce}">{script}</script></body>
</html>
"""
FIELDS = """<p><label for="token">Token</label><br>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus></p>
<p>The server printed a link with it when it started.</p><p><button>Log in</button></p>"""
LEAVE = """<p>You are logged in: <a href="/">runs</a>.</p><p><button name="leave" value="1">Log out</button></p>"""
SCRIPT = """const found = /^#token=(.+)$/.exec(location.hash), field = document.getElementById("token");
if (found) {
  history.replaceState(null, "", location.pathname + location.search);
  if (field) { field.value = decodeURIComponent(found[1]); field.form.submit(); }
}"""


class LoginPage:
    """Answers ``/login`` and passes everything else on."""

    def __init__(self, access: Access, rest: Application) -> None:
        self._access = access
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != LOGIN:
            await self._rest(scope, receive, send)
        elif scope["method"] in ("GET", "HEAD"):
            query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
            await self._show(send, local_path(query.get("next", ["/"])[-1]), is_in=self._access.has_cookie(scope))
        elif scope["method"] == "POST":
            await self._post(scope, receive, send)
        else:
            await _send_all(send, asgi_response(ONLY_FORMS))

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        if body is None:
            await _send_all(send, asgi_response(FORM_TOO_LONG))
            return
        form = parse_qs(body.decode("latin-1"))
        if form.get("leave"):
            await _redirect(send, LOGIN, self._access.log_out())
            return
        target = local_path(form.get("next", ["/"])[-1])
        found = self._access.log_in(form.get("token", [""])[-1].strip(), self._access.address_of(scope))
        if isinstance(found, LogIn):
            # A browser names the origin of a form that it posts, so the server knows that a proxy in front of it encrypts.
            is_secure = any(origin.lower().startswith("https:") for origin in header_values(scope, b"origin"))
            await _redirect(send, target, found.cookie + ("; Secure" if is_secure else ""))
        else:
            await self._show(send, target, refusal=found)

    async def _show(self, send: Send, target: str, *, is_in: bool = False, refusal: Refusal | None = None) -> None:
        nonce = secrets.token_urlsafe(16)
        message = f'<p role="alert"><strong>{html.escape(refusal.detail)}</strong></p>' if refusal else ""
        shown = {"next": html.escape(target), "message": message, "fields": LEAVE if is_in else FIELDS}
        page = PAGE.format(nonce=nonce, style=STYLE, login=LOGIN, script=SCRIPT, **shown).encode()
        policy = f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; form-action 'self'"
        headers = {
            "content-type": "text/html; charset=utf-8",
            "content-length": str(len(page)),
            "content-security-policy": f"{policy}; base-uri 'none'; frame-ancestors 'none'",
            # NOTE: not no-referrer, with which browsers name the origin of the form as `null`, and the guard refuses that.
            "referrer-policy": "same-origin",
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            **({"retry-after": str(refusal.retry_after_seconds)} if refusal and refusal.retry_after_seconds else {}),
        }
        await _respond(send, refusal.status if refusal else HTTPStatus.OK, headers, page)


def local_path(text: str) -> str:
    """A path of this server to go on to; ``/`` for anything that a browser could take for another host."""
    is_local = text.startswith("/") and text[1:2] not in ("/", "\\") and not CONTROLS & set(text) and text.isascii()
    return text if is_local and text != LOGIN else "/"


async def _read(receive: Receive) -> bytes | None:
    """The body; None if it is too long."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > MOST_FORM_BYTES:
            return None
        if not message.get("more_body"):
            return body


async def _redirect(send: Send, target: str, cookie: str) -> None:
    headers = {"location": target, "set-cookie": cookie, "cache-control": "no-store", "content-length": "0"}
    await _respond(send, HTTPStatus.SEE_OTHER, headers, b"")


async def _respond(send: Send, status: HTTPStatus, headers: dict[str, str], body: bytes) -> None:
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status.value, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


async def _send_all(send: Send, messages: list[dict[str, object]]) -> None:
    for message in messages:
        await send(message)
