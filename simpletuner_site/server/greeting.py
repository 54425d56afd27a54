"""The token that a server was started with, and the lines that it prints when it is ready."""

from __future__ import annotations

import ipaddress
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from simpletuner_site.security.token import check_token, new_token, read_token, store_token

ANYWHERE = "192.0.2.1"
"""An address of no machine. Choosing a route to it sends nothing, and names the address that other machines see."""


@dataclass(frozen=True)
class ChosenToken:
    """What ``--token`` and ``--generate-token`` asked for."""

    text: str = ""
    """The token; empty for the one that ``state/`` holds as a hash."""
    is_new: bool = False

    @classmethod
    def of(cls, given: str | None, variable: str, *, generate: bool) -> ChosenToken | None:
        """None if no token is wanted. ``given`` is empty for ``--token`` without a value. Raises BadToken."""
        if generate:
            return cls(new_token(), is_new=True)
        if given or (given is None and variable):
            return cls(check_token(given or variable))
        return None if given is None else cls(check_token(variable) if variable else "")

    def keep(self, state: Path) -> None:
        """Store the token, or make sure that one is stored. Raises BadToken, OSError."""
        if self.text:
            store_token(state, self.text)
        else:
            read_token(state)


def print_address(address: str, port: int, token: ChosenToken | None) -> None:
    """Print where the server answers, and, once, the link with a token that was just made."""
    shown = shown_host(address)
    base = f"http://{shown}:{port}"
    lines = [f"SimpleTuner serves {base}  (documentation: {base}/docs; Ctrl-C ends it)"]
    if token is not None:
        lines.append("Requests need the token; hooks are off, and only --home and --root are open.")
        if token.is_new:
            lines.append(f"Log in, once: {base}/login#token={quote(token.text, safe='')}")
            lines.append(
                "The part behind token= is the token. It is stored as a hash and not shown again; `--token` without a value keeps it."
            )
        if not ipaddress.ip_address(address).is_loopback:
            lines.append(
                "This connection is not encrypted. Use a network that you trust, an SSH tunnel, or a proxy with TLS (docs/remote.md)."
            )
    print("\n".join(lines), file=sys.stderr, flush=True)


def local_url(address: str, port: int) -> str:
    """The address at which programs of this machine reach the server."""
    found = ipaddress.ip_address(address)
    if found.is_unspecified:
        address = "127.0.0.1" if found.version == 4 else "::1"
    return f"http://{shown_host(address)}:{port}"


def report_runs_that_go_on() -> None:
    """Print which runs continue without the server. Says nothing if the database cannot be read any more."""
    from django.db import DatabaseError

    from training.models import ACTIVE, Job

    try:
        numbers = list(Job.objects.filter(status__in=ACTIVE).order_by("number").values_list("number", flat=True))
    except DatabaseError:
        return
    for number in numbers:
        print(
            f"Run {number} goes on without the server; the next start follows it. `simpletuner stop {number}` saves and ends it.",
            file=sys.stderr,
        )


def shown_host(address: str) -> str:
    """The host of a link for a bound address."""
    if ipaddress.ip_address(address).is_unspecified:
        address = _outward_address() or "localhost"
    if ":" in address:
        return f"[{address}]"
    return "localhost" if address == "127.0.0.1" else address


def _outward_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((ANYWHERE, 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])
