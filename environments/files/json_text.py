"""Parses JSON from request bodies and hand-edited files, with one error type that names the position."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from trainer_engine.contract.files import DuplicateKey, unique_keys

DEEPEST = 64
"""Levels of nesting; configurations need four."""
MOST_VALUES = 100_000
"""Keys and values in one document; the largest configuration holds a few hundred."""


class BadJson(ValueError):
    """The text is not JSON that can be stored; the message says where and why."""


def parse_json(text: str | bytes) -> Any:
    """The value of the text. Raises BadJson, also for duplicate keys and for numbers, characters and depths that cannot be stored."""
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(decoded, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        raise BadJson(f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise BadJson(f"not valid JSON: byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise BadJson(f"nested deeper than {DEEPEST} levels") from None
    except DuplicateKey as error:
        raise BadJson(f"not usable JSON: {error}") from None
    except ValueError as error:
        raise BadJson(f"not valid JSON: {error}") from None
    check_value(value)
    return value


def _refuse_constant(word: str) -> NoReturn:
    raise BadJson(f"not valid JSON: {word} is not a number that can be stored")


def _finite(text: str) -> float:
    """Refuses a number such as 1e999, which would become infinity."""
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text[:40])


def check_value(value: Any) -> None:
    """Checks depth, size and characters without recursion, because the value may be nested as deep as a parser allows. Raises BadJson."""
    waiting: list[tuple[Any, int]] = [(value, 1)]
    seen = 0
    while waiting:
        item, depth = waiting.pop()
        seen += 1
        if seen > MOST_VALUES:
            raise BadJson(f"holds more than {MOST_VALUES} keys and values")
        if depth > DEEPEST:
            raise BadJson(f"nested deeper than {DEEPEST} levels")
        if isinstance(item, str) and any("\ud800" <= character <= "\udfff" for character in item):
            raise BadJson("half a surrogate pair is not text")
        if isinstance(item, dict):
            waiting.extend((key, depth) for key in item)
            waiting.extend((part, depth + 1) for part in item.values())
        elif isinstance(item, list):
            waiting.extend((part, depth + 1) for part in item)


def write_json(value: Any) -> str:
    """JSON as in files: indented, with a line end at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
