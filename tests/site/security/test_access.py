"""Tokens and cookies: what opens a server that other machines reach, and what an attacker may try."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import replace
from http import HTTPStatus
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from simpletuner_site.edge.refusals import Refusal
from simpletuner_site.environment import BadEnvironment, read_environment
from simpletuner_site.security.access import COOKIE_SECONDS, Access, LogIn
from simpletuner_site.security.guard import Guard
from simpletuner_site.security.login import MOST_FORM_BYTES, LoginPage, local_path
from simpletuner_site.security.requests import peer_of
from simpletuner_site.security.throttle import MOST_CLIENTS, MOST_FAILURES, WINDOW_SECONDS, Throttle, client_of
from simpletuner_site.security.token import BadToken, StoredToken, check_token, new_token, read_token, store_token

TOKEN = "correct-horse-battery-staple"
HOST = (b"host", b"192.168.1.5:8001")
ORIGIN = (b"origin", b"http://192.168.1.5:8001")
BEARER = (b"authorization", f"Bearer {TOKEN}".encode())
AWAY = ("192.168.1.77", 40000)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(clock: Clock) -> Access:
    return Access(StoredToken.of(TOKEN), "key" * 20, throttle=Throttle(clock), clock=clock)


def scope(*headers: tuple[bytes, bytes], method: str = "GET", path: str = "/api/training/status", **changes: Any) -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path, "headers": [HOST, *headers], "client": AWAY, **changes}


def cookie_of(access: Access) -> tuple[bytes, bytes]:
    found = access.log_in(TOKEN, "10.0.0.1")
    assert isinstance(found, LogIn)
    return (b"cookie", found.cookie.partition(";")[0].encode())


def status_of(access: Access, asked: dict[str, Any], *hosts: str) -> int:
    """The status with which the guard refuses; 200 if it passes the request on."""

    async def inner(*_: Any) -> None:
        raise AssertionError

    refusal = Guard(inner, hosts, access).refusal(asked)
    return refusal.status.value if refusal else 200


@pytest.mark.parametrize("header", [BEARER, (b"authorization", f"bearer  {TOKEN}".encode()), (b"x-api-key", TOKEN.encode())])
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_program_passes_with_the_token_in_either_header(access: Access, header: tuple[bytes, bytes], kind: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        for path in ("/", "/api/training/start", "/admin/", "/static/training/pages.js", "/api/training/events/stream", "/openapi.json"):
            assert status_of(access, scope(header, method=method, path=path, type=kind)) == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer")],
        [(b"authorization", f"Basic {TOKEN}".encode())],
        [(b"authorization", f"Bearer {TOKEN[:-1]}".encode())],
        [(b"authorization", f"Bearer {TOKEN}x".encode())],
        [(b"authorization", f"Bearer {TOKEN.upper()}".encode())],
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"\xff\xfe" * 50)],
        [(b"x-api-key", b"x" * 10_000)],
        [BEARER, (b"x-api-key", b"another")],
        [BEARER, (b"authorization", b"Bearer another")],
        [(b"cookie", f"simpletuner_access={TOKEN}".encode())],
        [(b"x-forwarded-for", b"127.0.0.1")],
    ],
)
def test_a_request_without_the_token_is_refused_on_every_path(access: Access, headers: list[tuple[bytes, bytes]]) -> None:
    for path in (
        "/",
        "/health",
        "/docs",
        "/api/system",
        "/static/training/pages.js",
        "/login/",
        "/loginx",
        "//login",
        "/LOGIN",
        "/login/../",
    ):
        assert status_of(access, scope(*headers, path=path)) in (401, 429)
    assert status_of(access, scope(*headers, type="websocket", path="/api/training/events/stream")) in (401, 429)
    assert status_of(access, scope(*headers, type="websocket", path="/login")) in (401, 429)


def test_this_machine_needs_the_token_too_because_a_proxy_may_stand_on_it(access: Access) -> None:
    local = scope(client=("127.0.0.1", 1))
    assert status_of(access, local) == 401
    assert status_of(access, {**local, "headers": [*local["headers"], BEARER]}) == 200


def test_a_token_in_the_address_opens_nothing(access: Access) -> None:
    """Addresses are kept in logs, histories and Referer headers."""
    for query in (f"token={TOKEN}", f"api_key={TOKEN}", f"access_token={TOKEN}"):
        assert status_of(access, scope(query_string=query.encode())) == 401


@pytest.mark.parametrize(
    "headers",
    [
        [(b"origin", b"https://evil.example")],
        [(b"origin", b"http://192.168.1.5:9999")],
        [(b"origin", b"null")],
        [(b"sec-fetch-site", b"cross-site")],
        [(b"sec-fetch-site", b"same-site")],
    ],
)
def test_a_foreign_page_gets_nothing_even_with_token_and_cookie(access: Access, headers: list[tuple[bytes, bytes]]) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        asked = scope(BEARER, cookie_of(access), *headers, method=method)
        assert status_of(access, asked) == 403
        assert status_of(access, {**asked, "type": "websocket"}) == 403
    assert status_of(access, scope(*headers, method="POST", path="/login")) == 403


def test_a_name_that_was_made_to_lead_here_is_refused_before_any_token_is_compared(access: Access) -> None:
    """DNS rebinding: the name of a hostile page resolves to this server. Only names can be rebound, so addresses pass."""
    for host in (b"evil.example:8001", b"192.168.1.5.evil.example", b"[evil]:8001", b"192.168.1.5:8001@evil.example", b"localhost.evil"):
        assert status_of(access, {**scope(BEARER), "headers": [(b"host", host), BEARER]}) == 403
    for host in (b"10.1.2.3:8001", b"[2001:db8::1]:8001", b"[::1]", b"localhost:8001", b"gpu-box:9000"):
        assert status_of(access, {**scope(BEARER), "headers": [(b"host", host), BEARER]}, "gpu-box") == 200


def test_a_link_from_a_chat_opens_pages_and_nothing_else(access: Access) -> None:
    link = [(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"navigate"), (b"sec-fetch-dest", b"document")]
    for path in ("/", "/runs/4", "/environments/x", "/new", "/admin/", "/login"):
        assert status_of(access, scope(cookie_of(access), *link, path=path)) == 200
        assert status_of(access, scope(cookie_of(access), *link, path=path, method="POST")) == 403
    for path in ("/api/training/status", "/static/x.js", "/openapi.json", "/health"):
        assert status_of(access, scope(cookie_of(access), *link, path=path)) == 403


def test_a_cookie_writes_only_for_a_page_that_names_its_origin(access: Access) -> None:
    cookie = cookie_of(access)
    assert status_of(access, scope(cookie)) == 200
    for changes in ({"method": "POST"}, {"method": "DELETE"}, {"type": "websocket"}):
        assert status_of(access, scope(cookie, **changes)) == 403
        assert status_of(access, scope(cookie, ORIGIN, **changes)) == 200


def test_a_cookie_ends_with_its_time_with_the_token_and_with_the_key(access: Access, clock: Clock) -> None:
    name, value = cookie_of(access)
    ends, _, signature = value.decode().partition("=")[2].partition(".")
    for wrong in (
        f"{int(ends) + 1}.{signature}",
        f"{ends}.{signature[:-1]}",
        f"{ends}.",
        ends,
        f".{signature}",
        f"{ends}.é",
        f"٣.{signature}",
    ):
        assert not access.is_valid(wrong)
    stored = StoredToken.of(TOKEN)
    for other in (Access(stored, "key" * 20, clock=clock), Access(StoredToken.of(new_token()), "key" * 20, clock=clock)):
        assert not other.has_cookie(scope((name, value)))
    assert access.has_cookie(scope((name, b"theme=dark; " + value)))
    clock.now += COOKIE_SECONDS
    assert status_of(access, scope((name, value))) == 401


def test_two_servers_on_one_host_have_cookies_of_different_names(access: Access) -> None:
    other = Access(StoredToken.of(TOKEN), "other" * 20)
    assert other.cookie_name != access.cookie_name


def test_a_browser_is_led_to_the_log_in_and_a_program_is_told_the_header(access: Access) -> None:
    page = access.refusal(scope(path="/runs/4"))
    assert page is not None and page.login_at == "/login?next=%2Fruns%2F4"
    assert access.refusal(scope(path="/")).login_at == "/login"  # type: ignore[union-attr]
    call = access.refusal(scope(method="POST"))
    assert call is not None and call.login_at == "" and "Authorization: Bearer" in call.detail


# ---- brute force ----
def test_ten_wrong_tokens_a_minute_close_a_client_and_no_other(access: Access, clock: Clock) -> None:
    wrong = (b"x-api-key", b"a guess")
    cookie = cookie_of(access)
    assert [status_of(access, scope(wrong)) for _ in range(MOST_FAILURES + 2)] == [401] * MOST_FAILURES + [429] * 2
    refusal = access.refusal(scope(BEARER))
    assert refusal is not None and refusal.status is HTTPStatus.TOO_MANY_REQUESTS and 0 < refusal.retry_after_seconds <= 61
    assert status_of(access, scope(BEARER, client=("10.9.9.9", 1))) == 200
    assert status_of(access, scope(cookie)) == 200, "a browser that is logged in stays in"
    clock.now += WINDOW_SECONDS + 1
    assert status_of(access, scope(BEARER)) == 200


def test_a_request_without_any_token_is_no_failure(access: Access) -> None:
    for _ in range(3 * MOST_FAILURES):
        assert status_of(access, scope()) == 401
    assert status_of(access, scope(BEARER)) == 200


def test_headers_and_the_form_share_one_count(access: Access) -> None:
    for _ in range(MOST_FAILURES // 2):
        status_of(access, scope((b"x-api-key", b"wrong")))
        assert not isinstance(access.log_in("wrong", AWAY[0]), LogIn)
    found = access.log_in(TOKEN, AWAY[0])
    assert not isinstance(found, LogIn) and found.status is HTTPStatus.TOO_MANY_REQUESTS


def test_an_attacker_with_a_network_of_its_own_is_one_client() -> None:
    assert client_of("2001:db8:1:2::1") == client_of("2001:db8:1:2:ffff::9") != client_of("2001:db8:1:3::1")
    assert client_of("::ffff:10.0.0.1") == client_of("10.0.0.1")
    assert client_of("fe80::1%eth0") == client_of("fe80::2") and client_of("unknown") == "unknown"


def test_the_memory_of_failures_is_bounded(clock: Clock) -> None:
    throttle = Throttle(clock)
    for number in range(MOST_CLIENTS + 50):
        throttle.note_failure(f"client-{number}")
    assert len(throttle._failures) == MOST_CLIENTS and throttle.wait_seconds("client-0") == 0


# ---- the stored token ----
def test_the_token_is_stored_as_a_salted_hash_that_only_the_account_reads(tmp_path: Path) -> None:
    store_token(tmp_path, TOKEN)
    first = (tmp_path / "access.json").read_text()
    assert TOKEN not in first and stat.S_IMODE((tmp_path / "access.json").stat().st_mode) == 0o600
    assert read_token(tmp_path).matches(TOKEN) and not read_token(tmp_path).matches(TOKEN + "x")
    store_token(tmp_path, TOKEN)
    assert (tmp_path / "access.json").read_text() != first


def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(tmp_path: Path) -> None:
    for weak in ("", "short", "a" * 40, "abcabc" * 8, "has a space in the middle", "ümlaut" * 6, "line\nbreak" * 3, "x1y2" * 80):
        with pytest.raises(BadToken):
            check_token(weak)
    assert check_token(new_token()) != new_token()
    with pytest.raises(BadToken, match="--generate-token"):
        read_token(tmp_path)
    for broken in ("", "[]", "{}", '{"salt": "zz", "digest": "x"}', '{"salt": 1, "digest": 2}'):
        (tmp_path / "access.json").write_text(broken)
        with pytest.raises(BadToken):
            read_token(tmp_path)


def test_a_longer_common_beginning_takes_no_longer_path(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of one length are compared, in constant time, whatever was sent."""
    compared: list[tuple[str, str]] = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    stored = StoredToken.of(TOKEN)
    for guess in ("x", TOKEN[:10], TOKEN[:-1], TOKEN):
        stored.matches(guess)
    assert {len(one) for pair in compared for one in pair} == {64} and len(compared) == 4
    assert not replace(stored, salt="00" * 16).matches(TOKEN)


