"""Prompt libraries of validations: a user's own file, and the built-in ones."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from trainer_engine.contract.errors import InvalidOptions, Problem, errors_in, shown
from trainer_engine.contract.files import read_document

OPTION = "user_prompt_library"
FOLDER = "prompt_libraries"
DEFAULT = "general"
"""The library that ``validation_prompt_library=true`` means."""
TEXT_KEYS = ("prompt", "caption", "tags")
STRENGTH = "adapter_strength"
OF_OTHER_MEDIA = ("lyrics", "bbox_entities", "bbox_keyframes")
"""Keys of the format that only audio, layout and video families use."""
STRONGEST = 10.0
MOST_PROMPTS = 1000
LONGEST_SHORTNAME_BYTES = 100
UNSAFE = re.compile(r"[\x00-\x1f\x7f/\\<>:\"|?*]")
PEM = "-----BEGIN "
CREDENTIAL = re.compile(
    r"(?:^|[^a-z0-9])(?:api)?(?:key|token|secret|password|passwd|pwd|credentials?|auth|cookie)(?:[^a-z0-9]?(?:id|key))?$"
)
"""Matches the end of a lower-case name that files of credentials use."""
EXPECTED = "a JSON object: shortname -> prompt, or -> {prompt, adapter_strength}"


@dataclass(frozen=True)
class LibraryPrompt:
    """One entry of a library."""

    shortname: str
    text: str
    adapter_strength: float | None = None
    """Strength of the trained adapter in its images; None means the strength in the options."""


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as a list of its members, including duplicate keys."""


def names_prompts(values: Mapping[str, Any]) -> bool:
    """Whether an option names prompts for validation images. ``values``: every option by its canonical name."""
    return bool(values["validation_prompt"] or values["user_prompt_library"]) or values["validation_prompt_library"] != "false"


def parse_prompt_library(text: str) -> tuple[list[LibraryPrompt], list[Problem]]:
    """Returns the prompts of a library in order, and every problem with it, including keys without effect."""
    try:
        found = read_document(text, _Pairs)
    except ValueError as error:
        reason = f"{error.msg} at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        return [], [Problem.error(OPTION, "invalid_json", f"The prompt library is not JSON: {reason}.", expected=EXPECTED)]
    if not isinstance(found, _Pairs):
        message = f"The prompt library holds {_kind(found)}, not an object."
        return [], [Problem.error(OPTION, "not_an_object", message, got=_kind(found), expected=EXPECTED)]
    if not found:
        return [], [Problem.error(OPTION, "empty", "The prompt library holds no prompt.", got="{}", expected=EXPECTED)]
    if len(found) > MOST_PROMPTS:
        message = f"The prompt library holds {len(found)} prompts, and every validation generates an image for each."
        return [], [Problem.error(OPTION, "too_many", message, got=len(found), expected=f"at most {MOST_PROMPTS}")]
    keys = [shortname for shortname, value in found if _is_credential(shortname, value)]
    if keys:
        message = f"This is not a prompt library: {', '.join(keys[:3])} looks like a password or a key."
        return [], [Problem.error(OPTION, "not_prompts", message, expected=EXPECTED)]
    problems = [problem for shortname, value in found for problem in _problems(shortname, value)]
    problems += same_file_names([shortname for shortname, _ in found])
    if errors_in(problems):
        return [], problems
    return [_entry(shortname, value) for shortname, value in found], problems


def _is_credential(shortname: str, value: object) -> bool:
    """Whether an entry looks like a credential. A file of credentials has the form of a library, and prompts are shown to people."""
    if not isinstance(value, str):
        return False
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", shortname[:LONGEST_SHORTNAME_BYTES]).lower()
    return PEM in value or (CREDENTIAL.search(words) is not None and re.fullmatch(r"\S{8,}", value) is not None)


def library_of(text: str | None) -> list[LibraryPrompt]:
    """Returns the prompts of a library that was checked before, or none for None or empty text. Raises InvalidOptions."""
    if not text:
        return []
    prompts, problems = parse_prompt_library(text)
    if errors_in(problems):
        raise InvalidOptions(errors_in(problems))
    return prompts


@cache
def built_in_library(name: str) -> tuple[LibraryPrompt, ...]:
    """Returns a built-in library by name. Raises FileNotFoundError if there is none."""
    text = resources.files(__package__).joinpath(FOLDER, f"{name}.json").read_text(encoding="utf-8")
    return tuple(library_of(text))


def file_name(shortname: str) -> str:
    """Returns the form of a shortname in the file names of its images."""
    return re.sub(r"\s+", "_", unicodedata.normalize("NFC", shortname).strip())


