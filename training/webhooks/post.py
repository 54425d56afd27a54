"""Sends one post to a checked address, with a time limit, without redirects and without reading the body of the answer."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from functools import cache

import httpx

from trainer_engine.config.webhooks import WebhookTarget
from training.webhooks.egress import Destination, EgressRefused, resolve
from training.webhooks.messages import Message

TIMEOUT_SECONDS = 5.0
"""Limit for the connection and for each wait for data."""
TOTAL_SECONDS = 20.0
"""Limit for the complete post, because a server could send one byte at a time."""
REFUSED_AS_IT_IS = frozenset((400, 405, 413, 415, 422))
"""HTTP statuses after which the same post would be refused again."""
DELIVERY_HEADER = "X-SimpleTuner-Delivery"


@dataclass(frozen=True)
class PostResult:
    """The result of a post."""

    arrived: bool
    reason: str = ""
    hopeless: bool = False
    """Whether a retry would fail too."""
    wait_seconds: float = 0.0
    """Pause that the target asked for (``Retry-After``)."""


def post(target: WebhookTarget, message: Message, delivery: str) -> PostResult:
    """Send a post. Failures of the target are results, not exceptions. Called in a thread without an event loop."""
    try:
        where = resolve(target.url)
        headers = {**message.headers, "Host": where.host_header, DELIVERY_HEADER: delivery, "User-Agent": "SimpleTuner"}
        headers |= {"Accept-Encoding": "identity"} | ({"Authorization": where.authorization} if where.authorization else {})
        return asyncio.run(asyncio.wait_for(_send(where, message.content, headers, verify=not target.ssl_no_verify), TOTAL_SECONDS))
    except EgressRefused as refusal:
        return PostResult(False, str(refusal))  # not hopeless: the name may resolve to another address later
    except (asyncio.TimeoutError, httpx.TimeoutException):
        return PostResult(False, "no answer in time")
    except (httpx.InvalidURL, httpx.LocalProtocolError):
        # Their messages repeat what was sent, tokens included.
        return PostResult(False, "its address or its headers cannot be sent", hopeless=True)
    except (httpx.HTTPError, OSError, UnicodeError) as error:
        return PostResult(False, str(error) or type(error).__name__)


@cache
def _context(verify: bool) -> ssl.SSLContext:
    """The TLS context, created once because it reads every root certificate."""
    return httpx.create_ssl_context(verify=verify, trust_env=False)


async def _send(where: Destination, content: bytes, headers: dict[str, str], *, verify: bool) -> PostResult:
    """Send to the first address that accepts a connection. Raises what httpx raises."""
    client = httpx.AsyncClient(verify=_context(verify), timeout=TIMEOUT_SECONDS, follow_redirects=False, trust_env=False)
    async with client:
        for address in where.addresses[:-1]:
            try:
                return await _send_to(client, where, address, content, headers)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await _send_to(client, where, where.addresses[-1], content, headers)


async def _send_to(client: httpx.AsyncClient, where: Destination, address: str, content: bytes, headers: dict[str, str]) -> PostResult:
    name = {"sni_hostname": where.host}  # whose certificate is asked for and checked
    async with client.stream("POST", where.url(address), content=content, headers=headers, extensions=name) as response:
        return _judge(response.status_code, response.headers.get("Retry-After", ""))


def _judge(code: int, retry_after: str) -> PostResult:
    if 200 <= code < 300:
        return PostResult(True)
    if 300 <= code < 400:
        return PostResult(False, f"it redirects (HTTP {code}), which is not followed")
    return PostResult(False, f"HTTP {code}", hopeless=code in REFUSED_AS_IT_IS, wait_seconds=_seconds(retry_after))


def _seconds(text: str) -> float:
    """The seconds of a ``Retry-After``; 0 for a date."""
    try:
        return max(0.0, float(text)) if len(text) < 10 else 0.0
    except ValueError:
        return 0.0
