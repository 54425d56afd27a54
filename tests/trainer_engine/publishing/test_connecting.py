"""Names that mean other machines by the time they are connected to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checkpoint_folder import write_checkpoint
from trainer_engine.contract.publishing import PublishTarget
from trainer_engine.publishing.base import StoreError
from trainer_engine.publishing.stores import open_store
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
    return real("127.0.0.1" if len(asked) == 1 else "{address}", *rest, **named)
def connect(self, place):
    print("connects to", place[0], file=sys.stderr, flush=True)
    raise ConnectionRefusedError
socket.getaddrinfo, socket.socket.connect = lookup, connect
time.sleep = lambda seconds: None  # of the libraries, between their tries
runpy.run_module("trainer_engine.publishing", run_name="__main__")
"""


@pytest.mark.parametrize("target", STORES, ids=["s3", "azure", "azure by a string"])
def test_closed_addresses_are_refused_as_soon_as_a_store_is_opened(target: PublishTarget) -> None:
    with pytest.raises(StoreError, match="never asked") as refused:
        open_store(target)
    assert refused.value.hopeless


@pytest.mark.parametrize("provider", ["s3", "azure_blob"])
def test_a_name_that_means_another_machine_later_is_not_connected_to(tmp_path: Path, provider: str) -> None:
    url = "http://moved.example:9"
    fields: dict[str, Any] = {"endpoint_url": url, "access_key": "a", "secret_key": "b"}
    if provider == "azure_blob":
        fields = {"account_url": f"{url}/?sig=SECRET"}
    task = Task("send", PublishTarget(provider, "trained", **fields).as_dict(), str(write_checkpoint(tmp_path, 5)), "run")
    code = TRICKS.replace("{address}", LINK_LOCAL)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(task.line())
        process.stdin.flush()
        outcome = json.loads(process.stdout.read().splitlines()[-1])["outcome"]
        tried = process.stderr.read().decode()
    assert outcome["trouble"], outcome
    assert LINK_LOCAL not in tried
