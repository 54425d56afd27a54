"""Reads checkpoints over HTTP or HTTPS. Checks each address before it connects, and follows no redirects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx

from trainer_engine.config.addresses import PORTS
from trainer_engine.config.publishing import PublishTarget
from trainer_engine.publishing.base import Moved, Provider, ProviderError
from trainer_engine.publishing.connect import CLOSED, ConnectionRule, address_of

PERMANENT = frozenset((400, 401, 403, 404, 405, 410))


class WebProvider(Provider):
    """Files below the URL ``endpoint_url``, read only."""

    def __init__(self, target: PublishTarget, rule: ConnectionRule = CLOSED) -> None:
        self.rule = rule
        self.base = target.endpoint_url.rstrip("/")

    def send(self, folder: Path, remote: str, moved: Moved) -> str:
        raise ProviderError("This address is read only.", permanent=True)

    def read(self, path: str, limit: int) -> bytes:
        with self._answer(path) as answer:
            content = b""
            for block in answer.iter_raw():
                content += block
                if len(content) > limit:
                    raise ProviderError(f"{path} is larger than {limit} bytes.", permanent=True)
            return content

    def fetch(self, path: str, target: Path, size: int, moved: Moved) -> None:
        with self._answer(path) as answer, target.open("wb") as stream:
            for block in answer.iter_raw():
                if stream.tell() + len(block) > size:
                    raise ProviderError(f"{path} has more than the {size} bytes that the manifest says.", permanent=True)
                stream.write(block)
                moved(len(block))

    @contextmanager
    def _answer(self, path: str) -> Iterator[httpx.Response]:
        parts = urlsplit(f"{self.base}/{quote(path)}")
        host = parts.hostname or ""
        port = parts.port or PORTS[parts.scheme]
        headers = {"Host": parts.netloc, "User-Agent": "SimpleTuner", "Accept-Encoding": "identity"}
        try:
            address = address_of(host, port, self.rule)
            shown = f"[{address}]" if ":" in address else address
            url = f"{parts.scheme}://{shown}:{port}{parts.path}"
            with (
                httpx.Client(timeout=60, follow_redirects=False, trust_env=False) as client,
                client.stream("GET", url, headers=headers, extensions={"sni_hostname": host}) as answer,
            ):
                if answer.status_code != httpx.codes.OK:
                    message = f"{host} answered HTTP {answer.status_code} for {path}."
                    hint = "redirects are not followed" if answer.is_redirect else "check the address"
                    raise ProviderError(message, hint=hint, permanent=answer.status_code in PERMANENT or answer.is_redirect)
                yield answer
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            raise ProviderError(f"{host} could not be read: {str(error) or type(error).__name__}", hint="check the address") from error
