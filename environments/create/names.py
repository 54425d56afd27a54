"""Names of environments, and of what is named by the same rule; and the name for a run that starts without an environment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from trainer_engine.contract.errors import Problem

LONGEST = 64
PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
RESERVED = frozenset(
    ["active", "compatibility", "dataloader", "environments", "examples", "from-template"]
    + ["import", "lycoris", "templates", "validate", "webhooks"]
)
"""Words of addresses that take the place of ``{name}``."""
SCHEMA_PATTERN = rf"^(?!.*\.\.)(?!({'|'.join(sorted(RESERVED))})$)[A-Za-z0-9]([A-Za-z0-9._-]{{0,62}}[A-Za-z0-9_-])?$"
"""The rule of ``name_problem`` for the OpenAPI schema, in the words of JSON Schema."""
EXPECTED = "1 to 64 letters, digits, dots, dashes and underscores, beginning with a letter or digit"


def name_problem(name: object, option: str = "name", *, of: str = "an environment") -> Problem | None:
    """The problem with a name; None if it is valid. ``of`` says what it names, for the message."""
    if not isinstance(name, str):
        return Problem.error(option, "not_text", "The name is not text.", got=name, expected=EXPECTED)
    if not name:
        return Problem.error(option, "missing", "The name is empty.", expected=EXPECTED)
    if len(name) > LONGEST:
        return Problem.error(option, "too_long", f"The name has {len(name)} characters.", got=name, expected=EXPECTED)
    if not PATTERN.match(name) or ".." in name or name.endswith("."):
        return Problem.error(
            option, "invalid_name", f"{name!r} cannot be the name of {of}.", got=name, expected=EXPECTED, hint="no '..', no dot at the end"
        )
    if name.lower() in RESERVED:
        return Problem.error(
            option, "reserved_name", f"{name!r} is a word of the API.", got=name, expected=EXPECTED, hint="choose another name"
        )
    return None


def is_name(name: str) -> bool:
    """Whether an environment can have this name."""
    return name_problem(name) is None


FALLBACK = "run"
ROOM_FOR_NUMBER = 8


def name_for_run(values: Mapping[str, Any], taken: Iterable[str]) -> str:
    """The last part of ``output_dir`` as a name, with a number if it is taken."""
    names = {name.lower() for name in taken}
    last = PurePosixPath(str(values.get("output_dir", ""))).name
    base = re.sub(r"\.\.+", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", last)).lstrip("._-").rstrip(".")
    base = base[: LONGEST - ROOM_FOR_NUMBER].rstrip(".") or FALLBACK
    if not is_name(base):
        base = f"{FALLBACK}-{base}"
    name, number = base, 1
    while name.lower() in names:
        number += 1
        name = f"{base}-{number}"
    return name
