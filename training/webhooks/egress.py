"""Which addresses the server may post to. A name is resolved once, all its addresses are checked, and one of them is used."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from django.conf import settings

from trainer_engine.config.addresses import PORTS, Address, Reach, addresses_in, closed_because
from trainer_engine.config.webhooks import OPTION, WebhookTarget
from trainer_engine.contract.errors import Problem
from training.engine.machines import MachineRule

MOST_TRIED = 4
"""How many addresses of one name are tried."""


class EgressRefused(Exception):
    """The server may not post to this address; the message says why."""


@dataclass(frozen=True)
class Destination:
    """Checked addresses of a host, and the rest of the URL."""

    scheme: str
    host: str
    addresses: tuple[str, ...]
    """In the order in which they are tried."""
    port: int
    path: str
    authorization: str = ""
    """Header value for the user and password in the URL; empty without them."""

    def url(self, address: str) -> str:
        """The URL with an address instead of the name, so that the connection goes to the checked address."""
        shown = f"[{address}]" if ":" in address else address
        return f"{self.scheme}://{shown}:{self.port}{self.path}"

    @property
    def host_header(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == PORTS[self.scheme] else f"{name}:{self.port}"


def resolve(url: str) -> Destination:
    """Raises EgressRefused if any address of the host is closed, OSError or UnicodeError if the name cannot be resolved."""
    parts = urlsplit(url)
    host, scheme = parts.hostname or "", parts.scheme
    if scheme not in PORTS or not host:
        raise EgressRefused("it is not a web address")
    port = parts.port or PORTS[scheme]
    found = addresses_in(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    for address in found:
        refuse(host, address)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Destination(
        scheme=scheme,
        host=host,
        addresses=tuple(dict.fromkeys(map(str, found)))[:MOST_TRIED],
        port=port,
        path=path,
        authorization=_basic(parts),
    )


def _basic(parts: SplitResult) -> str:
    """Basic authorization (RFC 7617) for the user and password in a URL."""
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
    """A setting of the server. Without a server it is a user's own shell that asks, for which every address is open."""
    return bool(getattr(settings, switch)) if settings.configured else True


def private_networks_are_open() -> bool:
    """Whether the server, or the user's own shell, may reach private networks."""
    return _is_open("WEBHOOKS_TO_PRIVATE")


@dataclass(frozen=True)
class RunRules:
    """What the server's operator lets runs connect to."""

    sources: Reach
    """For the sources of datasets."""
    machines: MachineRule

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunRules:
        machines = values["machines"]
        return cls(Reach(**values["sources"]), MachineRule(tuple(machines["allowed"]), machines["is_open"]))


def run_rules() -> RunRules:
    """What the settings allow; in a user's own shell, which has none, everything but endless downloads."""
    private = private_networks_are_open()
    if not settings.configured:
        return RunRules(Reach(private=private), MachineRule(is_open=True))
    return RunRules(Reach(private=private, largest_set_bytes=settings.DOWNLOAD_BYTES), MachineRule(settings.TRAINING_MACHINES))


def _reason(address: Address) -> str:
    return closed_because(address, private=private_networks_are_open(), loopback=_is_open("WEBHOOKS_TO_LOOPBACK"))


def webhook_problems(targets: Iterable[WebhookTarget]) -> Iterator[Problem]:
    """Check the addresses of webhooks before a run, in parallel: an unknown name may take many seconds."""
    known = list(targets)
    if not known:
        return
    with ThreadPoolExecutor(len(known)) as pool:
        for target, found in zip(known, pool.map(_resolvable, known), strict=True):
            yield from _address_problems(f"{OPTION}[{target.place}]", target, found)


def _resolvable(target: WebhookTarget) -> Exception | None:
    """Why nothing can be posted to the target now; None if it can."""
    try:
        resolve(target.url)
    except (EgressRefused, OSError, UnicodeError) as error:
        return error
    return None


def _address_problems(where: str, target: WebhookTarget, error: Exception | None) -> Iterator[Problem]:
    """An unknown name is a warning only, because it may resolve later."""
    shown = target.shown()["url"]
    if isinstance(error, EgressRefused):
        yield Problem.error(where, "address_refused", f"Events are not posted to {shown}: {error}.", got=shown)
    elif error is not None:
        message = f"{shown} cannot be reached now: its name cannot be resolved ({error})."
        yield Problem.warning(where, "name_not_found", message, got=shown, hint="posts are tried again for a day")
    if target.ssl_no_verify:
        message = f"The certificate of {shown} is not checked (ssl_no_verify): anyone on the way can read and answer the posts."
        yield Problem.note(where, "certificate_not_checked", message, got=True)
