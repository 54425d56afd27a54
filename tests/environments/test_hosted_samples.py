"""The clients of hosted services that ship, against stand-ins of those services."""

from __future__ import annotations

import importlib
import io
import json
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from environments.paths import SHIPPED_SCRIPTS

KEY = "r8_canary"
Answer = tuple[int, Any]


@dataclass
class StandIn:
    """Answers requests in turn; the last answer is given for ever."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    asked: list[tuple[str, str, Any, str]] = field(default_factory=list)
    """(method, path, body, Authorization)"""


def _handler(service: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            service.asked.append((self.command, self.path, body, self.headers.get("Authorization", "")))
            status, document = service.answers.pop(0) if len(service.answers) > 1 else service.answers[0]
            content = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", service.url + "/elsewhere")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer

        def log_message(self, *_: Any) -> None:
            return

    return Handler


@contextmanager
def standing_in(make: Callable[[str], list[Answer]]) -> Iterator[StandIn]:
    service = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(service))
    service.url = f"http://127.0.0.1:{server.server_address[1]}"
    service.answers = make(service.url)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()


def call_process(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """As a run would: with hardly any environment, from another folder."""
    patched = (
        "import runpy, sys; sys.path.insert(0, sys.argv[1]); import hosted_service as h; h.FIRST_PAUSE_SECONDS = 0.01; "
        "sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", patched, str(SHIPPED_SCRIPTS), str(SHIPPED_SCRIPTS / script), *arguments]
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60)


def call_here(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has loaded httpx already."""
    said, code = io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(said):
        for name in list(os.environ):
            patched.delenv(name)
        for name, value in variables.items():
            patched.setenv(name, value)
        patched.syspath_prepend(str(SHIPPED_SCRIPTS))
        patched.setattr(importlib.import_module("hosted_service"), "FIRST_PAUSE_SECONDS", 0.01)
        patched.setattr(sys, "argv", [str(SHIPPED_SCRIPTS / script), *arguments])
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return subprocess.CompletedProcess(arguments, code, said.getvalue(), "")


def call(script: str, *arguments: str, is_process: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    done = (call_process if is_process else call_here)(script, *arguments, **variables)
    assert KEY not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


def replicate(service: StandIn, *arguments: str, key: str = KEY, is_process: bool = False) -> subprocess.CompletedProcess[str]:
    variables = {"REPLICATE_BASE_URL": service.url, "REPLICATE_API_TOKEN": key}
    return call("replicate_post_upload.py", *arguments, is_process=is_process, **variables)


def wavespeed(service: StandIn, *arguments: str, is_process: bool = False) -> subprocess.CompletedProcess[str]:
    variables = {"WAVESPEED_BASE_URL": service.url, "WAVESPEED_API_KEY": KEY}
    return call("wavespeed_post_upload.py", *arguments, is_process=is_process, **variables)


CREATED = {"id": "p1", "status": "starting"}
ADAPTER = ("https://bucket/checkpoint-2", "flux", "lora", "standard", "owner/name")


def test_replicate_generates_with_the_upload_and_its_images_are_printed() -> None:
    def answers(url: str) -> list[Answer]:
        urls = {"get": f"{url}/v1/predictions/p1?by=url"}
        done = {**CREATED, "status": "succeeded", "output": ["https://images/1.png", "https://images/2.png"]}
        return [(201, {**CREATED, "urls": urls}), (200, {**CREATED, "status": "processing"}), (503, {}), (200, done)]

    with standing_in(answers) as service:
        done = replicate(
            service, *ADAPTER, "--prompt", "a stone; $(reboot)", "--input", "num_outputs=2", "--input", "go=fast", is_process=True
        )
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-2:] == ["image: https://images/1.png", "image: https://images/2.png"]
    method, path, body, authorization = service.asked[0]
    assert (method, path, authorization) == ("POST", "/v1/models/black-forest-labs/flux-dev-lora/predictions", f"Bearer {KEY}")
    assert body["input"] == {
        "prompt": "a stone; $(reboot)",
        "lora_weights": "https://bucket/checkpoint-2",
        "lora_scale": 1.0,
        "num_outputs": 2,
        "go": "fast",
    }
    assert [one[:2] for one in service.asked[1:]] == [("GET", "/v1/predictions/p1?by=url")] * 3


