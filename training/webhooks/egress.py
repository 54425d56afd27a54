"""Where the server may post to. A name is resolved once, every address that it has is checked, and the connection goes to one of these."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from django.conf import settings

from trainer_engine.contract.addresses import Address, never_asked, unwrapped
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.webhooks import OPTION, WebhookTarget

SHARED = ipaddress.ip_network("100.64.0.0/10")
PORTS = {"http": 80, "https": 443}


class EgressRefused(Exception):
    """The server does not post there; the message says why."""


@dataclass(frozen=True)
class Destination:
    """An address that may be connected to, and what the other end is called."""

    scheme: str
    host: str
    address: str
    port: int
    path: str

    @property
    def url(self) -> str:
        """With the address in place of the name."""
        shown = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.scheme}://{shown}:{self.port}{self.path}"

    @property
    def host_header(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == PORTS[self.scheme] else f"{name}:{self.port}"


def resolve(url: str) -> Destination:
    """Raises EgressRefused where any address of the host is closed, and OSError where the name has none."""
    parts = urlsplit(url)
    host, scheme = parts.hostname or "", parts.scheme
    if scheme not in PORTS or not host:
        raise EgressRefused(f"{url[:200]} is no web address")
    port = parts.port or PORTS[scheme]
    found = [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        refuse(host, address)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Destination(scheme, host, str(found[0]), port, path)


def refuse(host: str, address: Address) -> None:
    """Raises EgressRefused for an address that no webhook may reach."""
    reason = _reason(unwrapped(address))
    if reason:
        raise EgressRefused(f"{host} is {address}, {reason}")


def _reason(address: Address) -> str:
    if never_asked(address):
        return "which is where machines get their keys from; that is never allowed"
    if address.is_multicast or address.is_unspecified or (address.is_reserved and not address.is_loopback):
        return "which is no machine's own address"
    if address.is_loopback:
        return "" if settings.WEBHOOKS_TO_LOOPBACK else "this machine, which is not allowed while the server serves others"
    shared = isinstance(address, ipaddress.IPv4Address) and address in SHARED
    if (address.is_private or shared) and not settings.WEBHOOKS_TO_PRIVATE:
        return "in a private network; start the server with SIMPLETUNER_PRIVATE_WEBHOOKS=1 to allow these"
    return ""


def webhook_problems(targets: Iterable[WebhookTarget]) -> Iterator[Problem]:
    """What is known of the addresses before a run. A name that cannot be resolved now is a warning: it may be later."""
    for place, target in enumerate(targets):
        where = f"{OPTION}[{place}]"
        shown = target.shown()["url"]
        try:
            resolve(target.url)
        except EgressRefused as refusal:
            yield Problem.error(where, "address_refused", f"Events are not posted to {shown}: {refusal}.", got=shown)
        except (OSError, UnicodeError) as error:
            message = f"{shown} cannot be reached now: its name is not known here ({error})."
            yield Problem.warning(where, "name_not_found", message, got=shown, hint="posts are tried again for a day")
        if target.ssl_no_verify:
            message = f"The certificate of {shown} is not checked (ssl_no_verify): anybody on the way can read and answer."
            yield Problem.note(where, "certificate_not_checked", message, got=True)
