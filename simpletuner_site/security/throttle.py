"""Limits how often one client may try a token that is wrong."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict, deque
from collections.abc import Callable

MOST_FAILURES = 10
WINDOW_SECONDS = 60.0
MOST_CLIENTS = 10_000
IPV6_SITE_BITS = 64
"""One customer of a provider usually has at least this network, so its addresses count as one client."""


class Throttle:
    """Counts the failures of each client within a window. Everything runs on one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_seconds(self, address: str) -> int:
        """After how many seconds this client may try again; 0 for now."""
        failures = self._recent(client_of(address))
        if len(failures) < MOST_FAILURES:
            return 0
        return max(1, int(failures[0] + WINDOW_SECONDS - self._clock()) + 1)

    def note_failure(self, address: str) -> None:
        """Count a wrong token. The client that failed longest ago is forgotten when there are too many."""
        name = client_of(address)
        failures = self._recent(name)
        failures.append(self._clock())
        self._failures[name] = failures
        self._failures.move_to_end(name)
        while len(self._failures) > MOST_CLIENTS:
            self._failures.popitem(last=False)

    def _recent(self, name: str) -> deque[float]:
        failures = self._failures.get(name, deque[float](maxlen=MOST_FAILURES))
        oldest = self._clock() - WINDOW_SECONDS
        while failures and failures[0] <= oldest:
            failures.popleft()
        return failures


def client_of(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, IPV6_SITE_BITS), strict=False))
    return str(found)
