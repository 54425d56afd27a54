"""Parses one value of an option. Forms send text and JSON sends types; both give the same typed value."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from trainer_engine.config.json_fields import WrongValue, folded, parse_bool
from trainer_engine.config.option import OptionSpec
from trainer_engine.config.secrets import hide
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.messages import Suggestions

LARGEST_WHOLE = 10**18
"""Limit of whole numbers, in text and in JSON, so that sums and products of them can still be converted to floats."""
UNSET_WORDS = frozenset({"", "none", "null"})


def parse_int(value: object) -> int:
    """Parses a whole number; 200.0 is one, True is not. Raises WrongValue."""
    if isinstance(value, bool):
        raise WrongValue("is a boolean, not a whole number", code="not_a_whole_number")
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}(\.0+)?", value.strip()):
        return int(float(value.strip())) if "." in value else int(value.strip())
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if not isinstance(value, int):
        raise WrongValue("is not a whole number", code="not_a_whole_number")
    if abs(value) >= LARGEST_WHOLE:
        raise WrongValue("is out of range", code="out_of_range", hint="whole numbers have at most 18 digits")
    return value


def parse_float(value: object) -> float:
    """Parses a finite number. Raises WrongValue."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value) if abs(value) < 1e300 else math.inf
    else:
        try:
            number = float(value) if isinstance(value, str) and "_" not in value else math.nan
        except ValueError:
            number = math.nan
    if not math.isfinite(number):
        raise WrongValue("is not a finite number", code="not_a_number")
    return number


def parse_text(value: object) -> str:
    """Parses text. Raises WrongValue for lists and objects, and for text that file systems or logs cannot hold."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise WrongValue(f"is {type(value).__name__}, not text", code="not_text")
    text = value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise WrongValue("contains characters that are not text", code="not_text")
    return text


def parse_mapping(value: object) -> dict[str, Any]:
    """Parses ``key=value,key=value`` or an object; numbers, true, false and none get their types. Raises WrongValue."""
    if isinstance(value, Mapping):
        pairs = [(str(key), item) for key, item in value.items()]
    else:
        parts = [part.strip() for part in parse_text(value).split(",") if part.strip()]
        if any("=" not in part for part in parts):
            raise WrongValue("is not a list of key=value", code="not_key_value", hint="write weight_decay=0.01,eps=1e-8")
        pairs = [(key.strip().lstrip("-"), item.strip()) for key, _, item in (part.partition("=") for part in parts)]
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise WrongValue(f"gives {twice[0][:100]} twice", code="conflicting_values", hint="give it once")
    return {key: _argument(item) for key, item in pairs}


def _argument(item: object) -> Any:
    if item is None or isinstance(item, bool):
        return item
    if isinstance(item, (int, float)):
        parse_float(item)
        return item
    text = parse_text(item)
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return parse_float(text)
    except WrongValue:
        return text


def parse_choice(spec: OptionSpec, value: object) -> str:
    """Parses a choice, ignoring case and the difference of ``_`` and ``-``.

    Raises WrongValue, with the code ``not_available`` for a choice of the format that is not implemented yet.
    """
    text = str(value).lower() if isinstance(value, bool) and "true" in spec.choices else parse_text(value).strip()
    known = {folded(choice): choice for choice in (*spec.choices, *spec.later, *spec.refused)}
    known.update({folded(word): choice for word, choice in spec.synonyms.items()})
    choice = known.get(folded(text))
    if choice in spec.choices:
        return str(choice)
    if choice in spec.later:
        raise WrongValue(f"is {choice}, which is not available yet", code="not_available", hint=f"available: {', '.join(spec.choices)}")
    if choice in spec.refused:
        raise WrongValue(f"is {choice}, which is not available", code="not_available", hint=spec.refused[str(choice)])
    raise WrongValue("is not one of the choices", code="not_a_choice", hint=Suggestions().nearest(text.lower(), spec.choices))


def parse_json_text(value: object) -> str:
    """Returns JSON text unchanged, and lists and objects as JSON text. Raises WrongValue."""
    if isinstance(value, (list, Mapping)):
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except ValueError as error:
            raise WrongValue(f"cannot be written as JSON: {error}", code="not_json") from error
    return parse_text(value).strip()


PARSERS = {"bool": parse_bool, "int": parse_int, "float": parse_float, "str": parse_text, "mapping": parse_mapping, "json": parse_json_text}


def _is_unset(spec: OptionSpec, value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, str):
        return False
    word = value.strip().lower()
    if spec.kind == "str" and not spec.choices:
        return spec.optional and word in UNSET_WORDS
    return word in UNSET_WORDS and word not in spec.synonyms and word not in spec.choices


def parse_value(spec: OptionSpec, value: object) -> Any:
    """Parses the value of an option. None, and an empty string for options that are not text, mean its default.

    Raises WrongValue.
    """
    if spec.kind in ("str", "int") and not spec.choices and not spec.optional:
        word = "null" if value is None else str(value).strip().lower()
        if word in spec.synonyms:
            return PARSERS[spec.kind](spec.synonyms[word])
        if value is None and not spec.required:
            return spec.default
    if _is_unset(spec, value):
        if spec.required:
            raise WrongValue("is empty", code="missing")
        return spec.default
    parsed = parse_choice(spec, value) if spec.choices else PARSERS[spec.kind](value)
    if spec.required and isinstance(parsed, str) and not parsed.strip():
        raise WrongValue("is empty", code="missing")
    _check_bounds(spec, parsed)
    return parsed


def _check_bounds(spec: OptionSpec, value: Any) -> None:
    outside = {
        "gt": lambda limit: value <= limit,
        "ge": lambda limit: value < limit,
        "lt": lambda limit: value >= limit,
        "le": lambda limit: value > limit,
    }
    for sign, limit in spec.bounds.items():
        if value is not None and outside[sign](limit):
            raise WrongValue("is out of range", code="out_of_range", hint=f"use {spec.expected}")


def shown_value(spec: OptionSpec | None, value: object) -> object:
    """Returns the value as problems may show it, with its secrets hidden."""
    return hide(spec, value) if spec is not None and spec.secret and value is not None else value


def problem_with(spec: OptionSpec, value: object, wrong: WrongValue) -> Problem:
    """Returns the problem of an option with a wrong value."""
    return Problem.error(
        spec.name, wrong.code, f"{spec.name} {wrong}.", got=shown_value(spec, value), expected=spec.expected, hint=wrong.hint
    )
