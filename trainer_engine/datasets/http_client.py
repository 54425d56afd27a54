"""Fetches over HTTP from addresses that were checked: no request of a source reaches an internal machine.

A name is resolved for each request, every address of it is judged, and a new connection goes to a judged address. A name that changes its
address gains nothing. Redirects are not followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import httpx

from trainer_engine.config.addresses import PORTS
from trainer_engine.datasets.egress import AddressRefused, Reach

CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0


class HttpClient:
    """A pool of connections to the hosts that a reach allows. Safe for several threads.

    Connections are pooled by the name of their host: two names at one address share none, since each has a certificate of its own.
    """

    def __init__(self, reach: Reach, most_connections: int) -> None:
        self.reach = reach
        self._limits = httpx.Limits(max_connections=most_connections, max_keepalive_connections=most_connections)
        self._clients: dict[str, httpx.Client] = {}

    @contextmanager
    def stream(self, method: str, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """Sends a request without a body and gives the answer, whose body is not read yet.

        Raises AddressRefused; OSError for a name, connection or answer that fails, with a text for people and without the query.
        """
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = _port(url)
        shown_host = host if port == PORTS[parts.scheme] else f"{host}:{port}"
        sent = {"Host": parts.netloc.rpartition("@")[2], "User-Agent": "SimpleTuner", "Accept-Encoding": "identity", **headers}
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            with ExitStack() as stack:
                answer = self._first_answer(stack, method, (parts.scheme, host, port, path), sent)
                yield answer
        except httpx.TimeoutException as error:
            raise TimeoutError(f"{shown_host} does not answer in time") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConnectionError(f"{shown_host} could not be read: {type(error).__name__}") from error

    def _first_answer(self, stack: ExitStack, method: str, place: tuple[str, str, int, str], headers: Mapping[str, str]) -> httpx.Response:
        scheme, host, port, path = place
        addresses = self.reach.addresses(host, port)
        for number, address in enumerate(addresses, 1):
            shown = f"[{address}]" if ":" in address else address
            url = httpx.URL(f"{scheme}://{shown}:{port}", raw_path=path.encode("ascii", "ignore"))
            stream = self._client(host).stream(method, url, headers=dict(headers), extensions={"sni_hostname": host})
            try:
                return stack.enter_context(stream)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if number == len(addresses):
                    raise
        raise ConnectionError(f"{host} has no address")

    def _client(self, host: str) -> httpx.Client:
        if host not in self._clients:
            timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
            self._clients.setdefault(host, httpx.Client(timeout=timeout, limits=self._limits, follow_redirects=False, trust_env=False))
        return self._clients[host]

    def close(self) -> None:
        """Closes every connection."""
        while self._clients:
            self._clients.popitem()[1].close()


def _port(url: str) -> int:
    """Raises AddressRefused for anything but an address of the web."""
    try:
        parts = urlsplit(url)
        if parts.scheme in PORTS and parts.hostname:
            return parts.port or PORTS[parts.scheme]
    except ValueError:
        pass
    raise AddressRefused("it is not a web address")
