"""Files of options that hold JSON, read once: a run is started with what they held. No database, no Django."""

from __future__ import annotations

from environments.files.config_files import read_text
from environments.files.json_text import BadJson, parse_json
from environments.paths import Home, Kind, ResolvedPath, resolve
from trainer_engine.config.option import holds_json
from trainer_engine.contract.errors import Problem


def read_json_option(text: str, option: str, expected: str, home: Home) -> tuple[str, ResolvedPath | None] | Problem:
    """(contents, where they lie) of the JSON that the option's text names or is. What they say is checked with the options."""
    if holds_json(text):
        return text, None
    found = resolve(text, option, home=home, must_exist=True, kind=Kind.FILE)
    if isinstance(found, Problem):
        return found
    file = read_text(home, found.path)
    if file.text is None:
        message = f"{found.path} cannot be read: {file.trouble or 'it is not there any more'}."
        return Problem.error(option, "unreadable_file", message, got=text, expected=expected)
    try:
        document = parse_json(file.text)
    except BadJson as error:
        return Problem.error(option, "invalid_json", f"{found.path}: {error}.", got=text, expected=expected)
    if not isinstance(document, (dict, list)):
        return Problem.error(option, "not_an_object", f"{found.path} holds no object.", got=text, expected=expected)
    return file.text.strip(), found
