"""One post: to a checked address, without redirects, and without reading what the other end has to say."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from trainer_engine.contract.webhooks import WebhookTarget
from training.webhooks.egress import EgressRefused, resolve
from training.webhooks.messages import Message

TIMEOUT_SECONDS = 5.0
REFUSED_AS_IT_IS = frozenset((400, 405, 413, 415, 422))
"""The same post would be refused again."""
DELIVERY_HEADER = "X-SimpleTuner-Delivery"


@dataclass(frozen=True)
class Outcome:
    """What became of a post."""

    arrived: bool
    reason: str = ""
    hopeless: bool = False
    """Whether trying again is of no use."""


def post(target: WebhookTarget, message: Message, delivery: str) -> Outcome:
    """Never raises for what the other end does."""
    try:
        where = resolve(target.url)
        headers = {
            **message.headers,
            "Host": where.host_header,
            DELIVERY_HEADER: delivery,
            "User-Agent": "SimpleTuner",
            "Accept-Encoding": "identity",
        }
        with (
            httpx.Client(verify=not target.ssl_no_verify, timeout=TIMEOUT_SECONDS, follow_redirects=False, trust_env=False) as client,
            client.stream("POST", where.url, content=message.content, headers=headers, extensions={"sni_hostname": where.host}) as response,
        ):
            return _judge(response.status_code)
    except EgressRefused as refusal:
        return Outcome(False, str(refusal), hopeless=True)
    except httpx.TimeoutException:
        return Outcome(False, f"no answer within {TIMEOUT_SECONDS:g} s")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
        return Outcome(False, str(error) or type(error).__name__)


def _judge(code: int) -> Outcome:
    if 200 <= code < 300:
        return Outcome(True)
    if 300 <= code < 400:
        return Outcome(False, f"it redirects (HTTP {code}), which is not followed")
    return Outcome(False, f"HTTP {code}", hopeless=code in REFUSED_AS_IT_IS)
