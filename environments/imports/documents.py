"""Parses the text of a foreign configuration: JSON, TOML or YAML. Nothing that the text names is opened."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from environments.files.json_text import BadJson, check_value, parse_json
from trainer_engine.config.plain_yaml import UnreadableYaml, parse_yaml
from trainer_engine.contract.errors import Problem

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST_BYTES = 1024 * 1024
LARGEST_TEXT_BYTES = 128 * 1024
"""Limit of YAML and TOML, whose parsers are slow; the largest configurations have 20 KiB."""
MOST_DOCUMENTS = 8
DEEPEST_BRACKETS = 64
LARGEST_NUMBER = 10**30
DOTTED_KEY = re.compile(rf"""(?<![\w-])(?:(?:"[^"\n]*"|'[^'\n]*'|[\w-]+)[ \t]*\.[ \t]*){{{DEEPEST_BRACKETS},}}""")
"""A key of TOML with too many parts: tomllib takes minutes for one with tens of thousands."""


class ImportRefused(Exception):
    """A document cannot be imported; ``problems`` holds everything that is wrong."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = problems


@dataclass(frozen=True)
class Document:
    """One parsed file."""

    name: str
    """The name of the file, or of the field that held its text."""
    value: Any


def parse_document(content: str | bytes, name: str) -> Document:
    """Parses by the suffix of the name, else by what the text looks like. Raises ImportRefused."""
    _check_size(content, LARGEST_BYTES, name)
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        raise refused(name, "not_text", f"{name} is not text: byte {error.start} is not UTF-8.") from None
    if "\0" in text:
        raise refused(name, "not_text", f"{name} is not text: it holds a zero byte.")
    kind = _kind(text, name)
    if kind != "JSON":
        _check_size(text, LARGEST_TEXT_BYTES, name)
    try:
        value = parse_json(text) if kind == "JSON" else _toml(text) if kind == "TOML" else _yaml(text)
        check_value(value)
        _check_plain(value)
    except (BadJson, UnreadableYaml) as error:
        raise refused(
            name, "unreadable_file", f"{name} is {error}." if str(error).startswith(("not", "nested")) else f"{name}: {error}."
        ) from None
    if not isinstance(value, (dict, list)):
        raise refused(name, "wrong_shape", f"{name} holds no settings, but one {type(value).__name__}.")
    return Document(name, value)


def _check_size(content: str | bytes, largest: int, name: str) -> None:
    if len(content) > largest:
        raise refused(name, "too_large", f"{name} is larger than {largest // 1024} KiB.")


def refused(option: str, code: str, message: str, **more: Any) -> ImportRefused:
    """The refusal for one problem."""
    return ImportRefused([Problem.error(option[:200], code, message, **more)])


def _kind(text: str, name: str) -> str:
    suffix = PurePath(name).suffix.lower()
    named = {".json": "JSON", ".toml": "TOML", ".yaml": "YAML", ".yml": "YAML"}.get(suffix)
    if named is not None:
        return named
    start = text.lstrip()
    if start.startswith("{") or (start.startswith("[") and not start.startswith("[[") and _is_json(text)):
        return "JSON"
    lines = [line.strip() for line in start.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    is_toml = bool(lines) and (lines[0].startswith("[") or "=" in lines[0].split(":", 1)[0])
    return "TOML" if is_toml else "YAML"


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except BadJson:
        return False
    return True


def _check_depth(text: str) -> None:
    """Parsers recurse once per bracket, so their number is limited before a parser reads the text. Raises BadJson."""
    depth = deepest = 0
    for character in text:
        depth = max(0, depth + (character in "[{") - (character in "]}"))
        deepest = max(deepest, depth)
    if deepest > DEEPEST_BRACKETS:
        raise BadJson(f"nested deeper than {DEEPEST_BRACKETS} levels")


def _check_plain(value: Any) -> None:
    """YAML writes a number of thousands of digits as ``1:1:1``, which Python refuses to show, and dates as keys. Raises BadJson."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, int) and abs(item) > LARGEST_NUMBER:
            raise BadJson("a number has more than 30 digits")
        if isinstance(item, dict) and not all(isinstance(key, (str, int, float, type(None))) for key in item):
            raise BadJson("a key is neither text nor a number")
        waiting.extend([*item.keys(), *item.values()] if isinstance(item, dict) else item if isinstance(item, list) else ())


def _yaml(text: str) -> Any:
    _check_depth(text)
    return parse_yaml(text)


def _toml(text: str) -> Any:
    _check_depth(text)
    if DOTTED_KEY.search(text):
        raise BadJson(f"nested deeper than {DEEPEST_BRACKETS} levels")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadJson(f"not valid TOML: {error}") from None
    except (RecursionError, ValueError):
        raise BadJson("not valid TOML: its text cannot be read") from None
