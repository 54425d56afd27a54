"""A real S3 server of this machine, and one that refuses, or is slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "trained"
REFUSAL = b"<?xml version='1.0'?><Error><Code>InvalidAccessKeyId</Code><Message>no</Message></Error>"


@dataclass
class ObjectServer:
    """An S3 server with one bucket."""

    url: str
    client: Any

    def entry(self, **fields: Any) -> dict[str, Any]:
        """Of publishing_config."""
        keys = {"access_key": "testing-key", "secret_key": "testing-secret"}
        return {"provider": "s3", "bucket": BUCKET, "endpoint_url": self.url, "region": "us-east-1", **keys, **fields}

    def names(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return sorted(one["Key"] for one in found)

    def content(self, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return body

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def clear(self) -> None:
        for name in self.names():
            self.client.delete_object(Bucket=BUCKET, Key=name)


@contextmanager
def object_server() -> Iterator[ObjectServer]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    client.create_bucket(Bucket=BUCKET)
    try:
        yield ObjectServer(url, client)
    finally:
        server.stop()


@dataclass
class Stubborn:
    """An S3 server that knows nothing: it answers every request in the same way, after ``seconds``."""

    url: str = ""
    status: int = 403
    seconds: float = 0.0
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def stubborn_server(status: int = 403, seconds: float = 0.0) -> Iterator[Stubborn]:
    stubborn = Stubborn(status=status, seconds=seconds)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            stubborn.asked.append(f"{self.command} {self.path}")
            stubborn.headers.append(dict(self.headers))
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            time.sleep(stubborn.seconds)
            missing = stubborn.status == 200 and self.command == "HEAD"
            self.send_response(404 if missing else stubborn.status)
            content = REFUSAL if stubborn.status >= 400 and self.command != "HEAD" else b""
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", '"0"')
            self.end_headers()
            self.wfile.write(content)

        do_HEAD = do_GET = do_POST = do_PUT

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stubborn.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield stubborn
    finally:
        server.shutdown()
        server.server_close()
