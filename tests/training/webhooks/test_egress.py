"""Where the server posts to, and where never."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from trainer_engine.config.webhooks import parse_webhooks
from training.webhooks.egress import EgressRefused, resolve, webhook_problems

NEVER = [
    *("169.254.169.254", "169.254.1.1", "[fe80::1]", "[fd00:ec2::254]", "100.100.100.200", "[::ffff:169.254.169.254]"),
    *("[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::1]"),
    *("224.0.0.1", "0.0.0.0", "[::]", "255.255.255.255"),
]
PRIVATE = ["10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "[fc00::1]", "[::ffff:10.0.0.1]"]
LOOPBACK = ["127.0.0.1", "127.8.8.8", "[::1]", "[::ffff:127.0.0.1]"]


def resolving_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Names have these addresses; the list of names that were asked for."""
    asked: list[str] = []

    def found(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    return asked


@pytest.mark.parametrize("host", NEVER)
def test_addresses_that_hand_out_keys_or_are_nobodys_are_never_posted_to(host: str, settings: Any) -> None:
    settings.WEBHOOKS_TO_PRIVATE = settings.WEBHOOKS_TO_LOOPBACK = True
    with pytest.raises(EgressRefused):
        resolve(f"http://{host}/latest/meta-data")


@pytest.mark.parametrize("host", PRIVATE)
def test_private_networks_are_closed_until_they_are_allowed(host: str, settings: Any) -> None:
    settings.WEBHOOKS_TO_PRIVATE = False
    with pytest.raises(EgressRefused, match="private"):
        resolve(f"http://{host}/")
    settings.WEBHOOKS_TO_PRIVATE = True
    assert resolve(f"http://{host}/").port == 80


@pytest.mark.parametrize("host", LOOPBACK)
def test_this_machine_is_open_while_the_server_serves_it_alone(host: str, settings: Any) -> None:
    assert resolve(f"http://{host}:9/x?y=1").path == "/x?y=1"
    settings.WEBHOOKS_TO_LOOPBACK = False
    with pytest.raises(EgressRefused):
        resolve(f"http://{host}:9/")


def test_one_closed_address_of_a_name_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving_to(monkeypatch, "93.184.216.34", "169.254.169.254")
    with pytest.raises(EgressRefused, match="innocent"):
        resolve("https://innocent.example/")


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolving_to(monkeypatch, "93.184.216.34")
    where = resolve("https://name.example:8443/hook")
    assert [where.url(address) for address in where.addresses] == ["https://93.184.216.34:8443/hook"]
    assert where.host_header == "name.example:8443"
    assert asked == ["name.example"]


def test_validate_reports_refused_and_unknown_webhook_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, _ = parse_webhooks([{"webhook_type": "raw", "callback_url": "http://169.254.169.254/", "ssl_no_verify": True}])
    assert [problem.code for problem in webhook_problems(targets)] == ["address_refused", "certificate_not_checked"]

    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    targets, _ = parse_webhooks([{"webhook_type": "raw", "callback_url": "https://nowhere.example/"}])
    assert [problem.code for problem in webhook_problems(targets)] == ["name_not_found"]


def test_a_password_in_the_address_is_sent_as_one() -> None:
    assert resolve("http://user:p%40ss@127.0.0.1/").authorization == "Basic dXNlcjpwQHNz"
    assert resolve("http://127.0.0.1/").authorization == ""
