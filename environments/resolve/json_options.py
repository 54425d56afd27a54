"""Reads options that hold JSON or the path of a JSON file: prompt libraries, validation adapters, publishing targets. No Django."""

from __future__ import annotations

from environments.files.config_files import read_text
from environments.files.json_text import BadJson, parse_json
from environments.paths import Home, Kind, ResolvedPath, resolve
from trainer_engine.config.option import holds_json
from trainer_engine.config.publishing import OPTION, PublishTarget, parse_publishing, parse_publishing_text
from trainer_engine.contract.errors import Problem


def read_json_option(text: str, option: str, expected: str, home: Home) -> tuple[str, ResolvedPath | None] | Problem:
    """(JSON text, its file or None) of an option that holds JSON or a path. The content is checked with the options."""
    if holds_json(text):
        return text, None
    found = resolve(text, option, home=home, must_exist=True, kind=Kind.FILE)
    if isinstance(found, Problem):
        return found
    file = read_text(home, found.path)
    if file.text is None:
        message = f"{found.path} cannot be read: {file.trouble or 'it does not exist any more'}."
        return Problem.error(option, "unreadable_file", message, got=text, expected=expected)
    try:
        document = parse_json(file.text)
    except BadJson as error:
        return Problem.error(option, "invalid_json", f"{found.path}: {error}.", got=text, expected=expected)
    if not isinstance(document, (dict, list)):
        return Problem.error(option, "not_an_object", f"{found.path} holds no JSON object or list.", got=text, expected=expected)
    return file.text.strip(), found


def publishing_file(text: object, home: Home) -> ResolvedPath | Problem | None:
    """The file of ``publishing_config``; None if the option holds the targets themselves or nothing."""
    if not isinstance(text, str) or not text.strip() or holds_json(text):
        return None
    return resolve(text, OPTION, home=home, must_exist=True, kind=Kind.FILE)


def load_publishing(text: str, home: Home) -> tuple[list[PublishTarget], list[Problem]]:
    """The targets of ``publishing_config``: JSON, the path of a file, or nothing."""
    found = publishing_file(text, home)
    if found is None:
        return parse_publishing_text(text)
    if isinstance(found, Problem):
        return [], [found]
    file = read_text(home, found.path)
    expected = "a JSON file with a list of objects"
    if file.text is None:
        message = f"{found.path} cannot be used: {file.trouble or 'it is not there'}."
        return [], [Problem.error(OPTION, "unreadable_file", message, got=text, expected=expected)]
    try:
        return parse_publishing(parse_json(file.text))
    except BadJson as error:
        return [], [Problem.error(OPTION, "unreadable_file", f"{found.path} cannot be used: {error}.", got=text, expected=expected)]