def test_replicates_key_goes_to_nobody_else(tmp_path: Path) -> None:
    def answers(url: str) -> list[Answer]:
        return [
            (201, {**CREATED, "urls": {"get": "http://127.0.0.1:9/v1/steal"}}),
            (200, {**CREATED, "status": "succeeded", "output": "x"}),
        ]

    with standing_in(answers) as service:
        done = replicate(service, "", "pixart_sigma", "lora", "standard", "owner/name", "--version", "abc")
        assert done.returncode == 0, done.stdout
        assert service.asked[0][2]["version"] == "abc"
        assert service.asked[0][2]["input"]["lora_weights"] == "owner/name"
        assert service.asked[1][:2] == ("GET", "/v1/predictions/p1")
        service.answers = [(302, {})]
        done = replicate(service, *ADAPTER)
        assert done.returncode == 1 and "302" in done.stdout
        assert len(service.asked) == 3


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, {"detail": "You did not pass a valid authentication token"}), "valid authentication token"),
        ((422, {"detail": "lora_weights: not found"}), "lora_weights: not found"),
        ((500, {}), "500"),
        ((200, b"<html>"), "not JSON"),
        ((200, []), "instead of an object"),
        ((201, {}), "named no prediction"),
    ],
)
def test_the_replicate_sample_reports_every_refusal(answer: Answer, said: str) -> None:
    with standing_in(lambda url: [answer]) as service:
        done = replicate(service, *ADAPTER)
    assert done.returncode == 1
    assert said in done.stdout
    assert len(service.asked) == 1, "what creates something is not sent twice"


def test_a_prediction_that_fails_or_takes_too_long_is_reported() -> None:
    with standing_in(lambda url: [(201, CREATED), (200, {**CREATED, "status": "failed", "error": "out of memory"})]) as service:
        done = replicate(service, *ADAPTER)
        assert done.returncode == 1 and "out of memory" in done.stdout
        service.answers = [(200, CREATED)]
        done = replicate(service, *ADAPTER, "--seconds", "0.1")
        assert done.returncode == 1 and "no result within 0.1 s" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("s3://bucket/x", "flux", "lora", "standard", ""), "no http address"),
        (("", "flux", "lora", "standard", ""), "neither remote_checkpoint_path nor huggingface_path"),
        (("https://x/y", "flux", "full", "", ""), "adapters only"),
        (("https://x/y", "pixart_sigma", "lora", "standard", ""), "--model"),
        ((*ADAPTER, "--input", "steps"), "NAME=VALUE"),
        ((*ADAPTER, "--token-file", "/nowhere/key"), "cannot be read"),
        ((*ADAPTER, "--token-file", "/etc/passwd"), "does not hold one key"),
    ],
)
def test_hosted_samples_refuse_bad_arguments_before_any_request(arguments: tuple[str, ...], said: str) -> None:
    with standing_in(lambda url: [(201, CREATED)]) as service:
        for client in (replicate, wavespeed):
            done = client(service, *arguments)
            assert done.returncode == 1 and said in done.stdout
    assert not service.asked


def test_the_key_comes_from_a_variable_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from_file\n")
    with standing_in(lambda url: [(401, {})]) as service:
        assert "REPLICATE_API_TOKEN in SIMPLETUNER_HOOKS_ENV" in replicate(service, *ADAPTER, key="").stdout
        replicate(service, *ADAPTER, "--token-file", str(tmp_path / "key"), key="")
    assert [one[3] for one in service.asked] == ["Bearer from_file"]


def test_wavespeed_generates_with_the_upload_and_is_waited_for() -> None:
    def wrapped(**data: Any) -> Answer:
        return 200, {"code": 200, "message": "success", "data": {"id": "t1", **data}}

    with standing_in(
        lambda url: [wrapped(status="created"), wrapped(status="processing"), wrapped(status="completed", outputs=["u"])]
    ) as service:
        done = wavespeed(service, *ADAPTER, "--strength", "0.5", "--input", 'size="512*512"', is_process=True)
        assert done.returncode == 0, done.stdout
        assert done.stdout.splitlines()[-1] == "image: u"
        assert service.asked[0][:2] == ("POST", "/api/v3/wavespeed-ai/flux-dev-lora")
        assert service.asked[0][2]["loras"] == [{"path": "https://bucket/checkpoint-2", "scale": 0.5}]
        assert service.asked[0][2]["size"] == "512*512"
        assert [one[1] for one in service.asked[1:]] == ["/api/v3/predictions/t1/result"] * 2
        service.answers = [wrapped(status="created"), wrapped(status="failed", error="bad weights")]
        assert "bad weights" in wavespeed(service, *ADAPTER).stdout
        service.answers = [wrapped(status="completed", outputs=[])]
        assert "no image" in wavespeed(service, *ADAPTER).stdout
        service.answers = [(200, {"code": 401, "message": "invalid key"})]
        assert "invalid key" in wavespeed(service, *ADAPTER).stdout


def test_a_service_that_cannot_be_reached_is_reported() -> None:
    done = replicate(StandIn(url="http://127.0.0.1:9"), *ADAPTER)
    assert done.returncode == 1 and "cannot be reached" in done.stdout
