"""The connections of transfer processes are checked when they are made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checkpoint_folder import write_checkpoint
from tests.helpers.params import first_fast
from trainer_engine.config.publishing import PublishTarget
from trainer_engine.publishing.base import ProviderError
from trainer_engine.publishing.providers import open_provider
from trainer_engine.publishing.task import Task

LINK_LOCAL = "169.254.10.20"
STORES = [
    PublishTarget("s3", "trained", access_key="a", secret_key="SECRET", endpoint_url=f"http://{LINK_LOCAL}"),
    PublishTarget("azure_blob", "trained", account_url=f"http://{LINK_LOCAL}/?sig=SECRET"),
    PublishTarget("azure_blob", "trained", connection_string=f"AccountName=me;AccountKey=U0VDUkVU;BlobEndpoint=http://{LINK_LOCAL}/me"),
]
# A name that means this machine when it is looked at first, and another one ever after.
TRICKS = """
import runpy, socket, sys, time
real, asked = socket.getaddrinfo, []
def lookup(host, *rest, **named):
    if host != "moved.example":
        return real(host, *rest, **named)
    asked.append(host)
    return real("{first}" if len(asked) == 1 else "{address}", *rest, **named)
def connect(self, place):
    print("connects to", place[0], file=sys.stderr, flush=True)
    raise ConnectionRefusedError
socket.getaddrinfo, socket.socket.connect = lookup, connect
time.sleep = lambda seconds: None  # of the libraries, between their tries
runpy.run_module("trainer_engine.publishing", run_name="__main__")
"""


@pytest.mark.parametrize("target", STORES, ids=["s3", "azure", "azure by a string"])
def test_open_provider_refuses_a_closed_address(target: PublishTarget) -> None:
    with pytest.raises(ProviderError, match="never allowed") as refused:
        open_provider(target)
    assert refused.value.permanent


@pytest.mark.parametrize("address", first_fast([LINK_LOCAL, "::ffff:192.168.7.7", "10.1.2.3", "fd12::5", "100.64.0.9", "224.0.0.1"], 2))
@pytest.mark.parametrize("provider", ["s3", "azure_blob", "http"])
def test_host_that_resolves_to_a_closed_address_later_is_not_connected_to(tmp_path: Path, provider: str, address: str) -> None:
    url = "http://moved.example:9"
    fields: dict[str, Any] = {"endpoint_url": url, "access_key": "a", "secret_key": "b"}
    if provider == "azure_blob":
        fields = {"account_url": f"{url}/?sig=SECRET"}
    action = "fetch" if provider == "http" else "send"
    folder = write_checkpoint(tmp_path, 5)
    task = Task(action, PublishTarget(provider, "trained", **fields).as_dict(), str(folder), "run/checkpoint-5")
    outcome, tried = perform_elsewhere(task, TRICKS.replace("{address}", address).replace("{first}", "5.5.5.5"))
    assert outcome["trouble"], outcome
    assert address not in tried


def perform_elsewhere(task: Task, code: str, **environment: str) -> tuple[dict[str, Any], str]:
    """(outcome, what was connected to) of a task in a process whose names and connections are ours."""
    inherited = {**os.environ, **environment}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=inherited, **pipes) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(task.line())
        process.stdin.flush()
        outcome: dict[str, Any] = json.loads(process.stdout.read().splitlines()[-1])["outcome"]
        return outcome, process.stderr.read().decode()


def test_operator_setting_and_proxy_open_a_private_network(tmp_path: Path) -> None:
    fields = {"endpoint_url": "http://moved.example:9", "access_key": "a", "secret_key": "b"}
    task = Task("send", PublishTarget("s3", "trained", **fields).as_dict(), str(write_checkpoint(tmp_path, 5)), "run")  # type: ignore[arg-type]
    code = TRICKS.replace("{address}", "10.1.2.3").replace("{first}", "10.1.2.3")
    _, tried = perform_elsewhere(task, code, SIMPLETUNER_PRIVATE_WEBHOOKS="1")
    assert "connects to 10.1.2.3" in tried
    _, tried = perform_elsewhere(task, code.replace('"moved.example"', '"never.example"'), http_proxy="http://10.9.9.9:3128", no_proxy="")
    assert "10.9.9.9" in tried and "10.1.2.3" not in tried


def test_guard_checks_every_connection_of_the_process() -> None:
    """Also where a library was given an address by other means than ``socket.getaddrinfo``."""
    code = """
import socket
from trainer_engine.publishing.connect import ConnectionRule, Guard
Guard(ConnectionRule()).stand()
for place in (("10.1.2.3", 9), ("169.254.169.254", 80), ("192.168.1.1", 1)):
    for way in ("connect", "connect_ex"):
        try:
            getattr(socket.socket(), way)(place)
        except OSError as error:
            print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["ClosedAddress"] * 6, done.stderr