def same_file_names(shortnames: list[str]) -> list[Problem]:
    """Returns a problem for each shortname whose images would overwrite those of an earlier one, also on disks that ignore case."""
    first: dict[str, str] = {}
    problems = []
    for shortname in shortnames:
        made = file_name(shortname).casefold()
        if made not in first:
            first[made] = shortname
        else:
            message = f"The shortnames {first[made]!r} and {shortname!r} give the same file name: one's images would overwrite the other's."
            problems.append(Problem.error(OPTION, "same_file_name", message, got=shortname, expected="shortnames that differ"))
    return problems


def _problems(shortname: str, value: Any) -> Iterator[Problem]:
    name = f"{OPTION}.{shortname[:LONGEST_SHORTNAME_BYTES]}"
    yield from _shortname_problems(shortname)
    if isinstance(value, str):
        yield from _text_problems(name, {TEXT_KEYS[0]: value})
        return
    if not isinstance(value, _Pairs):
        yield Problem.error(name, "wrong_type", f"The prompt is {_kind(value)}.", got=_kind(value), expected="text, or an object")
        return
    keys = [key for key, _ in value]
    fields = dict(value)
    known = (*TEXT_KEYS, STRENGTH, *OF_OTHER_MEDIA)
    for key in dict.fromkeys(keys):
        if key not in known:
            yield Problem.error(name, "unknown_key", f"A prompt has no {key!r}.", got=key, expected=f"{', '.join(TEXT_KEYS)} or {STRENGTH}")
        elif key in OF_OTHER_MEDIA:
            yield Problem.note(name, "no_effect", f"{key} has no effect on images.", got=key)
        elif keys.count(key) > 1:
            yield Problem.error(name, "given_twice", f"{key} is given twice.", got=key, expected="one of them")
    yield from _text_problems(name, fields)
    yield from _strength_problems(name, fields)


def _text_problems(name: str, fields: Mapping[str, Any]) -> Iterator[Problem]:
    given = [key for key in TEXT_KEYS if key in fields]
    if not given:
        yield Problem.error(name, "missing_prompt", "The entry holds no prompt.", got=sorted(fields), expected="prompt: text")
    elif len(given) > 1:
        message = f"{' and '.join(given)} mean the same thing."
        yield Problem.error(name, "two_prompts", message, got=given, expected="one of them")
    elif not isinstance(fields[given[0]], str):
        kind = _kind(fields[given[0]])
        yield Problem.error(name, "wrong_type", f"{given[0]} is {kind}.", got=kind, expected="text")
    elif any("\ud800" <= character <= "\udfff" for character in fields[given[0]]):
        yield Problem.error(name, "not_text", f"{given[0]} contains half a surrogate pair.", expected="text")
    elif not fields[given[0]].strip():
        yield Problem.error(name, "empty_prompt", f"{given[0]} is empty.", got=fields[given[0]], expected="text")


def _strength_problems(name: str, fields: Mapping[str, Any]) -> Iterator[Problem]:
    strength = fields.get(STRENGTH)
    if STRENGTH not in fields:
        return
    if isinstance(strength, bool) or not isinstance(strength, (int, float)):
        yield Problem.error(name, "wrong_type", f"{STRENGTH} is {_kind(strength)}.", got=_kind(strength), expected="a number")
    elif not abs(strength) <= STRONGEST:
        expected = f"a number from -{STRONGEST:g} to {STRONGEST:g}"
        yield Problem.error(name, "out_of_range", f"{STRENGTH}={shown(strength)} is out of range.", got=strength, expected=expected)


def unsafe_reason(shortname: str) -> str:
    """Returns why a shortname cannot be part of a file name, or an empty string if it can."""
    made = file_name(shortname)
    reason = ""
    try:
        length = len(made.encode("utf-8"))
    except UnicodeEncodeError:
        length, reason = 0, "contains half a surrogate pair"
    if not made:
        reason = reason or "is empty"
    elif UNSAFE.search(made):
        reason = "contains characters that some file systems do not allow"
    elif made.startswith(".") or made.endswith("."):
        reason = "begins or ends with a dot"
    elif length > LONGEST_SHORTNAME_BYTES:
        reason = f"is longer than {LONGEST_SHORTNAME_BYTES} bytes"
    return reason


def _shortname_problems(shortname: str) -> Iterator[Problem]:
    reason = unsafe_reason(shortname)
    if reason:
        shown = shortname[:LONGEST_SHORTNAME_BYTES].encode("utf-8", "replace").decode()
        message = f"The shortname {shown!r} {reason}, and images are named after it."
        yield Problem.error(OPTION, "unsafe_shortname", message, got=shown, expected="letters, digits, spaces, dots, dashes, underscores")


def _entry(shortname: str, value: Any) -> LibraryPrompt:
    if isinstance(value, str):
        return LibraryPrompt(shortname, value)
    fields = dict(value)
    strength = fields.get(STRENGTH)
    text = next(fields[key] for key in TEXT_KEYS if key in fields)
    return LibraryPrompt(shortname, text, None if strength is None else float(strength))


def _kind(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, _Pairs):
        return "an object"
    return "a list" if isinstance(value, list) else "text" if isinstance(value, str) else "a number"
