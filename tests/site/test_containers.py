"""Dockerfile and compose.yaml, as far as they can be checked without an engine: files, commands, variables and ports."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from environments.imports.documents import parse_document
from simpletuner_site import DEFAULT_PORT, cli, environment
from simpletuner_site.environment import read_environment
from tests.helpers.live_server import REPOSITORY


def parse_toml(text: str) -> Any:
    return parse_document(text.encode(), "pyproject.toml").value


HUB_VARIABLES = ("HF_TOKEN", "HF_HOME")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
    return document


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """(keyword, the rest) of every line of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n", " ", (REPOSITORY / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines]


def values(instructions: list[tuple[str, str]], keyword: str) -> list[str]:
    return [rest for name, rest in instructions if name == keyword]


def test_everything_that_the_image_copies_is_in_the_checkout(instructions: list[tuple[str, str]]) -> None:
    allowed = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [source for rest in values(instructions, "COPY") for source in rest.split()[:-1]]
    assert sorted(copied) == sorted(allowed), "what is not copied is not sent to the builder, and the other way round"
    for source in copied:
        assert (REPOSITORY / source).exists(), source
    declared = parse_toml((REPOSITORY / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in declared["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= set(copied) and set(declared["project"]["license-files"]) <= set(copied)


def test_no_state_and_no_secret_reaches_the_image() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*", "everything is left out that is not listed"
    assert not {"!config", "!state", "!.env", "!."} & set(lines)


def test_the_image_is_built_on_cuda_and_runs_without_root(instructions: list[tuple[str, str]]) -> None:
    arguments = dict(rest.split("=", 1) for rest in values(instructions, "ARG"))
    assert values(instructions, "FROM") == ["${CUDA_IMAGE}"] and arguments["CUDA_IMAGE"].startswith("nvidia/cuda:")
    extras = parse_toml((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(arguments["EXTRAS"].split(",")) <= set(extras)
    [user] = values(instructions, "USER")
    assert user != "root" and any(f"useradd --create-home --uid 10001 {user}" in rest for rest in values(instructions, "RUN"))
    names = [name for name, _ in instructions]
    assert names.index("USER") < names.index("CMD")


def test_the_commands_of_image_and_services_are_known(instructions: list[tuple[str, str]], compose: dict[str, Any]) -> None:
    [own] = values(instructions, "CMD")
    for command in (ast.literal_eval(own), *(service["command"] for service in compose["services"].values())):
        assert command[0] == "simpletuner"
        arguments = cli.build_parser().parse_args(command[1:])
        assert arguments.command in ("server", "worker")


def test_server_and_worker_share_image_home_and_processes(compose: dict[str, Any]) -> None:
    server, worker = compose["services"]["server"], compose["services"]["worker"]
    assert server["build"] == worker["build"] and server["volumes"] == worker["volumes"]
    assert (REPOSITORY / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    assert server["pid"] == "service:worker", "the server looks at the worker's processes and signals runs"
    assert {volume.partition(":")[0] for volume in server["volumes"]} <= set(compose["volumes"])
    assert "--no-worker" in server["command"] and worker["init"] is True
    for service in (server, worker):
        [device] = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]


def test_the_server_needs_a_token_and_listens_on_the_machine_alone(compose: dict[str, Any], instructions: list[tuple[str, str]]) -> None:
    server, worker = compose["services"]["server"], compose["services"]["worker"]
    assert ":?" in server["environment"]["SIMPLETUNER_TOKEN"], "compose ends with a sentence if there is no token"
    assert worker["environment"]["SIMPLETUNER_NEEDS_TOKEN"] == "1"
    assert "SIMPLETUNER_TOKEN" not in worker["environment"]
    [port] = server["ports"]
    address, outer, inner = port.split(":")
    exposed = values(instructions, "EXPOSE")
    assert (address, [inner]) == ("127.0.0.1", exposed) and inner in server["command"] and outer == str(DEFAULT_PORT)
    probe = compile(server["healthcheck"]["test"][-1], "healthcheck", "exec")
    assert "urllib" in probe.co_names[0] and f":{inner}/login" in server["healthcheck"]["test"][-1]


def test_every_variable_is_one_that_the_program_reads(compose: dict[str, Any], instructions: list[tuple[str, str]]) -> None:
    documented = environment.__doc__ or ""
    own = [word.partition("=")[0] for rest in values(instructions, "ENV") for word in shlex.split(rest)]
    given = [name for service in compose["services"].values() for name in service["environment"]] + own
    for name in given:
        assert name in HUB_VARIABLES or not name.startswith("SIMPLETUNER_") or f"``{name}``" in documented, name
    worker = {name: value for name, value in compose["services"]["worker"]["environment"].items() if "$" not in value}
    assert read_environment({**worker, "SIMPLETUNER_HOME": "/workspace"}).needs_token is True


def test_the_documents_name_these_files() -> None:
    text = Path(REPOSITORY / "docs" / "remote.md").read_text()
    assert "compose.yaml" in text and "SIMPLETUNER_TOKEN" in text and "docker compose up" in text