# ---- the page ----
def ask(
    access: Access, *headers: tuple[bytes, bytes], body: bytes = b"", method: str = "GET", query: bytes = b""
) -> tuple[int, dict[str, str], str]:
    sent: list[dict[str, Any]] = []

    async def rest(*_: Any) -> None:
        sent.append({"status": 204, "headers": []})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    asked = scope(*headers, method=method, path="/login", query_string=query)
    asyncio.run(LoginPage(access, rest)(asked, receive, send))
    found = {name.decode().lower(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(one.get("body", b"") for one in sent).decode()


def test_the_form_gives_a_cookie_that_scripts_and_other_sites_cannot_use(access: Access) -> None:
    status, headers, _ = ask(access, ORIGIN, method="POST", body=f"token={TOKEN}&next=%2Fruns%2F4".encode())
    assert (status, headers["location"], headers["cache-control"]) == (303, "/runs/4", "no-store")
    assert "; HttpOnly; SameSite=Lax" in headers["set-cookie"] and TOKEN not in headers["set-cookie"]
    assert "Secure" not in headers["set-cookie"]
    secure = ask(access, (b"origin", b"https://train.example"), method="POST", body=f"token={TOKEN}".encode())[1]
    assert secure["set-cookie"].endswith("; Secure")


def test_the_form_refuses_a_wrong_token_and_a_long_body(access: Access) -> None:
    status, headers, page = ask(access, ORIGIN, method="POST", body=b"token=%3Cb%3E&next=%22%3E%3Cscript%3E")
    assert status == 401 and "set-cookie" not in headers and "The token is wrong." in page and "<b>" not in page
    assert ask(access, ORIGIN, method="POST", body=b"x" * (MOST_FORM_BYTES + 1))[0] == 413
    assert ask(access, method="PUT")[0] == 405


def test_the_page_keeps_the_token_of_the_link_out_of_address_referrer_and_caches(access: Access) -> None:
    status, headers, page = ask(access, query=b"next=/runs/4")
    assert status == 200 and headers["cache-control"] == "no-store" and headers["referrer-policy"] == "same-origin"
    assert "history.replaceState" in page and 'value="/runs/4"' in page
    nonce = headers["content-security-policy"].partition("'nonce-")[2].partition("'")[0]
    assert page.count(f'nonce="{nonce}"') == 2 and "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"] and "src=" not in page and "href=" not in page
    assert ask(access)[1]["content-security-policy"] != headers["content-security-policy"]


def test_who_is_logged_in_may_log_out(access: Access) -> None:
    cookie = cookie_of(access)
    assert "Log out" in ask(access, cookie)[2] and "Log out" not in ask(access)[2]
    status, headers, _ = ask(access, cookie, ORIGIN, method="POST", body=b"leave=1")
    assert status == 303 and "Max-Age=0" in headers["set-cookie"]


@pytest.mark.parametrize(
    "text",
    ["//evil.example", "/\\evil.example", "https://evil.example", "evil", "", "/a\r\nSet-Cookie: x=1", "/\t/evil.example", "/login", "/é"],
)
def test_the_log_in_leads_to_no_other_site(text: str) -> None:
    assert local_path(text) == "/"
    assert local_path("/runs/4") == "/runs/4"


# ---- clients of proxies, and headers without a token ----
@pytest.mark.parametrize(
    "header", [(b"x-api-key", b""), (b"x-api-key", b"  "), (b"authorization", b"Bearer "), (b"authorization", b"bearer")]
)
def test_an_empty_header_holds_no_token(access: Access, header: tuple[bytes, bytes]) -> None:
    """Programs send it for a variable that is not set. It counts as no failure, and a cookie or the other header still opens."""
    assert [status_of(access, scope(header)) for _ in range(2 * MOST_FAILURES)] == [401] * 2 * MOST_FAILURES
    assert status_of(access, scope(header, cookie_of(access))) == 200
    assert status_of(access, scope((b"x-api-key", TOKEN.encode()), (b"authorization", b"Bearer "))) == 200


def networks(*texts: str) -> list[Any]:
    return [ip_network(text) for text in texts]


PROXIES = networks("127.0.0.1", "10.1.0.0/16", "::1")


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["6.6.6.6, 203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["6.6.6.6", "203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["6.6.6.6, 203.0.113.7, 10.1.2.3"], "203.0.113.7"),
        ("::ffff:127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("::1", ["2001:db8::9"], "2001:db8::9"),
        ("127.0.0.1", ["[2001:db8::9]:4711"], "2001:db8::9"),
        ("127.0.0.1", ["203.0.113.7:4711"], "203.0.113.7"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["unknown"], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.7, _hidden"], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.7, "], "127.0.0.1"),
        ("127.0.0.1", ["10.1.0.5, 10.1.0.6"], "10.1.0.5"),
        ("192.168.1.77", ["203.0.113.7"], "192.168.1.77"),
        ("10.2.0.1", ["203.0.113.7"], "10.2.0.1"),
    ],
)
def test_a_client_is_the_last_address_that_a_trusted_proxy_did_not_add(peer: str, forwarded: list[str], address: str) -> None:
    headers = [(b"x-forwarded-for", one.encode()) for one in forwarded]
    assert peer_of(scope(*headers, client=(peer, 1)), PROXIES) == address
    assert peer_of(scope(*headers, client=(peer, 1))) == peer, "without a trusted proxy the header is nothing"


