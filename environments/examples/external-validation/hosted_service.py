"""What the clients of hosted services share: their arguments, their key, where the weights lie, and the wait for a result.

Lies beside the scripts, which find it because Python looks in their own folder first.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

ANSWER_SECONDS = 30.0
FIRST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 20.0
TRIES = 5
"""Of one request that the service answers with 429 or 5xx, or that does not reach it."""


class Trouble(Exception):
    """The script ends with an exit code that is not 0; the message says why and what to do. It never holds a key."""


@dataclass(frozen=True)
class Service:
    """A hosted service, and where its key comes from."""

    name: str
    address: str
    key_variable: str
    address_variable: str
    """Overrides ``address``: for a proxy, or a stand-in."""

    def client(self, key: str) -> httpx.Client:
        """Follows no redirects, so that the key goes nowhere else."""
        address = os.environ.get(self.address_variable) or self.address
        return httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=ANSWER_SECONDS)


def arguments_of(service: Service, description: str) -> argparse.ArgumentParser:
    """Parser of the five placeholders, each of which may be empty, and of further options."""
    parser = argparse.ArgumentParser(description=description)
    for name in ("remote_checkpoint_path", "model_family", "model_type", "lora_type", "huggingface_path"):
        parser.add_argument(name, nargs="?", default="", help=f"write {{{name}}}; may be empty")
    parser.add_argument("--model", default="", help="the service's model: owner/name (default: one that fits the family)")
    parser.add_argument("--prompt", default="a photograph of a lighthouse in a storm", help="prompt: write {validation_prompt}")
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=VALUE", help="a further input of the model; VALUE may be JSON"
    )
    parser.add_argument("--strength", type=float, default=1.0, help="how much of the adapter counts (default: 1)")
    parser.add_argument("--seconds", type=float, default=900.0, help="how long to wait for the result (default: 900)")
    help_text = f"file with the key alone (default: the variable {service.key_variable}, which the operator lists in SIMPLETUNER_HOOKS_ENV)"
    parser.add_argument("--token-file", type=Path, default=None, help=help_text)
    return parser


def key_of(service: Service, file: Path | None) -> str:
    """Raises Trouble where there is none."""
    if file is None:
        key = os.environ.get(service.key_variable, "").strip()
        if not key:
            hint = f"list {service.key_variable} in SIMPLETUNER_HOOKS_ENV where the server is started, or give --token-file"
            raise Trouble(f"there is no key for {service.name}: {hint}")
        return key
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Trouble(f"{file} cannot be read as the key's file") from error
    if not key.isprintable() or len(key.split()) != 1:
        raise Trouble(f"{file} does not hold one key and nothing else")
    return key


def weights_of(arguments: argparse.Namespace) -> str:
    """The address that the service loads the adapter from. Raises Trouble where nobody outside could load it."""
    if arguments.model_type == "full":
        raise Trouble("the run trains a whole model (model_type=full); hosted models load adapters only")
    if arguments.lora_type == "lycoris":
        say("the adapter is a LyCORIS one: most hosted models load standard LoRAs only")
    remote = str(arguments.remote_checkpoint_path)
    if urlsplit(remote).scheme in ("http", "https"):
        return remote
    if arguments.huggingface_path:
        return str(arguments.huggingface_path)
    if remote:
        raise Trouble(f"{remote} is no http address, and there is no huggingface_path: the service cannot load from it")
    raise Trouble("neither remote_checkpoint_path nor huggingface_path says where the adapter was uploaded to")


def inputs_of(pairs: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs; a value that is JSON gets its type. Raises Trouble."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name.strip():
            raise Trouble(f"--input {pair} is not NAME=VALUE")
        try:
            found[name.strip()] = json.loads(text)
        except ValueError:
            found[name.strip()] = text
    return found


def ask(client: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The service's answer. What may pass is tried again; a request that creates something is sent again only where it was refused.

    Raises Trouble.
    """
    pause = FIRST_PAUSE_SECONDS
    for attempt in range(1, TRIES + 1):
        try:
            answer = client.request(method, path, json=body)
        except httpx.ConnectError as error:
            reason, may_pass = f"it cannot be reached ({error})", True
        except httpx.TransportError as error:
            reason, may_pass = f"it did not answer ({type(error).__name__})", method == "GET"
        else:
            if answer.is_success:
                return _document(answer)
            reason = f"it answers {answer.status_code}: {_reason(answer)}"
            may_pass = answer.status_code == 429 or (answer.status_code >= 500 and method == "GET")
        if not may_pass or attempt == TRIES:
            raise Trouble(f"{method} {client.base_url.join(path).copy_with(query=None)}: {reason}")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    raise AssertionError("unreachable")


def _document(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError as error:
        raise Trouble(f"{answer.url.host} answers with something that is not JSON") from error
    if not isinstance(found, dict):
        raise Trouble(f"{answer.url.host} answers with a {type(found).__name__} instead of an object")
    return found


def _reason(answer: httpx.Response) -> str:
    """What the service says of its refusal, short."""
    try:
        document = answer.json()
        text = str(document.get("detail") or document.get("message") or document.get("title") or document)
    except (ValueError, AttributeError):
        text = answer.text
    return " ".join(text.split())[:300] or answer.reason_phrase


def own_address(client: httpx.Client, address: object, otherwise: str) -> str:
    """An address that an answer names, if it is the service's own; the key is sent nowhere else."""
    if isinstance(address, str) and httpx.URL(address).host == client.base_url.host and httpx.URL(address).port == client.base_url.port:
        return address
    return otherwise


def wait_for(look: Callable[[], dict[str, Any]], is_over: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
    """Poll with growing pauses until it is over. Raises Trouble after ``seconds``."""
    deadline, pause, printed = time.monotonic() + seconds, FIRST_PAUSE_SECONDS, ""
    while True:
        found = look()
        status = str(found.get("status"))
        if status != printed:
            say(f"status: {status}")
            printed = status
        if is_over(found):
            return found
        if time.monotonic() + pause > deadline:
            raise Trouble(f"no result within {seconds:g} s; the last status was {status}")
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_PAUSE_SECONDS)


def say(text: str) -> None:
    print(text, flush=True)


def run(main: Callable[[], None]) -> int:
    """The exit code: 0 done, 1 with a sentence that says why not."""
    try:
        main()
    except Trouble as trouble:
        say(f"error: {trouble}")
        return 1
    return 0


def end(main: Callable[[], None]) -> None:
    sys.exit(run(main))
