"""Decides who may use a server with a token: programs send it in a header, browsers a cookie that they got for it.

A cookie holds no token. It is a time and a signature that only this server can make, and ends with the token.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote

from simpletuner_site.edge.refusals import Refusal
from simpletuner_site.security.requests import Network, Scope, header_values, peer_of
from simpletuner_site.security.throttle import Throttle
from simpletuner_site.security.token import MOST_CHARACTERS, StoredToken

LOGIN = "/login"
COOKIE = "simpletuner_access"
COOKIE_SECONDS = 30 * 24 * 3600
READING = frozenset({"GET", "HEAD", "OPTIONS"})
LOCKED = "This server needs its token: send it as `Authorization: Bearer TOKEN` or `X-API-Key: TOKEN`, or log in at /login."
WRONG = "The token is wrong."
NO_ORIGIN = "A request with a browser's cookie must name its Origin. Programs send the token in a header instead."


@dataclass(frozen=True)
class LogIn:
    """A successful log-in."""

    cookie: str
    """The value of the ``Set-Cookie`` header, without the attribute ``Secure``."""


class Access:
    """Judges requests by token and cookie. Everything runs on one thread."""

    def __init__(
        self,
        token: StoredToken,
        key: str,
        *,
        throttle: Throttle | None = None,
        clock: Callable[[], float] = time.time,
        proxies: Sequence[Network] = (),
    ) -> None:
        """``key`` signs the cookies; it is secret and lasts as long as the home. ``proxies`` are believed who their clients are."""
        self._token = token
        self._proxies = tuple(proxies)
        self._key = hashlib.blake2b(f"access {token.digest}".encode(), key=key.encode()[:64], digest_size=32).digest()
        self._throttle = throttle or Throttle()
        self._clock = clock
        # Cookies are shared by all ports of a host: another server there must not replace this one's.
        self.cookie_name = f"{COOKIE}_{self._signature('name')[:12]}"

    def refusal(self, scope: Scope) -> Refusal | None:
        """Why a request is refused; None if it may pass. The page at which people log in is always open."""
        path = str(scope.get("path", ""))
        if scope["type"] == "http" and path == LOGIN:
            return None
        given = list(tokens_of(scope))
        if given:
            return self._judge_tokens(given, self.address_of(scope))
        if any(self.is_valid(cookie) for cookie in cookies_of(scope, self.cookie_name)):
            is_reading = scope["type"] == "http" and scope.get("method") in READING
            if is_reading or header_values(scope, b"origin"):
                return None
            return Refusal(HTTPStatus.FORBIDDEN, NO_ORIGIN)
        return Refusal(HTTPStatus.UNAUTHORIZED, LOCKED, login_at=_login_for(scope))

    def address_of(self, scope: Scope) -> str:
        """The address whose failures count: the peer's, or behind a proxy that is believed its client's."""
        return peer_of(scope, self._proxies)

    def has_cookie(self, scope: Scope) -> bool:
        return any(self.is_valid(cookie) for cookie in cookies_of(scope, self.cookie_name))

    def log_in(self, token: str, address: str) -> LogIn | Refusal:
        """The cookie for a token, or why it is refused."""
        refusal = self._judge_tokens([token], address)
        if refusal is not None:
            return refusal
        ends = str(int(self._clock()) + COOKIE_SECONDS)
        return LogIn(f"{self.cookie_name}={ends}.{self._signature(ends)}; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Lax")

    def log_out(self) -> str:
        """The ``Set-Cookie`` value that removes the cookie from a browser."""
        return f"{self.cookie_name}=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax"

    def is_valid(self, cookie: str) -> bool:
        """Whether this server made a cookie for its present token, and it has not ended."""
        ends, _, signature = cookie.partition(".")
        if not (ends.isascii() and ends.isdecimal() and len(ends) < 12 and signature.isascii()):
            return False
        return hmac.compare_digest(self._signature(ends), signature) and int(ends) > self._clock()

    def _signature(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    def _judge_tokens(self, given: list[str], address: str) -> Refusal | None:
        """A client with too many failures is refused before its token is compared, so it learns nothing meanwhile."""
        wait = self._throttle.wait_seconds(address)
        if wait:
            detail = f"Too many wrong tokens came from {address}. Try again in {wait} s."
            return Refusal(HTTPStatus.TOO_MANY_REQUESTS, detail, retry_after_seconds=wait)
        verdicts = [len(one) <= MOST_CHARACTERS and self._token.matches(one) for one in given]
        if all(verdicts):
            return None
        self._throttle.note_failure(address)
        return Refusal(HTTPStatus.UNAUTHORIZED, WRONG)


def tokens_of(scope: Scope) -> Iterator[str]:
    """Every token that a request presents. An empty one is none. Other schemes of ``Authorization`` belong to proxies and are ignored."""
    for value in header_values(scope, b"authorization"):
        scheme, _, token = value.strip().partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            yield token.strip()
    yield from filter(None, (value.strip() for value in header_values(scope, b"x-api-key")))


def cookies_of(scope: Scope, name: str) -> Iterator[str]:
    for header in header_values(scope, b"cookie"):
        for part in header.split(";"):
            found, _, value = part.strip().partition("=")
            if found == name:
                yield value


def _login_for(scope: Scope) -> str:
    """The address of the log-in page that leads back to this page; empty for anything but opening a page."""
    if scope["type"] != "http" or scope.get("method") not in ("GET", "HEAD"):
        return ""
    path = quote(str(scope.get("path", "/")), safe="/")
    return LOGIN if path == "/" else f"{LOGIN}?next={quote(path, safe='')}"