def test_one_client_of_a_trusted_proxy_does_not_lock_the_others_out(clock: Clock) -> None:
    access = Access(StoredToken.of(TOKEN), "key" * 20, throttle=Throttle(clock), clock=clock, proxies=PROXIES)

    def asked(token: str, client: str, invented: str = "") -> dict[str, Any]:
        return scope((b"x-api-key", token.encode()), (b"x-forwarded-for", f"{invented}{client}".encode()), client=("127.0.0.1", 1))

    wrong = [status_of(access, asked("wrong", "203.0.113.7", f"9.9.9.{number}, ")) for number in range(MOST_FAILURES + 1)]
    assert wrong == [401] * MOST_FAILURES + [429], "what a client puts in front does not give it another count"
    assert status_of(access, asked(TOKEN, "203.0.113.8")) == 200 and status_of(access, asked(TOKEN, "203.0.113.7")) == 429
    found = access.log_in(TOKEN, access.address_of(asked("", "203.0.113.7")))
    assert isinstance(found, Refusal) and found.status == 429, "the form counts the same client"


def test_proxies_are_named_by_address() -> None:
    found = read_environment({"SIMPLETUNER_TRUSTED_PROXIES": "127.0.0.1, 10.1.0.0/16"}).trusted_proxies
    assert list(found) == networks("127.0.0.1", "10.1.0.0/16")
    for text in ("localhost", "10.1.0.1/16", "127.0.0.1;::1", "*"):
        with pytest.raises(BadEnvironment, match="SIMPLETUNER_TRUSTED_PROXIES"):
            read_environment({"SIMPLETUNER_TRUSTED_PROXIES": text})
