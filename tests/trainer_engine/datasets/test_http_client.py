"""Connections of datasets: kept by the name of a host, and never more of them than a bound."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from trainer_engine.config.addresses import AddressRefused, Reach
from trainer_engine.datasets import http_client
from trainer_engine.datasets.http_client import HttpClient

HOSTS: list[tuple[str, str]] = []
"""(name that was asked for, address of the client's end of the connection)"""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        HOSTS.append((self.headers["Host"], f"{self.client_address[1]} {self.path}"))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server that every name leads to."""
    HOSTS.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as http:
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, daemon=True).start()
        number, real = http.server_address[1], socket.getaddrinfo
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", number))]
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *rest, **named: found if ".example" in str(host) else real(host, *rest, **named)
        )
        yield number
        http.shutdown()


def get(client: HttpClient, url: str) -> bytes:
    with client.stream("GET", url, {}) as answer:
        return answer.read()


def ends() -> list[str]:
    return [end.split()[0] for _, end in HOSTS]


def test_a_connection_is_kept_for_its_host_and_for_no_other_at_the_same_address(port: int) -> None:
    client = HttpClient(Reach(), 4)
    for name in ("one", "one", "two"):
        assert get(client, f"http://{name}.example:{port}/a?b=c") == b"ok"
    first, again, other = ends()
    assert first == again != other
    assert [host for host, _ in HOSTS] == [f"one.example:{port}"] * 2 + [f"two.example:{port}"]
    assert {end.split()[1] for _, end in HOSTS} == {"/a?b=c"}
    client.close()


def test_connections_to_very_many_hosts_are_not_kept(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "MOST_HOSTS", 2)
    client = HttpClient(Reach(), 4)
    for name in ("one", "two", "three", "three", "one"):
        get(client, f"http://{name}.example:{port}/")
    one, two, three, third_again, one_again = ends()
    assert one == one_again and len({one, two, three, third_again}) == 4
    client.close()


def test_a_password_in_an_address_is_not_sent_and_not_shown(port: int) -> None:
    client = HttpClient(Reach(), 4)
    assert get(client, f"http://me:hunter2@one.example:{port}/") == b"ok"
    assert HOSTS[0][0] == f"one.example:{port}"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(OSError) as failure:
            get(client, f"http://me:hunter2@127.0.0.1:{closed.getsockname()[1]}/?token=hunter2")
    assert "hunter2" not in str(failure.value) and "127.0.0.1" in str(failure.value)
    client.close()


def test_the_next_address_of_a_name_is_tried(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reach, "addresses", lambda *_: ["127.0.0.2", "127.0.0.1"])
    client = HttpClient(Reach(), 4)
    assert get(client, f"http://both.example:{port}/") == b"ok"
    client.close()


@pytest.mark.parametrize("found", [["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"]])
def test_a_name_with_one_closed_address_is_refused_whole(monkeypatch: pytest.MonkeyPatch, found: list[str]) -> None:
    places = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in found]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)
    with pytest.raises(AddressRefused, match=r"10\.0\.0\.1, in a private network"):
        Reach().addresses("both.example", 80)
    assert Reach(private=True).addresses("both.example", 80) == found


def test_names_and_paths_beyond_ascii_are_sent_as_browsers_send_them(port: int) -> None:
    client = HttpClient(Reach(), 2)
    assert get(client, f"http://b\u00fccher.example:{port}/\u00fc.png?a=\u00e9&b=%20") == b"ok"
    assert get(client, f"http://\uff1127.0.0.1:{port}/x") == b"ok"
    hosts, paths = [host for host, _ in HOSTS], [end.split()[1] for _, end in HOSTS]
    assert hosts == [f"xn--bcher-kva.example:{port}", f"127.0.0.1:{port}"] and paths == ["/%C3%BC.png?a=%C3%A9&b=%20", "/x"]
    client.close()


@pytest.mark.parametrize("host", ["\ud800", "\u00fc" * 70, "\u00fc..b"])
def test_a_name_that_no_machine_can_have_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused, match="is no host name"):
        get(HttpClient(Reach(), 2), f"http://{host}/")
