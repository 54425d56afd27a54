"""Requests that the server and its runs would send for an attacker. Only inside a network of its own (see ``__main__``)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.helpers.receiver import receiving
from tests.helpers.served_runs import wait_until
from tests.security.names import METADATA, PRIVATE, REBINDING, is_isolated
from tests.security.target import Target, store_at

SECRET = "k3y-in-a-path"
PORT = 80


@contextmanager
def _inner_services() -> Iterator[list[str]]:
    """A metadata service and a private one; what came to them."""
    came: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            came.append(f"{self.command} {self.connection.getsockname()[0]} {self.path}")
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_PUT = do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            return

    servers = [ThreadingHTTPServer((address, PORT), Handler) for address in (METADATA, PRIVATE)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield came
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


ADDRESSES = (
    f"http://{METADATA}/x",
    f"http://{PRIVATE}/x",
    "http://2852039166/x",
    "http://0xa9fea9fe/x",
    "http://0251.0376.0251.0376/x",
    f"http://[::ffff:{METADATA}]/x",
    "http://[64:ff9b::a9fe:a9fe]/x",
    "http://[2002:a9fe:a9fe::]/x",
    "http://①⑥⑨.②⑤④.①⑥⑨.②⑤④/x",
    f"http://user:pw@{METADATA}/x",
    "http://metadata.test/x",
    "http://private.test/x",
    f"http://{REBINDING}/x",
)


def attack_inner_addresses(target: Target) -> list[str]:
    """Webhooks, stores and resume addresses that lead to metadata and private services, also by names that change their meaning."""
    if not is_isolated():
        return []
    with _inner_services() as came:
        for address in ADDRESSES:
            hook = json.dumps([{"webhook_type": "raw", "callback_url": address}])
            target.start_run("inner", webhook_config=hook, max_train_steps=1)
            target.put("/api/configs/webhooks/inner", json.loads(hook))
            target.post("/api/configs/webhooks/inner/test", json={})
            how: dict[str, Any] = {"publishing_config": store_at(address), "checkpoint_step_interval": 1}
            target.start_run("stored", max_train_steps=1, **how)
            target.start_run("fetched", resume_from_checkpoint=f"{address}/checkpoint-5", **how)
        return [f"{one} was reached" for one in dict.fromkeys(came)]


def attack_inner_addresses_of_datasets(target: Target) -> list[str]:
    """Buckets and files of datasets that lie at metadata and private services."""
    if not is_isolated():
        return []
    texts = {"id": "t", "dataset_type": "text_embeds", "cache_dir": str(target.place / "t")}
    rows = target.place / "inner.csv"
    rows.write_text("\n".join(["url,caption", *(f"{address}.png,a cat" for address in ADDRESSES)]))
    addresses = {"type": "csv", "csv_file": str(rows), "csv_cache_dir": str(target.place / "inner-files")}
    addresses |= {"caption_strategy": "csv", "csv_caption_column": "caption"}
    buckets = ({"type": "aws", "aws_bucket_name": "b", "aws_endpoint_url": address} for address in ADDRESSES)
    with _inner_services() as came:
        for number, place in enumerate((addresses, *buckets)):
            file = target.place / f"inner-{number}.json"
            file.write_text(json.dumps([{"id": "inner", "cache_dir_vae": str(target.place / "c"), **place}, texts]))
            target.start_run("inner", data_backend_config=str(file), max_train_steps=1)
        return [f"{one} was reached" for one in dict.fromkeys(came)]


def attack_addresses_of_webhooks(target: Target) -> list[str]:
    """A failing target is reported to the others, and their posts contain only the host of its address."""
    with receiving() as good, receiving() as bad:
        bad.behaviour = 500
        hooks = [
            {"webhook_type": "raw", "callback_url": good.url},
            {"webhook_type": "raw", "callback_url": f"{bad.url}/{SECRET}?key={SECRET}"},
            {"webhook_type": "template", "callback_url": f"{bad.url}/{SECRET}", "template": "{title}"},
        ]
        answer, job = target.start_run("told", webhook_config=json.dumps(hooks), max_train_steps=3)
        wait_until(
            lambda: any(b"webhook" in one.body and b"fail" in one.body for one in good.came) or len(good.came) > 8, "posts", seconds=60
        )
        job_id = answer.json()["job_id"]
        shown = [
            target.get(path).text
            for path in (
                f"/api/training/jobs/{job_id}",
                f"/api/training/events?job_id={job_id}",
                f"/api/training/jobs/{job_id}/webhooks",
                f"/api/training/jobs/{job_id}/log",
            )
        ]
        through = ["another target's post" for one in good.came if SECRET.encode() in one.body]
        through += ["an answer of the API" for text in shown if SECRET in text]
    return [f"a webhook's path stands in {where}" for where in dict.fromkeys(through)]


def attack_passwords_in_addresses(target: Target) -> list[str]:
    """Every option that takes an address, with a password in it."""
    through = []
    for option in (
        "pretrained_model_name_or_path",
        "pretrained_vae_model_name_or_path",
        "resume_from_checkpoint",
        "init_lora",
        "output_dir",
        "webhook_config",
    ):
        text = target.validate("password", **{option: f"http://me:{SECRET}@host.invalid/x"}).text
        if SECRET in text:
            through.append(f"{option} repeats a password")
    return through
