"""``docs/command-line.md`` and ``docs/remote.md`` name commands, options and variables that exist, and all of them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import pytest

from simpletuner_site import cli, environment
from tests.helpers.live_server import REPOSITORY

PAGE = (REPOSITORY / "docs" / "command-line.md").read_text(encoding="utf-8")
REMOTE = (REPOSITORY / "docs" / "remote.md").read_text(encoding="utf-8")
OF_A_PERSON_WHO_KNOWS = {"server", "worker", "demo", "migrate", "completion"}
"""Commands that other pages explain."""

OF_OTHER_PROGRAMS = {"-m", "-c"}


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {
        name: one for action in parser._actions if isinstance(action, argparse._SubParsersAction) for name, one in action.choices.items()
    }


def commands(parser: argparse.ArgumentParser, before: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    found = subcommands(parser)
    for name, one in found.items():
        yield from commands(one, f"{before}{name} ")
    if not found:
        yield before.strip(), parser


def test_every_command_is_on_the_page() -> None:
    for name, _ in commands(cli.build_parser()):
        first = name.split()[0]
        if first in OF_A_PERSON_WHO_KNOWS:
            continue
        wanted = f"`{first}" if first in ("cache", "import") else f"`{name}"
        assert wanted in PAGE or first == "import", name


def test_every_variable_of_the_server_is_on_the_page() -> None:
    for name in re.findall(r"^``([A-Z_]+)``", environment.__doc__ or "", re.M):
        assert name in PAGE or name.replace("SIMPLETUNER", "…") in PAGE, name


@pytest.mark.parametrize("page", [PAGE, REMOTE], ids=["command-line", "remote"])
def test_every_option_on_the_pages_belongs_to_a_command(page: str) -> None:
    known = {name for _, parser in commands(cli.build_parser()) for action in parser._actions for name in action.option_strings}
    found = re.findall(r"simpletuner (?:[a-z]+ )+[^`\n#|]*", page)
    found += re.findall(r"`[^`\n]*`", page) if page == PAGE else []
    used = {option for line in found for option in re.findall(r"(?<![\w-])--?[a-z][\w-]*", line)}
    assert used and used - OF_OTHER_PROGRAMS <= known, used - known


def test_the_commands_of_the_pages_parse() -> None:
    lines = [line.partition("#")[0].replace("`", "").strip() for line in re.findall(r"^(?:[A-Z_]+=\S+ )*simpletuner .*$", REMOTE, re.M)]
    assert len(lines) >= 4
    for line in lines:
        words = line[line.index("simpletuner ") :].split()[1:]
        cli.build_parser().parse_args(words)


def test_exit_codes_of_the_page_are_those_of_the_engine() -> None:
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.M)} == {0, 1, 2, 10, 20}
