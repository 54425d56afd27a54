"""Fetches over HTTP from addresses that were checked: no request of a source reaches an internal machine.

A name is resolved for each request, every address of it is judged, and a new connection goes to a judged address. A name that changes its
address gains nothing. Redirects are not followed.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from urllib.parse import quote, urlsplit

import httpx

from trainer_engine.config.addresses import PORTS, AddressRefused, Reach

CONNECT_SECONDS, READ_SECONDS = 5.0, 20.0
MOST_HOSTS = 32
ASCII = f" {string.punctuation}"
"""Characters of a path that are sent as they stand, with letters and digits."""
OTHERS = ""
"""Stands for all hosts whose connections are not kept."""


class HttpClient:
    """A pool of connections to the hosts that a reach allows. Safe for several threads.

    Connections are kept by the name of their host: two names at one address share none, since each has a certificate of its own. Those to
    further hosts than ``MOST_HOSTS`` are not kept.
    """

    def __init__(self, reach: Reach, most_connections: int) -> None:
        self.reach = reach
        self._most_connections = most_connections
        self._certificates = httpx.create_ssl_context(trust_env=False)
        self._clients: dict[str, httpx.Client] = {}

    @contextmanager
    def stream(self, method: str, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """Sends a request without a body and gives the answer, whose body is not read yet.

        Raises AddressRefused; OSError for a name, connection or answer that fails, with a text for people and without the query.
        """
        port = _port(url)
        parts = urlsplit(url)
        host = _ascii(parts.hostname or "")
        shown_host = host if port == PORTS[parts.scheme] else f"{host}:{port}"
        netloc = parts.netloc.rpartition("@")[2]
        sent = {"Host": netloc if netloc.isascii() else shown_host, "User-Agent": "SimpleTuner", "Accept-Encoding": "identity", **headers}
        path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=ASCII, errors="replace")
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
            url = httpx.URL(f"{scheme}://{shown}:{port}", raw_path=path.encode("ascii"))
            stream = self._client(host).stream(method, url, headers=dict(headers), extensions={"sni_hostname": host})
            try:
                return stack.enter_context(stream)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if number == len(addresses):
                    raise
        raise ConnectionError(f"{host} has no address")

    def _client(self, host: str) -> httpx.Client:
        key = host if host in self._clients or len(self._clients) < MOST_HOSTS else OTHERS
        if key not in self._clients:
            self._clients.setdefault(key, self._new_client(0 if key == OTHERS else self._most_connections))
        return self._clients[key]

    def _new_client(self, kept: int) -> httpx.Client:
        return httpx.Client(
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=self._most_connections, max_keepalive_connections=kept),
            verify=self._certificates,
            follow_redirects=False,
            trust_env=False,
        )

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


def _ascii(host: str) -> str:
    """Returns a name as it is asked for. Raises AddressRefused."""
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise AddressRefused(f"{host[:80]!r} is no host name") from None
