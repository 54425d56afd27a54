"""Where the server may post to. A name is resolved once, every address that it has is checked, and the connection goes to one of these."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from django.conf import settings

from trainer_engine.config.addresses import PORTS, Address, addresses_in, closed_because
from trainer_engine.config.webhooks import OPTION, WebhookTarget
from trainer_engine.contract.errors import Problem

MOST_TRIED = 4
"""Addresses of one name that are tried one after the other."""


class EgressRefused(Exception):
    """The server does not post there; the message says why."""


@dataclass(frozen=True)
class Destination:
    """Addresses that may be connected to, and what the other end is called."""

    scheme: str
    host: str
    addresses: tuple[str, ...]
    """In the order in which they are to be tried."""
    port: int
    path: str
    authorization: str = ""
    """Of the user and password that stood in the address; empty where there were none."""

    def url(self, address: str) -> str:
        """With an address in place of the name: what was checked is what is connected to."""
        shown = f"[{address}]" if ":" in address else address
        return f"{self.scheme}://{shown}:{self.port}{self.path}"

    @property
    def host_header(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == PORTS[self.scheme] else f"{name}:{self.port}"


def resolve(url: str) -> Destination:
    """Raises EgressRefused where any address of the host is closed, and OSError or UnicodeError where the name has none."""
    parts = urlsplit(url)
    host, scheme = parts.hostname or "", parts.scheme
    if scheme not in PORTS or not host:
        raise EgressRefused("it is no web address")
    port = parts.port or PORTS[scheme]
    found = addresses_in(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    for address in found:
        refuse(host, address)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Destination(scheme, host, tuple(dict.fromkeys(map(str, found)))[:MOST_TRIED], port, path, _basic(parts))


def _basic(parts: SplitResult) -> str:
    """RFC 7617."""
    if parts.username is None and parts.password is None:
        return ""
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode("ascii")


def refuse(host: str, address: Address) -> None:
    """Raises EgressRefused for an address that no webhook may reach."""
    reason = _reason(address)
    if reason:
        raise EgressRefused(f"{host} is {address}, {reason}")


def _is_open(switch: str) -> bool:
    """A server's setting. Where nobody serves, it is a person's own shell that asks, which may reach what it likes."""
    return bool(getattr(settings, switch)) if settings.configured else True


def _reason(address: Address) -> str:
    return closed_because(address, private=_is_open("WEBHOOKS_TO_PRIVATE"), loopback=_is_open("WEBHOOKS_TO_LOOPBACK"))


def webhook_problems(targets: Iterable[WebhookTarget]) -> Iterator[Problem]:
    """What is known of the addresses before a run. All at once: a name that nobody knows may take many seconds."""
    known = list(targets)
    if not known:
        return
    with ThreadPoolExecutor(len(known)) as pool:
        for target, found in zip(known, pool.map(_resolvable, known), strict=True):
            yield from _told(f"{OPTION}[{target.place}]", target, found)


def _resolvable(target: WebhookTarget) -> Exception | None:
    """Why nothing can be posted to it now."""
    try:
        resolve(target.url)
    except (EgressRefused, OSError, UnicodeError) as error:
        return error
    return None


def _told(where: str, target: WebhookTarget, error: Exception | None) -> Iterator[Problem]:
    """A name that cannot be resolved is a warning: it may be later."""
    shown = target.shown()["url"]
    if isinstance(error, EgressRefused):
        yield Problem.error(where, "address_refused", f"Events are not posted to {shown}: {error}.", got=shown)
    elif error is not None:
        message = f"{shown} cannot be reached now: its name is not known here ({error})."
        yield Problem.warning(where, "name_not_found", message, got=shown, hint="posts are tried again for a day")
    if target.ssl_no_verify:
        message = f"The certificate of {shown} is not checked (ssl_no_verify): anybody on the way can read and answer."
        yield Problem.note(where, "certificate_not_checked", message, got=True)
